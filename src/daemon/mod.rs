//! The daemon: owns the sockets, timers and tasks, and drives the pure parts.

pub mod control;
pub mod http;
pub mod ring_file;
pub mod unix_socket;
