//! What an operator asks of the farm through any node: asking the leader, doing it as the leader, and the answers.

use std::collections::BTreeMap;

use super::audit::{Asked, AuditTrail, is_user};
use super::context::Context;
use super::event::{Action, MintReason, Note, Sender};
use super::mint::{Mint, Revocation};
use super::own::Own;
use super::settings::LocalState;
use super::standing::Standing;
use super::table_parts::{Added, MOST_WAITING_BYTES, PartialTable, in_parts};
use super::timers::Timer;
use crate::clock::{Now, millis};
use crate::proto::{self, AuditOutcome, payload::Kind};
use crate::reason::Reason;
use crate::routes::Route;

/// How long a request waits for the leader's answer in all, and between two tries.
const ASK_FOR_MS: u64 = 5_000;
const ASK_AGAIN_MS: u64 = 500;

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
    fn to_proto(self) -> Option<proto::request::Kind> {
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
    /// Every key below the floor is out of use, at the node that did it.
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
    /// What came for an answer was more than any leader sends, or none.
    BadAnswer {
        /// Who sent it.
        from: String,
    },
    /// No node leads, or the leader did not answer in time.
    NoLeader,
}

impl Reply {
    /// What `leader` answered.
    fn of(leader: String, answer: proto::Answer) -> Self {
        let (outcome, generation) = (answer.outcome(), answer.generation);
        match outcome {
            proto::Outcome::Done if answer.floor != 0 => {
                Self::Revoked { floor: answer.floor, sessions_from: answer.sessions_from }
            }
            proto::Outcome::Done | proto::Outcome::Pending if generation != 0 => {
                Self::Rotating { generation, pending: outcome == proto::Outcome::Pending }
            }
            proto::Outcome::Done => Self::Members { leader, members: answer.members },
            _ => Self::Refused { leader },
        }
    }
}

/// Who asks what at this node, and under which id.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) id: u64,
    pub(super) ask: Ask,
    pub(super) user: String,
}

/// An [`Ask`] that waits for the leader's answer.
#[derive(Debug)]
struct Pending {
    ask: Ask,
    /// Who asked, at this node.
    user: String,
    /// The highest generation when it was asked, or when the leader last said that it was stale. Not that of now: what
    /// an earlier try did must not make a later one look like another request.
    known: u64,
    /// Monotonic milliseconds.
    give_up_at: u64,
    /// When to ask again: the first request may have met no leader.
    retry_at: u64,
    /// The parts of the member table that have come.
    table: PartialTable,
}

impl Pending {
    fn new(Question { ask, user, .. }: Question, known: u64, now: Now) -> Self {
        let give_up_at = now.mono + ASK_FOR_MS;
        Self { ask, user, known, give_up_at, retry_at: now.mono, table: PartialTable::default() }
    }
}

/// The node that is asked: what it decides by, and what it changes.
pub(super) struct AskedNode<'a> {
    pub(super) standing: &'a Standing,
    pub(super) mint: &'a mut Mint,
    pub(super) local: &'a LocalState,
}

impl AskedNode<'_> {
    /// Whether it leads and can do that just now: half a table would make missing nodes look like none, and a key that the
    /// broker takes from no node would seal before any other node has it.
    fn can_fulfil(&self, ask: Ask, cx: &Context, now: Now) -> bool {
        self.standing.lease.leads()
            && match ask {
                Ask::Status => !self.standing.is_gathering(cx, now),
                Ask::Rotate => !self.standing.link.blocked,
                Ask::Revoke { .. } | Ask::RevokeLocal { .. } => true,
            }
    }
}

/// Requests that wait for an answer here, and what became of the last ones.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// In the order of their ids, so that the same happens in every run of a seed.
    pending: BTreeMap<u64, Pending>,
    /// The last revocation requested here: by which request, and what it was answered with.
    revoked: Option<(u64, Revocation)>,
    audit: AuditTrail,
}

impl Requests {
    pub(super) fn audit(&self) -> &AuditTrail {
        &self.audit
    }

    // At the node that is asked.

    /// An operator asks through this node.
    pub(super) fn on_ask(&mut self, question: Question, node: &mut AskedNode<'_>, cx: &mut Context, now: Now) {
        // What is minted or revoked goes beyond every generation of the ring, and must not go with a faulty one.
        node.mint.drop_faulty(cx, now);
        let known = node.mint.ring().highest_generation();
        let Question { id, ask, .. } = question;
        if let Ask::RevokeLocal { flush_sessions } = ask {
            let Revocation { floor, sessions_from } = node.mint.revoke(0, flush_sessions, cx, now);
            // To every node that can be reached.
            cx.timers.hasten(Timer::Report, now.mono);
            self.keep_own(question, (AuditOutcome::Done, floor), cx, now);
            cx.act(Action::Reply { id, reply: Reply::Revoked { floor, sessions_from } });
        } else if node.can_fulfil(ask, cx, now) {
            let answer = self.fulfil(id, ask, known, node, cx, now);
            self.keep_own(question, outcome_of(&answer), cx, now);
            let leader = cx.settings.node.clone();
            cx.act(Action::Reply { id, reply: Reply::of(leader, answer) });
        } else if node.standing.link.is_up() {
            self.pending.insert(id, Pending::new(question, known, now));
        } else {
            self.keep_own(question, (AuditOutcome::NoLeader, 0), cx, now);
            cx.act(Action::Reply { id, reply: Reply::NoLeader });
        }
    }

    /// A leader answers.
    pub(super) fn on_answer(
        &mut self,
        from: &Sender,
        mut answer: proto::Answer,
        mint: &mut Mint,
        cx: &mut Context,
        now: Now,
    ) {
        let room = MOST_WAITING_BYTES.saturating_sub(self.waiting_bytes_beside(answer.id));
        let Some(pending) = self.pending.get_mut(&answer.id) else {
            return; // an answer that came after we gave up, or twice
        };
        if answer.outcome() == proto::Outcome::Stale {
            if let Some(ring) = &answer.ring {
                mint.on_ring(&from.node, ring, cx, now);
            }
            pending.known = mint.ring().highest_generation();
            pending.retry_at = now.mono;
            return;
        }
        match pending.table.add(&mut answer, room) {
            Added::Incomplete => {}
            Added::Whole(members) => {
                answer.members = members;
                self.close(answer.id, outcome_of(&answer), cx, now);
                cx.act(Action::Reply { id: answer.id, reply: Reply::of(from.node.clone(), answer) });
            }
            Added::Bad(reason) => {
                self.close(answer.id, (AuditOutcome::NoLeader, 0), cx, now);
                cx.refuse(&from.node, reason);
                cx.act(Action::Reply { id: answer.id, reply: Reply::BadAnswer { from: from.node.clone() } });
            }
        }
    }

    /// What the tables of other requests than `id` take, in bytes.
    fn waiting_bytes_beside(&self, id: u64) -> usize {
        self.pending.iter().filter(|(other, _)| **other != id).map(|(_, pending)| pending.table.bytes()).sum()
    }

    fn close(&mut self, id: u64, outcome: (AuditOutcome, u64), cx: &mut Context, now: Now) {
        if let Some(Pending { ask, user, .. }) = self.pending.remove(&id) {
            self.keep_own(Question { id, ask, user }, outcome, cx, now);
        }
    }

    /// Gives up what waited for too long, and without an `inbox` to answer to everything; asks again for the rest, by the
    /// route `to`. Nothing can be asked without an epoch key: `sealable`.
    pub(super) fn advance(&mut self, inbox: Option<&str>, to: &Route, sealable: bool, cx: &mut Context, now: Now) {
        let is_over = |pending: &Pending| now.mono >= pending.give_up_at || inbox.is_none();
        let over: Vec<u64> = self.pending.iter().filter(|(_, pending)| is_over(pending)).map(|(id, _)| *id).collect();
        for id in over {
            self.close(id, (AuditOutcome::NoLeader, 0), cx, now);
            cx.act(Action::Reply { id, reply: Reply::NoLeader });
        }
        for (id, pending) in &mut self.pending {
            if sealable && now.mono >= pending.retry_at {
                pending.retry_at = now.mono + ASK_AGAIN_MS;
                let (inbox, kind) = (inbox.unwrap_or_default().to_owned(), pending.ask.to_proto());
                let user = pending.user.clone();
                let request = proto::Request { id: *id, inbox, highest_generation: pending.known, user, kind };
                cx.send(to.clone(), Kind::Request(request));
            }
        }
        let due = self.pending.values().map(|pending| pending.retry_at.min(pending.give_up_at));
        match due.filter(|at| *at > now.mono).min() {
            Some(at) => cx.timers.set(Timer::Requests, at),
            None => cx.timers.stop(Timer::Requests),
        }
    }

    // At the leader.

    /// Another node asks. Without an answer it tries again, and then says that no leader answered.
    pub(super) fn on_request(
        &mut self,
        from: Sender,
        request: &proto::Request,
        node: &mut AskedNode<'_>,
        cx: &mut Context,
        now: Now,
    ) {
        if !cx.settings.names.is_inbox(&request.inbox) || !is_user(&request.user) {
            return cx.refuse(&from.node, Reason::BadRequest);
        }
        if !node.standing.lease.leads() {
            return;
        }
        node.mint.drop_faulty(cx, now);
        let Some(ask) = request.kind.as_ref().map(Ask::of) else {
            // Of a later release, which learns that this leader cannot do it.
            cx.refuse(&from.node, Reason::BadRequest);
            return send_answer(request, answer(request.id, proto::Outcome::Refused), cx, now);
        };
        if node.can_fulfil(ask, cx, now) {
            let answer = self.fulfil(request.id, ask, request.highest_generation, node, cx, now);
            let question = Question { id: request.id, ask, user: request.user.clone() };
            self.keep(question, from.node, outcome_of(&answer), cx, now);
            send_answer(request, answer, cx, now);
        }
    }

    /// Does what is asked, as the leader, and says what became of it. `known` is the highest generation that the asker knows: with it a request is
    /// compare-and-set, and a replayed one does nothing.
    fn fulfil(
        &mut self,
        id: u64,
        ask: Ask,
        known: u64,
        node: &mut AskedNode<'_>,
        cx: &mut Context,
        now: Now,
    ) -> proto::Answer {
        match ask {
            Ask::Status => {
                let own = Own { settings: &cx.settings, local: node.local, held: node.mint.held(), audit: &self.audit };
                let members = node.standing.members.table(own.member(), node.mint.ring(), cx, now);
                proto::Answer { members, ..answer(id, proto::Outcome::Done) }
            }
            Ask::Rotate => rotate(id, known, node.mint, cx, now),
            Ask::Revoke { flush_sessions } => self.revoke(id, flush_sessions, known, node.mint, cx, now),
            Ask::RevokeLocal { .. } => answer(id, proto::Outcome::Refused),
        }
    }

    fn revoke(
        &mut self,
        id: u64,
        flush: bool,
        known: u64,
        mint: &mut Mint,
        cx: &mut Context,
        now: Now,
    ) -> proto::Answer {
        let earlier = self.revoked.filter(|(request, _)| *request == id).map(|(_, done)| done);
        if earlier.is_none() && known < mint.ring().highest_generation() {
            return stale(id, mint, now);
        }
        // The same request again is one whose answer was lost, and done already.
        let done = earlier.unwrap_or_else(|| mint.revoke(known, flush, cx, now));
        self.revoked = Some((id, done));
        cx.timers.hasten(Timer::Announce, now.mono);
        proto::Answer { floor: done.floor, sessions_from: done.sessions_from, ..answer(id, proto::Outcome::Done) }
    }

    // What is kept of them.

    /// Keeps what became of a request that was made at this node.
    fn keep_own(&mut self, question: Question, outcome: (AuditOutcome, u64), cx: &mut Context, now: Now) {
        let node = cx.settings.node.clone();
        self.keep(question, node, outcome, cx, now);
    }

    /// Keeps what became of a request that was made at `node`. One that the asker will repeat is not over yet.
    fn keep(
        &mut self,
        question: Question,
        node: String,
        (outcome, generation): (AuditOutcome, u64),
        cx: &mut Context,
        now: Now,
    ) {
        if outcome == AuditOutcome::Unspecified {
            return;
        }
        let Question { id, ask, user } = question;
        let asked = Asked { id, ask, node, user };
        if let Some(entry) = self.audit.note(asked, outcome, generation, now.wall) {
            cx.note(Note::Audited(entry));
        }
    }
}

fn rotate(id: u64, known: u64, mint: &mut Mint, cx: &mut Context, now: Now) -> proto::Answer {
    if let Some(generation) = mint.held().rotation_pending(now) {
        return proto::Answer { generation, ..answer(id, proto::Outcome::Pending) };
    }
    if known < mint.ring().highest_generation() {
        return stale(id, mint, now);
    }
    let seal_from = now.wall + millis(cx.settings.keys.settle);
    let generation = mint.mint(seal_from, MintReason::Requested, cx, now);
    proto::Answer { generation, ..answer(id, proto::Outcome::Done) }
}

/// The asker does not know every key of this leader's ring, which is in the answer.
fn stale(id: u64, mint: &Mint, now: Now) -> proto::Answer {
    proto::Answer { ring: Some(mint.held().to_proto(now)), ..answer(id, proto::Outcome::Stale) }
}

/// Sends the answer to `request`, in as many parts as it takes.
fn send_answer(request: &proto::Request, answer: proto::Answer, cx: &mut Context, now: Now) {
    let answer = proto::Answer { leader: cx.settings.node.clone(), ..answer };
    for part in in_parts(answer, now.wall) {
        cx.send(Route::Inbox(request.inbox.clone()), Kind::Answer(part));
    }
}

/// An answer to request `id` that says no more than what became of it.
fn answer(id: u64, outcome: proto::Outcome) -> proto::Answer {
    proto::Answer { id, outcome: outcome.into(), ..Default::default() }
}

/// What an answer says of a request, and the generation that came of it; unspecified if the asker is to ask again.
fn outcome_of(answer: &proto::Answer) -> (AuditOutcome, u64) {
    let outcome = match answer.outcome() {
        proto::Outcome::Done => AuditOutcome::Done,
        proto::Outcome::Pending => AuditOutcome::Pending,
        proto::Outcome::Stale => AuditOutcome::Unspecified,
        proto::Outcome::Refused | proto::Outcome::Unspecified => AuditOutcome::Refused,
    };
    (outcome, answer.generation.max(answer.floor))
}

#[cfg(test)]
mod tests;
