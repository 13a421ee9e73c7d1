//! Sessions and removals on their way to the daemon: reports one behind the other, as they travel.

use zeroize::{Zeroize, Zeroizing};

use crate::report::{Report, varint};

/// What a batch holds at most, in bytes.
pub const BATCH_BYTES: usize = 64 * 1024;

/// Field 2 of `FromProxy`, of a length (Protocol Buffers, "Encoding": field number · 8 + wire type).
const SESSIONS: u8 = 2 << 3 | 2;
/// Room for the frame's length, the key of its only field, and that field's length below 2³⁵.
const HEAD_BYTES: usize = 4 + 1 + 5;

/// A `FromProxy` message with [`crate::proto::Sessions`] in the making.
pub struct Batch {
    /// [`HEAD_BYTES`] of room, then the entries.
    bytes: Zeroizing<Vec<u8>>,
    reports: u64,
}

impl Batch {
    /// An empty one, in memory that is there already: the hook pays for no page of it.
    pub fn new() -> Self {
        let mut bytes = Zeroizing::new(vec![1; BATCH_BYTES]);
        bytes.truncate(HEAD_BYTES);
        Self { bytes, reports: 0 }
    }

    /// Adds a report, unless that would make it longer than [`BATCH_BYTES`]. Returns whether it did.
    #[inline]
    pub fn push(&mut self, report: &Report) -> bool {
        let fits = self.bytes.len() + report.as_bytes().len() <= BATCH_BYTES;
        if fits {
            self.bytes.extend_from_slice(report.as_bytes());
            self.reports += 1;
        }
        fits
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
        let (room, entries) = self.bytes.split_at_mut(HEAD_BYTES);
        let mut head = [0; HEAD_BYTES];
        let len = write_head(&mut head, entries.len());
        room[HEAD_BYTES - len..].copy_from_slice(&head[..len]);
        &self.bytes[HEAD_BYTES - len..]
    }

    /// Empties it, and wipes what it held.
    pub fn wipe(&mut self) {
        self.bytes[HEAD_BYTES..].zeroize();
        self.restart();
    }

    /// Empties it for reports that take the place of those it held.
    pub fn restart(&mut self) {
        self.bytes.truncate(HEAD_BYTES);
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
    head[4] = SESSIONS;
    let len = 5 + varint(&mut head[5..], entries as u64);
    let message = len - 4 + entries;
    head[..4].copy_from_slice(&(message as u32).to_be_bytes());
    len
}

#[cfg(test)]
pub(crate) mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{FromProxy, Session, from_proxy};
    use crate::report::tests::report;

    /// What the daemon makes of a frame.
    pub fn read(frame: &[u8]) -> Vec<Session> {
        let (length, message) = frame.split_first_chunk().expect("a length");
        assert_eq!(u32::from_be_bytes(*length) as usize, message.len());
        let message = FromProxy::decode(message).expect("a message");
        let Some(from_proxy::Kind::Sessions(sessions)) = message.kind else { panic!("{message:?}") };
        sessions.entries
    }

    /// The times of all reports of a batch.
    pub fn times(batch: &mut Batch) -> Vec<u64> {
        read(batch.frame()).iter().map(|entry| entry.at).collect()
    }

    #[test]
    fn a_batch_takes_reports_until_it_is_full_and_never_grows() {
        let mut batch = Batch::new();
        let mut pushed = 0;
        while batch.push(&report(pushed)) {
            pushed += 1;
            assert_eq!(times(&mut batch), (0..pushed).collect::<Vec<_>>());
        }
        assert_eq!(batch.reports(), pushed);
        let frame = batch.frame().len();
        assert!((BATCH_BYTES - 250..=BATCH_BYTES).contains(&frame), "{frame} bytes");
        assert_eq!(batch.bytes.capacity(), BATCH_BYTES);
    }

    #[test]
    fn a_report_by_itself_is_framed_like_a_batch_of_one() {
        let mut batch = Batch::new();
        batch.push(&report(5));
        assert_eq!(*frame_of(&report(5)), batch.frame());
    }

    #[test]
    fn a_wiped_batch_is_empty_and_filled_again() {
        let mut batch = Batch::new();
        batch.push(&report(1));
        batch.wipe();
        assert!(batch.is_empty() && times(&mut batch).is_empty());
        assert!(batch.push(&report(2)));
        assert_eq!((batch.reports(), times(&mut batch)), (1, vec![2]));
    }
}
