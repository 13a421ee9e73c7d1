//! What a node decides, without sockets, files and clocks.
//!
//! Its driver tells a [`NodeCore`] what happened, and carries out what it wants done. There are two: the daemon's, with a broker
//! and a clock, and the simulator, which has neither. Opening, dialling again, saving the ring, answering and counting are
//! decided here, so that both do the same.

mod effect;
mod input;

use std::sync::Arc;

use bytes::Bytes;

pub use self::effect::Effect;
pub(crate) use self::effect::{Count, Line};
pub use self::input::{Input, Stays};
use super::sealing::Identity;
use super::secrets_seen::SecretsSeen;
use crate::bus::backoff::Redial;
use crate::bus::{BusError, LeaseAnswer};
use crate::clock::Now;
use crate::envelope::{Opener, Refusal, Secrets};
use crate::farm::{Action, Event, Farm, Note};
use crate::hex::hex;
use crate::keys::saved;
use crate::log_limiter::LogLimiter;
use crate::proto::AuditOutcome;
use crate::random::Randomness;
use crate::reason::Reason;
use crate::routes::{Seat, Via};

/// A ring that could not be saved is tried again after this long: it may not change for hours, and a restart would
/// forget it.
const SAVE_AGAIN_MS: u64 = 5_000;

/// The machine turns at least this often while messages come that do not open, so that the node shows that it is alive.
const LONGEST_TURN_MS: u64 = 1_000;

/// One node: the farm's state machine, and around it all that is decided for it.
pub struct NodeCore {
    farm: Farm,
    /// Opens what arrives on the key plane.
    opener: Opener,
    identity: Identity,
    secrets_seen: SecretsSeen,
    redial: Redial,
    random: Randomness,
    /// Keeps what others can cause from flooding the log.
    log_limiter: LogLimiter,
    linked: bool,
    saving: Saving,
    /// When the machine turned last.
    turned_at: Option<Now>,
}

/// Whether the ring is kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saving {
    /// Nowhere.
    Off,
    /// As soon as it changes.
    On,
    /// It could not be saved, and is tried again at that time, in monotonic milliseconds.
    AgainAt(u64),
}

impl NodeCore {
    /// A node that has just been started. `opener` opens with `secrets`; `random` gives the jitter of its pauses.
    #[must_use]
    pub fn new(
        farm: Farm,
        (opener, secrets): (Opener, &Secrets),
        identity: Identity,
        saving: Saving,
        random: Randomness,
    ) -> Self {
        let mut secrets_seen = SecretsSeen::default();
        secrets_seen.note(ids(secrets));
        let (redial, log_limiter) = (Redial::default(), LogLimiter::default());
        Self {
            farm,
            opener,
            identity,
            secrets_seen,
            redial,
            random,
            log_limiter,
            linked: false,
            saving,
            turned_at: None,
        }
    }

    /// What is to be done first.
    pub fn start(&mut self, now: Now) -> Vec<Effect> {
        vec![self.keys(now), Effect::DialAt(now.mono)]
    }

    /// Takes in what happened, and returns what is to be done about it.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        let event = match self.event_of(now, input, &mut effects) {
            // A flood of bad messages does not keep the node from what is due.
            None if self.due() <= now.mono => Some(Event::Wake),
            event => event,
        };
        if let Some(event) = event {
            let actions = self.farm.handle(now, event);
            self.take(now, actions, &mut effects);
            if matches!(self.saving, Saving::AgainAt(at) if at <= now.mono) {
                self.save(now, &mut effects);
            }
            self.turned_at = Some(now);
            effects.push(Effect::Show);
        }
        effects
    }

    /// When the node must be woken if nothing happens, given that it is `now`: monotonic milliseconds.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> u64 {
        match self.saving {
            Saving::AgainAt(at) => self.farm.next_wake(now).min(at),
            Saving::On | Saving::Off => self.farm.next_wake(now),
        }
    }

    /// Until then messages that do not open may come without a turn of the machine, in monotonic milliseconds.
    fn due(&self) -> u64 {
        self.turned_at.map_or(0, |at| self.next_wake(at).min(at.mono + LONGEST_TURN_MS))
    }

    /// Says whether the broker takes no messages at present.
    pub fn set_blocked(&mut self, blocked: bool) {
        self.farm.set_blocked(blocked);
    }

    /// Takes in what became of the ring of [`Effect::SaveRing`] at `now`, or in words why it was not saved. Returns what is
    /// worth a line.
    pub fn on_ring_saved(&mut self, saved: Result<(), String>, now: Now) -> Option<Line> {
        let after = if saved.is_ok() { Saving::On } else { Saving::AgainAt(now.mono + SAVE_AGAIN_MS) };
        let before = std::mem::replace(&mut self.saving, after);
        match saved {
            Ok(()) => matches!(before, Saving::AgainAt(_)).then_some(Line::RingSavedAgain),
            Err(error) => {
                let held_back = self.log_limiter.pass("ring", "not_saved", now)?;
                Some(Line::RingNotSaved { error, held_back })
            }
        }
    }

    /// The farm's state machine, to look at.
    #[must_use]
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// Which farm secrets this node has had.
    #[must_use]
    pub(crate) fn secrets_seen(&self) -> &SecretsSeen {
        &self.secrets_seen
    }

    /// What `input` is to the farm's machine, if anything.
    fn event_of(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) -> Option<Event> {
        Some(match input {
            Input::Wake => Event::Wake,
            Input::Local(local) => {
                self.farm.set_local(local);
                Event::Wake
            }
            Input::Secrets(secrets) => {
                self.secrets_seen.note(ids(&secrets));
                self.opener.set_secrets(secrets);
                Event::Wake
            }
            Input::UnknownEpoch => Event::UnknownEpoch { via: Via::Inbox },
            Input::Ask { id, ask, user } => Event::Ask { id, ask, user },
            Input::Linked { inbox } => {
                self.redial.linked(now.mono);
                self.linked = true;
                Event::Connected { inbox }
            }
            Input::NotLinked(error) => {
                let dial_at = self.dial_again_at(now);
                let retry_in_ms = dial_at.saturating_sub(now.mono);
                effects.extend([Effect::Log(Line::NotConnected { error, retry_in_ms }), Effect::DialAt(dial_at)]);
                Event::Wake
            }
            Input::Closed { reason } => {
                effects.push(Effect::Log(Line::Disconnected { reason }));
                self.on_link_gone(now, effects)
            }
            Input::Left => self.on_link_gone(now, effects),
            Input::Delivered { from, route, body, site } => return self.open(now, from, route, body, site, effects),
            Input::Told { seat, answer } => Event::Told { seat, answer },
            Input::LeaseTried(seat, answer) => self.on_lease_tried(now, seat, answer, effects),
            Input::LeaseLost(seat) => Event::LeaseLost(seat),
            Input::Checked(answer) => on_checked(answer, effects),
            Input::NotMoved(why) => {
                effects.push(Effect::Log(Line::Stays(why)));
                Event::NotMoved
            }
            Input::Stop => {
                self.save(now, effects);
                Event::Stop
            }
        })
    }

    fn on_link_gone(&mut self, now: Now, effects: &mut Vec<Effect>) -> Event {
        self.linked = false;
        effects.push(Effect::DialAt(self.dial_again_at(now)));
        Event::Disconnected
    }

    /// A refusal is told and kept where all are ([`super::refused`]); another failure has a line here.
    fn on_lease_tried(
        &mut self,
        now: Now,
        seat: Seat,
        answer: Result<LeaseAnswer, BusError>,
        effects: &mut Vec<Effect>,
    ) -> Event {
        let error = match answer {
            Ok(LeaseAnswer::Granted) => return Event::LeaseGranted(seat),
            Ok(LeaseAnswer::Taken) => return Event::LeaseTaken(seat),
            Err(BusError::Refused { .. }) => return Event::LeaseFailed,
            Err(error) => error,
        };
        let (what, event) = match error {
            BusError::Unanswered { .. } => ("unanswered", Event::LeaseUnanswered),
            _ => ("failed", Event::LeaseFailed),
        };
        if let Some(held_back) = self.log_limiter.pass("lease", what, now) {
            effects.push(Effect::Log(Line::LeaseNotTried { error, held_back }));
        }
        event
    }

    /// Opens a sealed message. What is refused goes no further, but for what it shows of clocks and epoch keys.
    fn open(
        &mut self,
        now: Now,
        via: Via,
        route: String,
        body: Bytes,
        site: Option<String>,
        effects: &mut Vec<Effect>,
    ) -> Option<Event> {
        // The feed has a channel of its own.
        if via == Via::Feed {
            return None;
        }
        effects.push(Effect::Count(Count::Received));
        if !self.farm.is_listening_to(via) {
            return None;
        }
        let refusal = match self.opener.open(&route, body, now) {
            Ok(opened) => {
                effects.push(Effect::Count(Count::Missed(opened.missed)));
                if let Some(site) = site {
                    self.farm.on_site_heard(&site, &opened.payload, now);
                }
                return Some(Event::Message { payload: Box::new(opened.payload), via });
            }
            Err(refusal) => refusal,
        };
        // Ordinary for a node that has just started, until it has joined.
        let counted = refusal != Refusal::UnknownEpoch || self.opener.has_epochs();
        let logged = counted.then(|| self.log_limiter.pass("message", refusal.reason().as_str(), now)).flatten();
        let event = match &refusal {
            Refusal::Clock { node, boot_id, offset_ms } => {
                Some(Event::Skewed { node: node.clone(), boot_id: *boot_id, offset_ms: *offset_ms, via })
            }
            Refusal::UnknownEpoch => Some(Event::UnknownEpoch { via }),
            _ => None,
        };
        effects.push(Effect::Refused { route, refusal, counted, logged });
        event
    }

    /// What the farm's machine wants done.
    fn take(&mut self, now: Now, actions: Vec<Action>, effects: &mut Vec<Effect>) {
        let (mut ring_changed, mut moves) = (false, Vec::new());
        for action in actions {
            match action {
                Action::RingChanged => ring_changed = true,
                Action::EpochsChanged => {
                    let epochs = Arc::new(self.farm.epochs().clone());
                    self.opener.set_epochs(Arc::clone(&epochs));
                    effects.push(Effect::Epochs(epochs));
                }
                Action::Reply { id, reply } => effects.push(Effect::Reply { id, reply }),
                Action::Note(note) => self.note(now, note, effects),
                // Without a link no node can be told, and there is no lease.
                _ if !self.linked => {}
                Action::Send { to, kind } => effects.push(Effect::Send { to, kind }),
                Action::TryLease(seat) => effects.push(Effect::TryLease(seat)),
                Action::ReleaseLease(seat) => effects.push(Effect::ReleaseLease(seat)),
                Action::CheckBroker => effects.push(Effect::CheckBroker),
                Action::MoveLink { unless_it_declares } => moves.push(Effect::MoveLink { unless_it_declares }),
                Action::RenewLink => {
                    self.linked = false;
                    effects.extend([Effect::CloseLink, Effect::DialAt(self.dial_again_at(now))]);
                }
            }
        }
        if ring_changed {
            effects.push(self.keys(now));
            self.save(now, effects);
        }
        effects.extend(moves);
    }

    /// When the next attempt is due, after one that failed or a link that ended now.
    fn dial_again_at(&mut self, now: Now) -> u64 {
        let mut random = [0; 4];
        (self.random)(&mut random);
        self.redial.again_at(now.mono, u32::from_le_bytes(random))
    }

    fn keys(&self, now: Now) -> Effect {
        let held = self.farm.held();
        let timetable = held.timetable(now).with_alone(self.farm.is_on_its_own());
        Effect::Keys { timetable, sessions_from: held.ring().sessions_from() }
    }

    fn save(&self, now: Now, effects: &mut Vec<Effect>) {
        if self.saving != Saving::Off {
            effects.push(Effect::SaveRing(saved::encode(self.farm.held(), &self.identity.farm, now)));
        }
    }

    /// Has what the machine noticed counted, and logged as often as a log bears: others can cause some of it as often as they
    /// like.
    fn note(&mut self, now: Now, note: Note, effects: &mut Vec<Effect>) {
        let mut count = |count| effects.push(Effect::Count(count));
        let limited = match &note {
            Note::Revoked { .. }
            | Note::Minted { .. }
            | Note::Leads
            | Note::StepsDown(_)
            | Note::ActsAlone
            | Note::Follows(_)
            | Note::Epoch { .. } => None,
            // Other nodes may ask in vain as often as they like: of those one a minute is logged.
            Note::Audited(entry) => {
                let done_here = entry.node == self.identity.node || entry.outcome() == AuditOutcome::Done;
                (!done_here).then_some(("request", "in vain"))
            }
            // Counted and logged when it was refused.
            Note::Skewed { .. } => {
                effects.push(Effect::Note { note, logged: None });
                return;
            }
            Note::BadKey { reason, count: keys, .. } => {
                count(Count::KeysSkipped(*reason, *keys));
                Some(("key", reason.as_str()))
            }
            Note::Refused { reason, .. } => {
                count(Count::Refused(*reason));
                Some(("message", reason.as_str()))
            }
            Note::KeyConflict { count: keys, .. } => {
                count(Count::KeyConflicts(*keys));
                Some(("key", "conflict"))
            }
            Note::UnknownKind { .. } => {
                count(Count::Refused(Reason::UnknownKind));
                Some(("message", Reason::UnknownKind.as_str()))
            }
            Note::InboxSilent => Some(("inbox", "silent")),
            Note::NoLeaderHeard => Some(("inbox", "no_leader")),
            Note::BrokerCutOff => Some(("broker", "cut_off")),
            Note::BrokerKeepsReports => Some(("broker", "keeps_reports")),
        };
        let logged = match limited {
            Some((what, reason)) => self.log_limiter.pass(what, reason, now),
            None => Some(0),
        };
        effects.push(Effect::Note { note, logged });
    }
}

/// Only silence says that a broker is cut off. A refusal is an answer, and a broker that is gone ends its link.
fn on_checked(answer: Result<(), BusError>, effects: &mut Vec<Effect>) -> Event {
    let is_silent = matches!(answer, Err(BusError::Unanswered { .. }));
    effects.extend(answer.err().map(|error| Effect::Log(Line::DoesNotDeclare(error))));
    Event::Checked(!is_silent)
}

fn ids(secrets: &Secrets) -> Vec<String> {
    secrets.ids().map(|id| hex(&id)).collect()
}

#[cfg(test)]
mod tests;
