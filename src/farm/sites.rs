//! The other sites of a farm whose brokers are federated, as the leader here hears them.
//!
//! Each site has a broker of its own and a leader of its own; the leaders tell each other their rings through a link between
//! the brokers. When that link dies, each site looks well by itself. So the leader remembers which sites it heard, and how
//! long ago. A site is what its broker says it is (the name of the cluster), because leaders change.
//!
//! Only the leader listens. It tells its followers, so that the next leader knows which sites should be heard.

use std::collections::BTreeMap;

use crate::clock::Now;
use crate::proto;

/// A site is silent after so many of its own beats.
const SILENT_BEATS: u64 = 3;
/// A site that was silent for so long is forgotten, in milliseconds: it is thought to be gone for good.
pub(crate) const FORGET_AFTER_MS: u64 = 24 * 60 * 60 * 1000;
/// Most sites that are remembered.
pub(crate) const MOST_SITES: usize = 16;
/// Longest name of a site, in bytes; the rest of a longer one is cut off.
pub(crate) const LONGEST_NAME: usize = 128;
/// A beat, in milliseconds, is taken for no shorter and no longer than any farm's.
const BEATS_MS: std::ops::RangeInclusive<u64> = 100..=10 * 60 * 1000;

/// Another site, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// What its broker calls its cluster.
    pub name: String,
    /// The node that led there when it was last heard.
    pub leader: String,
    /// How long its leader has not been heard, in milliseconds.
    pub silent_ms: u64,
    /// Its beat, in milliseconds.
    pub beat_ms: u64,
}

impl Site {
    /// Whether three of its beats have passed without a word.
    #[must_use]
    pub(crate) fn is_silent(&self) -> bool {
        self.silent_ms > SILENT_BEATS * self.beat_ms
    }
}

#[derive(Clone, Debug)]
struct KnownSite {
    leader: String,
    beat_ms: u64,
    /// How long it had been silent at `since`, in milliseconds, and that in monotonic milliseconds.
    silent_ms: u64,
    since: u64,
    /// Whether the leader that this node follows knows of it.
    known_to_leader: bool,
}

impl KnownSite {
    fn silence(&self, now: Now) -> u64 {
        self.silent_ms.saturating_add(now.mono.saturating_sub(self.since))
    }
}

/// The sites that were heard within a day: at most [`MOST_SITES`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    entries: BTreeMap<String, KnownSite>,
    listening: bool,
}

impl Sites {
    /// Takes in whether this node leads now, and forgets who was silent for a day. A node that begins to lead counts silence
    /// on from what it was told: what was said while no node listened, it could not hear.
    pub(crate) fn advance(&mut self, listening: bool, now: Now) {
        self.entries.retain(|_, entry| entry.silence(now) < FORGET_AFTER_MS);
        if listening && !self.listening {
            for entry in self.entries.values_mut().filter(|entry| entry.known_to_leader) {
                entry.since = now.mono;
            }
        }
        self.listening = listening;
    }

    /// Takes in an authentic announcement from the site that its broker calls `name`.
    pub(crate) fn on_heard(&mut self, name: &str, leader: &str, report_every_ms: u64, now: Now) {
        let name = presentable(name);
        if self.entries.len() >= MOST_SITES && !self.entries.contains_key(&name) && !self.forget_a_silent_one(now) {
            return;
        }
        let (leader, beat_ms) = (presentable(leader), report_every_ms.clamp(*BEATS_MS.start(), *BEATS_MS.end()));
        self.entries.insert(name, KnownSite { leader, beat_ms, silent_ms: 0, since: now.mono, known_to_leader: true });
    }

    /// Makes room; false if every site is heard.
    fn forget_a_silent_one(&mut self, now: Now) -> bool {
        let longest = self.entries.iter().max_by_key(|(_, entry)| entry.silence(now));
        let silent = longest.filter(|(_, entry)| entry.silence(now) > SILENT_BEATS * entry.beat_ms);
        let Some(name) = silent.map(|(name, _)| name.clone()) else { return false };
        self.entries.remove(&name).is_some()
    }

    /// Takes in which sites the leader that this node follows hears. What it does not know of is kept out of sight, in
    /// case this node leads before it is forgotten: that leader may have just started.
    pub(crate) fn on_announced(&mut self, sites: &[proto::FederatedSite], now: Now) {
        self.entries.values_mut().for_each(|entry| entry.known_to_leader = false);
        for site in sites.iter().take(MOST_SITES) {
            self.on_heard(&site.name, &site.leader, site.report_every_ms, now);
            if let Some(entry) = self.entries.get_mut(&presentable(&site.name)) {
                entry.silent_ms = site.silent_ms.min(FORGET_AFTER_MS);
            }
        }
    }

    /// What this node tells its followers, if it leads.
    #[must_use]
    pub(crate) fn to_proto(&self, now: Now) -> Vec<proto::FederatedSite> {
        let told = |(name, entry): (&String, &KnownSite)| proto::FederatedSite {
            name: name.clone(),
            leader: entry.leader.clone(),
            silent_ms: entry.silence(now),
            report_every_ms: entry.beat_ms,
        };
        self.entries.iter().map(told).collect()
    }

    /// The sites by name: as this leader hears them, or as the leader that is followed said last.
    #[must_use]
    pub(crate) fn list(&self, now: Now) -> Vec<Site> {
        let known = self.entries.iter().filter(|(_, entry)| self.listening || entry.known_to_leader);
        let site = |(name, entry): (&String, &KnownSite)| Site {
            name: name.clone(),
            leader: entry.leader.clone(),
            silent_ms: if self.listening { entry.silence(now) } else { entry.silent_ms },
            beat_ms: entry.beat_ms,
        };
        known.map(site).collect()
    }
}

/// A name as it can be shown: it comes from another site's broker.
fn presentable(name: &str) -> String {
    let ends = name.char_indices().map(|(at, char)| at + char.len_utf8());
    let end = ends.take_while(|end| *end <= LONGEST_NAME).last().unwrap_or(0);
    match &name[..end] {
        "" => "unnamed".to_owned(),
        name => name.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect::<String>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        // The wall clock may jump: it must not matter.
        Now { wall: u64::MAX / 2 - ms, mono: 1_000 + ms }
    }

    fn leader() -> Sites {
        let mut sites = Sites::default();
        sites.advance(true, at(0));
        sites
    }

    fn silent(sites: &Sites, ms: u64) -> Vec<String> {
        sites.list(at(ms)).into_iter().filter(Site::is_silent).map(|site| site.name).collect()
    }

    #[test]
    fn a_site_is_silent_after_three_of_its_own_beats_and_no_longer_when_it_is_heard() {
        let mut sites = leader();
        sites.on_heard("ams", "ams0", 500, at(0));
        sites.on_heard("fra", "fra0", 10_000, at(0));
        assert_eq!(silent(&sites, 1_500), [""; 0]);
        assert_eq!(silent(&sites, 1_501), ["ams"]);
        assert_eq!(silent(&sites, 30_001), ["ams", "fra"]);
        // Another leader there is the same site.
        sites.on_heard("ams", "ams1", 500, at(30_001));
        assert_eq!(silent(&sites, 30_002), ["fra"]);
        assert_eq!(sites.list(at(30_002))[0].leader, "ams1");
    }

    #[test]
    fn a_node_that_begins_to_lead_knows_which_sites_should_be_heard() {
        let (mut leading, mut next) = (leader(), Sites::default());
        leading.on_heard("ams", "ams0", 500, at(0));
        leading.on_heard("fra", "fra0", 500, at(9_000));
        next.on_announced(&leading.to_proto(at(9_100)), at(9_150));
        // Between two words of its leader it says what that said: a beat here may be longer than three of theirs.
        assert_eq!(silent(&next, 60_000), ["ams"]);
        // It leads after a while without a leader, and hears fra alone.
        next.advance(true, at(60_000));
        assert_eq!(silent(&next, 60_000), ["ams"]);
        next.on_heard("fra", "fra0", 500, at(60_500));
        assert_eq!(silent(&next, 61_000), ["ams"]);
        assert_eq!(silent(&next, 62_001), ["ams", "fra"]);
        // A leader that has just started knows less; what this one knows stays, out of sight.
        next.advance(false, at(70_000));
        next.on_announced(&[], at(70_000));
        assert_eq!(next.list(at(70_000)), []);
        next.advance(true, at(80_000));
        assert_eq!(silent(&next, 80_000), ["ams", "fra"]);
    }

    #[test]
    fn a_site_that_left_is_forgotten_after_a_day() {
        let mut sites = leader();
        sites.on_heard("ams", "ams0", 500, at(0));
        sites.advance(true, at(FORGET_AFTER_MS - 1));
        assert_eq!(silent(&sites, FORGET_AFTER_MS - 1), ["ams"]);
        // A follower forgets it too, told or not.
        let mut follower = Sites::default();
        follower.on_announced(&sites.to_proto(at(FORGET_AFTER_MS - 1)), at(FORGET_AFTER_MS - 1));
        for sites in [&mut sites, &mut follower] {
            sites.advance(true, at(2 * FORGET_AFTER_MS));
            assert_eq!(sites.list(at(2 * FORGET_AFTER_MS)), []);
        }
    }

    #[test]
    fn what_others_say_is_bounded() {
        let mut sites = leader();
        for number in 0..100 {
            sites.on_heard(&format!("site{number:03}"), &"n".repeat(10_000), 0, at(0));
        }
        assert_eq!(sites.list(at(0)).len(), MOST_SITES);
        assert!(sites.list(at(0)).iter().all(|site| site.leader.len() == LONGEST_NAME && site.beat_ms == 100));
        // A new one takes the place of one that is silent.
        sites.on_heard("new", "n", u64::MAX, at(10_000));
        let names: Vec<_> = sites.list(at(10_000)).into_iter().map(|site| (site.name, site.beat_ms)).collect();
        assert!(names.len() == MOST_SITES && names.contains(&("new".to_owned(), 600_000)), "{names:?}");
        let far = |silent_ms| proto::FederatedSite { name: "x\n\u{1b}y".into(), silent_ms, ..Default::default() };
        let mut follower = Sites::default();
        follower.on_announced(&vec![far(u64::MAX); 100], at(0));
        assert_eq!(follower.list(at(0))[0].name, "x\u{fffd}\u{fffd}y");
        follower.on_announced(&[proto::FederatedSite::default()], at(0));
        assert_eq!(follower.list(at(0))[0].name, "unnamed");
        // A cut between two letters, not within one.
        assert_eq!(presentable(&"é".repeat(100)).len(), LONGEST_NAME);
    }
}
