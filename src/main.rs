//! The `resumed` command.

fn main() {}
