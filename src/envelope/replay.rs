//! Which sequences were opened: a sliding window for each sender and route, in a bounded table.

use std::collections::HashMap;
use std::time::Duration;

use super::epoch::EpochId;
use super::key::OpeningKey;
use super::secret::SecretId;
use crate::clock::{Now, millis};

/// How many sequences back a message may arrive late.
pub(super) const WINDOW: u64 = 1024;

const WORDS: usize = (WINDOW / 64) as usize;

/// Which of the last 1,024 sequences were seen, up to the highest.
pub(super) struct Window {
    highest: u64,
    /// One bit for each sequence in `highest - 1023 ..= highest`, at the sequence modulo 1,024.
    seen: [u64; WORDS],
}

impl Window {
    /// A window that has seen `first` and nothing else.
    pub fn starting_at(first: u64) -> Self {
        let mut window = Self { highest: first, seen: [0; WORDS] };
        window.mark(first);
        window
    }

    /// Marks `sequence` as seen and says how many were skipped to get to it; `None` if it was seen before, or is so
    /// far back that nobody knows.
    pub fn admit(&mut self, sequence: u64) -> Option<u64> {
        if sequence > self.highest {
            let step = sequence - self.highest;
            if step >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for skipped in self.highest + 1..sequence {
                    self.unmark(skipped);
                }
            }
            self.highest = sequence;
            self.mark(sequence);
            return Some(step - 1);
        }
        if self.highest - sequence >= WINDOW || self.is_marked(sequence) {
            return None;
        }
        self.mark(sequence);
        Some(0)
    }

    fn place(sequence: u64) -> (usize, u64) {
        let bit = sequence % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_marked(&self, sequence: u64) -> bool {
        let (word, bit) = Self::place(sequence);
        self.seen[word] & bit != 0
    }

    fn mark(&mut self, sequence: u64) {
        let (word, bit) = Self::place(sequence);
        self.seen[word] |= bit;
    }

    fn unmark(&mut self, sequence: u64) {
        let (word, bit) = Self::place(sequence);
        self.seen[word] &= !bit;
    }
}

/// Who sealed a message, as far as sequences go.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    pub secret_id: SecretId,
    pub salt: [u8; 16],
}

/// Which message of a sender it is.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub sequence: u64,
    /// UTC milliseconds.
    pub sent_at: u64,
}

/// Why an authentic message was not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// It was before, or may have been.
    Replay,
    /// Its sender and route are new, and all places are taken.
    Full,
}

struct Tracked {
    window: Window,
    /// Monotonic milliseconds of the last admission.
    last_used: u64,
    /// The latest stamp admitted, UTC milliseconds.
    newest: u64,
    /// The key derived last, with its epoch; `None` after its secret or its epoch key was taken away.
    key: Option<(EpochId, OpeningKey)>,
}

/// Windows and derived keys of all (secret, salt, route) that were heard of lately.
pub(super) struct Table {
    routes: HashMap<Box<str>, HashMap<Sender, Tracked>>,
    len: usize,
    limit: usize,
    /// Milliseconds.
    max_clock_offset: u64,
    /// When to look for unused windows again, monotonic milliseconds.
    next_sweep: u64,
    /// In a full table no window can be evicted before this, monotonic milliseconds.
    full_until: u64,
}

impl Table {
    pub fn new(limit: usize, max_clock_offset: Duration) -> Self {
        let max_clock_offset = millis(max_clock_offset);
        Self { routes: HashMap::new(), len: 0, limit, max_clock_offset, next_sweep: 0, full_until: 0 }
    }

    /// Windows kept.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The derived key for `sender` on `route` in `epoch`, if the table has it. It has the one that was used last:
    /// senders change from one epoch key to the next, and rarely back.
    pub fn key(&mut self, route: &str, sender: &Sender, epoch: EpochId) -> Option<&mut OpeningKey> {
        let (of, key) = self.routes.get_mut(route)?.get_mut(sender)?.key.as_mut()?;
        (*of == epoch).then_some(key)
    }

    /// Admits an authentic message whose clock is right, once, and says how many sequences were skipped before it.
    /// `derived` is its key, if the table did not have it.
    pub fn admit(
        &mut self,
        route: &str,
        sender: Sender,
        mark: Mark,
        derived: Option<(EpochId, OpeningKey)>,
        now: Now,
    ) -> Result<u64, NotAdmitted> {
        if now.mono >= self.next_sweep {
            self.sweep(now);
        }
        if let Some(tracked) = self.routes.get_mut(route).and_then(|senders| senders.get_mut(&sender)) {
            if derived.is_some() {
                tracked.key = derived;
            }
            let missed = tracked.window.admit(mark.sequence).ok_or(NotAdmitted::Replay)?;
            tracked.last_used = now.mono;
            tracked.newest = tracked.newest.max(mark.sent_at);
            return Ok(missed);
        }
        if self.len >= self.limit && !self.make_room(now) {
            return Err(NotAdmitted::Full);
        }
        let window = Window::starting_at(mark.sequence);
        let tracked = Tracked { window, last_used: now.mono, newest: mark.sent_at, key: derived };
        self.routes.entry(route.into()).or_default().insert(sender, tracked);
        self.len += 1;
        Ok(0)
    }

    /// Erases the derived keys but those for whose secret and epoch `known` holds. Their windows stay until they are due,
    /// for the case that a secret comes back soon.
    pub fn keep_keys(&mut self, known: impl Fn(SecretId, EpochId) -> bool) {
        for (sender, tracked) in self.routes.values_mut().flatten() {
            if tracked.key.as_ref().is_some_and(|(epoch, _)| !known(sender.secret_id, *epoch)) {
                tracked.key = None;
            }
        }
    }

    /// A message admitted now may be stamped `max_clock_offset` ahead and is fresh for as long after its stamp.
    fn replayable_for(&self) -> u64 {
        self.max_clock_offset.saturating_mul(2)
    }

    /// Drops the windows that nothing replayable could hit any more. By the wall clock too: if that was set back, old
    /// messages are fresh again.
    fn sweep(&mut self, now: Now) {
        self.next_sweep = now.mono.saturating_add(self.max_clock_offset / 4 + 1);
        let (span, offset) = (self.replayable_for(), self.max_clock_offset);
        self.evict(|tracked| {
            now.mono.saturating_sub(tracked.last_used) > span && now.wall.saturating_sub(tracked.newest) > offset
        });
    }

    /// Drops what the monotonic clock alone says is due, lest a wall clock set far back keep new senders out for good.
    fn make_room(&mut self, now: Now) -> bool {
        if now.mono < self.full_until {
            return false;
        }
        let span = self.replayable_for();
        self.evict(|tracked| now.mono.saturating_sub(tracked.last_used) > span);
        // Being used only moves a window's end further away, so this stays a lower bound.
        let oldest = self.routes.values().flat_map(HashMap::values).map(|tracked| tracked.last_used).min();
        self.full_until = oldest.unwrap_or(now.mono).saturating_add(span).saturating_add(1);
        self.len < self.limit
    }

    fn evict(&mut self, due: impl Fn(&Tracked) -> bool) {
        for senders in self.routes.values_mut() {
            senders.retain(|_, tracked| !due(tracked));
        }
        self.routes.retain(|_, senders| !senders.is_empty());
        self.len = self.routes.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::envelope::key::Source;
    use crate::envelope::secret::FarmSecret;
    use crate::envelope::wire::NO_EPOCH;

    const OFFSET: Duration = Duration::from_secs(300);
    const START: Now = Now { wall: 1_800_000_000_000, mono: 86_400_000 };

    /// The window as one would write it without thinking of memory.
    struct Naive {
        highest: u64,
        seen: HashSet<u64>,
    }

    impl Naive {
        fn admit(&mut self, sequence: u64) -> Option<u64> {
            let too_old = sequence < self.highest && self.highest - sequence > 1023;
            if too_old || !self.seen.insert(sequence) {
                return None;
            }
            let missed = sequence.saturating_sub(self.highest).saturating_sub(1);
            self.highest = self.highest.max(sequence);
            Some(missed)
        }
    }

    /// Steps that are mostly small, sometimes about as wide as the window, sometimes huge.
    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![8 => -3..5_i64, 3 => -1100..1100_i64, 1 => -10_000..100_000_i64];
        prop::collection::vec(step, 1..600)
    }

    proptest! {
        #[test]
        fn the_window_is_the_naive_model(start in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], steps in steps()) {
            let mut window = Window::starting_at(start);
            let mut naive = Naive { highest: start, seen: HashSet::from([start]) };
            let mut sequence = start;
            for step in steps {
                sequence = sequence.saturating_add_signed(step);
                prop_assert_eq!(window.admit(sequence), naive.admit(sequence), "sequence {}", sequence);
            }
        }

        #[test]
        fn any_reorder_within_the_window_is_admitted_exactly_once(
            order in prop::collection::vec(any::<prop::sample::Index>(), 1024),
            base in prop_oneof![Just(0), Just(u64::MAX - 1023), 0..u64::MAX - 1023],
        ) {
            let mut left: Vec<u64> = (0..1024).map(|n| base + n).collect();
            let shuffled: Vec<u64> = order.iter().map(|index| left.swap_remove(index.index(left.len()))).collect();
            let mut window = Window::starting_at(shuffled[0]);
            for sequence in &shuffled[1..] {
                prop_assert!(window.admit(*sequence).is_some(), "{} was refused", sequence);
            }
            for sequence in &shuffled {
                prop_assert_eq!(window.admit(*sequence), None, "{} was admitted twice", sequence);
            }
        }
    }

    #[test]
    fn the_window_is_1024_sequences_wide() {
        let mut window = Window::starting_at(0);
        assert_eq!(window.admit(1024), Some(1023));
        assert_eq!(window.admit(0), None, "1,024 back");
        assert_eq!(window.admit(1), Some(0), "1,023 back");
        assert_eq!(window.admit(1), None);
    }

    #[test]
    fn a_gap_is_counted_once_when_it_is_jumped_over() {
        let mut window = Window::starting_at(10);
        assert_eq!(window.admit(11), Some(0));
        assert_eq!(window.admit(15), Some(3));
        assert_eq!(window.admit(13), Some(0));
        assert_eq!(window.admit(16), Some(0));
        assert_eq!(window.admit(u64::MAX), Some(u64::MAX - 17));
    }

    fn sender(salt: u8) -> Sender {
        Sender { secret_id: [0; 8], salt: [salt; 16] }
    }

    fn admit(table: &mut Table, route: &str, salt: u8, sequence: u64, now: Now) -> Result<u64, NotAdmitted> {
        table.admit(route, sender(salt), Mark { sequence, sent_at: now.wall }, None, now)
    }

    #[test]
    fn senders_and_routes_have_windows_of_their_own() {
        let mut table = Table::new(10, OFFSET);
        for (route, salt) in [("a", 1), ("a", 2), ("b", 1)] {
            assert_eq!(admit(&mut table, route, salt, 7, START), Ok(0), "the first counts no gap");
            assert_eq!(admit(&mut table, route, salt, 7, START), Err(NotAdmitted::Replay));
        }
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_full_table_refuses_new_senders_and_keeps_the_old() {
        let mut table = Table::new(2, OFFSET);
        admit(&mut table, "a", 1, 0, START).unwrap();
        admit(&mut table, "a", 2, 0, START.after(OFFSET)).unwrap();
        let last_full = START.after(2 * OFFSET);
        for now in [START.after(OFFSET), last_full] {
            assert_eq!(admit(&mut table, "a", 3, 0, now), Err(NotAdmitted::Full));
            assert_eq!(admit(&mut table, "b", 1, 0, now), Err(NotAdmitted::Full));
        }
        assert_eq!(admit(&mut table, "a", 2, 1, last_full), Ok(0));

        let one_is_due = last_full.after(Duration::from_millis(1));
        assert_eq!(admit(&mut table, "a", 3, 0, one_is_due), Ok(0));
        assert_eq!(table.len(), 2);
        assert_eq!(admit(&mut table, "a", 2, 1, one_is_due), Err(NotAdmitted::Replay), "it was in use and stays");
    }

    #[test]
    fn a_window_in_use_is_never_evicted() {
        let mut table = Table::new(2, OFFSET);
        let mut now = START;
        for sequence in 0..20 {
            admit(&mut table, "a", 1, sequence, now).unwrap();
            now = now.after(OFFSET);
            let other = u8::try_from(sequence + 100).unwrap();
            assert_ne!(admit(&mut table, "b", other, 0, now), Err(NotAdmitted::Replay));
            assert_eq!(admit(&mut table, "a", 1, sequence, now), Err(NotAdmitted::Replay));
            now = now.after(OFFSET);
        }
    }

    #[test]
    fn unused_windows_go_by_themselves() {
        let mut table = Table::new(100, OFFSET);
        for salt in 0..50 {
            admit(&mut table, "a", salt, 0, START).unwrap();
        }
        admit(&mut table, "b", 0, 0, START.after(2 * OFFSET)).unwrap();
        assert_eq!(table.len(), 51, "still replayable");
        admit(&mut table, "b", 0, 1, START.after(3 * OFFSET)).unwrap();
        assert_eq!(table.len(), 1);
        assert_eq!(table.routes.len(), 1);
    }

    #[test]
    fn keys_of_a_secret_that_is_gone_are_erased_and_its_windows_stay() {
        let secret = FarmSecret::from_bytes(&[1; 32]).unwrap();
        let sender = Sender { secret_id: secret.id(), salt: [1; 16] };
        let mark = Mark { sequence: 0, sent_at: START.wall };
        let source = Source { secret: &secret, epoch: None, farm: "f" };
        let derive = || Some((NO_EPOCH, OpeningKey::derive(source, "a", &sender.salt).unwrap()));
        let mut table = Table::new(10, OFFSET);
        table.admit("a", sender, mark, derive(), START).unwrap();

        table.keep_keys(|id, epoch| id == secret.id() && epoch == NO_EPOCH);
        assert!(table.key("a", &sender, NO_EPOCH).is_some());
        assert!(table.key("a", &sender, [1; 8]).is_none(), "of another epoch");
        table.keep_keys(|_, _| false);
        assert!(table.key("a", &sender, NO_EPOCH).is_none());
        assert_eq!(table.admit("a", sender, mark, derive(), START), Err(NotAdmitted::Replay));
        assert!(table.key("a", &sender, NO_EPOCH).is_some(), "derived once, kept again");
    }

    #[test]
    fn a_wall_clock_set_back_frees_no_window_early() {
        let mut table = Table::new(100, OFFSET);
        admit(&mut table, "a", 1, 0, START).unwrap();
        let later = START.after(4 * OFFSET);
        let set_back = Now { wall: START.wall, mono: later.mono };
        admit(&mut table, "b", 1, 0, set_back).unwrap();
        assert_eq!(admit(&mut table, "a", 1, 0, set_back), Err(NotAdmitted::Replay));
    }

    #[test]
    fn a_wall_clock_set_far_back_does_not_keep_new_senders_out() {
        let mut table = Table::new(1, OFFSET);
        admit(&mut table, "a", 1, 0, START).unwrap();
        let set_back = Now { wall: 1_000_000, mono: START.after(3 * OFFSET).mono };
        assert_eq!(admit(&mut table, "a", 2, 0, set_back), Ok(0));
    }

    proptest! {
        /// Whatever happens to the table, nothing is admitted twice while its stamp is fresh.
        #[test]
        fn a_replay_is_never_admitted_while_it_is_fresh(
            events in prop::collection::vec((0..4_u8, 0..40_u64, 0..200_000_u64, -300_000..=300_000_i64), 1..400),
        ) {
            let mut table = Table::new(3, OFFSET);
            let mut now = START;
            let mut admitted: Vec<(u8, Mark)> = Vec::new();
            for (salt, sequence, wait, ahead) in events {
                now = now.after(Duration::from_millis(wait));
                let mark = Mark { sequence, sent_at: now.wall.saturating_add_signed(ahead) };
                if table.admit("a", sender(salt), mark, None, now).is_ok() {
                    admitted.push((salt, mark));
                }
                for (salt, mark) in admitted.iter().filter(|(_, mark)| mark.sent_at.abs_diff(now.wall) <= 300_000) {
                    let again = table.admit("a", sender(*salt), *mark, None, now);
                    prop_assert_eq!(again, Err(NotAdmitted::Replay));
                }
            }
        }
    }
}
