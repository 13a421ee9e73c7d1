//! The binary itself: exit codes, and what goes to which stream.

use std::process::{Command, Output};
use testkit::farm::built;
use testkit::openssl_conf;
use testkit::watcher::Folder;

fn resumed(args: &[&str]) -> Output {
    let mut command = Command::new(built("resumed"));
    command.args(args).env_remove("RESUMED_LOG").output().expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_and_version_exit_with_0() {
    let version = resumed(&["--version"]);
    assert_eq!(stdout(&version), format!("resumed {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(version.status.code(), Some(0));
    let help = resumed(&["probe", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("Examples:"), "{}", stdout(&help));
}

#[test]
fn failures_exit_with_1_and_mistakes_with_2_in_one_line_on_standard_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nowhere = Folder::temporary("resumed-");
    let socket = nowhere.path().join("control.sock");
    let socket = socket.to_str().unwrap();
    for (args, code, says) in [
        (&["probe", &free][..], 1, "resumed: not resumed: 1 of 1 in mode id, 1 of 1 in mode ticket12, "),
        (&["status", "--socket", socket], 1, "resumed: no daemon answers at "),
        (&["rotate", "--socket", socket], 1, "resumed: no daemon answers at "),
        (&["status", "--config", "/no/such/resumed.toml"], 2, "resumed: cannot read the configuration file /no/such/"),
        (&["probe", "https://edge.example"], 2, "resumed: \"https://edge.example\" is not HOST:PORT: "),
        (&["--log", "vebose", "probe", &free], 2, "resumed: --log \"vebose\": "),
    ] {
        let output = resumed(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.starts_with(says) && error.lines().count() == 1, "{args:?}: {error}");
    }
    assert_eq!(resumed(&["probe"]).status.code(), Some(2));
}

#[test]
fn json_goes_to_standard_output_alone_also_when_cells_failed() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = resumed(&["probe", "--json", "--mode", "ticket13", &free]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(json["passed"], false);
    assert_eq!(json["modes"][0]["rows"][0]["offer"]["outcome"], "failed");
    assert_eq!(output.status.code(), Some(1));
}

/// `resumed` with a configuration file that says nothing, on an OpenSSL as `conf` has it.
fn with_openssl(conf: &std::path::Path, folder: &Folder, command: &str) -> Output {
    let config = folder.path().join("resumed.toml");
    std::fs::write(&config, "").expect("a configuration");
    let mut resumed = Command::new(built("resumed"));
    resumed.args([command, "--config"]).arg(config).env("OPENSSL_CONF", conf).env_remove("RESUMED_LOG");
    resumed.output().expect("the binary starts")
}

#[test]
fn an_openssl_that_lacks_what_a_node_needs_is_a_mistake_in_one_line() {
    let folder = Folder::temporary("resumed-");
    let conf = openssl_conf::with_nothing(folder.path());
    for command in ["run", "check"] {
        let output = with_openssl(&conf, &folder, command);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{command}: {error}");
        let last = error.lines().last().unwrap_or_default();
        assert!(last.starts_with("resumed: OpenSSL on this host has no HKDF-SHA256, without which "), "{error}");
        assert!(!error.contains("panic") && stdout(&output).is_empty(), "{error}");
    }
}

#[test]
fn check_says_what_the_openssl_of_this_host_has_to_agree_on_keys() {
    let folder = Folder::temporary("resumed-");
    let output = with_openssl(&openssl_conf::without_x25519(folder.path()), &folder, "check");
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(told.contains("  key agreements  P-256\n") && told.contains("  warning   has no X25519"), "{told}");
    let output = with_openssl(std::path::Path::new("/dev/null"), &folder, "check");
    assert!(stdout(&output).contains("  key agreements  X25519, P-256\n"), "{}", stdout(&output));
}
