//! The link to the broker: whether what is sent to this node arrives, and whether the broker is one to stay with.
//!
//! An inbox where nothing arrives may be broken, or no node announces. What this node writes to it itself tells which. A
//! broker is asked to declare a queue when something is silent; one that does not answer is left for another.

use super::context::Context;
use super::event::{Action, Note};
use super::timers::Timer;
use crate::clock::Now;

/// Each time in vain it waits twice as long, up to this many times.
const MOST_DOUBLINGS: u32 = 3;
const MOST_DOUBLINGS_OF_MOVES: u32 = 5;

/// The link, if there is one, and what this node asks of it when it hears nothing.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    up: Option<LinkUp>,
    /// The last link was closed on purpose, to renew it.
    renewing: bool,
    renewals: u32,
    /// The broker takes no messages now, from any node: silence says nothing.
    pub(super) blocked: bool,
    /// When this node last wrote to its own inbox, until something arrives there.
    written_at: Option<u64>,
    /// How often it did since another node was heard.
    in_vain: u32,
    /// The broker was asked to declare, or another one is looked for.
    checking: bool,
    /// How often another broker was looked for since another node was heard.
    moves: u32,
}

#[derive(Debug)]
struct LinkUp {
    inbox: String,
    heard_at: u64,
    /// No announcement was heard on this link yet.
    first: bool,
}

/// What the silence of an inbox means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inbox {
    /// There is none.
    Away,
    /// Nothing.
    Works,
    /// It may be broken, or no other node is there.
    Doubtful,
    /// Not even what this node wrote to it arrived.
    Broken,
}

impl LinkState {
    /// Takes in a new link. Returns whether the one before was closed to renew it.
    pub(super) fn on_connected(&mut self, inbox: String, cx: &mut Context, now: Now) -> bool {
        self.up = Some(LinkUp { inbox, heard_at: now.mono, first: true });
        (self.written_at, self.checking) = (None, false);
        cx.timers.set(Timer::Report, now.mono);
        std::mem::take(&mut self.renewing)
    }

    pub(super) fn on_disconnected(&mut self, cx: &mut Context) {
        self.up = None;
        self.renewing = false;
        cx.timers.stop(Timer::Report);
    }

    /// Closes the link in order to open another.
    pub(super) fn renew(&mut self, cx: &mut Context) {
        self.on_disconnected(cx);
        self.renewing = true;
        self.checking = false;
        cx.act(Action::RenewLink);
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// The queue that reaches this node.
    pub(super) fn inbox(&self) -> Option<&str> {
        self.up.as_ref().map(|up| up.inbox.as_str())
    }

    /// Whether no announcement was heard on this link yet.
    pub(super) fn is_first(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.first)
    }

    /// Silence counts from now on.
    pub(super) fn begin_anew(&mut self, now: Now) {
        if let Some(up) = &mut self.up {
            up.heard_at = now.mono;
        }
    }

    /// Nothing could be heard until now.
    pub(super) fn pardon_silence(&mut self, now: Now) {
        self.begin_anew(now);
        self.written_at = None;
    }

    /// Something arrived in the inbox; `own`: from this node itself.
    pub(super) fn on_inbox(&mut self, own: bool, cx: &mut Context, now: Now) {
        if own && self.written_at.is_some() && self.in_vain == 1 {
            cx.note(Note::NoLeaderHeard);
        }
        self.begin_anew(now);
        self.written_at = None;
        self.renewals = 0;
    }

    /// An announcement of another node was heard. Returns whether it is the first one on this link.
    pub(super) fn on_announcement(&mut self) -> bool {
        (self.in_vain, self.moves) = (0, 0);
        self.up.as_mut().is_some_and(|up| std::mem::take(&mut up.first))
    }

    /// Looks how long nothing arrived in the inbox, and says what that means.
    pub(super) fn advance(&mut self, cx: &mut Context, now: Now) -> Inbox {
        let Some(up) = &self.up else { return Inbox::Away };
        let silent =
            |since: u64, doublings: u32| now.mono.saturating_sub(since) > cx.silence() << doublings.min(MOST_DOUBLINGS);
        match self.written_at {
            Some(at) if silent(at, self.renewals) => {
                self.renewals += 1;
                cx.note(Note::InboxSilent);
                Inbox::Broken
            }
            None if silent(up.heard_at, self.in_vain) => {
                self.written_at = Some(now.mono);
                self.in_vain = self.in_vain.saturating_add(1);
                Inbox::Doubtful
            }
            _ => Inbox::Works,
        }
    }

    /// Asks the broker whether it can still declare, unless it is asked already.
    pub(super) fn check_broker(&mut self, cx: &mut Context) {
        if self.is_up() && !self.checking {
            self.checking = true;
            cx.act(Action::CheckBroker);
        }
    }

    /// Whether the broker can still declare.
    pub(super) fn on_checked(&mut self, answers: bool, cx: &mut Context, now: Now) {
        self.checking = false;
        if !answers && self.is_up() {
            self.leave_broker(Note::BrokerCutOff, cx, now);
        }
    }

    /// No other broker is to be had, or this one is cut off no longer.
    pub(super) fn on_not_moved(&mut self) {
        self.checking = false;
    }

    /// Looks for another broker, unless this one is asked just now, or another one is looked for. Where one after the other
    /// is no good, each time after twice as long as before.
    pub(super) fn leave_broker(&mut self, why: Note, cx: &mut Context, now: Now) {
        if self.checking || cx.timers.is_running(Timer::MovePause, now) {
            return;
        }
        self.moves = self.moves.saturating_add(1);
        let pause = cx.silence() << self.moves.min(MOST_DOUBLINGS_OF_MOVES);
        cx.timers.set(Timer::MovePause, now.mono + pause);
        self.checking = true;
        let unless_it_declares = why == Note::BrokerCutOff;
        cx.note(why);
        cx.act(Action::MoveLink { unless_it_declares });
    }
}

#[cfg(test)]
mod tests;
