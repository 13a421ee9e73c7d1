//! One session or removal as the hook reports it, in the form in which it travels.
//!
//! The hook writes it once, on its stack, and nobody looks at it again on this side: the thread that sends adds a head.

use zeroize::Zeroizing;

use crate::session::{LARGEST_FOR_ATS, SessionId};

/// Field 1 of `Sessions`, of a length (Protocol Buffers, "Encoding": field number · 8 + wire type).
const ENTRY: u8 = 1 << 3 | 2;
/// The fields of `Session`.
const ID: u8 = 1 << 3 | 2;
const SESSION: u8 = 2 << 3 | 2;
const AT: u8 = 3 << 3;

/// Where the DER stands. Before it stand at most the keys and lengths of entry and ID, an ID, and the key and length of the DER, with
/// lengths below 2¹⁴.
const DER_AT: usize = 3 + 2 + 32 + 3;
/// Behind it stands the time: a key and up to ten bytes.
const ROOM: usize = DER_AT + LARGEST_FOR_ATS + 1 + 10;

/// An entry of [`crate::proto::Sessions`], encoded. Wiped when it goes.
pub struct Report {
    bytes: Zeroizing<[u8; ROOM]>,
    start: usize,
    end: usize,
}

impl Report {
    /// What the proxy saw at `at` (UTC milliseconds) of the session `id`. `der` writes its DER and returns its length, 0 for a
    /// session that was removed. None if it does not fit into [`LARGEST_FOR_ATS`] bytes.
    pub fn new(id: &SessionId, at: u64, der: impl FnOnce(&mut [u8]) -> usize) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; ROOM]);
        let len = der(&mut bytes[DER_AT..DER_AT + LARGEST_FOR_ATS]);
        if len > LARGEST_FOR_ATS {
            return None;
        }
        let mut end = DER_AT + len;
        bytes[end] = AT;
        end += 1 + varint(&mut bytes[end + 1..], at);
        let mut start = DER_AT;
        let mut before = |part: &[u8]| {
            start -= part.len();
            bytes[start..start + part.len()].copy_from_slice(part);
            end - start
        };
        let mut length = [0; 10];
        if len > 0 {
            let digits = varint(&mut length, len as u64);
            before(&length[..digits]);
            before(&[SESSION]);
        }
        before(id.as_bytes());
        let id_len = id.as_bytes().len() as u8;
        let entry = before(&[ID, id_len]);
        let digits = varint(&mut length, entry as u64);
        before(&length[..digits]);
        before(&[ENTRY]);
        Some(Self { bytes, start, end })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// Writes `value` as a varint, the lowest seven bits first, and in each byte whether another follows. Returns how many bytes it took,
/// at most ten.
pub fn varint(bytes: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value > 0x7f {
        bytes[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    bytes[at] = value as u8;
    at + 1
}

#[cfg(test)]
pub(crate) mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{SessionEntry, Sessions};

    /// One of a session of 160 bytes.
    pub(crate) fn report(at: u64) -> Report {
        of(&[1; 32], &[2; 160], at).expect("room for it")
    }

    fn of(id: &[u8], der: &[u8], at: u64) -> Option<Report> {
        let id = SessionId::new(id).expect("an ID");
        Report::new(&id, at, |room| {
            room.get_mut(..der.len()).into_iter().for_each(|room| room.copy_from_slice(der));
            der.len()
        })
    }

    #[test]
    fn the_library_reads_it_and_would_write_it_so() {
        for id in [1, 2, 31, 32] {
            for der in [0, 1, 91, 127, 128, 200, LARGEST_FOR_ATS] {
                for at in [1, 127, 128, 1_700_000_000_000, u64::MAX] {
                    let report = of(&vec![7; id], &vec![8; der], at).expect("room for it");
                    let read = Sessions::decode(report.as_bytes()).expect("sessions");
                    let entry = SessionEntry { id: vec![7; id].into(), session: vec![8; der].into(), at };
                    assert_eq!(read.entries, [entry]);
                    assert_eq!(read.encode_to_vec(), report.as_bytes());
                }
            }
        }
    }

    #[test]
    fn a_session_that_ats_would_not_keep_is_none() {
        assert!(of(&[7; 32], &[8; LARGEST_FOR_ATS + 1], 1).is_none());
    }
}
