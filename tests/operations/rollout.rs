//! The whole product on real hosts: three with a broker and a proxy each, set up over SSH by the playbooks, behind a
//! layer-4 load balancer, with clients that come back all the while. Beside it what Debian 13 is for: brokers, the daemon's
//! package, and a newer OpenSSL.
//!
//! `make test-rollout` builds the packages that it installs, and runs it. Needs root, and the packages of the group
//! `hosts` in `scripts/install-dependencies.sh`.

mod hosts;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hosts::balancer::{Balancer, NOTICES_WITHIN};
use hosts::host::Host;
use hosts::returning::{Counts, Outcome, Returning, Visit};
use hosts::site::{self, OUTSIDE, SERVER_NAME, Site};
use resumed::internals::probe::{Mode, Target};
use testkit::dashboard::Dashboard;
use testkit::farm::{built, wait_for};
use testkit::namespaces::{Network, apart};
use testkit::prometheus::{Prometheus, ScrapeTarget, Watch};
use testkit::release::previous_package;

/// How long a farm may take to be whole again after a fault has ended, a host's boot included.
const PATIENCE: Duration = Duration::from_secs(120);

/// A returning client's session may have been made this long before a fault, and been on its way when it came; and from a
/// node that has caught up it may be on its way to its proxy for as long.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// What happens to the farm while clients run, and what they saw of it.
struct Story<'a> {
    clients: &'a Returning,
    table: String,
    faults: Vec<String>,
    /// All that was broken so far: clients come back with sessions that were made then.
    broken: Vec<Broken>,
}

/// A time in which a broker is away, and with it the session plane of the nodes that were connected to it.
#[derive(Clone, Copy, Debug)]
struct Broken {
    from: Instant,
    until: Instant,
    /// Whether a proxy went as well that clients were sent to.
    proxy_too: bool,
}

impl Story<'_> {
    /// Lets `happens` happen, and everything settle; it returns when hosts or brokers were gone, if they were.
    ///
    /// What nobody could do anything about: handshakes that fail because their host is gone before the load balancer
    /// knows, and session IDs that were made, or come back, while the session plane is cut. Everything else is a fault.
    fn chapter(&mut self, title: &str, happens: impl FnOnce() -> Option<Broken>) {
        let start = Instant::now();
        let broken = happens();
        self.broken.extend(broken);
        let took = start.elapsed();
        // Clients that have begun are part of it.
        let settled = Instant::now();
        let mut visits = self.clients.take();
        while !Mode::ALL.iter().all(|mode| visits.iter().any(|visit| visit.mode == *mode && visit.at > settled)) {
            assert!(settled.elapsed() < PATIENCE, "{title}: clients stopped coming: {}", Counts::of(&visits));
            std::thread::sleep(Duration::from_millis(50));
            visits.extend(self.clients.take());
        }
        let inevitable_in = |broken: &Broken, visit: &Visit| match (visit.outcome, visit.mode) {
            (Outcome::Failed, _) => {
                broken.proxy_too && visit.until >= broken.from && visit.at <= broken.from + NOTICES_WITHIN
            }
            (Outcome::Refused, Mode::Id) => {
                let cut = broken.from - ON_ITS_WAY..=broken.until + ON_ITS_WAY;
                cut.contains(&visit.at) || visit.made.is_some_and(|made| cut.contains(&made))
            }
            _ => false,
        };
        let is_inevitable = |visit: &Visit| self.broken.iter().any(|broken| inevitable_in(broken, visit));
        let wrong = |visit: &&Visit| matches!(visit.outcome, Outcome::Refused | Outcome::Failed);
        let inevitable: Vec<_> = visits.iter().filter(wrong).filter(|visit| is_inevitable(visit)).collect();
        let others: Vec<_> = visits.iter().filter(wrong).filter(|visit| !is_inevitable(visit)).collect();
        let counts = Counts::of(&visits);
        let line = format!("{title} ({took:.1?}): {counts}; {} of the last two inevitable", inevitable.len());
        println!("{line}");
        writeln!(self.table, "{line}").expect("a String");
        for visit in inevitable {
            let (at, mode) = (visit.at.duration_since(start), visit.mode);
            println!("    inevitable: {:?} of {mode} {at:.1?} after the start {}", visit.outcome, visit.why);
        }
        for visit in others {
            let (at, mode, made) = (visit.at.duration_since(start), visit.mode, visit.made);
            let age = made.map(|made| visit.at.duration_since(made));
            let fault = format!(
                "{title}: {:?} of {mode} {at:.1?} after the start, its session {age:.1?} old, with {broken:?} {}",
                visit.outcome, visit.why
            );
            println!("    WRONG: {fault}");
            self.faults.push(fault);
        }
    }
}

/// Every mode between every pair of hosts.
fn probe(site: &Site) {
    probe_targets(site.hosts.iter().map(|host| format!("{}:443", host.address())));
}

/// Every mode between every pair of targets. A session by ID may be a moment behind a client that comes back at once.
fn probe_targets(targets: impl IntoIterator<Item = String>) {
    let mut command = Command::new(built("resumed"));
    command.arg("probe").args(targets).args(["--sni", SERVER_NAME, "--tries", "3"]);
    let output = command.output().expect("resumed probe");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}

#[test]
fn a_farm_is_set_up_upgraded_and_loses_hosts_and_its_clients_resume() {
    // While there still is a network with Debian's packages.
    let base = site::bases().bookworm;
    apart(|| {
        let network = Network::new(1);
        let mut site = Site::boot(&network, &base);
        let before = site::version(&previous_package("resumed"));
        let now = site::version(&site::package("resumed", 1));
        let (before, now) = (before.as_str(), now.as_str());

        // From nothing to a farm, as an operator does it.
        let check = site.must_play("site.yml --check");
        println!("site.yml --check on fresh hosts took {:.0?}", check.took);
        let first = site.must_play("site.yml");
        println!("site.yml took {:.0?}, {} changes", first.took, first.changed);
        probe(&site);
        // In a virtual host of its own, and in no other.
        let granted = site.hosts[0].must("rabbitmqctl --silent list_user_permissions resumed");
        assert!(granted.starts_with("test\t") && granted.lines().count() == 1, "{granted}");
        for host in &site.hosts {
            println!("{}", host.must("systemctl status --no-pager --lines=0 resumed"));
        }

        let hosts: Vec<_> = site.hosts.iter().map(|host| (host.name(), host.address())).collect();
        let balancer = Balancer::start(site.dir(), OUTSIDE, &hosts);
        balancer.wait_for_hosts(3, PATIENCE);
        let farm = Target::from(balancer.address());
        let target = |host: &Host| ScrapeTarget {
            address: format!("{}:9464", host.address()),
            farm: "test".to_owned(),
            pod: "default".to_owned(),
        };
        let prometheus = Prometheus::start(&Watch::impatiently(site.hosts.iter().map(target).collect()));
        let clients = Returning::start(&farm, SERVER_NAME, 6);
        let mut story = Story { clients: &clients, table: String::new(), faults: Vec::new(), broken: Vec::new() };

        story.chapter("every panel of the dashboard", || {
            prometheus.wait_for_scrapes(2);
            for panel in Dashboard::shipped().panels {
                for query in panel.queries.iter().map(|query| Dashboard::filled_in(query, "test")) {
                    wait_for(&format!("data for \"{}\": {query}", panel.title), || {
                        let samples = prometheus.query(&query)?;
                        let has_data = samples.iter().any(|sample| sample.value.is_finite());
                        if has_data { Ok(()) } else { Err(format!("{samples:?}")) }
                    });
                }
            }
            None
        });
        story.chapter("site.yml again", || {
            let again = site.must_play("site.yml");
            assert_eq!(again.changed, 0, "a second run changes nothing:\n{}", again.text);
            for host in &site.hosts {
                host.must(&format!("runuser -u {} -- resumed status", site::OPERATOR));
                host.must(&format!("! runuser -u {} -- cat /etc/resumed/farm.secret", site::OPERATOR));
            }
            let check = site.must_play("site.yml --check");
            assert_eq!(check.changed, 0, "there is nothing to change:\n{}", check.text);
            None
        });
        story.chapter("an operator in the group that reads the secret", || {
            site.hosts[0].must("adduser --quiet news resumed");
            let stopped = site.play("site.yml --check");
            let is_named = stopped.text.contains("more members than the daemon: news.");
            assert!(!stopped.succeeded && is_named, "it went on:\n{}", stopped.text);
            site.hosts[0].must("deluser --quiet news resumed");
            None
        });
        story.chapter("a farm secret that a daemon refuses", || {
            // As the manual of 0.1.0 said; the role moves this one, who is named as an operator.
            site.hosts[0].must(&format!("adduser --quiet {} resumed", site::OPERATOR));
            let secret = "/root/farm-secrets/farm.secret";
            site.control.must(&format!("cp {secret} /root/good && echo of-no-use >{secret}"));
            let stopped = site.play("site.yml");
            let is_named = stopped.text.contains("a did not take the farm secret that it was given");
            assert!(!stopped.succeeded && is_named, "it went on:\n{}", stopped.text);
            site.control.must(&format!("cp /root/good {secret}"));
            site.must_play("site.yml");
            assert_eq!(groups_of_operator(&site.hosts[0]), ["resumed-control"], "of the groups of the farm");
            site.hosts[0].must("resumed status --json | grep -Eq '\"state\": *\"taken\"'");
            None
        });
        story.chapter("a release that does not start, and the way back", || {
            let broken = site.offer_broken_package("2~broken");
            let stopped = site.play(&format!("rollout.yml -e packages_version={broken} -e farm_check_wait=5s"));
            assert!(!stopped.succeeded, "it went on:\n{}", stopped.text);
            assert_eq!(versions(&site), [&broken, now, now], "{}", stopped.text);
            site.must_play(&format!("site.yml {DOWNGRADE}"));
            assert_eq!(versions(&site), [now; 3]);
            balancer.say("set server farm/a state ready");
            None
        });
        story.chapter("back to the release before, host by host", || {
            let rolled = site.must_play(&format!("rollout.yml -e packages_version={before} {DOWNGRADE}"));
            assert_eq!(versions(&site), [before; 3], "{}", rolled.text);
            site.hosts.iter().for_each(goes_on_with_its_ring);
            balancer.wait_for_hosts(3, PATIENCE);
            // As a host of 0.1.0 has its operators: the package and the role of this release move them.
            for host in &site.hosts {
                host.must(&format!("adduser --quiet {} resumed", site::OPERATOR));
                host.must(&format!("gpasswd --delete {} resumed-control || true", site::OPERATOR));
                assert_eq!(groups_of_operator(host), ["resumed"], "of the groups of the farm");
            }
            None
        });
        story.chapter("an upgrade to this release that a probe stops, taken up again, host by host", || {
            let nowhere = "10.79.0.254:9";
            let targets = format!("{{\"farm_check_targets\": [\"10.79.0.1:443\", \"{nowhere}\"]}}");
            let words = format!("rollout.yml -e packages_version={now} -e rollout_check_before=false -e '{targets}'");
            let stopped = site.play(&words);
            assert!(!stopped.succeeded && stopped.text.contains(nowhere), "it went on:\n{}", stopped.text);
            assert!(stopped.text.contains("The rollout stops at a"), "it does not say where:\n{}", stopped.text);
            assert_eq!(versions(&site), [now, before, before], "{}", stopped.text);
            let rolled = site.must_play(&format!("rollout.yml -e packages_version={now}"));
            assert_eq!(versions(&site), [now; 3], "{}", rolled.text);
            site.hosts.iter().for_each(goes_on_with_its_ring);
            for host in &site.hosts {
                assert_eq!(groups_of_operator(host), ["resumed-control"], "of the groups of the farm");
            }
            balancer.wait_for_hosts(3, PATIENCE);
            None
        });
        story.chapter("a new farm secret in three steps", || {
            site.must_play("rotate-secret.yml");
            None
        });
        story.chapter("a host is rebooted", || {
            let from = Instant::now();
            let host = &mut site.hosts[2];
            host.power_off();
            host.boot();
            Some(whole_again(&site, &balancer, from))
        });
        story.chapter("the leader's host loses power", || {
            let leader = site.leader();
            let instance = format!("{}:9464", site.hosts[leader].address());
            let from = Instant::now();
            // The kernel is the machine's, and would say goodbye for the dead.
            site.hosts[leader].cut();
            site.hosts[leader].crash();
            balancer.wait_for_hosts(2, PATIENCE);
            let alert = prometheus.wait_until_fires("ResumedNodeDown", &instance);
            println!("{}", alert.annotations["summary"]);
            site.hosts[leader].heal();
            site.hosts[leader].boot();
            let broken = whole_again(&site, &balancer, from);
            prometheus.wait_until_resolves("ResumedNodeDown", &instance);
            Some(broken)
        });
        story.chapter("a host is cut off", || {
            let from = Instant::now();
            site.hosts[1].cut();
            balancer.wait_for_hosts(2, PATIENCE);
            // Long enough that the brokers know as well: the two halves of the cluster part, and the smaller one pauses.
            site.wait_until_brokers_part(&site.hosts[0], 1, PATIENCE);
            println!("    the others' brokers know after {:.1?}", from.elapsed());
            // Not `status`: that counts the lost host for another five minutes.
            let well = "resumed_in_step == 1 and resumed_broker_connected == 1 and resumed_warmup_lacking == 0 \
                        and on (instance) up == 1";
            wait_for("the two others at a broker, in step and warm", || match prometheus.query(well)? {
                nodes if nodes.len() == 2 => Ok(()),
                nodes => Err(format!("{nodes:?}")),
            });
            // What Prometheus knows is some seconds old, and one of them may have been at the broker that is gone.
            let [one, _, other] = &site.hosts[..] else { panic!("three hosts") };
            let targets = format!("{}:443 {}:443", one.address(), other.address());
            one.wait_for(&format!("resumed probe {targets} --sni {SERVER_NAME}"), PATIENCE);
            Some(Broken { from, until: Instant::now(), proxy_too: true })
        });
        story.chapter("the others go on without it", || {
            prometheus.wait_until_fires("ResumedNodeDown", &format!("{}:9464", site.hosts[1].address()));
            // For so long they are looked at.
            std::thread::sleep(Duration::from_secs(10));
            None
        });
        story.chapter("it comes back", || {
            let from = Instant::now();
            site.hosts[1].heal();
            Some(Broken { proxy_too: false, ..whole_again(&site, &balancer, from) })
        });
        story.chapter("a host boots before its network is there", || {
            // It has no way to the farm's keys, so clients are kept away until it is in step.
            balancer.say("set server farm/c state maint");
            let from = Instant::now();
            site.hosts[2].power_off();
            site.wait_in_step(2);
            let without_its_broker = Broken { from, until: Instant::now(), proxy_too: false };
            let host = &mut site.hosts[2];
            host.cut();
            // Its broker waits for the others, so booting does not end.
            host.switch_on();
            let (_, took) = host.wait_for("systemctl is-active --quiet resumed", PATIENCE);
            println!("    the daemon is ready after {took:.1?}");
            let probe = format!("resumed probe 127.0.0.1:443 --sni {SERVER_NAME}");
            host.wait_for(&probe, PATIENCE);
            println!("    alone: {}", host.must("systemctl show --value --property StatusText resumed"));
            host.heal();
            site.wait_in_step(3);
            site.wait_for_brokers(&site.hosts[2], 2, PATIENCE);
            balancer.say("set server farm/c state ready");
            balancer.wait_for_hosts(3, PATIENCE);
            Some(without_its_broker)
        });
        story.chapter("one broker of three dies", || {
            let from = Instant::now();
            let host = &site.hosts[site.leader()];
            host.must("systemctl kill --signal=KILL rabbitmq-server; systemctl stop rabbitmq-server");
            site.wait_in_step(3);
            site.wait_until_warm();
            let lost = Broken { from, until: Instant::now(), proxy_too: false };
            host.must("systemctl start rabbitmq-server");
            site.wait_in_step(3);
            site.wait_for_brokers(host, 2, PATIENCE);
            Some(lost)
        });
        story.chapter("a broker does not come back to its cluster", || {
            let from = Instant::now();
            let host = &site.hosts[site.leader()];
            // As after a split that it did not get over: Erlang runs, RabbitMQ does not, and an order to stop is not heard.
            host.must("rabbitmqctl stop_app && pkill --signal STOP --exact beam.smp");
            site.wait_in_step(3);
            site.wait_until_warm();
            let lost = Broken { from, until: Instant::now(), proxy_too: false };
            let took = site.wait_for_brokers(host, 2, PATIENCE);
            println!(
                "    restarted after {took:.1?}: {}",
                host.must("journalctl --quiet --output cat --grep restarting --unit rabbitmq-unstick")
            );
            Some(lost)
        });
        assert!(story.faults.is_empty(), "{}\n{}", story.table, story.faults.join("\n"));
        drop(clients);
        let revoked = site.must_play("revoke.yml -e revoke_flush_sessions=true");
        println!("{}", revoked.text);
        after_the_floors_second(&site);
        probe(&site);
    });
}

/// Waits until the second has passed in which the session floor lies: what is made within it is flushed, too.
fn after_the_floors_second(site: &Site) {
    let floor = site.status(&site.hosts[0]).ring.sessions_from;
    assert!(floor > 0, "no sessions were flushed");
    wait_for("the second after the session floor", || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis();
        let floor = u128::from(floor);
        if now / 1000 > floor / 1000 { Ok(()) } else { Err(format!("it is {now}, the floor is {floor}")) }
    });
}

/// What lets the playbooks put an older package into the place of a newer one.
const DOWNGRADE: &str = "-e resumed_allow_downgrade=true -e trafficserver_allow_downgrade=true";

/// The version of the daemon's package on each host; the plugin's is the same.
fn versions(site: &Site) -> Vec<String> {
    let version = |host: &Host, package| host.must(&format!("dpkg-query -W -f '${{Version}}' {package}"));
    let both = |host| (version(host, "resumed"), version(host, "resumed-trafficserver"));
    let both: Vec<_> = site.hosts.iter().map(both).collect();
    // A release that does not start leaves the plugin of the one before.
    assert!(both.iter().all(|(daemon, plugin)| daemon == plugin || daemon.contains("broken")), "{both:?}");
    both.into_iter().map(|(daemon, _)| daemon).collect()
}

/// The operator's groups on `host` whose names begin with that of the daemon.
fn groups_of_operator(host: &Host) -> Vec<String> {
    let groups = host.must(&format!("id -nG {}", site::OPERATOR));
    groups.split_whitespace().filter(|group| group.starts_with("resumed")).map(str::to_owned).collect()
}

/// The daemon that runs on `host` is the installed one, and began with the keys of the one before it.
fn goes_on_with_its_ring(host: &Host) {
    host.must("systemctl is-active resumed trafficserver");
    let running = host.must("readlink /proc/$(systemctl show --value --property MainPID resumed)/exe");
    assert_eq!(running, "/usr/bin/resumed", "on {}, the daemon that runs was replaced", host.name());
    let invocation = "_SYSTEMD_INVOCATION_ID=$(systemctl show --value --property InvocationID resumed)";
    host.must(&format!("journalctl --quiet --output cat --grep 'took up the ring of the last run' {invocation}"));
}

/// Waits until all three hosts serve clients, are in step and have all sessions, and their brokers are one cluster again.
fn whole_again(site: &Site, balancer: &Balancer, from: Instant) -> Broken {
    balancer.wait_for_hosts(3, PATIENCE);
    site.wait_in_step(3);
    site.wait_until_warm();
    let until = Instant::now();
    for host in &site.hosts {
        site.wait_for_brokers(host, 2, PATIENCE);
    }
    Broken { from, until, proxy_too: true }
}

/// The brokers alone have moved to Debian 13, whose Traffic Server is not there yet.
#[test]
fn brokers_on_debian_13_serve_proxies_on_debian_12() {
    let bases = site::bases();
    apart(|| {
        let network = Network::new(1);
        let site = Site::boot_with_brokers_apart(&network, &bases.bookworm, &bases.trixie);
        let first = site.must_play("site.yml");
        println!("site.yml took {:.0?}, {} changes", first.took, first.changed);
        for broker in &site.brokers {
            let version = broker.must("rabbitmqctl --silent version");
            println!("{}: RabbitMQ {version}", broker.name());
            assert!(version.starts_with("4."), "Debian 13 has another RabbitMQ: {version}");
            site.wait_for_brokers(broker, 2, PATIENCE);
            let handling = broker.must("rabbitmqctl eval 'application:get_env(rabbit, cluster_partition_handling).'");
            assert_eq!(handling, "{ok,pause_minority}", "on {}", broker.name());
        }
        probe(&site);
        let again = site.must_play("site.yml");
        assert_eq!(again.changed, 0, "a second run changes nothing:\n{}", again.text);

        // The side without a majority pauses, and comes back.
        let [.., cut] = &site.brokers[..] else { panic!("no broker") };
        cut.cut();
        site.wait_until_brokers_part(&site.brokers[0], 1, PATIENCE);
        let pauses = "test $(rabbitmqctl --quiet eval 'rabbit:is_running().') = false";
        println!("the broker that is cut off pauses after {:.1?}", cut.wait_for(pauses, PATIENCE).1);
        site.wait_in_step(2);
        site.wait_until_warm();
        probe(&site);
        cut.heal();
        println!("and is back after {:.1?}", site.wait_for_brokers(cut, 2, PATIENCE));
        site.wait_in_step(2);
        probe(&site);
    });
}

/// `resumed probe` as it is packaged, and as this test has it, which may be linked with another OpenSSL.
#[test]
fn the_probe_resumes_at_a_server_of_debian_13s_openssl() {
    let base = site::bases().trixie;
    apart(|| {
        let network = Network::new(1);
        let dir = site::folder();
        let mut host = Host::new(&network, dir.path(), &base, "openssl", "");
        host.boot();
        let version = host.must("openssl version");
        assert!(version.starts_with("OpenSSL 3.5."), "{version}");
        let package = site::package("resumed", 1);
        fs::copy(&package, host.root().join("srv/resumed.deb")).expect("the package");
        host.must("dpkg-deb --extract /srv/resumed.deb /srv/resumed");
        host.must(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=farm.test \
             -keyout /srv/key.pem -out /srv/certificate.pem",
        );
        host.must(
            "systemd-run --unit=server openssl s_server -accept 443 -www -quiet -cert /srv/certificate.pem -key /srv/key.pem",
        );
        host.wait_for("ss --no-header --listening --tcp 'sport = 443' | grep -q .", PATIENCE);
        println!("{}", host.must("/srv/resumed/usr/bin/resumed probe 127.0.0.1:443"));
        probe_targets([format!("{}:443", host.address())]);
    });
}

/// On Debian 13 the daemon's package alone: the plugin's depends on Traffic Server, which is not there.
#[test]
fn packages_leave_on_a_host_what_they_should() {
    let bases = site::bases();
    let on_bookworm = || {
        apart(|| live_through_the_packages(&bases.bookworm, &["resumed", "resumed-trafficserver"], "trafficserver"));
    };
    let on_trixie = || apart(|| live_through_the_packages(&bases.trixie, &["resumed"], ""));
    // Beside each other: what they do most is wait.
    std::thread::scope(|scope| {
        scope.spawn(on_bookworm);
        scope.spawn(on_trixie);
    });
}

/// Runs `package_lifecycle.sh` with the packages of those `names` on a host over the system in `base`, where `proxy` is
/// installed too.
fn live_through_the_packages(base: &Path, names: &[&str], proxy: &str) {
    let network = Network::new(1);
    let dir = site::folder();
    let mut host = Host::new(&network, dir.path(), base, "packages", "");
    host.boot();
    host.must(&format!(
        "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install adduser man-db {proxy}"
    ));
    let offer = |package: &Path, folder: &str| {
        let there = format!("{folder}/{}", package.file_name().expect("a name").to_string_lossy());
        fs::copy(package, host.root().join(&there[1..])).expect("a package");
        there
    };
    fs::create_dir(host.root().join("srv/before")).expect("a folder for packages");
    let mut before = String::new();
    for name in names {
        for revision in [1, 2] {
            offer(&site::package(name, revision), "/srv");
        }
        write!(before, " {}", offer(&previous_package(name), "/srv/before")).expect("a String");
    }
    let script = testkit::tree().join("tests/operations/package_lifecycle.sh");
    fs::copy(script, host.root().join("srv/package_lifecycle.sh")).expect("the script");
    let said = host.must(&format!("bash /srv/package_lifecycle.sh /srv{before} 2>&1"));
    println!("on {}:\n{said}", base.display());
}
