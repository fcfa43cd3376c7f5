//! The bare calls of KVM that no monitor can do without, as the floor for measurements: a guest of its own
//! process (the program `kvm-floor`), and forks of a guest ([`forks`]). Only `cargo xtask bench` and the
//! program use it.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;
pub mod forks;
pub mod guest;
pub mod payload;
