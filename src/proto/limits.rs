//! How much of a message is decoded at all: foreign bytes are counted before they become structures.
//!
//! An empty element of a repeated field takes two bytes on the wire, and 50 to 150 times that in memory. So the encoded
//! message is walked first, field by field and without an allocation, and one with more elements than its [`Limits`] say is
//! refused as a whole. What a limit does not name is passed over, as the decoder passes over what a later release may have
//! added: that costs no memory, and some nanoseconds a field.
//!
//! The plugin compiles this very file in.

use std::fmt;

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

/// The most bytes that the elements of one message may take once they are structures, strings and spare room of vectors
/// apart: several times what any node's message takes.
pub(crate) const MOST_STRUCTURE_BYTES: usize = 8 * 1024 * 1024;

/// No message names more fields in its limits.
const MOST_FIELDS: usize = 16;

/// What one kind of message may hold: a line for every field that repeats, or that is a message itself.
#[derive(Debug)]
pub struct Limits(
    /// At most 16.
    pub(crate) &'static [Limit],
);

/// Of a message in which nothing repeats.
pub(crate) const FLAT: Limits = Limits(&[]);

impl Limits {
    /// What is said of the field `number`, if anything.
    #[cfg(test)]
    pub fn limit_of(&self, number: u32) -> Option<&Limit> {
        self.0.iter().find(|limit| limit.number == number)
    }
}

/// How often one field may occur in its message.
#[derive(Debug)]
pub struct Limit {
    /// As in the .proto file.
    pub number: u32,
    /// As in the .proto file, for messages to people.
    pub name: &'static str,
    /// So often in one message.
    most: usize,
    /// Bytes that an element takes as a structure.
    each: usize,
    /// Numbers may lie in one field, one behind the other: their bytes are counted in place of the fields.
    packed: bool,
    /// What may be in it, if it is a message.
    inside: &'static Limits,
}

impl Limit {
    /// A message that occurs once. The decoder would merge several of them into one that no limit held for.
    #[must_use]
    pub(crate) const fn once(number: u32, name: &'static str, inside: &'static Limits) -> Self {
        Self { number, name, most: 1, each: 0, packed: false, inside }
    }

    /// Whether it is one for a field that occurs once.
    #[cfg(test)]
    pub fn is_once(&self) -> bool {
        self.most == 1
    }

    /// What may be in the field, if it is a message.
    #[cfg(test)]
    pub fn inside(&self) -> &'static Limits {
        self.inside
    }

    /// At most `most` elements of `each` bytes as a structure.
    #[must_use]
    pub(crate) const fn repeated(
        number: u32,
        name: &'static str,
        most: usize,
        each: usize,
        inside: &'static Limits,
    ) -> Self {
        Self { number, name, most, each, packed: false, inside }
    }

    /// At most `most` bytes of packed numbers.
    #[must_use]
    pub const fn packed(number: u32, name: &'static str, most: usize) -> Self {
        Self { number, name, most, each: size_of::<u64>(), packed: true, inside: &FLAT }
    }
}

/// Why bytes were not decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Undecodable {
    /// There are more of this field than any node sends.
    TooMany(
        /// The field's name.
        &'static str,
    ),
    /// They are no such message.
    Malformed(
        /// What the decoder said.
        DecodeError,
    ),
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany(field) => write!(f, "more {field} than are ever sent"),
            Self::Malformed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Undecodable {}

impl From<DecodeError> for Undecodable {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// Decodes a message that holds no more than `limits` allow. One that holds more costs its walk and no memory.
///
/// # Errors
/// Which field there is too much of, or what is wrong with the encoding.
pub fn decode_within<M: Message + Default>(bytes: impl Buf + AsRef<[u8]>, limits: &Limits) -> Result<M, Undecodable> {
    check(bytes.as_ref(), limits)?;
    Ok(M::decode(bytes)?)
}

/// Whether `message` holds no more than `limits` allow. It reads as the decoder does, and refuses what that would.
///
/// # Errors
/// As [`decode_within`].
pub(crate) fn check(message: &[u8], limits: &Limits) -> Result<(), Undecodable> {
    walk(message, limits, &mut MOST_STRUCTURE_BYTES.clone())
}

/// `room` is what is left of [`MOST_STRUCTURE_BYTES`].
fn walk(mut rest: &[u8], limits: &Limits, room: &mut usize) -> Result<(), Undecodable> {
    let mut counts = [0_usize; MOST_FIELDS];
    while !rest.is_empty() {
        let (number, wire_type) = decode_key(&mut rest)?;
        let field = rest;
        skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
        let limited = limits.0.iter().zip(&mut counts).find(|(limit, _)| limit.number == number);
        let Some((limit, count)) = limited else { continue };
        let inside = match wire_type {
            WireType::LengthDelimited => inside(&field[..field.len() - rest.len()])?,
            // One number, or what the decoder refuses.
            _ => &[],
        };
        let elements = if limit.packed { inside.len().max(1) } else { 1 };
        *count = count.saturating_add(elements);
        let bytes = elements.saturating_mul(limit.each);
        if *count > limit.most || bytes > *room {
            return Err(Undecodable::TooMany(limit.name));
        }
        *room -= bytes;
        if !limit.inside.0.is_empty() {
            walk(inside, limit.inside, room)?;
        }
    }
    Ok(())
}

/// A length-delimited field without its length.
fn inside(mut field: &[u8]) -> Result<&[u8], DecodeError> {
    decode_varint(&mut field)?;
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Tree {
        #[prost(message, repeated, tag = "1")]
        leaves: Vec<Leaf>,
        #[prost(message, optional, boxed, tag = "2")]
        branch: Option<Box<Tree>>,
        #[prost(uint64, repeated, tag = "3")]
        rings: Vec<u64>,
        #[prost(string, tag = "4")]
        name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Leaf {
        #[prost(bytes = "vec", repeated, tag = "1")]
        veins: Vec<Vec<u8>>,
    }

    static LEAF: Limits = Limits(&[Limit::repeated(1, "veins", 3, 24, &FLAT)]);
    static BRANCH: Limits = Limits(&[Limit::repeated(1, "leaves", 2, 24, &LEAF)]);
    static TREE: Limits = Limits(&[
        Limit::repeated(1, "leaves", 4, 24, &LEAF),
        Limit::once(2, "branch", &BRANCH),
        Limit::packed(3, "rings", 5),
    ]);

    fn leaf(veins: usize) -> Leaf {
        Leaf { veins: vec![Vec::new(); veins] }
    }

    fn tree(leaves: usize, veins: usize) -> Tree {
        Tree { leaves: vec![leaf(veins); leaves], name: "oak".into(), ..Tree::default() }
    }

    fn read(tree: &Tree) -> Result<Tree, Undecodable> {
        decode_within(&tree.encode_to_vec()[..], &TREE)
    }

    #[test]
    fn as_many_as_the_limit_says_pass_and_one_more_is_refused() {
        for good in [tree(0, 0), tree(4, 3)] {
            assert_eq!(read(&good), Ok(good));
        }
        assert_eq!(read(&tree(5, 0)), Err(Undecodable::TooMany("leaves")));
        assert_eq!(read(&tree(1, 4)), Err(Undecodable::TooMany("veins")));
        let branched = |leaves, veins| Tree { branch: Some(Box::new(tree(leaves, veins))), ..tree(4, 3) };
        assert_eq!(read(&branched(2, 3)), Ok(branched(2, 3)));
        assert_eq!(read(&branched(3, 0)), Err(Undecodable::TooMany("leaves")));
        assert_eq!(read(&branched(1, 4)), Err(Undecodable::TooMany("veins")));
    }

    #[test]
    fn numbers_are_counted_packed_and_one_by_one() {
        let rings = |rings: &[u64]| Tree { rings: rings.to_vec(), ..Tree::default() };
        assert_eq!(read(&rings(&[1; 5])), Ok(rings(&[1; 5])));
        assert_eq!(read(&rings(&[1; 6])), Err(Undecodable::TooMany("rings")));
        assert_eq!(read(&rings(&[300; 3])), Err(Undecodable::TooMany("rings")), "six bytes");
        let unpacked = |count| [3 << 3, 1].repeat(count);
        let read = |bytes: &[u8]| decode_within::<Tree>(bytes, &TREE);
        assert_eq!(read(&unpacked(5)), Ok(rings(&[1; 5])));
        assert_eq!(read(&unpacked(6)), Err(Undecodable::TooMany("rings")));
    }

    #[test]
    fn a_message_in_parts_is_not_merged_past_its_limit() {
        // The decoder makes one branch of two leaves and two leaves.
        let branched = Tree { branch: Some(Box::new(tree(2, 0))), ..Tree::default() }.encode_to_vec();
        assert!(decode_within::<Tree>(&branched[..], &TREE).is_ok());
        let twice = [&branched[..], &branched[..]].concat();
        assert_eq!(Tree::decode(&twice[..]).map(|tree| tree.branch.map_or(0, |branch| branch.leaves.len())), Ok(4));
        assert_eq!(decode_within::<Tree>(&twice[..], &TREE), Err(Undecodable::TooMany("branch")));
    }

    #[test]
    fn all_structures_of_a_message_together_have_a_bound() {
        static WIDE: Limits = Limits(&[Limit::repeated(1, "leaves", usize::MAX, 1024, &VEINS)]);
        static VEINS: Limits = Limits(&[Limit::repeated(1, "veins", usize::MAX, 1024, &FLAT)]);
        let most = MOST_STRUCTURE_BYTES / 1024;
        let read = |tree: Tree| decode_within::<Tree>(&tree.encode_to_vec()[..], &WIDE).map(|_| ());
        assert_eq!(read(tree(most, 0)), Ok(()));
        assert_eq!(read(tree(most + 1, 0)), Err(Undecodable::TooMany("leaves")));
        assert_eq!(read(tree(most / 4, 3)), Ok(()));
        let mut full = tree(most / 4, 3);
        full.leaves.push(leaf(0));
        assert_eq!(read(full.clone()), Err(Undecodable::TooMany("leaves")));
        full.leaves.pop();
        full.leaves[0].veins.push(Vec::new());
        assert_eq!(read(full), Err(Undecodable::TooMany("veins")));
    }

    #[test]
    fn what_a_later_release_added_is_passed_over_however_much_it_is() {
        let good = tree(4, 3);
        let mut bytes = good.encode_to_vec();
        // Numbers, strings, fixed ones, and a group with a field 1 of its own in it.
        bytes.extend([20 << 3, 7].repeat(10_000));
        bytes.extend(prost::bytes::Bytes::from(vec![(9 << 3) | 2, 0]).repeat(10_000));
        bytes.extend([(10 << 3) | 5, 1, 2, 3, 4]);
        bytes.extend([(11 << 3) | 3, (1 << 3) | 2, 0, (1 << 3) | 2, 0, (11 << 3) | 4]);
        assert_eq!(decode_within(&bytes[..], &TREE), Ok(good));
    }

    #[test]
    fn what_is_no_message_is_refused_as_the_decoder_would() {
        let good = Tree { branch: Some(Box::new(tree(2, 3))), ..tree(4, 3) }.encode_to_vec();
        for cut in 0..good.len() {
            let (ours, decoder) = (check(&good[..cut], &TREE).is_ok(), Tree::decode(&good[..cut]).is_ok());
            assert!(ours || !decoder, "cut to {cut} bytes");
        }
        for garbage in [&[0xff; 12][..], &[0], &[(1 << 3) | 6], &[(1 << 3) | 4], &[(1 << 3) | 2, 0xff]] {
            let refused = decode_within::<Tree>(garbage, &TREE);
            assert!(matches!(refused, Err(Undecodable::Malformed(_))), "{garbage:?}: {refused:?}");
        }
        // A field of another kind than it should be.
        assert!(matches!(decode_within::<Tree>(&[1 << 3, 1][..], &TREE), Err(Undecodable::Malformed(_))));
    }
}
