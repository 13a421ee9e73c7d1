//! The commands of `resumed`.

pub mod check;
