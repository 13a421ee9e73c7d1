//! What an operator asks of the farm through any node, and the answers.

use prost::Message;

use crate::proto;

/// An operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Mint a key that seals `settle` from now.
    Rotate,
    /// Mint a key that seals at once, and put every older one out of use.
    Revoke {
        /// Also flush the session-ID sessions created until now.
        flush_sessions: bool,
    },
    /// The same in this node's own ring, without a leader: for a host that is cut off. It spreads with the ring.
    RevokeLocal {
        /// Also flush the session-ID sessions created until now.
        flush_sessions: bool,
    },
    /// The member table.
    Status,
}

impl Ask {
    /// As a request to the leader; `None` for what needs none.
    pub(super) fn to_proto(self) -> Option<proto::request::Kind> {
        match self {
            Self::Rotate => Some(proto::request::Kind::Rotate(proto::Rotate {})),
            Self::Revoke { flush_sessions } => Some(proto::request::Kind::Revoke(proto::Revoke { flush_sessions })),
            Self::RevokeLocal { .. } => None,
            Self::Status => Some(proto::request::Kind::Status(proto::StatusRequest {})),
        }
    }

    pub(super) fn of(kind: &proto::request::Kind) -> Self {
        match kind {
            proto::request::Kind::Rotate(_) => Self::Rotate,
            proto::request::Kind::Revoke(revoke) => Self::Revoke { flush_sessions: revoke.flush_sessions },
            proto::request::Kind::Status(_) => Self::Status,
        }
    }
}

/// What became of an [`Ask`].
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The leader minted this generation; `pending`: an earlier rotation had, and is not over.
    Rotating {
        /// The generation of the key that will seal next.
        generation: u64,
        /// Whether the key is that of an earlier request.
        pending: bool,
    },
    /// Every key below the floor is out of use, at whoever did it.
    Revoked {
        /// The floor: the generation of the one key that is left.
        floor: u64,
        /// Sessions created before it are flushed, UTC milliseconds; 0: none are.
        sessions_from: u64,
    },
    /// The member table, with the leader's name.
    Members {
        /// Who leads.
        leader: String,
        /// Every node that the leader knows.
        members: Vec<proto::Member>,
    },
    /// The leader cannot do this.
    Refused {
        /// Who refused.
        leader: String,
    },
    /// Nobody leads, or the leader did not answer in time.
    NoLeader,
}

/// An [`Ask`] that waits for the leader's answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) ask: Ask,
    /// Who asked, at this node.
    pub(super) user: String,
    /// The highest generation when it was asked, or when the leader last said that it was stale. Not that of now: what
    /// an earlier try did must not make a later one look like another request.
    pub(super) known: u64,
    /// Monotonic milliseconds.
    pub(super) give_up_at: u64,
    /// When to ask again: the first request may have met no leader.
    pub(super) retry_at: u64,
    /// The parts of the member table that have come.
    pub(super) table: PartialTable,
}

/// Encoded members in one answer, in bytes: a quarter of the longest envelope, one member beyond included.
const PART_BYTES: usize = 256 * 1024;

/// What protobuf puts before each member in a table: the field's tag, and a length.
const MEMBER_FRAME_BYTES: usize = 4;

/// No table has more parts.
const MOST_PARTS: u32 = 1024;

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

/// A member table of which some parts have come.
#[derive(Debug, Default)]
pub(super) struct PartialTable {
    as_of: u64,
    members: Vec<proto::Member>,
    next: u32,
}

impl PartialTable {
    /// Takes in the next part; the whole table once it is there. A part of another table, or out of order, begins anew: the
    /// leader is asked again, and answers with a new table.
    pub(super) fn add(&mut self, answer: &mut proto::Answer) -> Option<Vec<proto::Member>> {
        let members = std::mem::take(&mut answer.members);
        let parts = answer.parts.max(1);
        if answer.part == 0 {
            *self = Self { as_of: answer.as_of, members, next: 1 };
        } else if answer.as_of == self.as_of && answer.part == self.next && parts <= MOST_PARTS {
            self.members.extend(members);
            self.next += 1;
        }
        (self.next == parts).then(|| std::mem::take(self).members)
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
                whole = table.add(&mut part);
            }
            assert_eq!(whole.expect("all parts have come"), answer(members).members);
        }
    }

    #[test]
    fn parts_of_two_tables_are_not_mixed() {
        let [first, second] = [8, 9].map(|as_of| in_parts(answer(20_000), as_of));
        let mut table = PartialTable::default();
        assert_eq!(table.add(&mut first[0].clone()), None);
        for part in &second[1..] {
            assert_eq!(table.add(&mut part.clone()), None, "its first part is missing");
        }
        let whole = second.into_iter().filter_map(|mut part| table.add(&mut part)).collect::<Vec<_>>();
        assert_eq!(whole, [answer(20_000).members]);
    }

    #[test]
    fn a_table_without_parts_is_that_of_a_release_that_knows_none() {
        assert_eq!(PartialTable::default().add(&mut answer(3)), Some(answer(3).members));
    }
}
