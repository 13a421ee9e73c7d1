//! Farm tickets for Rust servers, through rustls' own interface.
//!
//! A ticket is built after RFC 5077 section 4, with the farm's keys in place of keys of the server's own:
//!
//! ```text
//! key name (16 bytes) | IV (16 bytes) | AES-256-CBC of the session | HMAC-SHA256 of all before (32 bytes)
//! ```
//!
//! as OpenSSL lays it out, without the length that the RFC puts before the ciphertext. What is inside is rustls' own:
//! a ticket of another kind of proxy is authentic here, but is not understood, and leads to a full handshake.

use std::fmt;
use std::sync::Arc;

use ::rustls::server::ProducesTickets;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt, encrypt};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::clock::SystemClock;
use crate::keys::{ProxyKey, Timetable};
use crate::random;

const NAME: usize = 16;
const IV: usize = 16;
const MAC: usize = 32;
/// RFC 8446 section 4.6.1: no ticket lives longer than seven days.
const LONGEST_LIFETIME_S: u64 = 7 * 24 * 60 * 60;

/// Seals and opens the tickets of a rustls server with the keys of the farm.
///
/// It follows the timetable that it watches, and its keys' times also when no timetable comes any more. While no key
/// may seal, the server issues no ticket, and clients make full handshakes: a handshake never waits for a key.
///
/// # Listeners with different rules about client certificates
///
/// A ticket holds what the full handshake found: the server's name, the cipher suite, the client's certificate if there was
/// one. Before it resumes, rustls 0.23 compares the cipher suite, with it the TLS version, and the server's name, and nothing
/// else: it does not ask the listener's `ClientCertVerifier`, and does not look whether the ticket has a certificate. (Its
/// documentation of `ServerConfig` says so under "Sharing resumption storage".) So a client that got a ticket where no certificate is asked
/// for would resume on a listener of the same farm that requires one, and be taken in without one. That is so on one server
/// with two listeners, and on two servers.
///
/// Each rule therefore needs a ticketer of its own: [`FarmTicketer::for_rule`] names the rule, and a ticket opens only
/// under the name that it was sealed under. Give the same name to the listeners of all servers that ask the same client
/// certificates, of the same authorities; and another name wherever that differs. The client then makes a full handshake, in
/// which its certificate is asked for. A farm of its own for each rule, with a node for each, does the same with separate
/// keys.
///
/// Within one rule a client that resumes shows no certificate again: what its ticket holds counts, until the ticket's key
/// is gone, also if the certificate has expired or was revoked meanwhile. A listener that cannot accept this checks
/// `peer_certificates` after the handshake, or gives no tickets.
#[derive(Clone)]
pub struct FarmTicketer {
    timetable: watch::Receiver<Arc<Timetable>>,
    clock: SystemClock,
    rule: Rule,
}

impl FarmTicketer {
    /// One that follows `timetable`: [`Node::ticketer`](crate::Node::ticketer) is how a server gets one. Until it is told of a
    /// [rule](Self::for_rule), all listeners of the farm have the same about client certificates.
    #[doc(hidden)]
    #[must_use]
    pub fn new(timetable: watch::Receiver<Arc<Timetable>>, clock: SystemClock) -> Self {
        Self { timetable, clock, rule: Rule::default() }
    }

    /// The same for listeners whose rule about client certificates is called `name`: tickets sealed under one name open
    /// under no other, and not without a name. An empty name is none.
    #[must_use]
    pub fn for_rule(self, name: &str) -> Self {
        Self { rule: Rule(name.into()), ..self }
    }

    fn timetable(&self) -> Arc<Timetable> {
        Arc::clone(&self.timetable.borrow())
    }
}

impl fmt::Debug for FarmTicketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarmTicketer").field("keys", &self.timetable().entries().len()).finish_non_exhaustive()
    }
}

impl ProducesTickets for FarmTicketer {
    /// Always. Without a key rustls would fall back to sessions that only this server can resume.
    fn enabled(&self) -> bool {
        true
    }

    /// Seconds until the key that seals now opens its last ticket, as far as is known, and at most seven days; 0 while
    /// no key seals. A rotation on request or a revocation may make it less for tickets already issued: it is a hint.
    fn lifetime(&self) -> u32 {
        lifetime(&self.timetable(), self.clock.now().wall)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let timetable = self.timetable();
        let key = timetable.seal_at(self.clock.now().wall)?;
        let mut iv = [0; IV];
        random::try_fill(&mut iv).inspect_err(|error| tracing::warn!(%error, "cannot seal a session ticket")).ok()?;
        let sealed = seal(key, &self.rule, iv, plain);
        sealed.inspect_err(|error| tracing::warn!(%error, "OpenSSL cannot seal a session ticket")).ok()
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let opened = open(&self.timetable(), &self.rule, cipher, self.clock.now().wall);
        opened.inspect_err(|error| tracing::warn!(%error, "OpenSSL cannot open a session ticket")).ok()?
    }
}

/// The name of a rule about client certificates; empty: none.
#[derive(Clone, Default)]
struct Rule(Arc<str>);

/// Goes before a rule's name in what its MAC key is derived from. Tickets, the only other texts under a key's MAC key, begin
/// with the key's random name.
const RULE: &[u8] = b"resumed/1 rustls rule ";

impl Rule {
    /// The MAC key of `key` under this rule: the key's own, or one derived from it, so that neither opens what the other
    /// sealed.
    fn mac_key(&self, key: &ProxyKey) -> Result<Zeroizing<[u8; MAC]>, ErrorStack> {
        if self.0.is_empty() {
            return Ok(Zeroizing::new(key.hmac));
        }
        Ok(Zeroizing::new(hmac_sha256(&key.hmac, &[RULE, self.0.as_bytes()])?))
    }
}

fn lifetime(timetable: &Timetable, wall: u64) -> u32 {
    let left = timetable.seal_at(wall).map_or(0, |key| key.open_until.saturating_sub(wall) / 1000);
    u32::try_from(left.min(LONGEST_LIFETIME_S)).unwrap_or_default()
}

fn seal(key: &ProxyKey, rule: &Rule, iv: [u8; IV], plain: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let ciphertext = encrypt(Cipher::aes_256_cbc(), &key.aes, Some(&iv), plain)?;
    let mut ticket = Vec::with_capacity(NAME + IV + ciphertext.len() + MAC);
    ticket.extend_from_slice(&key.name);
    ticket.extend_from_slice(&iv);
    ticket.extend_from_slice(&ciphertext);
    let mac = mac(key, rule, &ticket)?;
    ticket.extend_from_slice(&mac);
    Ok(ticket)
}

/// `None` if the ticket is not one that opens at `wall` under `rule`. Nothing is decrypted before the MAC is found right, so what
/// decryption says about the padding tells an attacker nothing.
fn open(timetable: &Timetable, rule: &Rule, ticket: &[u8], wall: u64) -> Result<Option<Vec<u8>>, ErrorStack> {
    let Some((body, claimed)) = ticket.split_last_chunk::<MAC>() else { return Ok(None) };
    let Some((name, rest)) = body.split_first_chunk::<NAME>() else { return Ok(None) };
    let Some((iv, ciphertext)) = rest.split_first_chunk::<IV>() else { return Ok(None) };
    let Some(key) = timetable.open_at(name, wall) else { return Ok(None) };
    if !memcmp::eq(&mac(key, rule, body)?, claimed) {
        return Ok(None);
    }
    decrypt(Cipher::aes_256_cbc(), &key.aes, Some(iv), ciphertext).map(Some)
}

fn mac(key: &ProxyKey, rule: &Rule, body: &[u8]) -> Result<[u8; MAC], ErrorStack> {
    hmac_sha256(&*rule.mac_key(key)?, &[body])
}

/// HMAC-SHA256 of `parts` one after the other.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Result<[u8; MAC], ErrorStack> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    parts.iter().try_for_each(|part| signer.update(part))?;
    let mut mac = [0; MAC];
    signer.sign(&mut mac)?;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IV_OF_TESTS: [u8; IV] = [7; IV];
    const SESSION: &[u8] = b"what a server wants to remember of a client";

    fn key(name: u8, seal_from: u64, seal_until: u64, open_until: u64) -> ProxyKey {
        let (hmac, aes) = ([name; 32], [name ^ 0xff; 32]);
        ProxyKey { name: [name; 16], hmac, aes, seal_from, settled_at: 0, seal_until, open_until }
    }

    fn table(entries: &[ProxyKey]) -> Timetable {
        Timetable::new(entries.to_vec())
    }

    fn opened(timetable: &Timetable, ticket: &[u8], wall: u64) -> Option<Vec<u8>> {
        open(timetable, &Rule::default(), ticket, wall).unwrap()
    }

    fn ticketer(timetable: Timetable) -> FarmTicketer {
        FarmTicketer::new(watch::channel(Arc::new(timetable)).1, SystemClock::start())
    }

    #[test]
    fn a_ticket_is_laid_out_as_documented() {
        let key = key(1, 0, 10, 20);
        let ticket = seal(&key, &Rule::default(), IV_OF_TESTS, SESSION).unwrap();
        assert_eq!(ticket.len(), 16 + 16 + 48 + 32);
        assert_eq!((&ticket[..16], &ticket[16..32]), (&key.name[..], &IV_OF_TESTS[..]));
        let plain = decrypt(Cipher::aes_256_cbc(), &key.aes, Some(&IV_OF_TESTS), &ticket[32..80]).unwrap();
        assert_eq!(plain, SESSION);
        let secret = PKey::hmac(&key.hmac).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &secret).unwrap();
        signer.update(&ticket[..80]).unwrap();
        assert_eq!(signer.sign_to_vec().unwrap(), ticket[80..]);
    }

    #[test]
    fn a_ticket_opens_wherever_its_key_is_and_nowhere_else() {
        let ticket = seal(&key(1, 0, 10, 20), &Rule::default(), IV_OF_TESTS, SESSION).unwrap();
        let other_node = table(&[key(2, 0, 10, 20), key(1, 0, 10, 20)]);
        assert_eq!(opened(&other_node, &ticket, 5).as_deref(), Some(SESSION));
        assert_eq!(opened(&table(&[key(2, 0, 10, 20)]), &ticket, 5), None);
        let same_name = ProxyKey { hmac: [9; 32], ..key(1, 0, 10, 20).clone() };
        assert_eq!(opened(&table(&[same_name]), &ticket, 5), None);
    }

    #[test]
    fn a_ticket_opens_until_its_key_closes_and_not_when_it_is_erased() {
        let ticket = seal(&key(1, 0, 10, 20), &Rule::default(), IV_OF_TESTS, SESSION).unwrap();
        let timetable = table(&[key(1, 0, 10, 20)]);
        assert!(opened(&timetable, &ticket, 20).is_some());
        assert_eq!(opened(&timetable, &ticket, 21), None);
        assert_eq!(opened(&Timetable::default(), &ticket, 5), None);
    }

    #[test]
    fn a_ticket_changed_or_cut_anywhere_does_not_open() {
        let timetable = table(&[key(1, 0, 10, 20)]);
        let ticket = seal(&key(1, 0, 10, 20), &Rule::default(), IV_OF_TESTS, SESSION).unwrap();
        for place in 0..ticket.len() {
            assert_eq!(opened(&timetable, &ticket[..place], 5), None, "cut to {place} bytes");
            for bit in 0..8 {
                let mut changed = ticket.clone();
                changed[place] ^= 1 << bit;
                assert_eq!(opened(&timetable, &changed, 5), None, "bit {bit} of byte {place}");
            }
        }
        assert_eq!(opened(&timetable, &[ticket, vec![0]].concat(), 5), None, "a byte more");
    }

    #[test]
    fn an_authentic_ticket_that_does_not_decrypt_is_no_session() {
        let key = key(1, 0, u64::MAX, u64::MAX);
        let mut ticket = [key.name, IV_OF_TESTS].concat();
        let mac = mac(&key, &Rule::default(), &ticket).unwrap();
        ticket.extend(mac);
        assert_eq!(ticketer(table(&[key])).decrypt(&ticket), None);
    }

    #[test]
    fn a_ticketer_seals_what_another_one_opens() {
        let timetable = table(&[key(1, 0, u64::MAX, u64::MAX)]);
        let (a, b) = (ticketer(timetable.clone()), ticketer(timetable));
        let (one, two) = (a.encrypt(SESSION).unwrap(), a.encrypt(SESSION).unwrap());
        assert_ne!(one, two, "each ticket has an IV of its own");
        assert_eq!(b.decrypt(&one).as_deref(), Some(SESSION));
        assert_eq!(b.decrypt(&two).as_deref(), Some(SESSION));
    }

    #[test]
    fn a_ticket_opens_under_the_rule_that_it_was_sealed_under_and_under_no_other() {
        let timetable = table(&[key(1, 0, u64::MAX, u64::MAX)]);
        let of = |rule: &str| ticketer(timetable.clone()).for_rule(rule);
        let rules = ["", "client certificate: none", "client certificate: required"];
        for sealed in rules {
            let ticket = of(sealed).encrypt(SESSION).unwrap();
            for opened in rules {
                let expected = (opened == sealed).then_some(SESSION);
                assert_eq!(of(opened).decrypt(&ticket).as_deref(), expected, "{sealed:?} at {opened:?}");
            }
        }
    }

    #[test]
    fn without_a_key_that_may_seal_there_is_no_ticket() {
        for timetable in [Timetable::default(), table(&[key(1, 0, 10, u64::MAX)])] {
            let ticketer = ticketer(timetable);
            assert_eq!(ticketer.encrypt(SESSION), None);
            assert_eq!(ticketer.lifetime(), 0);
            assert!(ticketer.enabled());
        }
    }

    #[test]
    fn a_ticketer_follows_the_timetable_and_the_last_one_when_its_node_is_gone() {
        let (sender, receiver) = watch::channel(Arc::new(Timetable::default()));
        let ticketer = FarmTicketer::new(receiver, SystemClock::start());
        assert_eq!(ticketer.encrypt(SESSION), None);
        sender.send(Arc::new(table(&[key(1, 0, u64::MAX, u64::MAX)]))).unwrap();
        drop(sender);
        let ticket = ticketer.encrypt(SESSION).unwrap();
        assert_eq!(ticketer.decrypt(&ticket).as_deref(), Some(SESSION));
    }

    #[test]
    fn the_lifetime_ends_with_the_key_and_is_at_most_seven_days() {
        let timetable = table(&[key(2, 50_000, 80_000, 900_000), key(1, 0, 60_000, 70_500)]);
        assert_eq!(lifetime(&timetable, 40_000), 30);
        assert_eq!(lifetime(&timetable, 50_000), 850);
        assert_eq!(lifetime(&table(&[key(1, 0, 10, u64::MAX)]), 5), 604_800);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", ticketer(table(&[key(0xab, 1, 2, 3)])));
        assert_eq!(shown, "FarmTicketer { keys: 1, .. }");
    }
}
