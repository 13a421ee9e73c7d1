//! The proxies that a node serves, one adapter each.

pub mod rustls;
