//! The daemon: sockets, timers, tasks, files.

pub mod ring_file;
