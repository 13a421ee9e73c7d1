//! The commands of `resumed`.

mod control;
mod rotate;
mod secret;
mod status;
mod table;
