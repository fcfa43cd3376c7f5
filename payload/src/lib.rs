//! Bare guests for tests and benchmarks: a few instructions each, packed as ordinary ELF files.
//!
//! Each image has a 64-bit entry (the ELF entry point) and a PVH note with a 32-bit entry, so that any VMM
//! which boots ELF kernels can run it. The image brings its own page tables, descriptor tables and stack, and
//! runs its body in ring 0 or in ring 3. Ring 3 matters on a KVM without hardware virtualization: it
//! interprets the code of ring 0, and not that of ring 3.
//!
//! The bodies are assembly under `src/asm`, one file per topic. This crate is for tests, benchmarks and
//! `xtask`; the product does not use it.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod bzimage;
mod elf;
mod tables;

use tables::Image;

/// A bare guest.
#[derive(Debug, Clone, Copy)]
pub struct Payload {
    /// A short name, which is also the file name under `cargo xtask payloads`.
    pub name: &'static str,
    /// The purpose of the payload, and the expected ending of a run.
    pub about: &'static str,
    /// The privilege level of its body.
    pub ring: Ring,
    /// Position-independent 64-bit machine code.
    body: fn() -> &'static [u8],
}

/// The privilege level at which a body runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Kernel mode, interrupts off, no interrupt descriptor table.
    Zero,
    /// User mode with every page and every port open to it.
    Three,
}

impl Payload {
    /// Returns the payload with this name.
    pub fn named(name: &str) -> Option<&'static Payload> {
        ALL.iter().find(|payload| payload.name == name)
    }

    /// Returns the ELF file.
    pub fn elf(&self) -> Vec<u8> {
        elf::file(&Image::new((self.body)(), self.ring))
    }

    /// Returns a bzImage that runs this body when it is entered directly, as a packed Linux runs its
    /// decompressor. It holds `packed` as the kernel to unpack. The body runs in ring 0 without tables or a
    /// stack of its own.
    pub fn bzimage(&self, packed: &[u8]) -> Vec<u8> {
        bzimage::file((self.body)(), packed)
    }

    /// Returns a bzImage that a loader enters in real mode, as kvmtool does.
    pub fn real_mode_bzimage(&self) -> Vec<u8> {
        bzimage::real_mode(&Image::new((self.body)(), self.ring))
    }
}

/// Returns all payloads as ELF files, with their names.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    ALL.iter().map(|payload| (payload.name, payload.elf())).collect()
}

/// All payloads.
pub static ALL: &[Payload] = bodies::ALL;
