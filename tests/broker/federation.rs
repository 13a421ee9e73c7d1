//! One farm in two data centres, each with a broker and a pod of its own. RabbitMQ federates the exchange for keys over a
//! wire that is cut and mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use resumed::internals::keys::KeyState;
use resumed::internals::probe::{Client, Mode, Options, Session, Target};
use testkit::broker::{Broker, BrokerOptions};
use testkit::farm::{Farm, FarmSetup, Host, Proxies, wait_for};
use testkit::federation::{self, cluster_name, federate, let_in};
use testkit::hopping::Hopping;
use testkit::network::Wire;
use testkit::prometheus::{Prometheus, ScrapeTarget, Watch};
use testkit::rabbitmq::RabbitMq;
use testkit::sessions;

/// How long an announcement may wait for the link, in milliseconds.
const TTL: u64 = 3_000;
const BEAT: Duration = Duration::from_millis(500);
/// From the end of a link to every node of the site that says so: three beats, and what a busy machine takes to show it.
const SILENT_WITHIN: Duration = BEAT.saturating_mul(3).saturating_add(Duration::from_secs(5));
/// The modes in which clients come back.
const TICKETS: [Mode; 2] = [Mode::Ticket12, Mode::Ticket13];

/// Why nodes might refuse what another data centre sends.
const REASONS: [&str; 6] = ["bad_tag", "clock", "unknown_epoch", "not_in_epoch", "bad_grant", "unknown_kind"];

/// A data centre.
struct Site {
    broker: Broker,
    /// The way of the other one's broker to this one.
    wire: Wire,
    farm: Farm,
}

/// Two of them, called fra and ams.
struct Sites([Site; 2]);

impl Sites {
    fn start(proxies: Proxies) -> Self {
        Self::start_on(&[None, None], proxies)
    }

    /// Each site on a RabbitMQ of its own; of the chosen one, where none is named.
    fn start_on(rabbitmqs: &[Option<RabbitMq>; 2], proxies: Proxies) -> Self {
        let options = rabbitmqs.clone().map(|rabbitmq| BrokerOptions {
            plugins: vec![federation::PLUGIN],
            rabbitmq,
            ..BrokerOptions::default()
        });
        let brokers: Vec<Broker> = thread::scope(|scope| {
            let starting: Vec<_> =
                options.iter().map(|options| scope.spawn(move || Broker::start_with(options))).collect();
            starting.into_iter().map(|broker| broker.join().expect("a broker")).collect()
        });
        let mut sites: Vec<Site> = Vec::new();
        let name = FarmSetup::new(1, "").name;
        for (broker, pod) in brokers.into_iter().zip(["fra", "ams"]) {
            let wire = Wire::to(SocketAddr::from((Ipv4Addr::LOCALHOST, broker.port())));
            let setup = FarmSetup {
                pods: vec![pod.to_owned(); 2],
                host_names: pod.to_owned(),
                name: name.clone(),
                proxies,
                // No key is due while the test lasts but those that are asked for.
                keys: "interval = \"1h\"\nsettle = \"2s\"".to_owned(),
                broker: format!("report_every = \"{}ms\"", BEAT.as_millis()),
                ..FarmSetup::new(2, &broker.uri())
            };
            let farm = Farm::lay_out(&setup);
            if let Some(first) = sites.first() {
                fs::copy(&first.farm.secret, &farm.secret).expect("one secret for both");
            }
            let_in(&broker, &name);
            sites.push(Site { broker, wire, farm });
        }
        let sites: [Site; 2] = sites.try_into().unwrap_or_else(|_| unreachable!("two"));
        federate(&sites[0].broker, sites[1].wire.address(), &name, TTL);
        federate(&sites[1].broker, sites[0].wire.address(), &name, TTL);
        let mut sites = Self(sites);
        for site in &mut sites.0 {
            site.farm.launch();
        }
        sites
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.0.iter().flat_map(|site| &site.farm.hosts)
    }

    fn targets(&self) -> Vec<Target> {
        self.hosts().map(Host::target).collect()
    }

    /// Waits until every node has one and the same ring, with `keys` in it, and is in step with its leader. Returns the
    /// generations.
    fn one_ring(&self, keys: &BTreeSet<u64>) -> (BTreeSet<u64>, Duration) {
        wait_for("one ring in both data centres", || {
            let mut rings = BTreeMap::new();
            for host in self.hosts() {
                let status = host.daemon.try_status()?;
                let held: BTreeSet<u64> = status.ring.keys.iter().map(|key| key.generation).collect();
                let in_step = status.nodes.iter().filter(|node| node.in_step).count();
                if in_step != 2 || status.nodes.len() != 2 {
                    return Err(format!("{} sees {:?}", host.name, status.nodes));
                }
                rings.insert(host.name.clone(), (status.ring.fingerprint, held));
            }
            let distinct: BTreeSet<_> = rings.values().collect();
            let (_, held) = rings.values().next().expect("four nodes");
            if distinct.len() == 1 && keys.is_subset(held) { Ok(held.clone()) } else { Err(format!("{rings:?}")) }
        })
    }

    fn rotate(&self, host: &Host) -> u64 {
        let before = host.daemon.generations();
        let output = host.daemon.command(&["rotate"]);
        assert!(output.status.success(), "rotate at {}: {output:?}", host.name);
        let (minted, _) = wait_for("a new key", || {
            let now = host.daemon.generations();
            now.difference(&before).max().copied().ok_or_else(|| format!("{now:?} at {}", host.name))
        });
        minted
    }

    fn cut(&self) {
        self.0.iter().for_each(|site| site.wire.cut());
    }

    fn mend(&self) {
        self.0.iter().for_each(|site| site.wire.mend());
    }

    /// How often a message of the other data centre, or of this one, was refused for `reason`.
    fn refused(&self, reason: &str) -> f64 {
        let series = format!("resumed_messages_refused_total{{reason=\"{reason}\"}}");
        self.hosts().map(|host| host.daemon.metric(&series)).sum()
    }

    fn times_logged(&self, what: &str) -> usize {
        self.hosts().map(|host| host.daemon.log().matches(what).count()).sum()
    }
}

impl Site {
    /// Waits until every node here says of the other site, called `name`, that it is silent or that it is not, and the leader
    /// shows it. Returns how long that took.
    fn says(&self, name: &str, silent: bool) -> Duration {
        let ((), took) = wait_for(&format!("{name} silent: {silent}"), || {
            for host in &self.farm.hosts {
                let status = host.daemon.try_status()?;
                let seen: Vec<_> = status.sites.iter().map(|site| (site.name.as_str(), site.silent)).collect();
                let warned =
                    status.warnings.iter().any(|warning| warning.contains(&format!("the site {name} was last heard")));
                if seen != [(name, silent)] || warned != silent {
                    return Err(format!("{} says {:?}, {:?}", host.name, status.sites, status.warnings));
                }
            }
            let shown: f64 =
                self.farm.hosts.iter().filter_map(|host| host.daemon.try_metric("resumed_sites_silent")).sum();
            if shown == f64::from(u8::from(silent)) { Ok(()) } else { Err(format!("resumed_sites_silent {shown}")) }
        });
        took
    }

    /// The messages that wait here for the other data centre, those sent and not confirmed included.
    fn waiting(&self) -> Result<usize, String> {
        let listed = self.broker.ctl(&["list_queues", "name", "messages"]);
        let line = listed.lines().find(|line| line.starts_with("federation: ")).ok_or_else(|| listed.clone())?;
        line.rsplit('\t').next().and_then(|count| count.parse().ok()).ok_or_else(|| listed.clone())
    }
}

fn client() -> Client {
    Client::new(Options::default()).expect("a client")
}

/// A ticket of every host.
fn tickets(client: &Client, hosts: &[Target]) -> Vec<Session> {
    let make =
        |host| client.handshake(host, Mode::Ticket13).unwrap_or_else(|error| panic!("at {host}: {error}")).session;
    hosts.iter().map(make).collect()
}

fn resumes(client: &Client, host: &Target, session: &Session) -> bool {
    client.resume(host, session).unwrap_or_else(|error| panic!("resuming at {host}: {error}")).resumed
}

/// Waits until proxies with this key seal with it: all of `sites`.
fn seals(sites: &[&Site], generation: u64) {
    let (_, took) = wait_for("the new key seals", || {
        for host in sites.iter().flat_map(|site| &site.farm.hosts) {
            let status = host.daemon.try_status()?;
            let key = status.ring.keys.iter().find(|key| key.generation == generation);
            if key.is_none_or(|key| key.state != KeyState::Active) {
                return Err(format!("{}: {:?}", host.name, status.ring.keys));
            }
        }
        Ok(())
    });
    println!("key {generation} sealed {took:?} after it was known");
}

#[test]
fn keys_cross_between_brokers_and_a_link_that_is_cut_costs_neither_side_more_than_the_others_new_keys() {
    let mut sites = Sites::start(Proxies::Tickets);
    let (ring, took) = sites.one_ring(&BTreeSet::new());
    println!("one ring of {} keys {took:?} after the proxies served", ring.len());
    for site in &sites.0 {
        site.farm.leader();
    }
    let targets = sites.targets();
    let client = client();

    // Both ways, while clients take their tickets from one to the other.
    let (ring, tally) = Hopping::during(&targets, &TICKETS, |_| {
        let mut ring = ring;
        for site in &sites.0 {
            let follower = site.farm.others(site.farm.leader())[0];
            let minted = sites.rotate(&site.farm.hosts[follower]);
            ring = sites.one_ring(&BTreeSet::from([minted])).0;
            seals(&[&sites.0[0], &sites.0[1]], minted);
        }
        ring
    });
    assert!(tally.refused.is_empty(), "{} of {}: {:#?}", tally.refused.len(), tally.tickets, &tally.refused[..1]);
    println!("{} tickets offered in rotations, none refused", tally.tickets);
    assert!(tally.tickets > 20 && tally.keys.len() >= 3, "{} tickets, keys {:?}", tally.tickets, tally.keys);

    // A short outage: what was on its way arrives.
    let [fra, ams] = &sites.0;
    sites.cut();
    let minted = sites.rotate(&fra.farm.hosts[0]);
    seals(&[fra], minted);
    assert!(!ams.farm.hosts.iter().any(|host| host.daemon.generations().contains(&minted)), "the link is not cut");
    sites.mend();
    let (_, took) = sites.one_ring(&(&ring | &BTreeSet::from([minted])));
    println!("one ring {took:?} after a short outage");
    seals(&[fra, ams], minted);

    // A long one, in which both mint.
    let stepped_down = sites.times_logged("this node leads no longer");
    sites.cut();
    let cut = Instant::now();
    let minted: Vec<u64> = sites.0.iter().map(|site| sites.rotate(&site.farm.hosts[0])).collect();
    for (site, key) in sites.0.iter().zip(&minted) {
        seals(&[site], *key);
        for mode in TICKETS {
            site.farm.assert_all_resume(mode);
        }
    }
    let made = tickets(&client, &targets);
    assert!(!resumes(&client, &targets[2], &made[0]) && !resumes(&client, &targets[0], &made[2]), "the keys crossed");
    // The broker notices that the link is dead, and lets go of what is too old. A beat each would be three times as many.
    let beats = |time: Duration| usize::try_from(time.as_millis() / BEAT.as_millis()).expect("a small number");
    for site in &sites.0 {
        let (waiting, _) = wait_for("a queue with the last announcements alone", || {
            let (waiting, away) = (site.waiting()?, cut.elapsed());
            let seen = format!("{waiting} messages wait {away:?} after the cut, {} beats", beats(away));
            let lives = beats(Duration::from_millis(TTL));
            if beats(away) >= 3 * lives && (1..=lives + 2).contains(&waiting) { Ok(seen) } else { Err(seen) }
        });
        println!("{waiting}");
    }
    sites.mend();
    let (_, took) = sites.one_ring(&minted.iter().copied().collect());
    println!("one ring {took:?} after an outage of {:?}", cut.elapsed());
    let highest = minted.into_iter().max().expect("two keys");
    seals(&[&sites.0[0], &sites.0[1]], highest);
    for (session, host) in made.iter().flat_map(|session| targets.iter().map(move |host| (session, host))) {
        assert!(resumes(&client, host, session), "a ticket of the outage is refused at {host}");
    }
    assert_eq!(sites.times_logged("this node leads no longer"), stepped_down, "a leader stepped down");

    // What is revoked in one of them while the link is cut is revoked in both once it is mended.
    sites.cut();
    let revoked = sites.0[0].farm.hosts[0].daemon.command(&["revoke"]);
    assert!(revoked.status.success(), "{revoked:?}");
    assert!(resumes(&client, &targets[2], &made[2]), "the other data centre cannot know yet");
    sites.mend();
    let (_, took) = wait_for("the floor in both data centres", || {
        let statuses = sites.hosts().map(|host| host.daemon.try_status()).collect::<Result<Vec<_>, _>>()?;
        let rings: BTreeSet<_> =
            statuses.iter().map(|status| (&status.ring.fingerprint, status.ring.keys.len())).collect();
        if rings.len() == 1 && rings.iter().all(|(_, keys)| *keys <= 2) { Ok(()) } else { Err(format!("{rings:?}")) }
    });
    println!("revoked in both {took:?} after the link was mended");
    let still = |host: &&Target| made.iter().any(|session| resumes(&client, host, session));
    wait_for("tickets of before refused everywhere", || match targets.iter().find(still) {
        None => Ok(()),
        Some(host) => Err(format!("one opens at {host}")),
    });

    // Another leader has an epoch key that the other data centre lacks.
    let leader = sites.0[1].farm.leader();
    let site = &mut sites.0[1];
    site.farm.hosts[leader].daemon.kill();
    site.farm.another_leads(&site.farm.others(leader));
    site.farm.hosts[leader].daemon.launch();
    sites.one_ring(&BTreeSet::new());
    for from in [0, 1] {
        let minted = sites.rotate(&sites.0[from].farm.hosts[0]);
        let (_, took) = sites.one_ring(&BTreeSet::from([minted]));
        println!("one ring {took:?} after a rotation beside another leader");
    }
    // A leader meets the other's key once before it asks for it; followers are not to see any of it.
    let refused = BTreeMap::from(REASONS.map(|why| (why, sites.refused(why))));
    println!("messages refused: {refused:?}");
    let others = refused.iter().filter(|(why, _)| **why != "unknown_epoch");
    assert!(others.map(|(_, count)| count).sum::<f64>() == 0.0 && refused["unknown_epoch"] < 20.0, "{refused:?}");
}

#[test]
fn a_site_on_one_version_of_the_broker_and_a_site_on_another_are_one_farm() {
    let Some(other) = RabbitMq::other("federation of two versions") else { return };
    let sites = Sites::start_on(&[None, Some(other)], Proxies::Tickets);
    let (ring, took) = sites.one_ring(&BTreeSet::new());
    println!("{} and {}: one ring {took:?}", sites.0[0].broker.versions(), sites.0[1].broker.versions());
    // By the header that each broker adds to what it takes from the other: leaders are known by it, and name the site.
    for [here, there] in [[0, 1], [1, 0]] {
        sites.0[here].says(&cluster_name(&sites.0[there].broker), false);
        federation::wait_for_link(&sites.0[here].broker);
    }
    let stepped_down = sites.times_logged("this node leads no longer");
    let (_, tally) = Hopping::during(&sites.targets(), &TICKETS, |_| {
        let mut keys = ring;
        for site in &sites.0 {
            let minted = sites.rotate(&site.farm.hosts[site.farm.others(site.farm.leader())[0]]);
            keys = sites.one_ring(&(&keys | &BTreeSet::from([minted]))).0;
            seals(&[&sites.0[0], &sites.0[1]], minted);
        }
    });
    assert!(tally.refused.is_empty(), "{} of {}: {:#?}", tally.refused.len(), tally.tickets, &tally.refused[..1]);
    assert!(tally.tickets > 20 && tally.keys.len() >= 3, "{} tickets, keys {:?}", tally.tickets, tally.keys);
    println!("{} tickets offered in rotations at either site, none refused", tally.tickets);
    // Sessions stay in their pod, on either broker.
    for site in &sites.0 {
        sessions::new_ones_resume(&client(), &site.farm.targets(), Mode::Id);
    }
    let revoked = sites.0[1].farm.hosts[0].daemon.command(&["revoke"]);
    assert!(revoked.status.success(), "{revoked:?}");
    let (_, took) = wait_for("the revocation at the other site", || {
        let held: Vec<usize> = sites.hosts().map(|host| host.daemon.generations().len()).collect();
        if held.iter().all(|keys| *keys <= 2) { Ok(()) } else { Err(format!("{held:?} keys")) }
    });
    println!("revoked at both sites {took:?} after the command at one");
    sites.one_ring(&BTreeSet::new());
    assert_eq!(sites.times_logged("this node leads no longer"), stepped_down, "a leader stepped down");
}

#[test]
fn a_link_that_falls_silent_is_called_out_at_the_site_that_hears_nothing_until_it_is_mended() {
    let mut sites = Sites::start(Proxies::None);
    sites.one_ring(&BTreeSet::new());
    let [fra_name, ams_name] = [0, 1].map(|site| cluster_name(&sites.0[site].broker));
    sites.0[0].says(&ams_name, false);
    sites.0[1].says(&fra_name, false);
    let prometheus = |site: &Site| {
        let target = |host: &Host| ScrapeTarget {
            address: host.daemon.metrics_address(),
            farm: "prod".to_owned(),
            pod: "pod".to_owned(),
        };
        Prometheus::start(&Watch::impatiently(site.farm.hosts.iter().map(target).collect()))
    };
    let [at_fra, at_ams] = [prometheus(&sites.0[0]), prometheus(&sites.0[1])];
    at_fra.wait_for_scrapes(2);
    at_ams.wait_for_scrapes(2);

    // The link by which fra hears ams is gone, as after a policy that was deleted; both brokers and all nodes are well.
    let clears = Instant::now();
    sites.0[0].broker.ctl(&["clear_policy", "resumed-keys"]);
    let cleared = clears.elapsed();
    let took = sites.0[0].says(&ams_name, true);
    println!("silent at every node {took:?} after the policy was cleared, which took {cleared:?}; beats of {BEAT:?}");
    assert!(took < SILENT_WITHIN, "silent only after {took:?}");
    let leader = sites.0[0].farm.leader();
    let instance = sites.0[0].farm.hosts[leader].daemon.metrics_address();
    let alert = at_fra.wait_until_fires("ResumedSiteSilent", &instance);
    assert_eq!(alert.annotations["runbook"], "docs/runbook.md#resumedsitesilent");
    // The other direction is another link.
    sites.0[1].says(&fra_name, false);
    let firing = at_ams.firing().expect("alerts");
    assert!(!firing.iter().any(|(name, _)| name == "ResumedSiteSilent"), "{firing:?}");
    let told = sites.0[0].farm.hosts[leader].daemon.command(&["status"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("1 other site of the farm") && told.contains(&ams_name), "{told}");

    // The next leader there knows which site should be heard.
    let fra = &mut sites.0[0];
    fra.farm.hosts[leader].daemon.kill();
    let (next, _) = fra.farm.another_leads(&fra.farm.others(leader));
    fra.farm.hosts[leader].daemon.launch();
    fra.farm.wait_in_step_at(next);
    sites.0[0].says(&ams_name, true);
    let instance = sites.0[0].farm.hosts[next].daemon.metrics_address();
    at_fra.wait_until_fires("ResumedSiteSilent", &instance);

    federate(&sites.0[0].broker, sites.0[1].wire.address(), sites.0[0].farm.name(), TTL);
    let took = sites.0[0].says(&ams_name, false);
    println!("heard again {took:?} after the policy was set");
    at_fra.wait_until_resolves("ResumedSiteSilent", &instance);
    sites.one_ring(&BTreeSet::new());
}
