//! The generated protobuf types: `proto/resumed/v1/farm.proto` and `session.proto` here, `local.proto` in [`local`].
//!
//! Types that carry key material or sessions have a `Debug` written by hand that omits it.
#![allow(missing_docs, reason = "generated; the comments stand in the .proto files")]

use std::fmt;

use bytes::Bytes;
use limits::{FLAT, Limit, Limits};

pub mod frame;
pub mod limits;

include!(concat!(env!("OUT_DIR"), "/resumed.v1.rs"));

/// Ticket keys in a ring that is read: four times [`Ring::CAP`](crate::keys::Ring::CAP).
pub(crate) const MOST_KEYS: usize = 256;
/// Ids of epoch keys or of farm secrets in a message that is read: a node sends 16 at most.
pub(crate) const MOST_IDS: usize = 64;
/// Proxies of one node in a message that is read: a node reports 16 at most, and a leader shows all of its own.
pub(crate) const MOST_PROXIES: usize = 128;
/// Warnings of all proxies of a node that it tells of: a leader refuses a report with more.
pub(crate) const MOST_WARNINGS_TOLD: usize = 16;
/// Bytes of these in all.
pub(crate) const MOST_WARNING_BYTES: usize = 2048;
/// Warnings of one proxy in a message that is read.
pub(crate) const MOST_WARNINGS: usize = 64;
/// Requests of operators that one node tells of in a message that is read: a node tells of 8.
pub(crate) const MOST_AUDIT_ENTRIES: usize = 32;
/// Sessions, removals or tombstones in a message that is read: twice
/// [`MAX_BATCH_ENTRIES`](crate::sessions::MAX_BATCH_ENTRIES).
pub(crate) const MOST_ENTRIES: usize = 65_536;
/// Members in a member table, and so in one part of it. More nodes than this are not kept: names come from authentic
/// messages, but memory stays bounded whatever happens.
pub(crate) const MOST_MEMBERS: usize = 20_000;

/// Sites in an announcement: more than any release tells of.
const MOST_SITES: usize = 64;

/// What an [`Envelope`] may hold: every field once.
pub(crate) static ENVELOPE: Limits = Limits(&[
    Limit::once(1, "version", &FLAT),
    Limit::once(2, "secret_id", &FLAT),
    Limit::once(3, "epoch", &FLAT),
    Limit::once(4, "salt", &FLAT),
    Limit::once(5, "sequence", &FLAT),
    Limit::once(6, "ciphertext", &FLAT),
]);

/// What a [`Payload`] may hold.
pub static PAYLOAD: Limits = Limits(&[
    Limit::once(10, "announcement", &ANNOUNCEMENT),
    Limit::once(11, "report", &REPORT),
    Limit::once(12, "farewell", &FLAT),
    Limit::once(13, "sessions", &Limits(&[Limit::repeated(1, "entries", MOST_ENTRIES, ENTRY_BYTES, &FLAT)])),
    Limit::once(14, "request", &REQUEST),
    Limit::once(15, "answer", &ANSWER),
    Limit::once(16, "join", &Limits(&[Limit::repeated(3, "epochs", MOST_IDS, ID_BYTES, &FLAT)])),
    Limit::once(17, "epoch_grant", &FLAT),
    Limit::once(20, "warmup_call", &FLAT),
    Limit::once(21, "warmup_offer", &FLAT),
    Limit::once(22, "warmup_request", &FLAT),
    Limit::once(23, "warmup", &WARMUP),
]);

/// What a [`Ring`] may hold.
pub static RING: Limits = Limits(&[Limit::repeated(2, "keys", MOST_KEYS, size_of::<TicketKey>(), &FLAT)]);

static ANNOUNCEMENT: Limits = Limits(&[
    Limit::once(1, "ring", &RING),
    Limit::repeated(40, "sites", MOST_SITES, size_of::<FederatedSite>(), &FLAT),
]);

static REPORT: Limits = Limits(&[
    Limit::once(7, "ring", &RING),
    Limit::repeated(8, "secret_ids", MOST_IDS, ID_BYTES, &FLAT),
    Limit::repeated(10, "proxies", MOST_PROXIES, size_of::<Proxy>(), &PROXY),
    Limit::once(30, "operators", &OPERATORS),
]);

static PROXY: Limits = Limits(&[Limit::repeated(4, "warnings", MOST_WARNINGS, size_of::<String>(), &FLAT)]);

static OPERATORS: Limits = Limits(&[
    Limit::once(1, "reload", &FLAT),
    Limit::repeated(2, "audit", MOST_AUDIT_ENTRIES, size_of::<AuditEntry>(), &FLAT),
]);

static REQUEST: Limits =
    Limits(&[Limit::once(10, "rotate", &FLAT), Limit::once(11, "status", &FLAT), Limit::once(12, "revoke", &FLAT)]);

static ANSWER: Limits =
    Limits(&[Limit::repeated(5, "members", MOST_MEMBERS, size_of::<Member>(), &MEMBER), Limit::once(6, "ring", &RING)]);

static MEMBER: Limits = Limits(&[
    Limit::repeated(9, "proxies", MOST_PROXIES, size_of::<Proxy>(), &PROXY),
    Limit::repeated(10, "secret_ids", MOST_IDS, ID_BYTES, &FLAT),
    Limit::once(30, "operators", &OPERATORS),
]);

static WARMUP: Limits = Limits(&[
    Limit::repeated(3, "tombstones", MOST_ENTRIES, size_of::<Tombstone>(), &FLAT),
    Limit::repeated(4, "entries", MOST_ENTRIES, ENTRY_BYTES, &FLAT),
]);

const ENTRY_BYTES: usize = size_of::<SessionEntry>();
const ID_BYTES: usize = size_of::<Vec<u8>>();

/// The node's own Unix sockets: plugin and control.
pub mod local {
    use std::fmt;

    use super::limits::{FLAT, Limit, Limits};
    use super::{ENTRY_BYTES, MOST_ENTRIES, MOST_IDS};

    include!(concat!(env!("OUT_DIR"), "/resumed.v1.local.rs"));

    /// Warnings in an introduction, or in new settings, that are read.
    const MOST_WARNINGS: usize = 1_024;
    /// Names in a progress report that is read: as many as fit into the longest status.
    const MOST_NAMES: usize = 100_000;

    /// What a [`FromProxy`] may hold.
    pub(crate) static FROM_PROXY: Limits = Limits(&[
        Limit::once(1, "hello", &Limits(&[Limit::repeated(6, "warnings", MOST_WARNINGS, size_of::<String>(), &FLAT)])),
        Limit::once(
            4,
            "settings",
            &Limits(&[Limit::repeated(2, "warnings", MOST_WARNINGS, size_of::<String>(), &FLAT)]),
        ),
        Limit::once(2, "sessions", &Limits(&[Limit::repeated(1, "entries", MOST_ENTRIES, ENTRY_BYTES, &FLAT)])),
        Limit::once(3, "counters", &FLAT),
    ]);

    /// What a [`ControlRequest`] may hold.
    pub static CONTROL_REQUEST: Limits = Limits(&[
        Limit::once(1, "status", &FLAT),
        Limit::once(2, "rotate", &FLAT),
        Limit::once(3, "revoke", &FLAT),
        Limit::once(10, "reload", &FLAT),
    ]);

    /// What a [`ControlReply`] may hold.
    pub static CONTROL_REPLY: Limits =
        Limits(&[Limit::once(3, "rotate", &PROGRESS), Limit::once(10, "reloaded", &RELOADED)]);

    static RELOADED: Limits = Limits(&[Limit::repeated(1, "secret_ids", MOST_IDS, size_of::<String>(), &FLAT)]);

    static PROGRESS: Limits = Limits(&[
        Limit::repeated(2, "have", MOST_NAMES, size_of::<String>(), &FLAT),
        Limit::repeated(3, "missing", MOST_NAMES, size_of::<String>(), &FLAT),
    ]);

    impl fmt::Debug for TimetableKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TimetableKey").field("seal_from", &self.seal_from).finish_non_exhaustive()
        }
    }
}

impl SessionEntry {
    /// The removal of the session `id`, as a proxy is told of it.
    #[must_use]
    pub(crate) fn removal(id: &[u8]) -> Self {
        Self { id: Bytes::copy_from_slice(id), session: Bytes::new(), at: 0 }
    }

    /// The same for a proxy: only nodes tell each other when it was reported.
    #[must_use]
    pub fn for_proxy(self) -> Self {
        Self { at: 0, ..self }
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionEntry").field("bytes", &self.session.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;

    use super::*;

    /// A field of a .proto file.
    struct Field {
        repeats: bool,
        kind: String,
        name: String,
        number: u32,
    }

    /// The fields of every message in the .proto file `text`.
    fn messages(text: &str) -> BTreeMap<String, Vec<Field>> {
        let mut messages = BTreeMap::new();
        for part in text.split("\nmessage ").skip(1) {
            let (name, body) = part.split_once(" {").expect("a message");
            let body = body.split("\n}").next().unwrap_or_default();
            let fields = body.lines().filter_map(|line| {
                let (declared, number) = line.split("//").next()?.split_once(';')?.0.split_once(" = ")?;
                let mut words = declared.split_whitespace().rev();
                let (name, kind) = (words.next()?.to_owned(), words.next()?.to_owned());
                Some(Field { repeats: words.next() == Some("repeated"), kind, name, number: number.parse().ok()? })
            });
            messages.insert(name.to_owned(), fields.collect());
        }
        messages
    }

    /// Every field of `message` that repeats or is a message has its limit, and so on inside.
    fn covers(limits: &Limits, message: &str, messages: &BTreeMap<String, Vec<Field>>) -> usize {
        let mut seen = 0;
        for field in &messages[message] {
            let limit = limits.limit_of(field.number);
            let inside = messages.contains_key(&field.kind);
            assert!(limit.is_some() || !(field.repeats || inside), "{message}.{} has no limit", field.name);
            let Some(limit) = limit else { continue };
            assert_eq!(limit.name, field.name, "{message}, field {}", field.number);
            assert!(field.repeats || limit.is_once(), "{message}.{} does not repeat", field.name);
            seen += 1;
            if inside {
                covers(limit.inside(), &field.kind, messages);
            }
        }
        assert_eq!(seen, limits.0.len(), "{message} has limits for fields that it has not");
        seen
    }

    #[test]
    fn every_field_that_repeats_has_a_limit() {
        let both = include_str!("../proto/resumed/v1/session.proto");
        let farm = messages(&[include_str!("../proto/resumed/v1/farm.proto"), both].concat());
        let local = messages(&[include_str!("../proto/resumed/v1/local.proto"), both].concat());
        assert_eq!(covers(&PAYLOAD, "Payload", &farm), 12);
        assert_eq!(covers(&RING, "Ring", &farm), 1);
        covers(&ENVELOPE, "Envelope", &farm);
        covers(&local::FROM_PROXY, "FromProxy", &local);
        covers(&local::CONTROL_REQUEST, "ControlRequest", &local);
        covers(&local::CONTROL_REPLY, "ControlReply", &local);
    }

    /// A node and a plugin of release 0.1.0 read and write these bytes, each under a message name of its own.
    #[test]
    fn a_session_has_the_same_bytes_between_nodes_and_on_a_proxys_socket() {
        let entry = SessionEntry { id: Bytes::from_static(b"id"), session: Bytes::from_static(b"der"), at: 300 };
        let encoded = b"\x0a\x02id\x12\x03der\x18\xac\x02";
        let in_list = [&[0x0a, encoded.len() as u8][..], encoded].concat();
        let batch = SessionBatch { entries: vec![entry.clone()], format: SessionFormat::OpensslDer.into() };
        assert_eq!(batch.encode_to_vec(), [&in_list[..], &[0x10, 1]].concat());
        assert_eq!(local::Sessions { entries: vec![entry.clone()] }.encode_to_vec(), in_list);
        let removal = local::Sessions { entries: vec![SessionEntry::removal(b"id")] };
        assert_eq!(removal.encode_to_vec(), b"\x0a\x04\x0a\x02id");
        assert_eq!(entry.for_proxy().encode_to_vec(), encoded[..encoded.len() - 3]);
    }

    /// `can_lead` and `leader`, which are true or left out; `sent_at`, `replicas` and `replica_bytes`, which are numbers.
    #[test]
    fn fields_that_the_release_before_alone_sends_are_passed_over_and_their_numbers_have_no_other_use() {
        fn with<M: Message + Default + PartialEq>(message: &M, field: u32) {
            let mut bytes = message.encode_to_vec();
            prost::encoding::encode_varint(u64::from(field << 3), &mut bytes);
            bytes.push(1);
            assert!(M::decode(&bytes[..]).expect("a field that is unknown") == *message, "field {field} is known");
        }
        with(&Report { pod: "p".into(), first: true, floor: 7, ..Report::default() }, 12);
        with(&Member { name: "a".into(), highest_generation: 9, ..Member::default() }, 11);
        with(&local::Timetable { floor: 7, alone: true, ..local::Timetable::default() }, 2);
        for field in [5, 6] {
            with(&local::Counters { queued: 3, own_keys: 1, ..local::Counters::default() }, field);
        }
    }

    #[test]
    fn what_a_node_sends_is_far_below_the_limits() {
        assert_eq!(MOST_KEYS, 4 * crate::keys::Ring::CAP);
        assert_eq!(MOST_ENTRIES, 2 * crate::sessions::MAX_BATCH_ENTRIES);
        // A part of a member table, and a full batch, leave room.
        for bytes in [MOST_MEMBERS * size_of::<Member>(), MOST_ENTRIES * ENTRY_BYTES] {
            assert!(bytes < limits::MOST_STRUCTURE_BYTES, "{bytes}");
        }
    }
}
