//! Which ticket keys ATS uses now: the farm's, by their times, or the plugin's own while the farm has none that seals.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

use crate::proto;
use crate::timetable::{ProxyKey, Timetable};

/// The name, 16 bytes of the HMAC secret, and an AES-128 key: what ATS takes of each key.
pub const RECORD_BYTES: usize = 48;

/// How long a key of the plugin's own seals at most, if no farm key ever said how long is right.
const OWN_KEY_LIFE_MS: u64 = 8 * 60 * 60 * 1000;
const MOST_OWN_KEYS: usize = 4;

/// Reads a timetable as the daemon sends it; the error says what is wrong with it.
pub fn read(mut message: proto::Timetable) -> Result<Timetable, String> {
    let entries: Result<Vec<ProxyKey>, String> = message.keys.iter().map(entry).collect();
    for key in &mut message.keys {
        key.hmac.zeroize();
        key.aes.zeroize();
    }
    let (floor, sessions_from, alone) = (message.floor, message.sessions_from, message.alone);
    entries.map(|entries| Timetable::new(entries).with_floors(floor, sessions_from).with_alone(alone))
}

fn entry(key: &proto::TimetableKey) -> Result<ProxyKey, String> {
    fn exactly<const N: usize>(what: &str, bytes: &[u8]) -> Result<[u8; N], String> {
        bytes.try_into().map_err(|_| format!("a ticket key's {what} has {} bytes, not {N}", bytes.len()))
    }
    Ok(ProxyKey {
        name: exactly("name", &key.name)?,
        hmac: exactly("HMAC secret", &key.hmac)?,
        aes: exactly("AES key", &key.aes)?,
        seal_from: key.seal_from,
        settled_at: key.settled_at,
        seal_until: key.seal_until,
        open_until: key.open_until,
    })
}

/// A random key of the plugin's own: ATS seals with it when the farm has no key that may.
struct OwnKey {
    record: Zeroizing<[u8; RECORD_BYTES]>,
    sealed_first: u64,
    /// Something else has sealed since then.
    retired: Option<u64>,
}

/// The keys of the plugin's own. Decides; whoever calls tells ATS.
#[derive(Default)]
pub struct OwnKeys {
    /// Newest first.
    keys: Vec<OwnKey>,
}

/// What ATS should use now.
pub struct Choice {
    /// The whole key set, the sealing key first.
    pub records: Zeroizing<Vec<u8>>,
    /// A new key of the plugin's own begins to seal with this choice.
    pub new_own_key: bool,
    /// The first key is the plugin's own.
    pub own_key_seals: bool,
}

impl OwnKeys {
    /// The key set for `wall` (UTC milliseconds). `random` makes a record for a key of the plugin's own, if one is needed.
    pub fn choose<E>(
        &mut self,
        timetable: &Timetable,
        wall: u64,
        random: impl FnOnce() -> Result<Zeroizing<[u8; RECORD_BYTES]>, E>,
    ) -> Result<Choice, E> {
        // A key of our own seals no longer than the farm would let one of its keys.
        let life = timetable.entries().iter().map(|key| key.seal_until.saturating_sub(key.seal_from)).max();
        let life = life.unwrap_or(OWN_KEY_LIFE_MS);
        let set = timetable.at(wall);
        let revoked = |key: &OwnKey| key.sealed_first < timetable.floor();
        let over = |key: &OwnKey| key.retired.is_some() || key.sealed_first + life < wall || revoked(key);
        let mut new_own_key = false;
        if set.seal.is_some() {
            self.retire(wall);
        } else if self.keys.first().is_none_or(over) {
            let record = random()?;
            self.retire(wall);
            // The clock may be behind that of whoever revoked.
            self.keys.insert(0, OwnKey { record, sealed_first: wall.max(timetable.floor()), retired: None });
            new_own_key = true;
        }
        self.keys.retain(|key| !revoked(key) && key.retired.is_none_or(|since| wall <= since.saturating_add(life)));
        self.keys.truncate(MOST_OWN_KEYS);

        let own: Vec<&[u8; RECORD_BYTES]> = self.keys.iter().map(|key| &*key.record).collect();
        let mut records = Zeroizing::new(Vec::with_capacity((set.open.len() + own.len()) * RECORD_BYTES));
        let own_first = usize::from(set.seal.is_none()).min(own.len());
        own[..own_first].iter().for_each(|record| records.extend_from_slice(&record[..]));
        for key in &set.open {
            records.extend_from_slice(&key.name);
            records.extend_from_slice(&key.hmac[..16]);
            records.extend_from_slice(&key.aes[..16]);
        }
        own[own_first..].iter().for_each(|record| records.extend_from_slice(&record[..]));
        Ok(Choice { records, new_own_key, own_key_seals: set.seal.is_none() })
    }

    fn retire(&mut self, wall: u64) {
        for key in &mut self.keys {
            key.retired.get_or_insert(wall);
        }
    }
}

/// Between the thread that receives timetables, the one that applies them, and ATS's start, which waits for the first.
#[derive(Default)]
pub struct Mailbox {
    state: Mutex<Letters>,
    news: Condvar,
}

#[derive(Default)]
struct Letters {
    timetable: Option<Timetable>,
    unread: bool,
    reloaded: bool,
}

/// Why [`Mailbox::wait`] returned.
#[derive(Default)]
pub struct News {
    /// A new timetable, if one came.
    pub timetable: Option<Timetable>,
    /// ATS has read its configuration again.
    pub reloaded: bool,
}

impl Mailbox {
    /// Brings a timetable. The one before, if unread, is forgotten.
    pub fn bring(&self, timetable: Timetable) {
        let mut state = self.lock();
        state.timetable = Some(timetable);
        state.unread = true;
        drop(state);
        self.news.notify_all();
    }

    /// Says that ATS has read its configuration again.
    pub fn reloaded(&self) {
        self.lock().reloaded = true;
        self.news.notify_all();
    }

    /// Waits for news for at most `patience`.
    pub fn wait(&self, patience: Duration) -> News {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while !state.unread && !state.reloaded {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.unread = false;
        News { timetable: state.timetable.take(), reloaded: std::mem::take(&mut state.reloaded) }
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const OWN: [u8; RECORD_BYTES] = [0xee; RECORD_BYTES];

    fn key(n: u8, seal_from: u64, seal_until: u64, open_until: u64) -> ProxyKey {
        ProxyKey {
            name: [n; 16],
            hmac: [n + 100; 32],
            aes: [n + 200; 32],
            seal_from,
            settled_at: 0,
            seal_until,
            open_until,
        }
    }

    fn choose(own: &mut OwnKeys, timetable: &Timetable, wall: u64) -> Choice {
        own.choose(timetable, wall, || Ok::<_, Infallible>(Zeroizing::new(OWN))).unwrap_or_else(|never| match never {})
    }

    /// The first byte of each record's name.
    fn names(choice: &Choice) -> Vec<u8> {
        choice.records.chunks(RECORD_BYTES).map(|record| record[0]).collect()
    }

    #[test]
    fn a_record_is_name_then_half_the_hmac_secret_then_half_the_aes_key() {
        let choice = choose(&mut OwnKeys::default(), &Timetable::new(vec![key(1, 0, 10, 20)]), 5);
        let mut record = vec![1; 16];
        record.extend([101; 16]);
        record.extend([201; 16]);
        assert_eq!(*choice.records, record);
        assert!(!choice.new_own_key && !choice.own_key_seals);
    }

    #[test]
    fn the_sealing_key_is_first_and_all_that_open_follow() {
        let timetable = Timetable::new(vec![key(3, 100, 200, 300), key(2, 50, 150, 250), key(1, 0, 60, 90)]);
        let mut own = OwnKeys::default();
        assert_eq!(names(&choose(&mut own, &timetable, 55)), [2, 3, 1]);
        assert_eq!(names(&choose(&mut own, &timetable, 91)), [2, 3]);
        assert_eq!(names(&choose(&mut own, &timetable, 100)), [3, 2]);
        assert_eq!(names(&choose(&mut own, &timetable, 251)), [0xee, 3]);
    }

    #[test]
    fn without_a_key_that_seals_it_seals_with_its_own_and_still_opens_the_farms() {
        let timetable = Timetable::new(vec![key(1, 0, 100, 300)]);
        let mut own = OwnKeys::default();
        let choice = choose(&mut own, &timetable, 101);
        assert!(choice.new_own_key && choice.own_key_seals);
        assert_eq!(names(&choice), [0xee, 1]);
        let again = choose(&mut own, &timetable, 102);
        assert!(!again.new_own_key && again.own_key_seals, "the same key goes on");
        assert_eq!(
            names(&choose(&mut own, &timetable, 301)),
            [0xee, 0xee],
            "and is renewed after as long as a farm key"
        );
    }

    #[test]
    fn its_own_key_still_opens_after_the_farm_came_back_and_then_goes() {
        let mut own = OwnKeys::default();
        choose(&mut own, &Timetable::default(), 1000);
        let timetable = Timetable::new(vec![key(1, 1500, 1600, 9000)]);
        assert_eq!(names(&choose(&mut own, &timetable, 1500)), [1, 0xee]);
        assert_eq!(names(&choose(&mut own, &timetable, 1600)), [1, 0xee]);
        let later = Timetable::new(vec![key(2, 0, 1700, 9000)]);
        assert_eq!(names(&choose(&mut own, &later, 1701)), [0xee, 2, 0xee], "a retired key never seals again");
    }

    #[test]
    fn a_revocation_ends_its_own_keys_of_before_too() {
        let mut own = OwnKeys::default();
        choose(&mut own, &Timetable::default(), 1000);
        let before = Timetable::new(vec![key(1, 1500, 9000, 9900)]);
        assert_eq!(names(&choose(&mut own, &before, 1500)), [1, 0xee]);
        let after = Timetable::new(vec![key(2, 1600, 9000, 9900)]).with_floors(1600, 0);
        assert_eq!(names(&choose(&mut own, &after, 1600)), [2]);
        // One that seals is replaced, also while the clock is behind the revocation.
        let mut own = OwnKeys::default();
        choose(&mut own, &Timetable::default(), 1000);
        let none = Timetable::default().with_floors(1600, 0);
        let choice = choose(&mut own, &none, 1500);
        assert!(choice.new_own_key && choice.own_key_seals);
        assert_eq!(names(&choice), [0xee]);
        assert!(!choose(&mut own, &none, 1501).new_own_key);
    }

    #[test]
    fn own_keys_stay_few() {
        let mut own = OwnKeys::default();
        for round in 0..100 {
            choose(&mut own, &Timetable::default(), round * (OWN_KEY_LIFE_MS / 2 + 1));
        }
        assert!(own.keys.len() <= MOST_OWN_KEYS);
    }

    #[test]
    fn a_timetable_with_a_key_of_a_wrong_length_is_refused_by_name() {
        let good = proto::TimetableKey { name: vec![0; 16], hmac: vec![0; 32], aes: vec![0; 32], ..Default::default() };
        let read_one = |key| read(proto::Timetable { keys: vec![key], ..Default::default() });
        assert_eq!(read_one(good.clone()).unwrap().entries().len(), 1);
        let floors = read(proto::Timetable { floor: 7, sessions_from: 8, ..Default::default() }).unwrap();
        assert_eq!((floors.floor(), floors.sessions_from()), (7, 8));
        let short = read_one(proto::TimetableKey { aes: vec![0; 16], ..good }).unwrap_err();
        assert!(short.contains("AES key has 16 bytes, not 32"), "{short}");
    }

    #[test]
    fn the_mailbox_keeps_the_last_timetable_and_wakes_its_reader() {
        let mailbox = Mailbox::default();
        mailbox.bring(Timetable::new(vec![key(1, 0, 1, 2)]));
        mailbox.bring(Timetable::new(vec![key(2, 0, 1, 2)]));
        let news = mailbox.wait(Duration::from_secs(60));
        assert_eq!(news.timetable.unwrap().entries()[0].name, [2; 16]);
        assert!(!news.reloaded);
        mailbox.reloaded();
        assert!(mailbox.wait(Duration::from_secs(60)).reloaded);
        assert!(mailbox.wait(Duration::ZERO).timetable.is_none());
    }
}
