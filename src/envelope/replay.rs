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

/// A salt that nothing came under for so long rests: it keeps a [`Narrow`] window and no derived key. Its sender has most
/// likely changed to another by then, or reports once a minute and derives a key each time. A message that is late by more
/// sequences than that, and by so much time, is refused.
const REST_AFTER_MS: u64 = 30_000;

/// How often a table looks for windows that are due, or may rest.
const SWEEP_EVERY_MS: u64 = 15_000;

/// The most routes that a table follows: the keys exchange, the leader's queue, and an inbox for each link of the last
/// minutes, or the pod's exchange and as many feeds.
const MOST_ROUTES: usize = 1_024;

/// Which of the last 1,024 sequences were seen, up to the highest.
pub(super) struct Window {
    highest: u64,
    /// One bit for each sequence in `highest - 1023 ..= highest`, at the sequence modulo 1,024.
    seen: [u64; WORDS],
}

impl Window {
    /// A window that has seen `first` and nothing else.
    pub(crate) fn starting_at(first: u64) -> Self {
        let mut window = Self { highest: first, seen: [0; WORDS] };
        window.mark(first);
        window
    }

    /// Marks `sequence` as seen and says how many were skipped to get to it; `None` if it was seen before, or is so
    /// far back that nobody knows.
    pub(crate) fn admit(&mut self, sequence: u64) -> Option<u64> {
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

    /// What is left of it once its salt rests.
    fn narrowed(&self) -> Narrow {
        let is_seen = |back: &u32| self.highest.checked_sub(u64::from(*back)).is_none_or(|late| self.is_marked(late));
        let seen = (0..u64::BITS).filter(is_seen).fold(0, |seen, back| seen | 1 << back);
        Narrow { highest: self.highest, seen }
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

/// Which of the last 64 sequences were seen, up to the highest. All before them count as seen: it refuses whatever the
/// window that it was made of refused, and more.
struct Narrow {
    highest: u64,
    /// The lowest bit for the highest sequence, the next one for the sequence before it, and so on.
    seen: u64,
}

impl Narrow {
    fn widened(&self) -> Window {
        let mut window = Window { highest: self.highest, seen: [u64::MAX; WORDS] };
        for back in (0..u64::BITS).filter(|back| self.seen & (1 << back) == 0) {
            window.unmark(self.highest.wrapping_sub(u64::from(back)));
        }
        window
    }
}

/// Who sealed a message, as far as sequences go.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SenderSalt {
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

/// What was seen under a salt on a route.
enum Tracking {
    /// It is in use.
    Live(Box<Live>),
    /// Nothing came for a while, or there were too many in use.
    Resting(Narrow),
}

struct Live {
    window: Window,
    /// The key derived last, with its epoch; `None` after its secret or its epoch key was taken away.
    key: Option<(EpochId, OpeningKey)>,
}

impl Tracking {
    /// `window` with its key, if there is a place for it, or what is left of it.
    fn of(window: Window, key: Option<(EpochId, OpeningKey)>, live: &mut Places) -> Self {
        if live.taken < live.most {
            live.taken += 1;
            Self::Live(Box::new(Live { window, key }))
        } else {
            Self::Resting(window.narrowed())
        }
    }
}

/// For windows in use.
struct Places {
    taken: usize,
    most: usize,
}

struct Tracked {
    seen: Tracking,
    /// Monotonic milliseconds of the last admission.
    last_used: u64,
    /// The latest stamp admitted, UTC milliseconds.
    newest: u64,
}

/// What [`TableLimits`] promise of memory.
const _: () = assert!(size_of::<(SenderSalt, Tracked)>() == 64 && size_of::<Live>() <= 160);

impl Tracked {
    fn live(&self) -> Option<&Live> {
        match &self.seen {
            Tracking::Live(live) => Some(live),
            Tracking::Resting(_) => None,
        }
    }

    fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.seen {
            Tracking::Live(live) => Some(live),
            Tracking::Resting(_) => None,
        }
    }

    /// Admits the message of `mark` at `mono`, once. Only what is admitted takes a place among the live ones.
    fn admit(
        &mut self,
        mark: Mark,
        derived: Option<(EpochId, OpeningKey)>,
        mono: u64,
        live: &mut Places,
    ) -> Option<u64> {
        let missed = match &mut self.seen {
            Tracking::Live(live) => {
                if derived.is_some() {
                    live.key = derived;
                }
                live.window.admit(mark.sequence)?
            }
            Tracking::Resting(narrow) => {
                let mut window = narrow.widened();
                let missed = window.admit(mark.sequence)?;
                self.seen = Tracking::of(window, derived, live);
                missed
            }
        };
        self.last_used = mono;
        self.newest = self.newest.max(mark.sent_at);
        Some(missed)
    }
}

/// How much a [`Table`] may hold. A window takes 65 bytes, in a hash table that is between 7/16 and 7/8 full; one in use
/// about 850 more: 160 for 1,024 sequences, the rest for the cipher's context.
#[derive(Clone, Copy)]
pub(super) struct TableLimits {
    /// (secret, salt, route).
    pub windows: usize,
    /// Those in use, each with its derived key.
    pub live: usize,
}

/// Windows and derived keys of all (secret, salt, route) that were heard of lately.
pub(super) struct Table {
    routes: HashMap<Box<str>, HashMap<SenderSalt, Tracked>>,
    len: usize,
    limit: usize,
    live: Places,
    /// Milliseconds.
    max_clock_offset: u64,
    /// When to look for unused windows again, monotonic milliseconds.
    next_sweep: u64,
    /// In a full table no window can be evicted before this, monotonic milliseconds.
    full_until: u64,
}

impl Table {
    pub(crate) fn new(limits: TableLimits, max_clock_offset: Duration) -> Self {
        let max_clock_offset = millis(max_clock_offset);
        let live = Places { taken: 0, most: limits.live };
        Self {
            routes: HashMap::new(),
            len: 0,
            limit: limits.windows,
            live,
            max_clock_offset,
            next_sweep: 0,
            full_until: 0,
        }
    }

    /// Windows kept.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The derived key for `sender` on `route` in `epoch`, if the table has it. It has the one that was used last:
    /// senders change from one epoch key to the next, and rarely back.
    pub(crate) fn key(&mut self, route: &str, sender: &SenderSalt, epoch: EpochId) -> Option<&mut OpeningKey> {
        let (of, key) = self.routes.get_mut(route)?.get_mut(sender)?.live_mut()?.key.as_mut()?;
        (*of == epoch).then_some(key)
    }

    /// Admits an authentic message whose clock is right, once, and says how many sequences were skipped before it.
    /// `derived` is its key, if the table did not have it.
    pub(crate) fn admit(
        &mut self,
        route: &str,
        sender: SenderSalt,
        mark: Mark,
        derived: Option<(EpochId, OpeningKey)>,
        now: Now,
    ) -> Result<u64, NotAdmitted> {
        if now.mono >= self.next_sweep {
            self.sweep(now);
        }
        if let Some(tracked) = self.routes.get_mut(route).and_then(|senders| senders.get_mut(&sender)) {
            return tracked.admit(mark, derived, now.mono, &mut self.live).ok_or(NotAdmitted::Replay);
        }
        if self.is_full(route) {
            self.make_room(now);
            if self.is_full(route) {
                return Err(NotAdmitted::Full);
            }
        }
        let seen = Tracking::of(Window::starting_at(mark.sequence), derived, &mut self.live);
        let tracked = Tracked { seen, last_used: now.mono, newest: mark.sent_at };
        self.routes.entry(route.into()).or_default().insert(sender, tracked);
        self.len += 1;
        Ok(0)
    }

    /// Erases the derived keys but those for whose secret and epoch `known` holds. Their windows stay until they are due,
    /// for the case that a secret comes back soon.
    pub(crate) fn keep_keys(&mut self, known: impl Fn(SecretId, EpochId) -> bool) {
        for (sender, tracked) in self.routes.values_mut().flatten() {
            let Some(live) = tracked.live_mut() else { continue };
            if live.key.as_ref().is_some_and(|(epoch, _)| !known(sender.secret_id, *epoch)) {
                live.key = None;
            }
        }
    }

    fn is_full(&self, route: &str) -> bool {
        self.len >= self.limit || self.routes.len() >= MOST_ROUTES && !self.routes.contains_key(route)
    }

    /// A message admitted now may be stamped `max_clock_offset` ahead and is fresh for as long after its stamp.
    fn replayable_for(&self) -> u64 {
        self.max_clock_offset.saturating_mul(2)
    }

    /// Drops the windows that nothing replayable could hit any more, and lets rest what is not in use. By the wall clock
    /// too: if that was set back, old messages are fresh again.
    fn sweep(&mut self, now: Now) {
        self.next_sweep = now.mono.saturating_add((self.max_clock_offset / 4 + 1).min(SWEEP_EVERY_MS));
        for tracked in self.routes.values_mut().flat_map(HashMap::values_mut) {
            if now.mono.saturating_sub(tracked.last_used) >= REST_AFTER_MS
                && let Some(live) = tracked.live()
            {
                tracked.seen = Tracking::Resting(live.window.narrowed());
            }
        }
        let (span, offset) = (self.replayable_for(), self.max_clock_offset);
        self.evict(|tracked| {
            now.mono.saturating_sub(tracked.last_used) > span && now.wall.saturating_sub(tracked.newest) > offset
        });
    }

    /// Drops what the monotonic clock alone says is due, lest a wall clock set far back keep new senders out for good.
    fn make_room(&mut self, now: Now) {
        if now.mono < self.full_until {
            return;
        }
        let span = self.replayable_for();
        self.evict(|tracked| now.mono.saturating_sub(tracked.last_used) > span);
        // Being used only moves a window's end further away, so this stays a lower bound.
        let oldest = self.routes.values().flat_map(HashMap::values).map(|tracked| tracked.last_used).min();
        self.full_until = oldest.unwrap_or(now.mono).saturating_add(span).saturating_add(1);
    }

    fn evict(&mut self, due: impl Fn(&Tracked) -> bool) {
        for senders in self.routes.values_mut() {
            senders.retain(|_, tracked| !due(tracked));
        }
        self.routes.retain(|_, senders| !senders.is_empty());
        self.len = self.routes.values().map(HashMap::len).sum();
        self.live.taken = self.routes.values().flat_map(HashMap::values).filter(|it| it.live().is_some()).count();
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

    fn table(windows: usize) -> Table {
        Table::new(TableLimits { windows, live: 2 }, OFFSET)
    }

    fn sender(salt: u8) -> SenderSalt {
        SenderSalt { secret_id: [0; 8], salt: [salt; 16] }
    }

    fn admit(table: &mut Table, route: &str, salt: u8, sequence: u64, now: Now) -> Result<u64, NotAdmitted> {
        table.admit(route, sender(salt), Mark { sequence, sent_at: now.wall }, None, now)
    }

    #[test]
    fn senders_and_routes_have_windows_of_their_own() {
        let mut table = table(10);
        for (route, salt) in [("a", 1), ("a", 2), ("b", 1)] {
            assert_eq!(admit(&mut table, route, salt, 7, START), Ok(0), "the first counts no gap");
            assert_eq!(admit(&mut table, route, salt, 7, START), Err(NotAdmitted::Replay));
        }
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_full_table_refuses_new_senders_and_keeps_the_old() {
        let mut table = table(2);
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
        let mut table = table(2);
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
        let mut table = table(100);
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
        let sender = SenderSalt { secret_id: secret.id(), salt: [1; 16] };
        let mark = Mark { sequence: 0, sent_at: START.wall };
        let source = Source { secret: &secret, epoch: None, farm: "f" };
        let derive = || Some((NO_EPOCH, OpeningKey::derive(source, "a", &sender.salt).unwrap()));
        let mut table = table(10);
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
        let mut table = table(100);
        admit(&mut table, "a", 1, 0, START).unwrap();
        let later = START.after(4 * OFFSET);
        let set_back = Now { wall: START.wall, mono: later.mono };
        admit(&mut table, "b", 1, 0, set_back).unwrap();
        assert_eq!(admit(&mut table, "a", 1, 0, set_back), Err(NotAdmitted::Replay));
    }

    #[test]
    fn a_wall_clock_set_far_back_does_not_keep_new_senders_out() {
        let mut table = table(1);
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
            let mut table = table(3);
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

    proptest! {
        /// A window that rests now and then, or has no place among those in use, admits no sequence twice; and of those that
        /// the window admits it refuses only what is 64 behind or more.
        #[test]
        fn a_window_that_rested_is_the_window_but_for_what_is_far_behind(
            start in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
            steps in steps(),
            rests in prop::collection::vec(any::<bool>(), 600),
        ) {
            let mut whole = Window::starting_at(start);
            let mut resting = Window::starting_at(start);
            let mut admitted = HashSet::from([start]);
            let mut sequence = start;
            for (step, rests) in steps.into_iter().zip(rests) {
                if rests {
                    resting = resting.narrowed().widened();
                }
                sequence = sequence.saturating_add_signed(step);
                let behind = whole.highest.saturating_sub(sequence);
                let (expected, found) = (whole.admit(sequence), resting.admit(sequence));
                prop_assert!(found == expected || found.is_none() && behind >= 64, "{sequence}: {found:?}, {expected:?}");
                prop_assert!(found.is_none() || admitted.insert(sequence), "{sequence} twice");
            }
        }
    }

    #[test]
    fn a_salt_that_rests_keeps_its_window_and_no_key() {
        let secret = FarmSecret::from_bytes(&[1; 32]).unwrap();
        let sender = SenderSalt { secret_id: secret.id(), salt: [1; 16] };
        let source = Source { secret: &secret, epoch: None, farm: "f" };
        let derive = || Some((NO_EPOCH, OpeningKey::derive(source, "a", &sender.salt).unwrap()));
        let mut table = table(10);
        for sequence in [0, 1, 3, 100] {
            let mark = Mark { sequence, sent_at: START.wall };
            table.admit("a", sender, mark, derive(), START).unwrap();
        }
        assert_eq!(table.live.taken, 1);

        let later = START.after(OFFSET);
        admit(&mut table, "b", 9, 0, later).unwrap();
        assert!(table.key("a", &sender, NO_EPOCH).is_none(), "it rests");
        assert_eq!((table.live.taken, table.len()), (1, 2));
        let mut again = |sequence| table.admit("a", sender, Mark { sequence, sent_at: START.wall }, derive(), later);
        for sequence in [0, 1, 3, 100, 2, 36] {
            assert_eq!(again(sequence), Err(NotAdmitted::Replay), "{sequence}: seen, or 64 behind or more");
        }
        assert_eq!(again(37), Ok(0), "63 behind");
        assert_eq!(again(37), Err(NotAdmitted::Replay));
        assert_eq!(again(102), Ok(1));
        assert!(table.key("a", &sender, NO_EPOCH).is_some(), "in use again");
        assert_eq!(table.live.taken, 2);
    }

    #[test]
    fn what_finds_no_place_among_those_in_use_is_still_admitted_once() {
        let mut table = table(10);
        for sequence in [5, 4, 7] {
            for salt in 0..5 {
                assert!(admit(&mut table, "a", salt, sequence, START).is_ok(), "{sequence} of {salt}");
                assert_eq!(admit(&mut table, "a", salt, sequence, START), Err(NotAdmitted::Replay));
            }
        }
        assert_eq!((table.live.taken, table.len()), (2, 5));
    }

    #[test]
    fn routes_are_bounded() {
        let mut table = table(10_000);
        for route in 0..MOST_ROUTES {
            admit(&mut table, &route.to_string(), 1, 0, START).unwrap();
        }
        assert_eq!(admit(&mut table, "one more", 1, 0, START), Err(NotAdmitted::Full));
        assert_eq!(admit(&mut table, "0", 2, 0, START), Ok(0));
    }

    /// What 20,000 nodes cost the leader, each with a new salt every minute, and one more for each of three broken links.
    #[test]
    fn the_largest_farm_finds_room_at_its_leader() {
        use crate::envelope::open::LIMITS;

        const NODES: u128 = 20_000;
        let mut table = Table::new(LIMITS, OFFSET);
        let (mut now, mut salts, mut most) = (START, 0_u128, 0);
        for minute in 0..15 {
            for _link in 0..if (5..8).contains(&minute) { 2 } else { 1 } {
                for part in 0..4 {
                    for _node in 0..NODES / 4 {
                        let sender = SenderSalt { secret_id: [0; 8], salt: salts.to_be_bytes() };
                        salts += 1;
                        let mark = Mark { sequence: 0, sent_at: now.wall };
                        assert_eq!(table.admit("leader", sender, mark, None, now), Ok(0), "minute {minute}, {part}");
                    }
                    now = now.after(Duration::from_secs(if (5..8).contains(&minute) { 7 } else { 15 }));
                }
            }
            most = most.max(table.len());
        }
        // Eleven of the last ten minutes and what is left of the sweep, and three.
        assert!(most > 13 * 20_000 && most < 15 * 20_000, "{most}");
        assert!(table.live.taken <= 20_000, "{}", table.live.taken);
    }
}
