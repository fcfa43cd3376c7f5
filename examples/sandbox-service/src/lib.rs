//! Runs untrusted snippets, each in a virtual machine of its own that is discarded afterwards: a pool of
//! machines that are ready before they are needed, a small HTTP service in front of it, and a client that
//! generates load.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod load;
pub mod pool;
pub mod service;
