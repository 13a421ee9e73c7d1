//! The structure of OpenSSL's `SSL_SESSION` in DER.
#![allow(clippy::result_large_err, reason = "readers have asn1's error type")]

use asn1::{ParseError, ParseErrorKind, ParseResult, Parser, Sequence, Tlv, explicit_tag, parse_single};

/// `SSL_SESSION_ASN1` of OpenSSL. An element that was zero or absent when the session was written is missing here,
/// save `kex_group`, which OpenSSL 3.x always writes. Element 0 (`key_arg`, SSL 2.0) is read by OpenSSL but no longer written.
#[derive(asn1::Asn1Read)]
#[cfg_attr(test, derive(asn1::Asn1Write))]
#[allow(dead_code, reason = "most elements are read only to be sure that they are what they should be")]
pub(super) struct Encoded<'a> {
    pub version: u32,
    pub ssl_version: i32,
    pub cipher: &'a [u8],
    pub session_id: &'a [u8],
    pub master_key: &'a [u8],
    #[explicit(1)]
    pub time: Option<i64>,
    #[explicit(2)]
    pub timeout: Option<i64>,
    #[explicit(3)]
    pub peer: Option<asn1::Tlv<'a>>,
    #[explicit(4)]
    pub session_id_context: Option<&'a [u8]>,
    #[explicit(5)]
    pub verify_result: Option<i32>,
    #[explicit(6)]
    pub hostname: Option<&'a [u8]>,
    #[explicit(7)]
    pub psk_identity_hint: Option<&'a [u8]>,
    #[explicit(8)]
    pub psk_identity: Option<&'a [u8]>,
    #[explicit(9)]
    pub ticket_lifetime_hint: Option<u64>,
    #[explicit(10)]
    pub ticket: Option<&'a [u8]>,
    #[explicit(11)]
    pub compression: Option<&'a [u8]>,
    #[explicit(12)]
    pub srp_username: Option<&'a [u8]>,
    #[explicit(13)]
    pub flags: Option<u64>,
    #[explicit(14)]
    pub ticket_age_add: Option<u32>,
    #[explicit(15)]
    pub max_early_data: Option<u32>,
    #[explicit(16)]
    pub alpn_selected: Option<&'a [u8]>,
    #[explicit(17)]
    pub max_fragment_length: Option<u32>,
    #[explicit(18)]
    pub ticket_appdata: Option<&'a [u8]>,
    /// OpenSSL 3.0 and later.
    #[explicit(19)]
    pub kex_group: Option<u32>,
    /// A raw public key (RFC 7250), OpenSSL 3.2 and later; earlier ones refuse a session that has it.
    #[explicit(20)]
    pub peer_raw_public_key: Option<&'a [u8]>,
}

impl<'a> Encoded<'a> {
    /// Reads it as the derived reader does, which asks for each of the twenty optional elements whether it comes next. This
    /// one goes by the tags that are there: every node reads every session of its pod.
    pub(crate) fn read(der: &'a [u8]) -> ParseResult<Self> {
        parse_single::<Sequence<'a>>(der)?.parse(Self::read_elements)
    }

    #[expect(clippy::too_many_lines, reason = "a table: a line for each element of the structure")]
    fn read_elements(parser: &mut Parser<'a>) -> ParseResult<Self> {
        let mut read = Self {
            version: parser.read_element()?,
            ssl_version: parser.read_element()?,
            cipher: parser.read_element()?,
            session_id: parser.read_element()?,
            master_key: parser.read_element()?,
            time: None,
            timeout: None,
            peer: None,
            session_id_context: None,
            verify_result: None,
            hostname: None,
            psk_identity_hint: None,
            psk_identity: None,
            ticket_lifetime_hint: None,
            ticket: None,
            compression: None,
            srp_username: None,
            flags: None,
            ticket_age_add: None,
            max_early_data: None,
            alpn_selected: None,
            max_fragment_length: None,
            ticket_appdata: None,
            kex_group: None,
            peer_raw_public_key: None,
        };
        let mut last = 0;
        while !parser.is_empty() {
            let element: Tlv<'a> = parser.read_element()?;
            let (tag, data) = (element.tag(), element.data());
            let unexpected = || Err(ParseError::new(ParseErrorKind::UnexpectedTag { actual: tag }));
            if tag != explicit_tag(tag.value()) || tag.value() <= last {
                return unexpected();
            }
            last = tag.value();
            match last {
                1 => read.time = Some(parse_single(data)?),
                2 => read.timeout = Some(parse_single(data)?),
                3 => read.peer = Some(parse_single(data)?),
                4 => read.session_id_context = Some(parse_single(data)?),
                5 => read.verify_result = Some(parse_single(data)?),
                6 => read.hostname = Some(parse_single(data)?),
                7 => read.psk_identity_hint = Some(parse_single(data)?),
                8 => read.psk_identity = Some(parse_single(data)?),
                9 => read.ticket_lifetime_hint = Some(parse_single(data)?),
                10 => read.ticket = Some(parse_single(data)?),
                11 => read.compression = Some(parse_single(data)?),
                12 => read.srp_username = Some(parse_single(data)?),
                13 => read.flags = Some(parse_single(data)?),
                14 => read.ticket_age_add = Some(parse_single(data)?),
                15 => read.max_early_data = Some(parse_single(data)?),
                16 => read.alpn_selected = Some(parse_single(data)?),
                17 => read.max_fragment_length = Some(parse_single(data)?),
                18 => read.ticket_appdata = Some(parse_single(data)?),
                19 => read.kex_group = Some(parse_single(data)?),
                20 => read.peer_raw_public_key = Some(parse_single(data)?),
                _ => return unexpected(),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::samples::{Kind, real},
        *,
    };

    /// What both readers say of `der` is the same.
    fn agree(der: &[u8]) {
        let rewritten = |read: ParseResult<Encoded<'_>>| read.ok().map(|read| asn1::write_single(&read).expect("DER"));
        let (by_tag, derived) = (rewritten(Encoded::read(der)), rewritten(parse_single(der)));
        assert_eq!(by_tag, derived, "of {der:02x?}");
    }

    #[test]
    fn both_readers_read_what_openssl_writes() {
        for kind in [Kind::Plain, Kind::ClientCertificate, Kind::Tls13] {
            let der = real(kind);
            assert!(Encoded::read(&der).is_ok(), "{kind:?}");
            agree(&der);
        }
    }

    proptest! {
        #[test]
        fn both_readers_agree_on_sessions_with_changed_bytes(
            kind in prop::sample::select(vec![Kind::Plain, Kind::ClientCertificate, Kind::Tls13]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut der = real(kind).to_vec();
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            if let Some(cut) = cut {
                der.truncate(cut.index(der.len()));
            }
            agree(&der);
        }

        #[test]
        fn both_readers_agree_on_elements_in_any_order(
            tags in prop::collection::vec((0_u8..24, 0_u8..4), 0..6),
        ) {
            // Version, protocol, cipher suite, ID, master secret: as a session begins.
            let mut elements = vec![2, 1, 1, 2, 2, 3, 3, 4, 2, 0xc0, 0x2b, 4, 1, 9, 4, 1, 7];
            for (tag, value) in tags {
                let inner: &[u8] = match value {
                    0 => &[2, 1, 5],
                    1 => &[4, 1, 5],
                    2 => &[0x30, 0],
                    _ => &[2, 1, 5, 2, 1, 6],
                };
                elements.push(0xa0 | tag);
                elements.push(inner.len() as u8);
                elements.extend(inner);
            }
            let mut der = vec![0x30, elements.len() as u8];
            der.extend(elements);
            agree(&der);
        }
    }
}
