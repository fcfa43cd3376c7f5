//! Runs untrusted snippets, each in a virtual machine of its own that is thrown away after it: a pool of
//! machines that are ready before they are asked for, a small HTTP service before it, and a client that loads
//! the service.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod load;
pub mod pool;
pub mod service;
