//! A farm on Debian hosts of the test's own, with a load balancer in front of it and clients that come back.

pub mod balancer;
pub mod host;
pub mod returning;
pub mod site;
