//! What waits to be published: filled with what the proxies report, emptied by the publisher.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;

use super::MAX_BATCH_ENTRIES;
use crate::proto::{SessionBatch, SessionEntry, SessionFormat};

/// What one waiting entry is counted for besides its ID and session, in bytes: the entry itself and its allocation.
const ENTRY_OVERHEAD: usize = 128;

/// A queue of sessions and removals, bounded in bytes. Order is kept.
///
/// The consumer takes whatever is there: one entry when the farm is idle, at once, and large batches when entries
/// arrive faster than batches leave.
#[derive(Debug)]
pub(crate) struct Outbox {
    max_bytes: usize,
    entries: VecDeque<SessionEntry>,
    bytes: usize,
}

impl Outbox {
    /// An outbox for at most `max_bytes`, every entry counted with 128 bytes beside its ID and session.
    #[must_use]
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, entries: VecDeque::new(), bytes: 0 }
    }

    /// The first of `entries`, as many as there is room for. What does not fit need not be copied: under load a full outbox
    /// would have that done for nothing.
    #[must_use]
    pub(crate) fn fitting<'a>(&self, entries: &'a [SessionEntry]) -> &'a [SessionEntry] {
        let room = self.max_bytes.saturating_sub(self.bytes);
        let mut cost_of_all = 0;
        let fits = |entry: &&SessionEntry| {
            cost_of_all += cost(entry);
            cost_of_all <= room
        };
        &entries[..entries.iter().take_while(fits).count()]
    }

    /// The entries as slices of a copy, one allocation that lives until the last of them has gone: what they were slices of is not
    /// kept in memory.
    pub(crate) fn copies(entries: &[SessionEntry]) -> impl Iterator<Item = SessionEntry> {
        let mut copy = Vec::with_capacity(entries.iter().map(|entry| entry.id.len() + entry.session.len()).sum());
        for entry in entries {
            copy.extend_from_slice(&entry.id);
            copy.extend_from_slice(&entry.session);
        }
        let mut copy = Bytes::from(copy);
        entries.iter().map(move |entry| SessionEntry {
            id: copy.split_to(entry.id.len()),
            session: copy.split_to(entry.session.len()),
            at: entry.at,
        })
    }

    /// Adds entries at the end until one does not fit; returns how many were added. What waits already stays.
    pub(crate) fn push_all(&mut self, entries: impl IntoIterator<Item = SessionEntry>) -> usize {
        let before = self.entries.len();
        for entry in entries {
            let cost = cost(&entry);
            if self.bytes.saturating_add(cost) > self.max_bytes {
                break;
            }
            self.bytes += cost;
            self.entries.push_back(entry);
        }
        self.entries.len() - before
    }

    /// Takes the oldest entries, as many as encode to `batch_bytes` but at least one and at most [`MAX_BATCH_ENTRIES`]; none if
    /// nothing waits.
    pub(crate) fn take(&mut self, batch_bytes: usize) -> Option<SessionBatch> {
        let (mut count, mut bytes, mut encoded) = (0, 0, 0);
        for entry in self.entries.iter().take(MAX_BATCH_ENTRIES) {
            // As a field of the batch: a tag, a length, the entry.
            let length = entry.encoded_len();
            encoded += 1 + prost::length_delimiter_len(length) + length;
            if count > 0 && encoded > batch_bytes {
                break;
            }
            count += 1;
            bytes += cost(entry);
        }
        if count == 0 {
            return None;
        }
        self.bytes -= bytes;
        let entries = self.entries.drain(..count).collect();
        if self.entries.is_empty() && self.entries.capacity() > 4096 {
            self.entries = VecDeque::new();
        }
        Some(SessionBatch { entries, format: SessionFormat::OpensslDer.into() })
    }

    /// How many entries wait.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the waiting entries are counted for, in bytes: never more than the bound.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn cost(entry: &SessionEntry) -> usize {
    entry.id.len() + entry.session.len() + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, length: usize) -> SessionEntry {
        SessionEntry { id: number.to_be_bytes().to_vec().into(), session: vec![0; length].into(), at: number }
    }

    fn numbers(batch: &SessionBatch) -> Vec<u64> {
        batch.entries.iter().map(|entry| entry.at).collect()
    }

    /// Adds what has room, and says how many entries have not.
    fn push(outbox: &mut Outbox, entries: &[SessionEntry]) -> usize {
        let fitting = outbox.fitting(entries).len();
        let added = outbox.push_all(Outbox::copies(entries));
        assert_eq!(added, fitting, "what is said to fit, fits");
        entries.len() - added
    }

    fn drain(outbox: &mut Outbox, batch_bytes: usize) -> Vec<SessionBatch> {
        std::iter::from_fn(|| outbox.take(batch_bytes)).collect()
    }

    #[test]
    fn a_lone_entry_leaves_at_once() {
        let mut outbox = Outbox::new(1 << 20);
        assert_eq!(push(&mut outbox, &[entry(1, 100)]), 0);
        let batch = outbox.take(32 * 1024).expect("without waiting for more");
        assert_eq!(numbers(&batch), [1]);
        assert_eq!(batch.format(), SessionFormat::OpensslDer);
        assert!(outbox.is_empty());
        assert!(outbox.take(32 * 1024).is_none(), "an empty batch");
    }

    #[test]
    fn batches_are_as_large_as_allowed_and_keep_the_order() {
        let mut outbox = Outbox::new(1 << 20);
        for number in 0..1_000 {
            assert_eq!(push(&mut outbox, &[entry(number, 200)]), 0);
        }
        let mut seen = Vec::new();
        while let Some(batch) = outbox.take(10_000) {
            // The batch's own field for the format is two bytes more.
            let encoded = batch.encoded_len() - 2;
            assert!(encoded <= 10_000, "{encoded} bytes");
            if seen.len() + batch.entries.len() < 1_000 {
                assert!(encoded > 10_000 - 230, "room for another entry in {encoded} bytes");
            }
            seen.extend(numbers(&batch));
        }
        assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn an_entry_larger_than_a_batch_travels_alone() {
        let mut outbox = Outbox::new(1 << 20);
        for (number, length) in [(1, 10), (2, 5_000), (3, 10)] {
            assert_eq!(push(&mut outbox, &[entry(number, length)]), 0);
        }
        let batches: Vec<_> = drain(&mut outbox, 1_000).iter().map(numbers).collect();
        assert_eq!(batches, [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn a_full_outbox_refuses_and_keeps_what_it_has() {
        let each = 8 + 100 + ENTRY_OVERHEAD;
        let mut outbox = Outbox::new(3 * each);
        for number in 1..=3 {
            assert_eq!(push(&mut outbox, &[entry(number, 100)]), 0);
        }
        assert_eq!(push(&mut outbox, &[entry(4, 100)]), 1);
        assert_eq!(push(&mut outbox, &[entry(4, 0)]), 1, "a removal needs room, too");
        assert_eq!(outbox.bytes(), 3 * each);
        assert_eq!(outbox.take(1).map(|batch| numbers(&batch)), Some(vec![1]));
        assert_eq!(push(&mut outbox, &[entry(5, 100), entry(6, 100)]), 1);
        assert_eq!(drain(&mut outbox, 1 << 20).iter().flat_map(numbers).collect::<Vec<_>>(), [2, 3, 5]);
        assert!(outbox.take(1 << 20).is_none());
    }

    #[test]
    fn a_batch_has_no_more_entries_than_a_receiver_takes() {
        let mut outbox = Outbox::new(1 << 30);
        for number in 0..=MAX_BATCH_ENTRIES as u64 {
            assert_eq!(push(&mut outbox, &[entry(number, 0)]), 0);
        }
        let counts: Vec<_> = drain(&mut outbox, usize::MAX).iter().map(|batch| batch.entries.len()).collect();
        assert_eq!(counts, [MAX_BATCH_ENTRIES, 1]);
    }

    #[test]
    fn an_entry_does_not_keep_the_message_that_brought_it() {
        let frame = Bytes::from(vec![7; 100_000]);
        let mut outbox = Outbox::new(1 << 20);
        let entry = SessionEntry { id: frame.slice(..32), session: frame.slice(32..200), at: 0 };
        assert_eq!(push(&mut outbox, &[entry]), 0);
        assert!(frame.is_unique(), "the whole message stays in memory");
        let taken = &drain(&mut outbox, 1)[0].entries[0];
        assert_eq!((&taken.id[..], &taken.session[..]), (&[7; 32][..], &[7; 168][..]));
    }
}
