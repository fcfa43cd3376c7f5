//! The errors of guest RAM.

use std::io;
use std::path::PathBuf;

use coracle_arch::field::MEMORY;

use crate::config::{HugePageSize, MemoryConfig};

/// The reason why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host refuses address space of this size.
    #[error(
        "{MEMORY} {memory}: the host cannot map it; a smaller size or a higher limit (ulimit -v, and ulimit -l for \
         huge pages) helps: {source}"
    )]
    Map {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The host has too few huge pages.
    #[error(
        "{MEMORY} {memory}: it takes {needed} huge pages of {page}, and the host has {free} to spare: as root, \
         `echo {wanted} > {}` makes more, while memory is free in one piece",
        file.display()
    )]
    HugePages {
        /// The configured memory.
        memory: MemoryConfig,
        /// The size of a page.
        page: HugePageSize,
        /// The number of pages that the guest needs.
        needed: u64,
        /// The number of pages that are neither in use nor reserved.
        free: u64,
        /// The total number of pages that would be enough.
        wanted: u64,
        /// The file `nr_hugepages` of this page size.
        file: PathBuf,
    },
    /// The host has no huge pages of this size.
    #[error("{MEMORY} {memory}: this host has no huge pages of {page}: use another size, or none")]
    NoHugePages {
        /// The configured memory.
        memory: MemoryConfig,
        /// The size of a page.
        page: HugePageSize,
    },
    /// The regions do not form a guest's memory.
    #[error("{MEMORY} {memory} does not fit the address space of the machine")]
    Layout {
        /// The configured memory.
        memory: MemoryConfig,
    },
    /// The machine was asked to end while its memory was being shared.
    #[error("{MEMORY}: the machine has been asked to end")]
    Over,
    /// Reserved huge pages cannot be frozen.
    #[error(
        "{MEMORY} {memory}: reserved huge pages cannot be frozen, because a fork copies single pages of 4 KiB: \
         use memory without them"
    )]
    FrozenHugePages {
        /// The configured memory.
        memory: MemoryConfig,
    },
    /// A part of the machine still uses the memory that has to be frozen.
    #[error(
        "{MEMORY} {memory}: it cannot be frozen while the thread of a device still uses it: end what that device \
         waits for"
    )]
    InUse {
        /// The configured memory.
        memory: MemoryConfig,
    },
    /// The pages that the guest has touched cannot be found.
    #[error(
        "{MEMORY} {memory}: it cannot be frozen or saved, because the list of touched pages, /proc/self/pagemap, \
         cannot be read: {source}; mount /proc for this process, and let it be dumpable"
    )]
    TouchedPages {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The content cannot be copied to a memory file.
    #[error(
        "{MEMORY} {memory}: it cannot be copied to a memory file: {source}; more free memory or a higher limit of \
         open files (ulimit -n) helps"
    )]
    Freeze {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The content cannot be read in order to save it.
    #[error("{MEMORY} {memory}: it cannot be read in order to save it: {source}")]
    Read {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The memory file cannot be protected from changes.
    #[error(
        "{MEMORY} {memory}: its memory file cannot be sealed: {source}; a process that maps it for writing has to \
         unmap it first"
    )]
    Seal {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The host refuses the mappings of a fork.
    #[error(
        "{MEMORY} {memory}: the host cannot map it for another fork: {source}; fewer forks or a higher limit \
         (ulimit -v, and the number of mappings in /proc/sys/vm/max_map_count) helps"
    )]
    MapFork {
        /// The configured memory.
        memory: MemoryConfig,
        /// The error that the host returned.
        r#source: io::Error,
    },
}
