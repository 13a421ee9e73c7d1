//! Frames: how messages lie on a node's Unix sockets, each behind its length as a 32-bit big-endian number.
//!
//! The largest message of each protocol stands here and nowhere else. What waits in a call (the commands, the plugin) reads
//! with [`read`]; the daemon, which does not, gives the same bounds to tokio's codec.
//!
//! The plugin compiles this very file in.

use std::io::{self, Read};

use bytes::BytesMut;
use prost::Message;

/// Bytes of the length before a message.
pub(crate) const LENGTH_BYTES: usize = 4;

/// The largest message between a plugin and its node, in either direction, in bytes.
pub const MOST_PLUGIN_BYTES: usize = 1024 * 1024;

/// The largest request on the control socket, in bytes: far more than any has, far less than 64 connections could make the
/// daemon hold.
pub const MOST_REQUEST_BYTES: usize = 4096;

/// The largest reply on the control socket, in bytes: the status of some 100,000 nodes.
pub const MOST_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// The length of a message of so many `bytes`, as it stands before it.
#[inline]
#[must_use]
pub(crate) fn length_of(bytes: usize) -> [u8; LENGTH_BYTES] {
    // A longer one is beyond every bound: no reader takes it.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// `message` behind its length. It may hold keys: it is encoded once, into memory that is large enough from the start.
///
/// # Errors
/// If the message has more than `most` bytes.
pub(crate) fn encode(message: &impl Message, most: usize) -> io::Result<Vec<u8>> {
    let length = message.encoded_len();
    if length > most {
        return Err(io::Error::other(format!("a message of {length} bytes is too long to send")));
    }
    let mut frame = Vec::with_capacity(LENGTH_BYTES + length);
    frame.extend_from_slice(&length_of(length));
    message.encode(&mut frame).map_err(io::Error::other)?;
    Ok(frame)
}

/// Why there is no next message.
#[derive(Debug)]
pub enum ReadError {
    /// It would have so many bytes, more than it may. None of them was read.
    TooLong(usize),
    /// The stream failed, or ended before or within the message.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Waits for the next message of at most `most` bytes, and puts it into `message` in place of what was there.
///
/// # Errors
/// If there is none. What has come of it until then is in `message`, where it may have to be wiped.
pub fn read(from: &mut impl Read, most: usize, message: &mut BytesMut) -> Result<(), ReadError> {
    let mut length = [0; LENGTH_BYTES];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        return Err(ReadError::TooLong(length));
    }
    message.resize(length, 0);
    Ok(from.read_exact(message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of one field of bytes (`google.protobuf.BytesValue`).
    fn message(bytes: usize) -> Vec<u8> {
        vec![7; bytes]
    }

    fn read_of(bytes: &[u8], most: usize) -> Result<BytesMut, ReadError> {
        let mut message = BytesMut::from(&b"what was there"[..]);
        read(&mut &bytes[..], most, &mut message).map(|()| message)
    }

    #[test]
    fn a_frame_is_the_length_and_the_message_in_memory_that_never_moved() {
        let message = message(40_000);
        let frame = encode(&message, 50_000).unwrap();
        let (length, rest) = frame.split_first_chunk().unwrap();
        assert_eq!((*length, rest.len()), (length_of(rest.len()), message.encoded_len()));
        assert_eq!(frame[..4], [0, 0, 0x9c, 0x44]);
        assert_eq!(Vec::<u8>::decode(rest).unwrap(), message);
        assert_eq!(frame.capacity(), frame.len(), "it grew, and left a copy behind");
    }

    #[test]
    fn what_is_written_is_read_back_whatever_was_there_before() {
        for bytes in [0, 1, 5, 300] {
            let frame = encode(&message(bytes), 400).unwrap();
            assert_eq!(read_of(&frame, 400).unwrap(), frame[LENGTH_BYTES..]);
        }
    }

    #[test]
    fn a_bound_holds_to_the_byte_on_both_sides() {
        let longest = message(100);
        let most = longest.encoded_len();
        let frame = encode(&longest, most).unwrap();
        assert!(read_of(&frame, most).is_ok());
        assert!(matches!(read_of(&frame, most - 1), Err(ReadError::TooLong(length)) if length == most));
        let error = encode(&longest, most - 1).unwrap_err();
        assert_eq!(error.to_string(), format!("a message of {most} bytes is too long to send"));
    }

    #[test]
    fn an_end_within_a_frame_is_an_error() {
        let frame = encode(&message(20), 100).unwrap();
        for end in 0..frame.len() {
            let ended = read_of(&frame[..end], 100);
            let Err(ReadError::Io(error)) = ended else { panic!("{ended:?} of {end} bytes") };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
