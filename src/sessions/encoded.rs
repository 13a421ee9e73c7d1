//! The structure of OpenSSL's `SSL_SESSION` in DER.
#![allow(clippy::result_large_err, reason = "the derived reader has asn1's error type")]

/// `SSL_SESSION_ASN1` of OpenSSL. An element that was zero or absent when the session was written is missing here,
/// save `kex_group`, which OpenSSL 3.x always writes. Element 0 (`key_arg`, SSL 2.0) is not written since 1.1.0.
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
