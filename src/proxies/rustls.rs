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

use crate::clock::SystemClock;
use crate::keys::{Entry, Timetable};
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
#[derive(Clone)]
pub struct FarmTicketer {
    timetable: watch::Receiver<Arc<Timetable>>,
    clock: SystemClock,
}

impl FarmTicketer {
    /// A ticketer for [`ServerConfig::ticketer`](::rustls::ServerConfig::ticketer).
    #[must_use]
    pub fn new(timetable: watch::Receiver<Arc<Timetable>>, clock: SystemClock) -> Self {
        Self { timetable, clock }
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
        let sealed = seal(key, iv, plain);
        sealed.inspect_err(|error| tracing::warn!(%error, "OpenSSL cannot seal a session ticket")).ok()
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let opened = open(&self.timetable(), cipher, self.clock.now().wall);
        opened.inspect_err(|error| tracing::warn!(%error, "OpenSSL cannot open a session ticket")).ok()?
    }
}

fn lifetime(timetable: &Timetable, wall: u64) -> u32 {
    let left = timetable.seal_at(wall).map_or(0, |key| key.open_until.saturating_sub(wall) / 1000);
    u32::try_from(left.min(LONGEST_LIFETIME_S)).unwrap_or_default()
}

fn seal(key: &Entry, iv: [u8; IV], plain: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let ciphertext = encrypt(Cipher::aes_256_cbc(), &key.aes, Some(&iv), plain)?;
    let mut ticket = Vec::with_capacity(NAME + IV + ciphertext.len() + MAC);
    ticket.extend_from_slice(&key.name);
    ticket.extend_from_slice(&iv);
    ticket.extend_from_slice(&ciphertext);
    let mac = mac(key, &ticket)?;
    ticket.extend_from_slice(&mac);
    Ok(ticket)
}

/// `None` if the ticket is not one that opens at `wall`. Nothing is decrypted before the MAC is found right, so what
/// decryption says about the padding tells an attacker nothing.
fn open(timetable: &Timetable, ticket: &[u8], wall: u64) -> Result<Option<Vec<u8>>, ErrorStack> {
    let Some((body, claimed)) = ticket.split_last_chunk::<MAC>() else { return Ok(None) };
    let Some((name, rest)) = body.split_first_chunk::<NAME>() else { return Ok(None) };
    let Some((iv, ciphertext)) = rest.split_first_chunk::<IV>() else { return Ok(None) };
    let Some(key) = timetable.open_at(name, wall) else { return Ok(None) };
    if !memcmp::eq(&mac(key, body)?, claimed) {
        return Ok(None);
    }
    decrypt(Cipher::aes_256_cbc(), &key.aes, Some(iv), ciphertext).map(Some)
}

fn mac(key: &Entry, body: &[u8]) -> Result<[u8; MAC], ErrorStack> {
    let secret = PKey::hmac(&key.hmac)?;
    let mut mac = [0; MAC];
    Signer::new(MessageDigest::sha256(), &secret)?.sign_oneshot(&mut mac, body)?;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IV_OF_TESTS: [u8; IV] = [7; IV];
    const SESSION: &[u8] = b"what a server wants to remember of a client";

    fn key(name: u8, seal_from: u64, seal_until: u64, open_until: u64) -> Entry {
        let (hmac, aes) = ([name; 32], [name ^ 0xff; 32]);
        Entry { name: [name; 16], hmac, aes, seal_from, settled_at: 0, seal_until, open_until }
    }

    fn table(entries: &[Entry]) -> Timetable {
        Timetable::new(entries.to_vec())
    }

    fn opened(timetable: &Timetable, ticket: &[u8], wall: u64) -> Option<Vec<u8>> {
        open(timetable, ticket, wall).unwrap()
    }

    fn ticketer(timetable: Timetable) -> FarmTicketer {
        FarmTicketer::new(watch::channel(Arc::new(timetable)).1, SystemClock::start())
    }

    #[test]
    fn a_ticket_is_laid_out_as_documented() {
        let key = key(1, 0, 10, 20);
        let ticket = seal(&key, IV_OF_TESTS, SESSION).unwrap();
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
        let ticket = seal(&key(1, 0, 10, 20), IV_OF_TESTS, SESSION).unwrap();
        let other_node = table(&[key(2, 0, 10, 20), key(1, 0, 10, 20)]);
        assert_eq!(opened(&other_node, &ticket, 5).as_deref(), Some(SESSION));
        assert_eq!(opened(&table(&[key(2, 0, 10, 20)]), &ticket, 5), None);
        let same_name = Entry { hmac: [9; 32], ..key(1, 0, 10, 20).clone() };
        assert_eq!(opened(&table(&[same_name]), &ticket, 5), None);
    }

    #[test]
    fn a_ticket_opens_until_its_key_closes_and_not_when_it_is_erased() {
        let ticket = seal(&key(1, 0, 10, 20), IV_OF_TESTS, SESSION).unwrap();
        let timetable = table(&[key(1, 0, 10, 20)]);
        assert!(opened(&timetable, &ticket, 20).is_some());
        assert_eq!(opened(&timetable, &ticket, 21), None);
        assert_eq!(opened(&Timetable::default(), &ticket, 5), None);
    }

    #[test]
    fn a_ticket_changed_or_cut_anywhere_does_not_open() {
        let timetable = table(&[key(1, 0, 10, 20)]);
        let ticket = seal(&key(1, 0, 10, 20), IV_OF_TESTS, SESSION).unwrap();
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
        let mac = mac(&key, &ticket).unwrap();
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
