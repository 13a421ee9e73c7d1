//! What a member of the farm can make a node spend on one message: memory, counted by the allocator of this very program,
//! and time, beside what an honest message of the same length takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use resumed::internals::envelope::{EpochKey, Epochs, Opener, Sealer};
use resumed::internals::farm::{Action, Ask, Event, Farm, FarmSettings, Note, Reply};
use resumed::internals::keys::HeldRing;
use resumed::internals::proto::payload::Kind;
use resumed::internals::proto::{
    Announcement, Answer, AuditEntry, LastReload, Member, OperatorTrail, Outcome, Payload, Proxy, Ring, SessionBatch,
    SessionEntry, TicketKey,
};
use resumed::internals::reason::Reason;
use resumed::internals::routes::{Names, Via};
use resumed::{FarmSecret, KeySettings, Now, Secrets};
use resumed_decoders::counting::{held, peak};

/// What `work` held at its peak beyond what was held before, in bytes, and how long it took.
fn cost<T>(work: impl FnOnce() -> T) -> (T, usize, Duration) {
    let begun = Instant::now();
    let (done, bytes) = peak(work);
    (done, bytes, begun.elapsed())
}

const FARM: &str = "bounds";
const MIB: usize = 1 << 20;
const NOW: Now = Now { wall: 1_800_000_000_000, mono: 86_400_000 };

/// A node and a member of its farm that sends it what no node would.
struct Pair {
    names: Names,
    epochs: Arc<Epochs>,
    sealer: Sealer,
    opener: Opener,
    farm: Farm,
}

impl Pair {
    fn new() -> Self {
        let secrets = Secrets::new(vec![FarmSecret::from_bytes(&[7; 32]).expect("a secret")]).expect("one secret");
        let secrets = Arc::new(secrets);
        let mut epochs = Epochs::new(Duration::ZERO);
        epochs.lead_to(EpochKey::from_random(&[8; 32]).expect("an epoch key"), NOW);
        let epochs = Arc::new(epochs);
        let mut opener = Opener::new(Arc::clone(&secrets), FARM, Duration::from_secs(300));
        opener.set_epochs(Arc::clone(&epochs));
        let names = Names::new(FARM, "pod");
        let keys = KeySettings::default();
        let settings = FarmSettings {
            node: "honest".into(),
            boot_id: [1; 16],
            pod: "pod".into(),
            version: "0".into(),
            names: names.clone(),
            keys,
            report_every: Duration::from_secs(2),
            start_alone_after: Duration::from_secs(10),
            can_lead: true,
        };
        let mut drawn = 0_u8;
        let random = Box::new(move |bytes: &mut [u8]| {
            drawn = drawn.wrapping_add(1);
            bytes.fill(drawn);
        });
        let mut farm = Farm::new(settings, HeldRing::new(keys), random, NOW);
        drop(farm.handle(NOW, Event::Connected { inbox: names.inbox("honest", "1") }));
        Self { sealer: Sealer::new(secrets, FARM, [9; 16]), names, epochs, opener, farm }
    }

    /// Any bytes that are a payload's beginning, sealed for all in the epoch.
    fn seal(&mut self, kind: Kind) -> Bytes {
        let payload = Payload { node: "mallory".into(), boot_id: vec![2; 16], sent_at: NOW.wall, kind: Some(kind) };
        let route = self.names.keys.clone();
        self.sealer.seal(self.epochs.current(), &route, &payload).expect("sealed")
    }

    /// What the node does with it, and the reason if it is refused.
    fn take(&mut self, sealed: Bytes) -> (Vec<Action>, Option<Reason>) {
        match self.opener.open(&self.names.keys, sealed, NOW) {
            Ok(opened) => {
                let event = Event::Message { payload: Box::new(opened.payload), via: Via::Inbox };
                (self.farm.handle(NOW, event), None)
            }
            Err(refusal) => (Vec::new(), Some(refusal.reason())),
        }
    }
}

fn announcement(keys: usize) -> Kind {
    let ring = Ring { keys: vec![TicketKey::default(); keys], ..Ring::default() };
    Kind::Announcement(Announcement {
        ring: Some(ring),
        as_of: NOW.wall,
        fingerprint: vec![0; 8],
        ..Announcement::default()
    })
}

/// As many sessions as fit into a mebibyte.
fn honest() -> Kind {
    let entry = |n: u32| {
        let id = Bytes::copy_from_slice(&n.to_be_bytes().repeat(8));
        SessionEntry { id, session: Bytes::from(vec![3; 200]), at: NOW.wall }
    };
    Kind::Sessions(SessionBatch { entries: (0..4_200).map(entry).collect(), format: 1 })
}

#[test]
fn a_mebibyte_of_empty_ticket_keys_costs_little_memory_and_no_more_time_than_an_honest_message() {
    let mut pair = Pair::new();
    // Nine tenths of the longest envelope: what is left is for the header.
    let [honest, hostile] = [honest(), announcement(MIB * 9 / 20)].map(|kind| pair.seal(kind));
    // The best of a few: the machine may be busy.
    let again: Vec<Bytes> = (0..5).map(|_| pair.seal(announcement(MIB * 9 / 20))).collect();
    let best = again.into_iter().map(|message| cost(|| pair.take(message)).2).min().expect("five");
    let most = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 5 });
    assert!(best < most, "{best:?}");
    assert!(
        honest.len() > MIB * 9 / 10 && hostile.len() > MIB * 9 / 10 - 1024,
        "{} and {}",
        honest.len(),
        hostile.len()
    );
    let (_, _, honest_took) = cost(|| pair.take(honest));
    let ((actions, refused), bytes, took) = cost(|| pair.take(hostile));
    println!("{} actions, {bytes} bytes, {took:?}; an honest message {honest_took:?}", actions.len());
    assert!(actions.len() < 100, "{} actions", actions.len());
    assert_eq!(refused, Some(Reason::TooMany));
    assert!(bytes < 4 * MIB, "{bytes} bytes");
    assert!(took < 5 * honest_took + Duration::from_millis(50), "{took:?}, an honest message {honest_took:?}");
}

#[test]
fn a_ring_of_as_many_bad_keys_as_are_read_is_a_few_notes_with_their_counts() {
    let mut pair = Pair::new();
    let full = pair.seal(announcement(256));
    let (actions, refused) = pair.take(full);
    let notes: Vec<String> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Note(note @ Note::BadKey { .. }) => Some(note.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!((refused, notes.len()), (None, 1), "{notes:?}");
    assert!(notes[0].contains("256") && notes[0].contains("mallory"), "{notes:?}");
    let over = pair.seal(announcement(257));
    assert_eq!(pair.take(over).1, Some(Reason::TooMany));
}

/// Asks the farm for its status; the id that the answer must have.
fn ask(farm: &mut Farm, id: u64) {
    // Known to the node: with no epoch key it asks nothing.
    drop(farm.handle(NOW, Event::Ask { id, ask: Ask::Status, user: String::new() }));
}

fn part(id: u64, part: u32, members: Vec<Member>) -> Kind {
    Kind::Answer(Answer {
        id,
        outcome: Outcome::Done.into(),
        leader: "mallory".into(),
        members,
        part,
        parts: 1024,
        as_of: 9,
        ..Answer::default()
    })
}

/// Feeds `parts` to a node that has asked until it has had enough: bytes held at the peak, reasons of refusals, replies.
fn answered(parts: impl Iterator<Item = Vec<Member>>) -> (usize, Vec<Reason>, Vec<Reply>) {
    let mut pair = Pair::new();
    ask(&mut pair.farm, 5);
    let (mut reasons, mut replies) = (Vec::new(), Vec::new());
    let (mut most, before) = (0, held());
    for (number, members) in (0..).zip(parts) {
        let sealed = pair.seal(part(5, number, members));
        let held = usize::try_from(held() - before).unwrap_or(0) - sealed.len();
        let ((actions, refused), bytes, _) = cost(|| pair.take(sealed));
        most = most.max(held + bytes);
        reasons.extend(refused);
        for action in actions {
            match action {
                Action::Note(Note::Refused { reason, .. }) => reasons.push(reason),
                Action::Reply { reply, .. } => replies.push(reply),
                _ => {}
            }
        }
        // Dropped: what still comes for it is not looked at.
        if !reasons.is_empty() {
            break;
        }
    }
    (most, reasons, replies)
}

#[test]
fn an_answer_to_status_of_any_parts_takes_less_than_64_mib() {
    let empty = |_| vec![Member::default(); MIB / 2 - 100];
    let (most, reasons, replies) = answered((0..20).map(empty));
    println!("empty members: {most} bytes, {reasons:?}, {} replies", replies.len());
    assert!(most < 64 * MIB, "{most} bytes");
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == Reason::TooMany), "{reasons:?}");

    // As many as one part may have, each as small as a node's can be: few parts are a table too many.
    let small = |_| vec![Member { name: "a".into(), boot_id: vec![1; 16], ..Member::default() }; 20_000];
    let (most, reasons, replies) = answered((0..20).map(small));
    println!("small members: {most} bytes, {reasons:?}, {} replies", replies.len());
    assert!(most < 64 * MIB, "{most} bytes");
    assert_eq!((reasons, replies.len()), (vec![Reason::TooMany], 1));

    // Few members, long words and empty proxies: as many as are decoded at all (`limits::MOST_STRUCTURE_BYTES`).
    let proxies = |_| {
        let member = Member {
            name: "a".into(),
            boot_id: vec![1; 16],
            pod: "p".repeat(256),
            proxies: vec![Proxy::default(); 96],
            ..Member::default()
        };
        vec![member; 800]
    };
    let (most, reasons, replies) = answered((0..60).map(proxies));
    println!("empty proxies: {most} bytes, {reasons:?}, {} replies", replies.len());
    assert!(most < 64 * MIB, "{most} bytes");
    assert_eq!((reasons, replies.len()), (vec![Reason::TooMany], 1));
}

#[test]
fn the_status_of_the_largest_farm_comes_whole() {
    let mut pair = Pair::new();
    ask(&mut pair.farm, 5);
    let member = |n: usize| Member {
        name: format!("proxy{n:05}.example.net"),
        boot_id: vec![1; 16],
        pod: "default".into(),
        version: "0.2.0".into(),
        proxies: vec![Proxy {
            kind: "ats".into(),
            version: "9.2.9".into(),
            certificate_digest: vec![2; 8],
            ..Proxy::default()
        }],
        secret_ids: vec![vec![3; 8]; 2],
        operators: Some(Box::new(OperatorTrail {
            reload: Some(LastReload::default()),
            audit: vec![AuditEntry { node: "a".into(), user: "alice".into(), ..AuditEntry::default() }; 2],
        })),
        ..Member::default()
    };
    let members: Vec<Member> = (0..20_000).map(member).collect();
    let answers: Vec<Vec<Member>> = members.chunks(2_000).map(<[Member]>::to_vec).collect();
    let mut whole = None;
    for (number, members) in (0..).zip(answers) {
        let Kind::Answer(answer) = part(5, number, members) else { unreachable!() };
        let sealed = pair.seal(Kind::Answer(Answer { parts: 10, ..answer }));
        let (actions, refused) = pair.take(sealed);
        assert_eq!(refused, None);
        whole = whole.or(actions.into_iter().find_map(|action| match action {
            Action::Reply { reply: Reply::Members { members, .. }, .. } => Some(members),
            _ => None,
        }));
    }
    assert!(whole.expect("the whole table") == members);
}

#[test]
fn an_honest_batch_of_the_longest_length_is_taken() {
    let mut pair = Pair::new();
    let kind = honest();
    assert!(Payload { kind: Some(kind.clone()), ..Payload::default() }.encoded_len() > MIB * 9 / 10);
    let sealed = pair.seal(kind);
    assert_eq!(pair.take(sealed).1, None);
}
