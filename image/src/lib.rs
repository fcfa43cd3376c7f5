//! What a guest boots from: the user's kernel told by content and unpacked, initramfs archives and the
//! modules in them, a root file system made of a folder, a tar or an image, and where the files are that
//! Coracle brings.
//!
//! The `coracle` crate calls this one before it makes a machine, and `xtask` makes the default guest with it.
//! This crate knows neither KVM nor threads nor a machine's configuration, and logs nothing: it takes paths
//! and plain values, and returns files, bytes, and what its caller may want to warn of.
//!
//! Kernels, archives, tars and folders are untrusted input here: no length found in a file sizes an
//! allocation, every decoder has a limit that follows the file's size, and every damaged file ends in an
//! error.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod compression;
pub mod guest_data;
pub mod initramfs;
pub mod kernel_image;
pub mod rootfs;
mod sparse;
pub mod temporary;
