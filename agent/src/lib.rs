//! The code that the agent shares with the programs that talk to it.
//!
//! The binary of this package is PID 1 of Coracle's default guest and of its emulated host. This library is
//! the part that the outer side of the emulated host links too: the [`protocol`] of the control port, the
//! byte [`relay`] that both ends run, the [`boot_mark`] with which an init reports that it runs, and the
//! forms of `root=` ([`root_device`]). It never touches machine state (mounts, modules, power).

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod boot_mark;
pub mod protocol;
pub mod relay;
pub mod root_device;
