//! Guest RAM: where it lies in the guest, and what backs it. Called by the builder.
//!
//! The pages are made when they are first touched, by whoever touches them.

use std::io;

use coracle_arch::x86_64::layout::{self, RamRegion};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// The RAM of one virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct GuestRam {
    mmap: GuestMemoryMmap,
    /// The mappings behind `mmap`, which does not own memory that it did not map itself.
    _mappings: std::sync::Arc<Vec<Mapping>>,
}

/// One stretch of RAM without holes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappedRegion {
    pub guest_address: u64,
    pub bytes: u64,
    pub host_address: u64,
}

/// Why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host gives no address space of this size.
    #[error(
        "--memory {mib}M: the host cannot map {bytes} bytes for it; a smaller size or a higher limit (ulimit -v) helps"
    )]
    Map {
        /// The size asked for.
        mib: u64,
        /// The size of the region that could not be had.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The regions do not form a guest's memory.
    #[error("--memory {mib}M does not fit the address space of the machine")]
    Layout {
        /// The size asked for.
        mib: u64,
    },
}

impl GuestRam {
    /// `mib` MiB of anonymous memory, aligned and advised for 2 MiB pages: their first touch costs a fraction of that
    /// of the small pages they replace.
    pub(crate) fn anonymous(mib: u64) -> Result<GuestRam, MemoryError> {
        let bytes = mib.checked_mul(1 << 20).ok_or(MemoryError::Layout { mib })?;
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for RamRegion { start, len } in layout::ram_regions(bytes) {
            let mapping = Mapping::anonymous(len as usize).map_err(|source| MemoryError::Map {
                mib,
                bytes: len,
                source,
            })?;
            regions.push(guest_region(&mapping, start).ok_or(MemoryError::Layout { mib })?);
            mappings.push(mapping);
        }
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Layout { mib })?;
        Ok(GuestRam { mmap, _mappings: std::sync::Arc::new(mappings) })
    }

    /// The memory as rust-vmm's crates see it. It must not outlive `self`.
    pub(crate) fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// Its stretches, by guest address.
    pub(crate) fn regions(&self) -> impl Iterator<Item = MappedRegion> {
        self.mmap.iter().map(|region| MappedRegion {
            guest_address: region.start_addr().0,
            bytes: region.len(),
            host_address: region.as_ptr() as u64,
        })
    }
}

fn guest_region(mapping: &Mapping, start: u64) -> Option<GuestRegionMmap> {
    let builder = MmapRegionBuilder::new(mapping.bytes);
    // SAFETY: the mapping covers `bytes` bytes from its address and lives as long as `GuestRam`.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.address) };
    let region = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().ok()?;
    GuestRegionMmap::new(region, GuestAddress(start))
}

/// Memory of this process that is unmapped on drop.
#[derive(Debug)]
struct Mapping {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory; whoever reads or writes it does so through volatile accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn anonymous(bytes: usize) -> io::Result<Mapping> {
        let padded = bytes.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), padded, protection, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = raw.cast::<u8>().align_offset(HUGE_PAGE);
        let after = HUGE_PAGE - before;
        let address = raw.cast::<u8>().wrapping_add(before);
        if before > 0 {
            // SAFETY: the pages before the aligned address are part of the mapping above, and nothing uses them.
            unsafe { libc::munmap(raw, before) };
        }
        // SAFETY: the pages after the last wanted byte likewise.
        unsafe { libc::munmap(address.wrapping_add(bytes).cast(), after) };
        // SAFETY: advice on a mapping of our own. Where huge pages are off, small ones do.
        unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Mapping { address, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `anonymous` and unmapped once, after the last user (`vm::lifecycle`).
        unsafe { libc::munmap(self.address.cast(), self.bytes) };
    }
}

/// The size of an x86-64 large page.
const HUGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn ram_is_aligned_for_huge_pages_and_holds_what_is_written() {
        let ram = GuestRam::anonymous(5 * 1024).unwrap();
        for region in ram.regions() {
            assert_eq!(region.host_address % HUGE_PAGE as u64, 0);
        }
        assert_eq!(ram.regions().map(|region| region.bytes).sum::<u64>(), 5 << 30);
        let last = ram.regions().last().unwrap();
        let address = GuestAddress(last.guest_address + last.bytes - 8);
        ram.mmap().write_obj(0x1122_3344_5566_7788_u64, address).unwrap();
        assert_eq!(ram.mmap().read_obj::<u64>(address).unwrap(), 0x1122_3344_5566_7788);
    }

    #[test]
    fn more_than_the_address_space_is_refused() {
        assert!(matches!(GuestRam::anonymous(1 << 30), Err(MemoryError::Map { .. })));
        assert!(matches!(GuestRam::anonymous(u64::MAX), Err(MemoryError::Layout { .. })));
    }
}
