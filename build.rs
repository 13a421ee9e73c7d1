//! Compiles the protobuf definitions with protox: no protoc to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/resumed/v1/farm.proto", "proto/resumed/v1/local.proto", "proto/resumed/v1/session.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new()
        // Session bytes are sliced out of the message that brought them, never copied.
        .bytes([".resumed.v1.SessionEntry", ".resumed.v1.Tombstone", ".resumed.v1.Envelope"])
        // Seldom there, and a report is the largest message: each one of them is moved about in an enum.
        .boxed(".resumed.v1.Report.operators")
        .boxed(".resumed.v1.Member.operators")
        // Messages that carry key material get a `Debug` that omits it, in src/proto.rs.
        .skip_debug([".resumed.v1.TicketKey", ".resumed.v1.SessionEntry", ".resumed.v1.local.TimetableKey"])
        .compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
