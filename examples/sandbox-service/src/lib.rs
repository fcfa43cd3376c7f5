//! Runs untrusted snippets, each in a virtual machine of its own that is discarded afterwards: forks of
//! machines whose interpreters have started, a small HTTP service in front of them, and a client that
//! generates load.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod load;
pub mod plan;
pub mod pool;
mod run;
pub mod service;
mod worker;
