//! Tells the crate whether it is optimised: debug assertions do not say so.

fn main() {
    let optimised = std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0");
    println!("cargo::rustc-env=OPTIMISED={}", if optimised { "yes" } else { "no" });
    println!("cargo::rerun-if-changed=build.rs");
}
