//! Guest RAM as the devices see it: translates its ranges to addresses of this process.
//!
//! The VMM makes one [`GuestMemory`] per machine. Every queue holds a clone, so that memory in use by a
//! thread is never unmapped.

mod buffers;
mod span;

use std::fmt;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use buffers::Buffers;
pub use span::Span;

/// Guest RAM, and the owner that keeps it mapped. Cheap to clone.
#[derive(Clone)]
pub struct GuestMemory {
    shared: Arc<Shared>,
}

struct Shared {
    mmap: GuestMemoryMmap,
    owner: Box<dyn MemoryOwner>,
}

/// Keeps guest RAM mapped for as long as it lives.
pub trait MemoryOwner: Send + Sync {
    /// Returns the present kind of all of its mappings. It changes only while no device uses the memory.
    fn kind(&self) -> MappingKind;
}

/// The owner of memory whose mappings own themselves.
impl MemoryOwner for MappingKind {
    fn kind(&self) -> MappingKind {
        *self
    }
}

/// The owner of the pages of guest RAM, which decides how they return to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingKind {
    /// The mapping: anonymous memory, or a private mapping of a file (`MAP_PRIVATE`), whose own pages are
    /// those that have been written to. The file below it may belong to other machines as well.
    Private,
    /// A file in memory that is mapped shared (`MAP_SHARED`), and that nothing else uses as its content.
    SharedFile,
}

impl GuestMemory {
    /// Makes guest memory that stays mapped for as long as `owner` lives. A `mmap` that owns its mappings
    /// needs no other owner than their kind.
    pub fn new(mmap: GuestMemoryMmap, owner: impl MemoryOwner + 'static) -> Self {
        Self { shared: Arc::new(Shared { mmap, owner: Box::new(owner) }) }
    }

    /// Returns the kind of its mappings.
    pub fn kind(&self) -> MappingKind {
        self.shared.owner.kind()
    }

    /// Returns the memory in the form of rust-vmm's crates.
    pub fn mmap(&self) -> &GuestMemoryMmap {
        &self.shared.mmap
    }

    /// Returns the range of `len` bytes from `address`; `None` unless all of it is contiguous RAM.
    pub fn span(&self, address: u64, len: u32) -> Option<Span> {
        let address = GuestAddress(address);
        let region = self.shared.mmap.find_region(address)?;
        let offset = address.0.checked_sub(region.start_addr().0)?;
        let room = region.len().checked_sub(offset)?;
        if u64::from(len) > room {
            return None;
        }
        let start = region.as_ptr().wrapping_add(usize::try_from(offset).ok()?);
        // SAFETY: the `len` bytes from `start` lie in the mapping of the region, as just checked. The holder
        // of the span also holds this memory (the contract of `Span`).
        Some(unsafe { Span::new(start, len) })
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.shared.mmap.iter().map(|region| (region.start_addr().0, region.len()));
        f.debug_map().entries(ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_that_are_ram_in_one_piece_have_a_span() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let memory = GuestMemory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap(), MappingKind::Private);
        for (address, len) in [(0, 0x1000), (0xfff, 1), (0x2000, 0x1000), (0xfff, 0)] {
            assert_eq!(memory.span(address, len).map(Span::len), Some(len), "{address:#x}+{len:#x}");
        }
        for (address, len) in
            [(0, 0x1001), (0xfff, 2), (0x1000, 1), (0x1fff, 2), (0x2fff, 2), (u64::MAX, 1), (0, u32::MAX)]
        {
            assert!(memory.span(address, len).is_none(), "{address:#x}+{len:#x}");
        }
    }
}
