//! The plugin in real Apache Traffic Servers.

#[path = "support/ats.rs"]
mod ats;

use ats::{Ats, AtsSetup, Certificate};

#[test]
fn a_private_ats_starts_reloads_restarts_and_stops() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ats = Ats::start(&folder.path().join("a"), &AtsSetup::new(&Certificate::self_signed("farm.test"), ""));
    ats.reload();
    ats.restart();
    assert!(ats.stop() < ats::PATIENCE);
}
