//! What a session must look like before it may enter a cache or reach a proxy.
//!
//! The bytes are OpenSSL's `SSL_SESSION` in DER, as `i2d_SSL_SESSION` writes them (`ssl/ssl_asn1.c` of OpenSSL 1.1.1
//! to 3.x; the elements only ever grew at the end). The walk is stricter than OpenSSL's own decoder: DER only, every
//! length limited, a usable ID, and a lifetime that is neither over nor absurd. The proxy's OpenSSL still decodes a
//! session in full before it is used; only it can tell whether it knows the cipher suite.

use openssl::{pkey::PKey, x509::X509};
use thiserror::Error;

use super::{SessionId, encoded::Encoded};
use crate::reason::DropReason;

/// How far ahead of this node's clock a session's creation time may lie, in seconds: one hour, twelve times the
/// default `node.max_clock_offset`. A session from further ahead would outlive its timeout here by as much.
pub(crate) const MAX_AHEAD_SECONDS: u64 = 60 * 60;

/// The longest that a session may be resumed for from its creation on, in seconds: a week, as for tickets (RFC 8446 section
/// 4.6.1). For session IDs RFC 5246 (appendix F.1.4) suggests a day; a proxy that is set to more is still served. Proxies
/// believe the timeout in a session, so a longer one is refused and not cut.
pub(crate) const MAX_TIMEOUT_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The longest session ID context (`SSL_MAX_SID_CTX_LENGTH`), in bytes.
const MAX_ID_CONTEXT: usize = 32;
/// The length of a TLS master secret (RFC 5246 section 8.1), in bytes.
const MASTER_SECRET: usize = 48;
/// The `version` of the structure itself (`SSL_SESSION_ASN1_VERSION`).
const STRUCTURE_VERSION: u32 = 1;
const TLS_1_0: i32 = 0x0301;
const TLS_1_3: i32 = 0x0304;

/// What [`validate`] found in the DER of a session that passed; nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The ID under which a client asks for it.
    pub id: SessionId,
    /// When it was created, UTC milliseconds, a whole second: the real instant is up to a second later.
    pub made_at: u64,
    /// When it can no longer be resumed: its creation time plus its timeout, UTC milliseconds, a whole second.
    pub expires_at: u64,
}

/// Why a session or a removal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionFault {
    /// The announced ID is empty or longer than RFC 5246 allows.
    #[error("a session ID of {length} bytes instead of 1 to 32")]
    BadId {
        /// Its length in bytes.
        length: usize,
    },
    /// More bytes than `sessions.max_session_bytes`.
    #[error("a session of {length} bytes where sessions.max_session_bytes allows {max}")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not the DER of an `SSL_SESSION`.
    #[error("a session whose DER is broken: {what}")]
    BrokenDer {
        /// Which part.
        what: &'static str,
    },
    /// A protocol other than TLS 1.0 to 1.3.
    #[error("a session of protocol version {version:#06x}, which is not TLS 1.0 to 1.3")]
    UnknownVersion {
        /// As it stands in the session.
        version: i32,
    },
    /// The ID inside the session is not the announced one.
    #[error("a session that carries another ID than the announced one")]
    WrongId,
    /// Its timeout is over, or it has none.
    #[error("a session that has expired")]
    Expired,
    /// Created further ahead of this node's clock than [`MAX_AHEAD_SECONDS`].
    #[error("a session created {seconds} s ahead of this node's clock")]
    FromTheFuture {
        /// How far ahead.
        seconds: u64,
    },
    /// To be resumed for longer than [`MAX_TIMEOUT_SECONDS`].
    #[error("a session with a timeout of {seconds} s where {MAX_TIMEOUT_SECONDS} is the most")]
    LivesTooLong {
        /// Its timeout.
        seconds: u64,
    },
    /// Removed before it arrived: its tombstone stands.
    #[error("a session that has been removed already")]
    Tombstone,
    /// Created before the farm's session floor: an operator had all of those flushed.
    #[error("a session from before the last flush")]
    Flushed,
    /// Held already, byte for byte; or removed already.
    #[error("a session or removal that is known already")]
    Duplicate,
    /// The proxy reported what the farm had given to it.
    #[error("a session or removal that came from the farm")]
    Echo,
    /// A batch in a format that this release does not know.
    #[error("a session in the unknown format {format}")]
    UnknownFormat {
        /// As it stands in the batch.
        format: i32,
    },
    /// Behind the last entry that a batch may have.
    #[error("a session behind the last entry that a batch may have")]
    OverLimit,
    /// A tombstone that is no hash of 16 bytes.
    #[error("a tombstone of {length} bytes instead of 16")]
    BadTombstone {
        /// Its length in bytes.
        length: usize,
    },
    /// A removal where `sessions.removals` is `keep`.
    #[error("a removal where sessions.removals is \"keep\"")]
    RemovalKept,
    /// A proxy reported the removal of a session that this node does not hold. Clients name any ID they like, and OpenSSL has the
    /// proxy remove it. A session that the node's cache has evicted is among them: it stays on the pod's other nodes.
    #[error("a removal of a session that is not held here")]
    RemovalUnknown,
}

impl SessionFault {
    /// The counted reason.
    #[must_use]
    pub(crate) fn reason(&self) -> DropReason {
        match self {
            Self::BadId { .. } => DropReason::BadId,
            Self::TooLarge { .. } => DropReason::TooLarge,
            Self::BrokenDer { .. } => DropReason::BrokenDer,
            Self::UnknownVersion { .. } => DropReason::UnknownVersion,
            Self::WrongId => DropReason::WrongId,
            Self::Expired => DropReason::Expired,
            Self::FromTheFuture { .. } => DropReason::FromTheFuture,
            Self::LivesTooLong { .. } => DropReason::LivesTooLong,
            Self::Tombstone => DropReason::Tombstone,
            Self::Flushed => DropReason::Flushed,
            Self::Duplicate => DropReason::Duplicate,
            Self::Echo => DropReason::Echo,
            Self::UnknownFormat { .. } => DropReason::UnknownFormat,
            Self::OverLimit => DropReason::OverLimit,
            Self::BadTombstone { .. } => DropReason::BadTombstone,
            Self::RemovalKept => DropReason::RemovalKept,
            Self::RemovalUnknown => DropReason::RemovalUnknown,
        }
    }
}

impl Encoded<'_> {
    /// The limits that OpenSSL's decoder keeps besides the structure, and those of the TLS RFCs.
    fn check(&self) -> Result<(), SessionFault> {
        let broken = |what| Err(SessionFault::BrokenDer { what });
        if self.version != STRUCTURE_VERSION {
            return broken("structure version is not 1");
        }
        if !(TLS_1_0..=TLS_1_3).contains(&self.ssl_version) {
            return Err(SessionFault::UnknownVersion { version: self.ssl_version });
        }
        if self.cipher.len() != 2 {
            return broken("cipher suite is not 2 bytes");
        }
        let secret = self.master_key.len();
        // TLS 1.3 keeps the resumption PSK there, as long as the suite's hash (RFC 8446 section 4.6.1).
        if !(secret == MASTER_SECRET || self.ssl_version == TLS_1_3 && secret == 32) {
            return broken("length of the master secret");
        }
        if self.session_id_context.is_some_and(|context| context.len() > MAX_ID_CONTEXT) {
            return broken("session ID context is longer than 32 bytes");
        }
        if self.compression.is_some_and(|method| method.len() != 1) {
            return broken("compression method is not 1 byte");
        }
        // What is inside a certificate or a public key is X.509's own matter, and only OpenSSL's view of it counts.
        if self.peer.is_some_and(|certificate| X509::from_der(certificate.full_data()).is_err()) {
            return broken("peer certificate");
        }
        if self.peer_raw_public_key.is_some_and(|key| PKey::public_key_from_der(key).is_err()) {
            return broken("peer public key");
        }
        Ok(())
    }
}

/// Checks a session that was announced under `id`, at the wall time `now_wall` in UTC milliseconds.
///
/// # Errors
/// The first [`SessionFault`] found: the ID's length, then size, structure, protocol version, ID, and lifetime.
pub fn validate(id: &[u8], der: &[u8], now_wall: u64, max_bytes: usize) -> Result<Session, SessionFault> {
    let id = SessionId::try_from(id)?;
    if der.len() > max_bytes {
        return Err(SessionFault::TooLarge { length: der.len(), max: max_bytes });
    }
    let encoded =
        Encoded::read(der).map_err(|_| SessionFault::BrokenDer { what: "not the structure of an SSL_SESSION" })?;
    encoded.check()?;
    if encoded.session_id != id.as_bytes() {
        return Err(SessionFault::WrongId);
    }
    let expires_at = expiry(encoded.time, encoded.timeout, now_wall)?;
    let made_at = made_at(encoded.time);
    Ok(Session { id, made_at, expires_at })
}

/// When the session in `der`, which has passed [`validate`], was created: UTC milliseconds, a whole second. Bytes that are
/// no session are as old as can be.
pub(super) fn made_at_of(der: &[u8]) -> u64 {
    Encoded::read(der).map_or(0, |encoded| made_at(encoded.time))
}

fn made_at(time: Option<i64>) -> u64 {
    u64::try_from(time.unwrap_or(0)).unwrap_or(0).saturating_mul(1000)
}

/// OpenSSL reads a missing time as now and a missing timeout as three seconds, so that such a session would begin
/// anew on every host: here both are zero, and the session is over.
fn expiry(time: Option<i64>, timeout: Option<i64>, now_wall: u64) -> Result<u64, SessionFault> {
    let seconds = |value: Option<i64>| u64::try_from(value.unwrap_or(0)).map_err(|_| SessionFault::Expired);
    let (time, timeout) = (seconds(time)?, seconds(timeout)?);
    let ahead = time.saturating_sub(now_wall / 1000);
    if ahead > MAX_AHEAD_SECONDS {
        return Err(SessionFault::FromTheFuture { seconds: ahead });
    }
    let expires_at = time.saturating_add(timeout).saturating_mul(1000);
    if timeout == 0 || expires_at <= now_wall {
        return Err(SessionFault::Expired);
    }
    if timeout > MAX_TIMEOUT_SECONDS {
        return Err(SessionFault::LivesTooLong { seconds: timeout });
    }
    Ok(expires_at)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openssl::ssl::SslSession;
    use proptest::prelude::*;

    use super::{
        super::samples::{Kind, changed, plain, real},
        *,
    };

    const ALL: [Kind; 3] = [Kind::Plain, Kind::ClientCertificate, Kind::Tls13];
    const MAX: usize = 16 * 1024;
    const ID: [u8; 32] = [9; 32];

    fn parts(der: &[u8]) -> Encoded<'_> {
        asn1::parse_single(der).unwrap()
    }

    /// The wall time at which `der` was made.
    fn made_at(der: &[u8]) -> u64 {
        u64::try_from(parts(der).time.unwrap()).unwrap() * 1000
    }

    fn check(der: &Bytes) -> Result<Session, SessionFault> {
        validate(parts(der).session_id, der, made_at(&real(Kind::Plain)), MAX)
    }

    #[test]
    fn sessions_of_real_handshakes_validate_with_their_id_and_lifetime() {
        for kind in ALL {
            let der = real(kind);
            let now = made_at(&der);
            let decoded = SslSession::from_der(&der).unwrap();
            let session = validate(decoded.id(), &der, now, MAX).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            assert_eq!(session.id.as_bytes(), decoded.id(), "{kind:?}");
            let expires_at = u64::try_from(decoded.time() + decoded.timeout()).unwrap() * 1000;
            assert_eq!(session.expires_at, expires_at, "{kind:?}");
            assert_eq!((session.made_at, made_at_of(&der)), (now, now), "{kind:?}");
            assert!(expires_at > now);
        }
        assert!(parts(&real(Kind::ClientCertificate)).peer.is_some(), "the sample has no client certificate");
        assert_eq!(parts(&real(Kind::ClientCertificate)).alpn_selected, Some(&b"h2"[..]));
        assert_eq!(parts(&real(Kind::Tls13)).ssl_version, TLS_1_3);
    }

    #[test]
    fn the_structure_holds_every_element_that_openssl_wrote() {
        for kind in ALL {
            assert_eq!(changed(kind, |_| ()), real(kind), "{kind:?}: read and written again");
        }
    }

    #[test]
    fn a_session_with_every_element_validates_as_openssl_decodes_it() {
        let der = changed(Kind::ClientCertificate, |all| {
            all.psk_identity_hint = Some(b"hint");
            all.psk_identity = Some(b"identity");
            all.ticket_lifetime_hint = Some(7200);
            all.ticket = Some(&[5; 300]);
            all.compression = Some(&[0]);
            all.srp_username = Some(b"user");
            all.flags = Some(1);
            all.ticket_age_add = Some(u32::MAX);
            all.max_early_data = Some(16384);
            all.max_fragment_length = Some(1);
            all.ticket_appdata = Some(b"");
            all.verify_result = Some(-1);
        });
        check(&der).unwrap();
        SslSession::from_der(&der).unwrap();
    }

    #[test]
    fn a_session_of_openssl_1_1_without_a_group_validates() {
        let der = changed(Kind::Plain, |it| it.kex_group = None);
        check(&der).unwrap();
        SslSession::from_der(&der).unwrap();
    }

    #[test]
    fn a_raw_public_key_must_be_one() {
        let certificate = X509::from_der(parts(&real(Kind::ClientCertificate)).peer.unwrap().full_data()).unwrap();
        let key = certificate.public_key().unwrap().public_key_to_der().unwrap();
        check(&changed_with_key(&key)).unwrap();
        assert_eq!(check(&changed_with_key(b"no key")).unwrap_err().reason(), DropReason::BrokenDer);
    }

    fn changed_with_key(key: &[u8]) -> Bytes {
        let real = real(Kind::Plain);
        let mut encoded = parts(&real);
        encoded.peer_raw_public_key = Some(key);
        asn1::write_single(&encoded).unwrap().into()
    }

    #[test]
    fn every_truncation_is_refused() {
        for kind in ALL {
            let der = real(kind);
            for length in 0..der.len() {
                let id = parts(&der).session_id;
                let fault = validate(id, &der[..length], made_at(&der), MAX).unwrap_err();
                assert_eq!(fault.reason(), DropReason::BrokenDer, "{kind:?} cut to {length}");
            }
        }
    }

    #[test]
    fn trailing_bytes_are_refused_inside_and_out() {
        let der = real(Kind::Plain);
        let outside = Bytes::from([&der[..], b"\0"].concat());
        let id = parts(&der).session_id;
        assert_eq!(validate(id, &outside, made_at(&der), MAX).unwrap_err().reason(), DropReason::BrokenDer);
        // An element behind the last known one, the sequence's length being right.
        let mut inside = der[..].to_vec();
        inside.extend_from_slice(&[0xb5, 0x03, 0x02, 0x01, 0x00]);
        let length = inside.len() - 3;
        assert_eq!(inside[..2], [0x30, 0x81], "a plain session has a length of one byte in the long form");
        inside[2] = u8::try_from(length).unwrap();
        assert_eq!(validate(id, &inside, made_at(&der), MAX).unwrap_err().reason(), DropReason::BrokenDer);
    }

    #[test]
    fn ber_that_openssl_would_take_is_refused() {
        let der = real(Kind::Plain);
        assert_eq!(der[..2], [0x30, 0x81]);
        let padded = [&[0x30, 0x82, 0x00], &der[2..]].concat();
        SslSession::from_der(&padded).expect("OpenSSL takes a length that is not the shortest");
        let fault = validate(parts(&der).session_id, &padded, made_at(&der), MAX).unwrap_err();
        assert_eq!(fault.reason(), DropReason::BrokenDer);
    }

    #[test]
    fn each_fault_has_its_own_reason() {
        let der = real(Kind::Plain);
        let (id, now) = (parts(&der).session_id, made_at(&der));
        let reason = |id: &[u8], der: Bytes, max| validate(id, &der, now, max).unwrap_err().reason();
        assert_eq!(reason(id, der.clone(), der.len() - 1), DropReason::TooLarge);
        assert_eq!(reason(&ID, der.clone(), MAX), DropReason::WrongId);
        assert_eq!(reason(&id[..31], der.clone(), MAX), DropReason::WrongId);
        assert_eq!(reason(&[], der.clone(), MAX), DropReason::BadId);
        assert_eq!(reason(&[1; 33], plain(&[1; 33], now / 1000, 300, 1), MAX), DropReason::BadId);
        assert_eq!(reason(id, Bytes::new(), MAX), DropReason::BrokenDer);
        let long = [0; 49];
        let broken: [(&str, Bytes); 8] = [
            ("structure version", changed(Kind::Plain, |it| it.version = 2)),
            ("cipher", changed(Kind::Plain, |it| it.cipher = &[0x03, 0x00, 0x2f])),
            ("empty secret", changed(Kind::Plain, |it| it.master_key = &[])),
            ("long secret", changed(Kind::Plain, |it| it.master_key = &[0; 49])),
            ("short secret", changed(Kind::Plain, |it| it.master_key = &[0; 32])),
            ("context", changed(Kind::Plain, |it| it.session_id_context = Some(&[0; 33]))),
            ("compression", changed(Kind::Plain, |it| it.compression = Some(&[0; 2]))),
            ("certificate", {
                let tlv = asn1::write_single(&&long[..]).unwrap();
                let real = real(Kind::Plain);
                let mut encoded = parts(&real);
                encoded.peer = Some(asn1::parse_single(&tlv).unwrap());
                asn1::write_single(&encoded).unwrap().into()
            }),
        ];
        for (what, der) in broken {
            assert_eq!(check(&der).unwrap_err().reason(), DropReason::BrokenDer, "{what}");
        }
        for version in [0x0002, 0x0300, 0x0305, 0xfeff, 0xfefd, -1] {
            let der = changed(Kind::Plain, |it| it.ssl_version = version);
            assert_eq!(check(&der).unwrap_err(), SessionFault::UnknownVersion { version });
        }
    }

    #[test]
    fn a_session_ends_with_its_timeout_to_the_millisecond() {
        let der = plain(&ID, 1_000_000, 300, 1);
        let at = |now| validate(&ID, &der, now, MAX).map(|session| session.expires_at);
        assert_eq!(at(1_000_000_000), Ok(1_000_300_000));
        assert_eq!(at(1_000_299_999), Ok(1_000_300_000));
        assert_eq!(at(1_000_300_000), Err(SessionFault::Expired));
    }

    #[test]
    fn a_session_without_time_or_timeout_is_expired() {
        let now = made_at(&real(Kind::Plain));
        for (what, time, timeout) in [
            ("no time", None, Some(300)),
            ("no timeout", Some(now as i64 / 1000), None),
            ("a timeout of zero", Some(now as i64 / 1000 + 60), Some(0)),
            ("a negative time", Some(-5), Some(i64::MAX)),
            ("a negative timeout", Some(now as i64 / 1000), Some(-5)),
        ] {
            let der = changed(Kind::Plain, |it| (it.time, it.timeout) = (time, timeout));
            assert_eq!(check(&der), Err(SessionFault::Expired), "{what}");
        }
    }

    #[test]
    fn a_session_may_come_from_an_hour_ahead_and_no_further() {
        let now = 1_000_000_000;
        let at = |time| validate(&ID, &plain(&ID, time, 300, 1), now, MAX);
        at(1_000_000 + MAX_AHEAD_SECONDS).unwrap();
        assert_eq!(
            at(1_000_001 + MAX_AHEAD_SECONDS).unwrap_err(),
            SessionFault::FromTheFuture { seconds: MAX_AHEAD_SECONDS + 1 }
        );
        let most = changed(Kind::Plain, |it| (it.time, it.timeout) = (Some(i64::MAX), Some(i64::MAX)));
        assert_eq!(check(&most).unwrap_err().reason(), DropReason::FromTheFuture);
    }

    #[test]
    fn a_session_may_live_a_week_and_no_longer() {
        for kind in ALL {
            let lasting = |timeout| check(&changed(kind, |it| it.timeout = Some(timeout)));
            let expires_at = made_at(&real(kind)) + 7 * 86_400_000;
            assert_eq!(lasting(7 * 86_400).map(|session| session.expires_at), Ok(expires_at), "{kind:?}");
            assert_eq!(
                lasting(7 * 86_400 + 1),
                Err(SessionFault::LivesTooLong { seconds: 7 * 86_400 + 1 }),
                "{kind:?}"
            );
            let longest = lasting(i64::MAX).unwrap_err();
            assert_eq!(longest.reason().as_str(), "lives_too_long", "{kind:?}: and it does not overflow");
        }
    }

    /// What validates, OpenSSL must decode. It alone knows which cipher suites it has, so the original's is put back.
    fn openssl_agrees(kind: Kind, mutated: &[u8], now: u64) -> Result<(), TestCaseError> {
        let Ok(encoded) = asn1::parse_single::<Encoded<'_>>(mutated) else {
            return Ok(());
        };
        let announced = encoded.session_id;
        if validate(announced, mutated, now, MAX).is_err() {
            return Ok(());
        }
        let cipher = encoded.cipher.as_ptr() as usize - mutated.as_ptr() as usize;
        let mut known = mutated.to_vec();
        known[cipher..cipher + 2].copy_from_slice(parts(&real(kind)).cipher);
        let decoded = SslSession::from_der(&known);
        prop_assert!(decoded.is_ok(), "{:?} is refused by OpenSSL: {:02x?}", decoded.err(), mutated);
        let decoded = decoded.unwrap();
        prop_assert_eq!(decoded.id(), announced);
        Ok(())
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(&ALL[..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_validates_after_flipped_bits_is_accepted_by_openssl(
            kind in kinds(), flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        ) {
            let mut der = real(kind).to_vec();
            let now = made_at(&der);
            for (at, flip) in flips {
                let at = at.index(der.len());
                der[at] ^= flip;
            }
            openssl_agrees(kind, &der, now)?;
        }

        #[test]
        fn what_validates_with_bytes_cut_out_or_put_in_is_accepted_by_openssl(
            kind in kinds(), at in any::<prop::sample::Index>(), cut in 0..8usize,
            put in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut der = real(kind).to_vec();
            let now = made_at(&der);
            let at = at.index(der.len());
            let end = (at + cut).min(der.len());
            der.splice(at..end, put);
            openssl_agrees(kind, &der, now)?;
        }

        #[test]
        fn what_validates_with_other_values_is_accepted_by_openssl(
            kind in kinds(), values in any::<(Option<i32>, Option<u64>, Option<u32>, Option<u32>, Option<u32>)>(),
            lengths in any::<[Option<u8>; 5]>(), timeout in 1..=i64::try_from(MAX_TIMEOUT_SECONDS).unwrap(), id in 0..40usize,
            secret in prop_oneof![4 => Just(48), 1 => Just(32), 1 => 0..64usize],
        ) {
            static FILLER: [u8; 256] = [b'x'; 256];
            let octets = |length: Option<u8>| length.map(|length| &FILLER[..usize::from(length)]);
            let der = changed(kind, |it| {
                (it.verify_result, it.flags, it.ticket_age_add, it.max_early_data, it.kex_group) = values;
                it.session_id_context = octets(lengths[0].map(|length| length % 36));
                it.hostname = octets(lengths[1]);
                it.ticket = octets(lengths[2]);
                it.compression = octets(lengths[3].map(|length| if length < 16 { 2 } else { 1 }));
                it.alpn_selected = octets(lengths[4]);
                it.timeout = Some(timeout);
                it.session_id = &FILLER[..id];
                it.master_key = &FILLER[..secret];
            });
            openssl_agrees(kind, &der, made_at(&der))?;
        }

        #[test]
        fn no_session_is_resumed_for_longer_than_a_week_and_an_hour_from_now(
            ahead in -700_000..700_000_i64, timeout in any::<i64>(),
        ) {
            let now = made_at(&real(Kind::Plain));
            let der = changed(Kind::Plain, |it| {
                it.time = it.time.map(|time| time + ahead);
                it.timeout = Some(timeout);
            });
            let last = now + 1000 * (MAX_TIMEOUT_SECONDS + MAX_AHEAD_SECONDS);
            prop_assert!(check(&der).map_or(true, |session| (now + 1..=last).contains(&session.expires_at)));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(validate(&ID, &bytes, 1_000_000_000, MAX).is_err());
        }
    }
}
