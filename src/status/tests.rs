use super::*;

const NOW: u64 = 1_700_000_000_000;
const HOUR: u64 = 3_600_000;

fn key(name_prefix: &str, state: KeyState, seal_from: u64) -> KeyStatus {
    KeyStatus {
        name_prefix: name_prefix.into(),
        generation: seal_from,
        state,
        seal_from,
        seal_until: seal_from + 24 * HOUR,
        open_until: seal_from + 48 * HOUR,
    }
}

fn request(action: AuditAction, user: Option<&str>, outcome: AuditOutcome) -> AuditStatus {
    AuditStatus {
        at: NOW - 5_000,
        action,
        flush_sessions: true,
        node: "a".into(),
        user: user.map(str::to_owned),
        outcome,
        generation: 17,
    }
}

/// One node, every word in every place that has words of its own.
fn farm() -> FarmStatus {
    let proxy = ProxyStatus {
        kind: "ats".into(),
        version: "9.2.9".into(),
        certificate_digest: "0011223344556677".into(),
        warnings: vec!["tickets are off".into()],
    };
    let node = NodeStatus {
        name: "a".into(),
        boot_id: "0f".repeat(16),
        pod: "eu-1".into(),
        version: "0.2.0".into(),
        last_report_ms: 700,
        in_step: true,
        clock_offset_ms: -12,
        sessions: 1234,
        proxies: vec![proxy],
        secret_ids: vec!["00112233445566ff".into()],
        reload: ReloadStatus { state: ReloadState::Refused, at: NOW - 60_000, reason: Some("mode 0644".into()) },
    };
    FarmStatus {
        farm: "edge".into(),
        pod: "eu-1".into(),
        asked: "a".into(),
        leader: Some("b".into()),
        nodes: vec![node],
        secrets: SecretsStatus {
            sealing: vec!["00112233445566ff".into()],
            next_step: SecretStep::SealFirst,
            other: Some("ffeeddccbbaa9988".into()),
            safe: false,
            waiting_for: vec!["b".into()],
        },
        ring: RingStatus {
            fingerprint: "8899aabbccddeeff".into(),
            floor: 3,
            sessions_from: 5,
            keys: vec![
                key("01020304", KeyState::Next, NOW + 5 * HOUR),
                key("a1b2c3d4", KeyState::Active, NOW - 3 * HOUR),
                key("c1c2c3c4", KeyState::Previous, NOW - 11 * HOUR),
                key("e1e2e3e4", KeyState::Expired, NOW - 50 * HOUR),
            ],
        },
        broker: BrokerStatus { connected: true, uri: "amqp://resumed:***@192.0.2.9/".into() },
        audit: vec![
            request(AuditAction::Rotate, None, AuditOutcome::Pending),
            request(AuditAction::Rotate, Some("alice"), AuditOutcome::Refused),
            request(AuditAction::Revoke, Some("alice"), AuditOutcome::Done),
            request(AuditAction::RevokeLocal, Some("1000"), AuditOutcome::NoLeader),
            request(AuditAction::Unknown, None, AuditOutcome::Unknown),
        ],
        sites: vec![SiteStatus {
            name: "rabbit@ams".into(),
            leader: "c".into(),
            silent: true,
            silent_ms: 90_000,
            report_every_ms: 5_000,
        }],
        warnings: vec!["a and b name their certificates differently".into()],
    }
}

fn overview() -> PageStatus {
    let step = HistoryStep {
        ended_ms_ago: 1_200,
        ms: 5_000,
        published: 1,
        received: 2,
        inserted: 3,
        brought_back: 4,
        missed: 5,
        dropped: BTreeMap::from([("expired".into(), 6)]),
        refused: BTreeMap::from([("bad_tag".into(), 7)]),
    };
    PageStatus {
        status: farm(),
        now: NOW,
        verdict: Verdict { level: Level::Look, text: "There is a warning.".into() },
        counts: NodeCounts { total: 1, in_step: 1, listed: 1 },
        secret_step: Some("a step".into()),
        history: HistoryStatus { window_ms: 600_000, steps: vec![step, HistoryStep::default()] },
        refresh_ms: 2_000,
    }
}

/// Scripts rely on both: their keys, the order of these, and their words.
#[test]
fn the_documents_are_the_same_byte_for_byte() {
    let pretty = serde_json::to_string_pretty(&farm()).unwrap() + "\n";
    assert_eq!(pretty, include_str!("tests/status.json"));
    assert_eq!(serde_json::from_str::<FarmStatus>(&pretty).unwrap(), farm());
    let pretty = serde_json::to_string_pretty(&overview()).unwrap() + "\n";
    assert_eq!(pretty, include_str!("tests/farm.json"));
    assert_eq!(serde_json::from_str::<PageStatus>(&pretty).unwrap(), overview());
}

/// As release 0.1.0 prints it, which knows neither requests of operators nor other sites.
#[test]
fn a_status_of_the_first_release_is_read() {
    let mut expected = farm();
    (expected.audit, expected.sites) = (Vec::new(), Vec::new());
    let node = &mut expected.nodes[0];
    (node.version, node.reload) = ("0.1.0".into(), ReloadStatus::default());
    node.proxies[0].warnings.clear();
    assert_eq!(serde_json::from_str::<FarmStatus>(include_str!("tests/release_0_1_0.json")).unwrap(), expected);
}

#[test]
fn a_key_is_shown_with_the_word_that_counts_it() {
    let shown = |state: &KeyState| serde_json::to_value(state).unwrap();
    assert_eq!(KeyState::ALL.iter().map(shown).collect::<Vec<_>>(), KeyState::WORDS);
    assert_eq!(farm().ring.active().map(|key| &*key.name_prefix), Some("a1b2c3d4"));
}

#[test]
fn a_request_is_logged_in_the_words_that_status_has() {
    for AuditStatus { action, outcome, .. } in farm().audit {
        assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
    }
}

#[test]
fn a_request_that_a_later_release_knows_is_an_unknown_one() {
    assert_eq!(serde_json::from_str::<AuditAction>("\"reboot\"").unwrap(), AuditAction::Unknown);
    assert_eq!(serde_json::from_str::<AuditOutcome>("\"postponed\"").unwrap(), AuditOutcome::Unknown);
}

#[test]
fn a_node_without_a_broker_is_known_by_what_its_bus_calls_itself() {
    let alone = BrokerStatus { connected: true, uri: crate::bus::in_process::PEER.into() };
    assert!(alone.is_in_process() && !farm().broker.is_in_process());
}
