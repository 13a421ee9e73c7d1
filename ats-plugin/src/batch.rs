//! Sessions and removals on their way to the daemon: reports one behind the other, as they travel.

use zeroize::{Zeroize, Zeroizing};

use crate::frame::{LENGTH_BYTES, length_of};
use crate::report::{Report, varint};

/// What a batch holds at most, in bytes.
pub const BATCH_BYTES: usize = 64 * 1024;

/// Field 2 of `FromProxy`, of a length (Protocol Buffers, "Encoding": field number · 8 + wire type).
const SESSIONS: u8 = 2 << 3 | 2;
/// Room for the frame's length, the key of its only field, and that field's length below 2³⁵.
const HEAD_BYTES: usize = LENGTH_BYTES + 1 + 5;

/// A `FromProxy` message with [`crate::proto::Sessions`] in the making.
pub struct Batch {
    /// [`HEAD_BYTES`] of room, then the entries, then room.
    bytes: Zeroizing<Box<[u8]>>,
    /// How far the entries go.
    end: usize,
    /// How far they went at most since all was wiped.
    written: usize,
    reports: u64,
}

impl Batch {
    /// An empty one, in memory that is there already: the hook pays for no page of it.
    pub fn new() -> Self {
        let bytes = Zeroizing::new(vec![1; BATCH_BYTES].into_boxed_slice());
        Self { bytes, end: HEAD_BYTES, written: HEAD_BYTES, reports: 0 }
    }

    /// Adds a report, unless that would make it longer than [`BATCH_BYTES`]. Returns whether it did.
    #[inline]
    pub fn push(&mut self, report: &Report) -> bool {
        let report = report.as_bytes();
        let Some(room) = self.bytes.get_mut(self.end..self.end + report.len()) else { return false };
        room.copy_from_slice(report);
        self.end += report.len();
        self.reports += 1;
        true
    }

    /// How many sessions and removals it holds.
    pub fn reports(&self) -> u64 {
        self.reports
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.reports == 0
    }

    /// The whole message behind its length, as it travels.
    pub fn frame(&mut self) -> &[u8] {
        let mut head = [0; HEAD_BYTES];
        let len = write_head(&mut head, self.end - HEAD_BYTES);
        let start = HEAD_BYTES - len;
        self.bytes[start..HEAD_BYTES].copy_from_slice(&head[..len]);
        &self.bytes[start..self.end]
    }

    /// Empties it, and wipes all that was ever in it.
    pub fn wipe(&mut self) {
        self.restart();
        self.bytes[..self.written].zeroize();
        self.written = HEAD_BYTES;
    }

    /// Empties it for reports that take the place of those it held.
    pub fn restart(&mut self) {
        self.written = self.written.max(self.end);
        self.end = HEAD_BYTES;
        self.reports = 0;
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// A message of one report behind its length.
pub fn frame_of(report: &Report) -> Zeroizing<Vec<u8>> {
    let mut head = [0; HEAD_BYTES];
    let len = write_head(&mut head, report.as_bytes().len());
    Zeroizing::new([&head[..len], report.as_bytes()].concat())
}

/// What comes before so many bytes of entries. Returns its length.
fn write_head(head: &mut [u8; HEAD_BYTES], entries: usize) -> usize {
    const SESSIONS_AT: usize = LENGTH_BYTES;
    head[SESSIONS_AT] = SESSIONS;
    let len = SESSIONS_AT + 1 + varint(&mut head[SESSIONS_AT + 1..], entries as u64);
    head[..LENGTH_BYTES].copy_from_slice(&length_of(len - LENGTH_BYTES + entries));
    len
}

#[cfg(test)]
pub(crate) mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{FromProxy, SessionEntry, from_proxy};
    use crate::report::tests::report;

    /// What the daemon makes of a frame.
    pub(crate) fn read(frame: &[u8]) -> Vec<SessionEntry> {
        let (length, message) = frame.split_first_chunk().expect("a length");
        assert_eq!(u32::from_be_bytes(*length) as usize, message.len());
        let message = FromProxy::decode(message).expect("a message");
        let Some(from_proxy::Kind::Sessions(sessions)) = message.kind else { panic!("{message:?}") };
        sessions.entries
    }

    /// The times of all reports of a batch.
    pub(crate) fn times(batch: &mut Batch) -> Vec<u64> {
        read(batch.frame()).iter().map(|entry| entry.at).collect()
    }

    #[test]
    fn a_batch_takes_reports_until_it_is_full() {
        let mut batch = Batch::new();
        let mut pushed = 0;
        while batch.push(&report(pushed)) {
            pushed += 1;
            assert_eq!(times(&mut batch), (0..pushed).collect::<Vec<_>>());
        }
        assert_eq!(batch.reports(), pushed);
        let frame = batch.frame().len();
        assert!((BATCH_BYTES - 250..=BATCH_BYTES).contains(&frame), "{frame} bytes");
    }

    #[test]
    fn a_report_by_itself_is_framed_like_a_batch_of_one() {
        let mut batch = Batch::new();
        batch.push(&report(5));
        assert_eq!(*frame_of(&report(5)), batch.frame());
    }

    #[test]
    fn a_wiped_batch_is_empty_and_holds_nothing_of_what_it_ever_held() {
        let mut batch = Batch::new();
        while batch.push(&report(1)) {}
        batch.restart();
        batch.push(&report(2));
        assert_eq!((batch.reports(), times(&mut batch)), (1, vec![2]));
        batch.wipe();
        assert!(batch.is_empty() && times(&mut batch).is_empty());
        // The DER of a report here is all twos.
        assert_eq!(batch.bytes[HEAD_BYTES..].iter().filter(|byte| **byte == 2).count(), 0);
        assert!(batch.push(&report(3)));
        assert_eq!((batch.reports(), times(&mut batch)), (1, vec![3]));
    }
}
