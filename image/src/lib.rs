//! Everything that a guest boots from: the user's kernel, recognized and decompressed; initramfs archives and
//! the modules in them; a root file system made from a directory, a tar or an image; and the paths of the
//! files that come with Coracle.
//!
//! The `coracle` crate calls this one before it creates a machine, and `xtask` makes the default guest with
//! it. This crate does not know KVM, threads or a machine's configuration, and logs nothing: it takes paths
//! and plain values, and returns files, bytes, and facts about which its caller may want to warn.
//!
//! Kernels, archives, tars and directories are untrusted input here: no length found in a file sizes an
//! allocation, every decoder has a limit in proportion to the file's size, and every damaged file leads to an
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
