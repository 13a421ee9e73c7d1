//! Compiles the plugin's side of the local protocol, and nothing else of the project.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "../proto/resumed/v1/local.proto";
    let descriptors = protox::compile([file], ["../proto"])?;
    prost_build::Config::new()
        .bytes([".resumed.v1.local.Session"])
        .skip_debug([".resumed.v1.local.TimetableKey", ".resumed.v1.local.Session"])
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed={file}");
    Ok(())
}
