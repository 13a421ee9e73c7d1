//! A member table in as many messages as its length takes, and what it may take in memory.

use prost::Message;

use super::members::MOST_REPORT_BYTES;
use crate::envelope::is_node_name;
use crate::proto::{self, MOST_MEMBERS};
use crate::reason::Reason;

/// Encoded members in one answer, in bytes: a quarter of the longest envelope, one member beyond included.
const PART_BYTES: usize = 256 * 1024;

/// What protobuf puts before each member in a table: the field's tag, and a length.
const MEMBER_FRAME_BYTES: usize = 4;

/// No table has more parts.
const MOST_PARTS: u32 = 1024;

/// What the parts of one table may take in memory, as [`footprint`] counts, in bytes. What a leader keeps of reports fits,
/// and what it adds to each of 20,000 of them.
const MOST_TABLE_BYTES: usize = 32 * 1024 * 1024;
const _: () = assert!(MOST_REPORT_BYTES + MOST_MEMBERS * 384 <= MOST_TABLE_BYTES);

/// What all tables that have not come whole may take together, in bytes.
pub(super) const MOST_WAITING_BYTES: usize = 48 * 1024 * 1024;

/// Bytes that an allocation costs beside its content, about.
const ALLOCATION_BYTES: usize = 16;

/// A member table in as many answers as its length takes: one at least.
pub(super) fn in_parts(answer: proto::Answer, as_of: u64) -> Vec<proto::Answer> {
    let (members, answer) = {
        let mut answer = answer;
        (std::mem::take(&mut answer.members), proto::Answer { as_of, ..answer })
    };
    let mut parts = vec![answer.clone()];
    let mut bytes = 0;
    for member in members {
        if bytes >= PART_BYTES {
            parts.push(answer.clone());
            bytes = 0;
        }
        bytes += member.encoded_len() + MEMBER_FRAME_BYTES;
        parts.last_mut().expect("one at least").members.push(member);
    }
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    for (part, answer) in (0..).zip(&mut parts) {
        (answer.part, answer.parts) = (part, count);
    }
    parts
}

/// About what a member takes in memory, in bytes.
fn footprint(member: &proto::Member) -> usize {
    let proto::Member { name, boot_id, pod, version, proxies, secret_ids, operators, .. } = member;
    let words = name.len() + boot_id.len() + pod.len() + version.len() + 6 * ALLOCATION_BYTES;
    size_of::<proto::Member>() + words + lists_footprint(proxies, secret_ids, operators.as_deref())
}

/// About what a report takes in memory beside its ring, in bytes.
pub(super) fn report_footprint(report: &proto::Report) -> usize {
    let proto::Report { pod, version, inbox, proxies, secret_ids, operators, .. } = report;
    let words = pod.len() + version.len() + inbox.len() + 6 * ALLOCATION_BYTES;
    size_of::<proto::Report>() + words + lists_footprint(proxies, secret_ids, operators.as_deref())
}

fn lists_footprint(proxies: &[proto::Proxy], ids: &[Vec<u8>], trail: Option<&proto::OperatorTrail>) -> usize {
    let proxy = |proxy: &proto::Proxy| {
        let bytes = proxy.kind.len() + proxy.version.len() + proxy.certificate_digest.len();
        let warning = |warning: &String| size_of::<String>() + warning.len() + ALLOCATION_BYTES;
        let warnings = proxy.warnings.iter().map(warning).sum::<usize>();
        size_of::<proto::Proxy>() + bytes + 4 * ALLOCATION_BYTES + warnings
    };
    let id = |id: &Vec<u8>| size_of::<Vec<u8>>() + id.len() + ALLOCATION_BYTES;
    proxies.iter().map(proxy).sum::<usize>() + ids.iter().map(id).sum::<usize>() + trail.map_or(0, trail_footprint)
}

fn trail_footprint(trail: &proto::OperatorTrail) -> usize {
    let entry = |entry: &proto::AuditEntry| {
        size_of::<proto::AuditEntry>() + entry.node.len() + entry.user.len() + 2 * ALLOCATION_BYTES
    };
    let refused = trail.reload.as_ref().map_or(0, |reload| reload.refused.len());
    let own = size_of::<proto::OperatorTrail>() + refused + 3 * ALLOCATION_BYTES;
    own + trail.audit.iter().map(entry).sum::<usize>()
}

/// Takes out what would act on a terminal, or be much longer as JSON.
fn clean(member: &mut proto::Member) {
    let proxies = member.proxies.iter_mut();
    let proxies =
        proxies.flat_map(|proxy| [&mut proxy.kind, &mut proxy.version].into_iter().chain(&mut proxy.warnings));
    let (reload, audit) = match member.operators.as_deref_mut() {
        Some(trail) => (trail.reload.as_mut(), &mut trail.audit[..]),
        None => (None, &mut [][..]),
    };
    let asked = audit.iter_mut().flat_map(|entry| [&mut entry.node, &mut entry.user]);
    let refused = reload.map(|reload| &mut reload.refused);
    for word in [&mut member.pod, &mut member.version].into_iter().chain(proxies).chain(asked).chain(refused) {
        word.retain(|character| !character.is_control());
    }
}

/// A member table of which some parts have come.
#[derive(Debug, Default)]
pub(super) struct PartialTable {
    as_of: u64,
    members: Vec<proto::Member>,
    /// Of `members`.
    bytes: usize,
    next: u32,
}

/// What a part made of a table.
#[derive(Debug, PartialEq)]
pub(super) enum Added {
    /// There is more to come.
    Incomplete,
    /// It was the last one.
    Whole(Vec<proto::Member>),
    /// No leader sends it: the counted reason.
    Bad(Reason),
}

impl PartialTable {
    /// What it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in the next part, unless the table would take more than `room` bytes then; the whole table once it is there. A
    /// part of another table, or out of order, begins anew: the leader is asked again, and answers with a new table.
    pub(super) fn add(&mut self, answer: &mut proto::Answer, room: usize) -> Added {
        let mut members = std::mem::take(&mut answer.members);
        let parts = answer.parts.max(1);
        if answer.part == 0 {
            *self = Self { as_of: answer.as_of, next: 1, ..Self::default() };
        } else if answer.as_of == self.as_of && answer.part == self.next && parts <= MOST_PARTS {
            self.next += 1;
        } else {
            return Added::Incomplete;
        }
        let bytes = self.bytes + members.iter().map(footprint).sum::<usize>();
        if bytes > room.min(MOST_TABLE_BYTES) || self.members.len() + members.len() > MOST_MEMBERS {
            return Added::Bad(Reason::TooMany);
        }
        if !members.iter().all(|member| is_node_name(&member.name)) {
            return Added::Bad(Reason::BadAnswer);
        }
        members.iter_mut().for_each(clean);
        self.bytes = bytes;
        self.members.extend(members);
        if self.next == parts { Added::Whole(std::mem::take(self).members) } else { Added::Incomplete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(members: usize) -> proto::Answer {
        let member = |index| proto::Member {
            name: format!("proxy{index:05}.example.net"),
            boot_id: vec![7; 16],
            pod: "default".into(),
            ..proto::Member::default()
        };
        let members = (0..members).map(member).collect();
        proto::Answer { id: 5, leader: "a".into(), members, ..proto::Answer::default() }
    }

    fn whole_of(added: Added) -> Option<Vec<proto::Member>> {
        match added {
            Added::Whole(members) => Some(members),
            Added::Incomplete => None,
            Added::Bad(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn a_table_of_any_length_comes_whole_in_messages_that_fit() {
        for members in [0, 1, 300, 20_000] {
            let parts = in_parts(answer(members), 9);
            assert_eq!(parts.len() > 1, members == 20_000, "{} parts", parts.len());
            let mut table = PartialTable::default();
            let mut whole = None;
            for mut part in parts {
                assert!(whole.is_none(), "it was whole before its last part");
                assert!(part.encoded_len() < PART_BYTES + 1024 && part.id == 5 && part.leader == "a");
                whole = whole_of(table.add(&mut part, MOST_WAITING_BYTES));
            }
            assert_eq!(whole.expect("all parts have come"), answer(members).members);
        }
    }

    #[test]
    fn parts_of_two_tables_are_not_mixed() {
        let [first, second] = [8, 9].map(|as_of| in_parts(answer(20_000), as_of));
        let mut table = PartialTable::default();
        assert_eq!(table.add(&mut first[0].clone(), MOST_WAITING_BYTES), Added::Incomplete);
        for part in &second[1..] {
            let added = table.add(&mut part.clone(), MOST_WAITING_BYTES);
            assert_eq!(added, Added::Incomplete, "its first part is missing");
        }
        let add = |mut part| whole_of(table.add(&mut part, MOST_WAITING_BYTES));
        let whole = second.into_iter().filter_map(add).collect::<Vec<_>>();
        assert_eq!(whole, [answer(20_000).members]);
    }

    #[test]
    fn a_table_without_parts_is_that_of_a_release_that_knows_none() {
        let added = PartialTable::default().add(&mut answer(3), MOST_WAITING_BYTES);
        assert_eq!(added, Added::Whole(answer(3).members));
    }

    fn part(part: u32, members: Vec<proto::Member>) -> proto::Answer {
        proto::Answer { part, parts: 9, members, ..answer(0) }
    }

    #[test]
    fn a_table_has_as_many_members_as_a_farm_may_have_and_not_one_more() {
        let mut table = PartialTable::default();
        let mut add = |number, members| table.add(&mut part(number, answer(members).members), MOST_WAITING_BYTES);
        assert_eq!(add(0, 20_000), Added::Incomplete);
        assert_eq!(add(1, 0), Added::Incomplete);
        assert_eq!(add(2, 1), Added::Bad(Reason::TooMany));
    }

    #[test]
    fn a_table_has_as_many_bytes_as_it_may_take_and_not_one_more() {
        let mut members = answer(1_000).members;
        let spare = MOST_TABLE_BYTES - members.iter().map(footprint).sum::<usize>();
        members[7].pod.push_str(&"p".repeat(spare));
        let one_more = proto::Member { name: "a".into(), ..proto::Member::default() };
        let mut table = PartialTable::default();
        assert_eq!(table.add(&mut part(0, members.clone()), MOST_WAITING_BYTES), Added::Incomplete);
        assert_eq!(table.bytes(), MOST_TABLE_BYTES);
        assert_eq!(table.add(&mut part(1, vec![one_more]), MOST_WAITING_BYTES), Added::Bad(Reason::TooMany));
        members[7].pod.push('p');
        assert_eq!(PartialTable::default().add(&mut part(0, members), MOST_WAITING_BYTES), Added::Bad(Reason::TooMany));
        // Beside others there is less room.
        let few = answer(3).members;
        let bytes = few.iter().map(footprint).sum::<usize>();
        assert_eq!(PartialTable::default().add(&mut part(0, few.clone()), bytes), Added::Incomplete);
        assert_eq!(PartialTable::default().add(&mut part(0, few), bytes - 1), Added::Bad(Reason::TooMany));
    }

    #[test]
    fn names_that_no_node_has_are_refused_and_other_words_are_cleaned() {
        for name in ["", "a\u{1b}[2J", &"a".repeat(129)] {
            let members = vec![proto::Member { name: name.into(), ..proto::Member::default() }];
            assert_eq!(PartialTable::default().add(&mut part(0, members), 1 << 20), Added::Bad(Reason::BadAnswer));
        }
        let proxy = proto::Proxy {
            kind: "a\u{1}ts".into(),
            version: "9\n".into(),
            warnings: vec!["\u{7}w".into()],
            ..proto::Proxy::default()
        };
        let member = proto::Member {
            name: "a".into(),
            pod: "p\u{1b}[2J".into(),
            version: "\u{0}0".into(),
            proxies: vec![proxy],
            ..proto::Member::default()
        };
        let mut answer = proto::Answer { parts: 1, ..part(0, vec![member]) };
        let Added::Whole(members) = PartialTable::default().add(&mut answer, 1 << 20) else { panic!("not whole") };
        let proto::Member { pod, version, proxies, .. } = &members[0];
        assert_eq!((pod.as_str(), version.as_str()), ("p[2J", "0"));
        assert_eq!((proxies[0].kind.as_str(), proxies[0].version.as_str()), ("ats", "9"));
        assert_eq!(proxies[0].warnings, ["w"]);
    }
}
