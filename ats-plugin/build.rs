//! Compiles the plugin's side of the local protocol, and nothing else of the project; and tells the plugin for which series of
//! OpenSSL it is compiled.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["../proto/resumed/v1/local.proto", "../proto/resumed/v1/session.proto"];
    let descriptors = protox::compile(files, ["../proto"])?;
    prost_build::Config::new()
        .bytes([".resumed.v1.SessionEntry"])
        .skip_debug([".resumed.v1.local.TimetableKey", ".resumed.v1.SessionEntry"])
        .compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    // What openssl-sys read in the headers: 0xMNN00PP0 from OpenSSL 3 on, 0xMNNFFPPS before.
    let version = u64::from_str_radix(&std::env::var("DEP_OPENSSL_VERSION_NUMBER")?, 16)?;
    println!("cargo:rustc-env=RESUMED_OPENSSL_SERIES={}", version >> 28);
    Ok(())
}
