//! The walk along the leader's seats: where a message for the leader goes, and which lease may be tried.
//!
//! A seat is passed over when the broker has refused to answer for its queue twice, at least [`SURE_MS`] apart: then the
//! queue is on a broker that is gone. One refusal is no sign: with Mnesia, queues of a broker that just died give one, and
//! are gone a moment later. Nor is a lease that another node holds, nor silence: behind those there may be a leader.
//!
//! Everybody begins at the first seat, and again after anything but success at a higher one; so all end at the lowest seat
//! that can be had, and two leaders at different seats see each other.

use crate::routes::Seat;

/// Between two refusals that mean that a queue's broker is gone. The first one comes while brokers still clean up.
pub(super) const SURE_MS: u64 = 300;

/// Where this node's messages for the leader go.
#[derive(Debug, Default)]
pub(super) struct Walk {
    seat: Seat,
    /// A message was taken there, or this node has the lease of it.
    arrived: bool,
    /// When the broker first refused to answer for the queue of `seat`, monotonic milliseconds.
    nacked_at: Option<u64>,
}

/// What to do after the broker's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Stay,
    /// Say the same again after so many milliseconds, at [`Walk::seat`].
    Again(u64),
    /// No node has the lease of this seat, and those before it are dead: try it.
    Try(Seat),
}

impl Walk {
    pub(super) fn seat(&self) -> Seat {
        self.seat
    }

    /// A leader is at `seat`: it has said so, or it is this node.
    pub(super) fn go_to(&mut self, seat: Seat) {
        *self = Self { seat, arrived: true, nacked_at: None };
    }

    /// A message for the leader at `seat` was taken.
    pub(super) fn on_routed(&mut self, seat: Seat) {
        if seat == self.seat {
            self.go_to(seat);
        }
    }

    /// No queue is there for a message to the leader at `seat`.
    pub(super) fn on_unroutable(&mut self, seat: Seat) -> Step {
        if seat != self.seat {
            return Step::Stay;
        }
        if self.arrived && seat != Seat::FIRST {
            return self.begin_again();
        }
        // What is sent next begins at the first seat: it may be free again by then, or have a leader.
        *self = Self::default();
        Step::Try(seat)
    }

    /// The broker did not answer for the queue at `seat`.
    pub(super) fn on_nacked(&mut self, seat: Seat, now: u64) -> Step {
        if seat != self.seat {
            return Step::Stay;
        }
        if self.arrived && seat != Seat::FIRST {
            return self.begin_again();
        }
        let first = *self.nacked_at.get_or_insert(now);
        let sure_at = first + SURE_MS;
        if now < sure_at {
            return Step::Again(sure_at - now);
        }
        match seat.next() {
            Some(next) => {
                *self = Self { seat: next, arrived: false, nacked_at: None };
                Step::Again(0)
            }
            // All are dead. The next report begins again, a beat later.
            None => {
                *self = Self::default();
                Step::Stay
            }
        }
    }

    fn begin_again(&mut self) -> Step {
        *self = Self::default();
        Step::Again(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(number: u32) -> Seat {
        Seat::numbered(number).expect("one of eight")
    }

    #[test]
    fn a_seat_is_passed_over_after_two_refusals_some_time_apart() {
        let mut walk = Walk::default();
        assert_eq!(walk.on_nacked(seat(0), 1_000), Step::Again(300));
        assert_eq!(walk.on_nacked(seat(0), 1_100), Step::Again(200), "sooner tells nothing");
        assert_eq!(walk.on_nacked(seat(0), 1_300), Step::Again(0));
        assert_eq!(walk.seat(), seat(1));
        assert_eq!(walk.on_unroutable(seat(1)), Step::Try(seat(1)));
        assert_eq!(walk.seat(), seat(0), "a node that may not lead does not stay where no leader is");
        walk.go_to(seat(1));
        assert_eq!(walk.seat(), seat(1));
    }

    #[test]
    fn what_was_taken_or_not_there_in_between_counts_against_a_refusal() {
        let mut walk = Walk::default();
        assert_eq!(walk.on_nacked(seat(0), 1_000), Step::Again(300));
        walk.on_routed(seat(0));
        assert_eq!(walk.on_nacked(seat(0), 9_000), Step::Again(300));
        assert_eq!(walk.on_unroutable(seat(0)), Step::Try(seat(0)));
        assert_eq!(walk.on_nacked(seat(0), 20_000), Step::Again(300));
        assert_eq!(walk.seat(), seat(0));
    }

    #[test]
    fn anything_but_success_at_a_higher_seat_begins_at_the_first() {
        for gone in [Walk::on_unroutable as fn(&mut Walk, Seat) -> Step, |walk, seat| walk.on_nacked(seat, 5_000)] {
            let mut walk = Walk::default();
            walk.go_to(seat(2));
            assert_eq!(gone(&mut walk, seat(2)), Step::Again(0));
            assert_eq!(walk.seat(), seat(0));
        }
    }

    #[test]
    fn answers_of_before_change_nothing() {
        let mut walk = Walk::default();
        walk.go_to(seat(1));
        assert_eq!(walk.on_unroutable(seat(0)), Step::Stay);
        assert_eq!(walk.on_nacked(seat(0), 1), Step::Stay);
        walk.on_routed(seat(0));
        assert_eq!(walk.seat(), seat(1));
    }

    #[test]
    fn behind_the_last_seat_it_begins_again_a_beat_later() {
        let mut walk = Walk::default();
        let mut now = 0;
        for number in 0..8 {
            assert_eq!(walk.on_nacked(seat(number), now), Step::Again(SURE_MS));
            now += SURE_MS;
            let expected = if number == 7 { Step::Stay } else { Step::Again(0) };
            assert_eq!(walk.on_nacked(seat(number), now), expected);
        }
        assert_eq!(walk.seat(), seat(0));
    }
}
