//! The Debian packages that `make deb` made: what is in them, whose it is, and what they say of themselves. What they do to a host
//! is shown on a booted one, by `package_lifecycle.sh`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::watcher::Folder;

use clap::CommandFactory;
use resumed::internals::cli::Cli;

/// A package, and a folder with what is in it.
struct Package {
    file: PathBuf,
    unpacked: Folder,
}

impl Package {
    /// The first revision of this release.
    fn named(name: &str) -> Self {
        let test = std::env::current_exe().expect("the path of this test");
        let target = test.ancestors().nth(3).expect("the folder of the build");
        let architecture = said(run("dpkg", &["--print-architecture"]));
        let version = env!("CARGO_PKG_VERSION");
        let file = target.join(format!("debian/{name}_{version}-1_{}.deb", architecture.trim()));
        assert!(file.exists(), "{} is not there: run `make deb`", file.display());
        let unpacked = Folder::temporary("resumed-");
        said(run("dpkg-deb", &["--raw-extract", text(&file), text(unpacked.path())]));
        Self { file, unpacked }
    }

    fn field(&self, field: &str) -> String {
        said(run("dpkg-deb", &["--field", text(&self.file), field])).trim().to_owned()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.unpacked.path().join(path)
    }

    /// Mode and owner of each file and folder, as `tar` would list them.
    fn entries(&self) -> BTreeMap<String, (String, String)> {
        let listing = said(run("dpkg-deb", &["--contents", text(&self.file)]));
        let entry = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [mode, owner, _size, _day, _time, path] = words[..] else { panic!("not an entry: {line:?}") };
            (path.trim_start_matches('.').to_owned(), (mode.to_owned(), owner.to_owned()))
        };
        listing.lines().map(entry).collect()
    }

    /// The files among them.
    fn files(&self) -> BTreeSet<String> {
        self.entries().into_keys().filter(|path| !path.ends_with('/')).collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(program: &str, words: &[&str]) -> Output {
    let output = Command::new(program).args(words).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `scripts/install-dependencies.sh deb` installs it"))
}

/// The same for a shell that would keep files of its own in a home.
fn run_in(home: &Path, program: &str, words: &[&str]) -> Output {
    let output = Command::new(program).args(words).env("HOME", home).env_remove("XDG_CONFIG_HOME").output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `scripts/install-dependencies.sh deb` installs it"))
}

/// What a command printed that must succeed.
fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// `resumed`, and each command below it as its page is named: `resumed-secret-new`.
fn commands(command: &clap::Command, name: &str, found: &mut Vec<String>) {
    found.push(name.to_owned());
    for below in command.get_subcommands() {
        commands(below, &format!("{name}-{}", below.get_name()), found);
    }
}

#[test]
fn they_need_what_their_programs_are_linked_with_and_no_more() {
    let version = concat!(env!("CARGO_PKG_VERSION"), "-1");
    let daemon = Package::named("resumed");
    assert_eq!((daemon.field("Package").as_str(), daemon.field("Version").as_str()), ("resumed", version));
    let depends = daemon.field("Depends");
    let names: BTreeSet<&str> = depends.split(", ").filter_map(|one| one.split(' ').next()).collect();
    // Not libgcc-s1's whole world, no systemd, no broker: the daemon waits for what is not there.
    assert!(names.is_superset(&BTreeSet::from(["adduser", "libc6", "libssl3"])), "{depends}");
    assert!(names.is_subset(&BTreeSet::from(["adduser", "libc6", "libgcc-s1", "libssl3"])), "{depends}");

    let plugin = Package::named("resumed-trafficserver");
    assert_eq!(plugin.field("Version"), version);
    let depends = plugin.field("Depends");
    let names: BTreeSet<&str> = depends.split(", ").filter_map(|one| one.split(' ').next()).collect();
    assert!(names.contains("trafficserver") && names.contains("libssl3"), "{depends}");
    assert!(!names.contains("resumed"), "the daemon beside it may come later: {depends}");
}

#[test]
fn everything_in_them_is_roots_and_writable_by_nobody_else() {
    for package in [Package::named("resumed"), Package::named("resumed-trafficserver")] {
        for (path, (mode, owner)) in package.entries() {
            assert!(["root/root", "0/0"].contains(&owner.as_str()), "{path} belongs to {owner}");
            let wanted = match &path {
                folder if folder.ends_with('/') => "drwxr-xr-x",
                program if program.starts_with("/usr/bin/") || program.ends_with(".sh") => "-rwxr-xr-x",
                _ => "-rw-r--r--",
            };
            assert_eq!(mode, wanted, "{path}");
        }
    }
}

#[test]
fn the_daemons_package_has_program_unit_configuration_pages_and_completions() {
    let package = Package::named("resumed");
    let files = package.files();
    for path in [
        "/usr/bin/resumed",
        "/usr/lib/systemd/system/resumed.service",
        "/etc/resumed/resumed.toml",
        "/usr/share/bash-completion/completions/resumed",
        "/usr/share/zsh/vendor-completions/_resumed",
        "/usr/share/fish/vendor_completions.d/resumed.fish",
        "/usr/share/resumed/rabbitmq/permissions.sh",
        "/usr/share/resumed/prometheus/resumed.rules.yml",
        "/usr/share/resumed/grafana/resumed.json",
        "/usr/share/doc/resumed/README.md",
        "/usr/share/doc/resumed/changelog.gz",
        "/usr/share/doc/resumed/changelog.Debian.gz",
        "/usr/share/doc/resumed/copyright",
        "/usr/share/man/man5/resumed.toml.5.gz",
    ] {
        assert!(files.contains(path), "{path} is missing");
    }
    let mut pages = Vec::new();
    commands(&Cli::command(), "resumed", &mut pages);
    for page in pages {
        assert!(files.contains(&format!("/usr/share/man/man1/{page}.1.gz")), "there is no page for {page}");
    }
    // The only file in /etc, so the only one that an administrator's changes are kept in.
    assert_eq!(fs::read_to_string(package.at("DEBIAN/conffiles")).expect("conffiles"), "/etc/resumed/resumed.toml\n");
    assert_eq!(
        fs::read(package.at("etc/resumed/resumed.toml")).expect("the configuration"),
        include_bytes!("../../etc/resumed.toml")
    );
    // All defaults: whoever installs it and changes nothing has a node that runs alone.
    let config = package.at("etc/resumed/resumed.toml");
    let program = package.at("usr/bin/resumed");
    let checked = said(run(text(&program), &["check", "--config", text(&config)]));
    assert!(checked.contains(text(&config)), "{checked}");
    assert_eq!(said(run(text(&program), &["--version"])), concat!("resumed ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn links_between_its_documents_lead_to_what_is_in_the_package() {
    let package = Package::named("resumed");
    let files = package.files();
    let documents: Vec<_> = files.iter().filter(|file| file.ends_with(".md")).collect();
    assert!(documents.len() > 5, "{files:?}");
    let mut links = 0;
    for document in documents {
        let folder = Path::new(document).parent().expect("a folder");
        let words = fs::read_to_string(package.at(&document[1..])).expect("a document");
        for link in words.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().expect("a target");
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let mut path = PathBuf::new();
            for part in folder.join(target).components() {
                if part.as_os_str() == ".." { assert!(path.pop()) } else { path.push(part) }
            }
            assert!(files.contains(text(&path)), "{document} leads to {}, which is missing", path.display());
            links += 1;
        }
    }
    assert!(links > 5, "{links}");
}

#[test]
fn the_licence_of_every_crate_that_is_linked_goes_with_it() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    for (crate_name, name) in [("resumed", "resumed"), ("resumed-ats", "resumed-trafficserver")] {
        let notices = format!("usr/share/doc/{name}/third-party-notices.gz");
        let notices = said(run("zcat", &[text(&Package::named(name).at(&notices))]));
        let named: BTreeSet<&str> = notices.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let words =
            ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--no-dedupe", "--package", crate_name];
        let tree = said(run(&cargo, &words));
        // The workspace's own have their path behind the version.
        let linked: BTreeSet<String> = tree
            .lines()
            .filter(|line| !line.contains(" (/"))
            .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ").replace(" v", " "))
            .collect();
        assert!(linked.len() > 5, "{tree}");
        let missing: Vec<_> = linked.iter().filter(|one| !named.contains(one.as_str())).collect();
        assert!(missing.is_empty(), "{name}: {missing:?} have no notice: run `make notices`");
    }
}

#[test]
fn the_plugins_package_has_the_plugin_where_traffic_server_looks() {
    let package = Package::named("resumed-trafficserver");
    assert!(!package.at("DEBIAN/conffiles").exists(), "it changes nothing in /etc");
    let outside_doc: Vec<_> = package.files().into_iter().filter(|file| !file.starts_with("/usr/share/")).collect();
    assert_eq!(outside_doc, ["/usr/lib/trafficserver/modules/resumed.so"]);
    let symbols = said(run("nm", &["--dynamic", "--defined-only", text(&package.at(&outside_doc[0][1..]))]));
    assert!(symbols.lines().any(|line| line.ends_with(" T TSPluginInit")), "{symbols}");
}

#[test]
fn programs_are_stripped() {
    for (package, program) in
        [("resumed", "usr/bin/resumed"), ("resumed-trafficserver", "usr/lib/trafficserver/modules/resumed.so")]
    {
        let package = Package::named(package);
        let sections = said(run("readelf", &["--section-headers", "--wide", text(&package.at(program))]));
        for section in [".debug_info", ".debug_line", ".symtab"] {
            assert!(!sections.contains(section), "{sections}");
        }
    }
}

#[test]
fn lintian_has_nothing_to_say() {
    for package in [Package::named("resumed"), Package::named("resumed-trafficserver")] {
        let words = ["--allow-root", "--profile", "debian", "--fail-on", "error,warning", text(&package.file)];
        let output = run("lintian", &words);
        assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn maintainer_scripts_are_shell_and_stop_the_daemon_only_when_it_is_removed() {
    for name in ["resumed", "resumed-trafficserver"] {
        let package = Package::named(name);
        for script in ["preinst", "postinst", "prerm", "postrm"] {
            let script = package.at("DEBIAN").join(script);
            if script.exists() {
                said(run("sh", &["-n", text(&script)]));
                let script = fs::read_to_string(&script).expect("a script");
                assert!(!script.contains("#DEBHELPER#"), "{script}");
                for (line, before) in script.lines().skip(1).zip(script.lines()) {
                    if line.contains("deb-systemd-invoke stop") {
                        assert!(before.contains(r#"[ "$1" = remove ]"#), "stopped whatever happens: {script}");
                    }
                }
            }
        }
    }
    let postinst = fs::read_to_string(Package::named("resumed").at("DEBIAN/postinst")).expect("a script");
    assert!(postinst.contains("_dh_action=restart"), "{postinst}");
}

#[test]
fn manual_pages_render_without_a_warning() {
    let package = Package::named("resumed");
    let pages = package.files().into_iter().filter(|file| file.starts_with("/usr/share/man/"));
    for page in pages {
        let plain = package.at("page");
        fs::write(&plain, said(run("zcat", &[text(&package.at(&page[1..]))]))).expect("a page");
        let output = run("groff", &["-man", "-Tutf8", "-ww", "-z", text(&plain)]);
        assert!(output.status.success() && output.stderr.is_empty(), "{page}: {output:?}");
        // As a reader gets it: NAME has the line that `apropos` searches.
        let shown = said(run("man", &["--local-file", "--encoding=UTF-8", text(&plain)]));
        assert!(shown.contains("NAME") && shown.contains(" - "), "{page}: {shown}");
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key() {
    let package = Package::named("resumed");
    let page = said(run("zcat", &[text(&package.at("usr/share/man/man5/resumed.toml.5.gz"))])).replace('\\', "");
    let defaults = include_str!("../../etc/resumed.toml");
    let keys: Vec<&str> = defaults
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once(" = "))
        .map(|(key, _)| key)
        .filter(|key| !key.is_empty() && !key.contains(' '))
        .collect();
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        assert!(page.contains(&format!("fB{key}fR")), "{key} is missing: {page}");
    }
}

#[test]
fn completions_are_read_by_their_shells_and_offer_every_command() {
    let package = Package::named("resumed");
    let at = |path: &str| text(&package.at(path)).to_owned();
    let bash = at("usr/share/bash-completion/completions/resumed");
    said(run("bash", &["-n", &bash]));
    said(run("zsh", &["-n", &at("usr/share/zsh/vendor-completions/_resumed")]));
    let fish = at("usr/share/fish/vendor_completions.d/resumed.fish");
    said(run_in(package.unpacked.path(), "fish", &["--no-config", "--no-execute", &fish]));

    let names: Vec<String> = Cli::command().get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let script = format!(
        "source '{bash}'; COMP_WORDS=(resumed ''); COMP_CWORD=1; _resumed resumed '' resumed; echo \"${{COMPREPLY[@]}}\""
    );
    let offered = said(run("bash", &["--norc", "-c", &script]));
    for name in &names {
        assert!(offered.split_whitespace().any(|word| word == name), "bash does not offer {name}: {offered}");
    }
    let offered = said(run_in(
        package.unpacked.path(),
        "fish",
        &["--no-config", "-c", &format!("source '{fish}'; complete --do-complete 'resumed '")],
    ));
    for name in &names {
        assert!(
            offered.lines().any(|line| line.split('\t').next() == Some(name)),
            "fish does not offer {name}: {offered}"
        );
    }
}

#[test]
fn the_unit_has_no_fault_and_an_exposure_of_at_most_1_5() {
    let package = Package::named("resumed");
    let root = ["--offline=true", &format!("--root={}", text(package.unpacked.path()))].map(str::to_owned);
    let words = ["security", "--no-pager", "--threshold=15", &root[0], &root[1], "resumed.service"];
    let output = run("systemd-analyze", &words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // Checked among this machine's own units, with the program where it lies.
    let unit = fs::read_to_string(package.at("usr/lib/systemd/system/resumed.service")).expect("the unit");
    let program = package.at("usr/bin/resumed");
    let unit = unit.replace("=/usr/bin/resumed ", &format!("={} ", text(&program)));
    assert!(unit.contains(text(&program)), "{unit}");
    fs::write(package.at("resumed.service"), unit).expect("a unit");
    let output = run("systemd-analyze", &["verify", "--man=no", text(&package.at("resumed.service"))]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
