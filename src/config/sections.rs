//! The sections of the configuration, key by key: their names, what each reads as, and what is said of it. Defaults and
//! limits are those of the rooms that the settings are for.

use std::net::SocketAddr;
use std::time::Duration;

use super::reader::Reader;
use super::shown::shown_text;
use crate::bus::rabbitmq::RabbitMqSettings;
use crate::daemon::{ControlSettings, MetricsSettings, Settings};
use crate::keys::KeySettings;
use crate::node::{GROUP_NAME, NODE_NAME, NodeSettings, group_name, node_name};
use crate::proxies::ats::AtsSettings;
use crate::sessions::{Removals, SessionSettings};
use crate::settings::account_name;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Reads every section. A node is called `host` where it has no name.
pub(super) fn read(reader: &mut Reader, host: &str) -> Settings {
    let default = NodeSettings::new(host, "default", "default");
    let (name, farm, pod) = read_names(reader, &default);
    let max_clock_offset = reader.duration(
        "node.max_clock_offset",
        default.keys.max_clock_offset,
        KeySettings::MAX_CLOCK_OFFSET,
        MILLISECOND,
    );
    let start_alone_after = reader.duration(
        "node.start_alone_after",
        default.start_alone_after,
        NodeSettings::START_ALONE_AFTER,
        MILLISECOND,
    );
    let broker = read_broker(reader);
    let report_every =
        reader.duration("broker.report_every", default.report_every, NodeSettings::REPORT_EVERY, MILLISECOND);
    let secret_files = reader.paths("secret.files");
    let node = NodeSettings {
        name,
        farm,
        pod,
        keys: read_keys(reader, max_clock_offset),
        report_every,
        start_alone_after,
        can_lead: reader.flag("keys.can_lead", default.can_lead),
        ring_directory: Some(reader.path("keys.directory", "/run/resumed")),
        allow_disk: reader.flag("keys.allow_disk", default.allow_disk),
        sessions: read_sessions(reader),
    };
    let (ats, control, metrics) = (read_ats(reader), read_control(reader), read_metrics(reader));
    Settings { node, broker, passwords_in: None, secret_files, ats, control, metrics }
}

fn read_names(reader: &mut Reader, default: &NodeSettings) -> (String, String, String) {
    let host = &default.name;
    let accepted = format!("{NODE_NAME}, or \"\" for the host name");
    let name = reader.parsed(
        "node.name",
        host.clone(),
        &accepted,
        |text| if text.is_empty() { Ok(host.clone()) } else { node_name(text).map(|()| text.to_owned()) },
        |name| shown_text(name),
    );
    if reader.sound(&["node.name"])
        && let Err(reason) = node_name(&name)
    {
        reader.object("node.name", format!("the host name {reason}"), accepted);
    }
    let farm = reader.text("node.farm", &default.farm, GROUP_NAME, group_name);
    let pod = reader.text("node.pod", &default.pod, GROUP_NAME, group_name);
    (name, farm, pod)
}

fn read_broker(reader: &mut Reader) -> RabbitMqSettings {
    let default = RabbitMqSettings::default();
    RabbitMqSettings {
        uris: reader.uris("broker.uris"),
        ca_file: reader.optional_path("broker.ca_file"),
        cert_file: reader.optional_path("broker.cert_file"),
        key_file: reader.optional_path("broker.key_file"),
        password_file: reader.optional_path("broker.password_file"),
        heartbeat: reader.duration("broker.heartbeat", default.heartbeat, RabbitMqSettings::HEARTBEAT, SECOND),
        ..default
    }
}

fn read_keys(reader: &mut Reader, max_clock_offset: Duration) -> KeySettings {
    let default = KeySettings::default();
    let interval = reader.duration("keys.interval", default.interval, KeySettings::INTERVAL, MILLISECOND);
    KeySettings {
        interval,
        keep: reader.number("keys.keep", default.keep, KeySettings::KEEP),
        settle: reader.duration("keys.settle", default.settle, KeySettings::SETTLE, MILLISECOND),
        max_seal_age: reader.duration("keys.max_seal_age", 3 * interval, KeySettings::MAX_SEAL_AGE, MILLISECOND),
        max_clock_offset,
    }
}

fn read_sessions(reader: &mut Reader) -> SessionSettings {
    let default = SessionSettings::default();
    let replicate = reader.flag("sessions.replicate", default.replicate);
    let removals = reader.parsed(
        "sessions.removals",
        default.removals,
        "\"replicate\" or \"keep\"",
        |text| match text {
            "replicate" => Ok(Removals::Replicate),
            "keep" => Ok(Removals::Keep),
            _ => Err("is not known".into()),
        },
        |removals| match removals {
            Removals::Replicate => "replicate".into(),
            Removals::Keep => "keep".into(),
        },
    );
    let mut size = |key, default, range| reader.size(key, default, range);
    SessionSettings {
        replicate,
        removals,
        max_bytes: size("sessions.max_bytes", default.max_bytes, SessionSettings::MAX_BYTES),
        max_session_bytes: size(
            "sessions.max_session_bytes",
            default.max_session_bytes,
            SessionSettings::MAX_SESSION_BYTES,
        ),
        batch_bytes: size("sessions.batch_bytes", default.batch_bytes, SessionSettings::BATCH_BYTES),
    }
}

fn read_ats(reader: &mut Reader) -> AtsSettings {
    let default = AtsSettings::default();
    AtsSettings {
        socket: reader.socket("ats.socket", default.socket),
        users: reader.texts("ats.users", default.users, AtsSettings::USERS, account_name),
    }
}

fn read_control(reader: &mut Reader) -> ControlSettings {
    let default = ControlSettings::default();
    ControlSettings {
        socket: reader.socket("control.socket", default.socket),
        group: reader.parsed(
            "control.group",
            default.group,
            ControlSettings::GROUP,
            |text| if text.is_empty() { Ok(None) } else { account_name(text).map(|()| Some(text.to_owned())) },
            |group| group.clone().unwrap_or_else(|| "-".into()),
        ),
    }
}

fn read_metrics(reader: &mut Reader) -> MetricsSettings {
    let default = MetricsSettings::default();
    MetricsSettings {
        listen: reader.parsed(
            "metrics.listen",
            default.listen,
            "an IP address with a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"; or \"off\"",
            listen,
            |listen| listen.map_or("off".into(), |address| address.to_string()),
        ),
        page: reader.flag("metrics.page", default.page),
    }
}

fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "" | "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "is not an IP address with a port".into()),
    }
}
