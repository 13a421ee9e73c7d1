//! The deadlines of one node, in one table: what sets one, moves it or stops it, and which comes next.
//!
//! How long something has been silent is no deadline: its concern keeps when it was heard last, since the beat that silence is
//! counted in may change.

use crate::clock::Now;

/// What has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    // What a node does when its time has come: it wakes for that.
    /// Report to the leader. Set while there is a link.
    Report,
    /// Announce. Set while this node leads.
    Announce,
    /// From then on this node mints what is due. Set while this node leads.
    Mint,
    /// Mint a key that is due although a federated leader whose name comes first has not.
    MintInPlaceOfSenior,
    /// Mint a key for this node alone: no leader was heard for `start_alone_after`.
    StartAlone,
    /// This node's own reports have not come back. Set while it holds the lease.
    Echo,
    /// Draw another epoch key. Set while this node leads.
    RenewEpoch,
    /// Ask for the leader's epoch key.
    Join,
    /// Erase the key pair that the leader's epoch key was granted to.
    ForgetJoinKey,
    /// Try a lease that was seen free.
    TryLease,
    /// Announce without the lease.
    Act,
    /// Ask the leader again, or give up: the first time that one of the [`super::requests`] waits for.
    Requests,

    // What is otherwise from then on. Nothing is done at that moment: no node wakes for it.
    /// No join is planned before it is over: the last one was less than a beat ago.
    JoinPause,
    /// A join that is sent from then on goes to all nodes: the one that announces may not hear what is sent to the leader.
    JoinToAll,
    /// This leader's member table is no picture of the farm before it is over, unless all but one of the nodes that were
    /// there before have reported.
    Gather,
    /// This leader looks often whether the lease is still its own until it is over.
    Probe,
    /// No lease that was seen free is tried before it is over.
    LeasePause,
    /// No other broker is looked for before it is over.
    MovePause,
    /// The members are not looked at all together before it is over.
    AssessPause,
}

/// How many of them a node wakes for: the first ones.
const AWAITED: usize = Timer::Requests as usize + 1;

const COUNT: usize = Timer::AssessPause as usize + 1;

/// When each of them is due, in monotonic milliseconds.
#[derive(Debug, Default)]
pub(super) struct Timers([Option<u64>; COUNT]);

impl Timers {
    /// When it is due, if it is set.
    pub(super) fn get(&self, timer: Timer) -> Option<u64> {
        self.0[timer as usize]
    }

    /// It is due at `at`, whatever was said before.
    pub(super) fn set(&mut self, timer: Timer, at: u64) {
        self.0[timer as usize] = Some(at);
    }

    /// It is due at `at`, unless it is set already. Returns when it is due.
    pub(super) fn get_or_set(&mut self, timer: Timer, at: u64) -> u64 {
        *self.0[timer as usize].get_or_insert(at)
    }

    /// If it is set, it is due no later than at `at`. Returns whether that was sooner.
    pub(super) fn hasten(&mut self, timer: Timer, at: u64) -> bool {
        let sooner = self.get(timer).is_some_and(|before| at < before);
        if sooner {
            self.set(timer, at);
        }
        sooner
    }

    /// It is due no sooner than at `at`.
    pub(super) fn postpone(&mut self, timer: Timer, at: u64) {
        self.set(timer, self.get(timer).map_or(at, |before| before.max(at)));
    }

    /// It is not due until it is set again.
    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// Whether it is set, and its time has come.
    pub(super) fn is_due(&self, timer: Timer, now: Now) -> bool {
        self.get(timer).is_some_and(|at| now.mono >= at)
    }

    /// Whether it is set, and its time has not come.
    pub(super) fn is_running(&self, timer: Timer, now: Now) -> bool {
        self.get(timer).is_some_and(|at| now.mono < at)
    }

    /// Whether it is due; stops it then.
    pub(super) fn take_due(&mut self, timer: Timer, now: Now) -> bool {
        let due = self.is_due(timer, now);
        if due {
            self.stop(timer);
        }
        due
    }

    /// The first that is due after `now`, of those that the node wakes for. One whose time has come was looked at, and waits
    /// for something else.
    pub(super) fn next(&self, now: Now) -> Option<u64> {
        self.0[..AWAITED].iter().flatten().copied().filter(|at| *at > now.mono).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64) -> Now {
        Now { wall: 0, mono }
    }

    #[test]
    fn a_timer_is_due_from_its_time_on_until_it_is_stopped() {
        let mut timers = Timers::default();
        assert!(!timers.is_due(Timer::Act, at(10)));
        timers.set(Timer::Act, 10);
        assert!(!timers.is_due(Timer::Act, at(9)) && timers.is_due(Timer::Act, at(10)));
        assert!(!timers.take_due(Timer::Act, at(9)) && timers.take_due(Timer::Act, at(11)));
        assert_eq!(timers.get(Timer::Act), None);
        assert_eq!((timers.get_or_set(Timer::Act, 20), timers.get_or_set(Timer::Act, 30)), (20, 20));
    }

    #[test]
    fn a_timer_runs_until_it_is_due_and_is_postponed_but_never_hastened_by_that() {
        let mut timers = Timers::default();
        assert!(!timers.is_running(Timer::LeasePause, at(0)));
        timers.postpone(Timer::LeasePause, 20);
        timers.postpone(Timer::LeasePause, 10);
        assert!(timers.is_running(Timer::LeasePause, at(19)) && !timers.is_running(Timer::LeasePause, at(20)));
        timers.postpone(Timer::LeasePause, 30);
        assert_eq!(timers.get(Timer::LeasePause), Some(30));
    }

    #[test]
    fn a_timer_that_is_not_set_is_not_hastened() {
        let mut timers = Timers::default();
        assert!(!timers.hasten(Timer::Announce, 10));
        timers.set(Timer::Announce, 20);
        assert!(timers.hasten(Timer::Announce, 10) && !timers.hasten(Timer::Announce, 15));
        assert_eq!(timers.get(Timer::Announce), Some(10));
    }

    #[test]
    fn the_next_is_the_first_that_is_still_to_come() {
        let mut timers = Timers::default();
        assert_eq!(timers.next(at(0)), None);
        timers.set(Timer::Report, 10);
        timers.set(Timer::Requests, 30);
        timers.set(Timer::Echo, 20);
        for pause in [Timer::JoinPause, Timer::AssessPause] {
            timers.set(pause, 5);
        }
        assert_eq!([0, 10, 20, 30].map(|ms| timers.next(at(ms))), [Some(10), Some(20), Some(30), None]);
    }
}
