//! Everything that a machine needs to boot, as plain data: the memory map, the kernel image in guest memory,
//! the tables that the guest reads, and the registers in which its first CPU starts.
//!
//! The `coracle` crate calls this crate while it builds a machine, and hands the result to KVM. This crate
//! makes no KVM call, starts no thread, and knows no device. It turns checked numbers and files into bytes
//! and structs, so that all of it is tested without `/dev/kvm`.
//!
//! Kernel images and initrds are untrusted input: no length found in a file sizes an allocation, and each
//! damaged file ends in an error.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod field;
pub mod nameless_file;
pub mod regular_file;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
