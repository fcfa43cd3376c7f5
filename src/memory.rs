//! Guest RAM: its addresses in the guest, and the memory that backs it. The builder calls this.
//!
//! Pages are allocated when they are first touched, by the thread that touches them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_arch::field::MEMORY;
use coracle_arch::nameless_file;
use coracle_arch::x86_64::layout::{self, RamRegion};
use coracle_devices::memory::GuestMemory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::config::{HugePageSize, MemoryBacking, MemoryConfig};

/// The RAM of one virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct GuestRam {
    mmap: GuestMemoryMmap,
    /// The mappings behind `mmap`, which does not own memory that it did not map itself.
    _mappings: Arc<Vec<Mapping>>,
}

/// A range of RAM without holes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappedRegion {
    pub guest_address: u64,
    pub bytes: u64,
    pub host_address: u64,
}

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
}

impl GuestRam {
    /// Allocates memory as configured for a guest whose image ends at guest address `image_end`. Memory
    /// outside of reserved huge pages is aligned, and advised for transparent ones of 2 MiB: their first
    /// touch costs a fraction of that of the small pages they replace.
    ///
    /// An image that lies in the first 2 MiB has small pages there, even on a host that gives huge ones
    /// unasked: the boot tables and a guest of this size take some tens of KiB, for which a huge page would
    /// have to be cleared and kept. Linux lies above, and would touch most of them.
    pub(crate) fn new(memory: MemoryConfig, image_end: u64) -> Result<GuestRam, MemoryError> {
        // Mappings made before the one that failed are gone when the error is made.
        let mappings = map(memory).map_err(|source| map_error(memory, source))?;
        if !matches!(memory.backing(), MemoryBacking::HugePages(_)) {
            let small = if image_end <= HUGE_PAGE as u64 { HUGE_PAGE } else { 0 };
            for (start, mapping) in &mappings {
                mapping.advise(if *start == 0 { small } else { 0 });
            }
        }
        let layout_error = || MemoryError::Layout { memory };
        let regions = mappings.iter().map(|(start, mapping)| guest_region(mapping, *start));
        let regions = regions.collect::<Option<Vec<_>>>().ok_or_else(layout_error)?;
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(|_| layout_error())?;
        let mappings = mappings.into_iter().map(|(_, mapping)| mapping).collect();
        Ok(GuestRam { mmap, _mappings: Arc::new(mappings) })
    }

    /// Returns the memory in the form of rust-vmm's crates. It must not outlive `self`.
    pub(crate) fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// Returns the memory in the form for devices, which keep it mapped for as long as they use it.
    pub(crate) fn for_devices(&self) -> GuestMemory {
        GuestMemory::new(self.mmap.clone(), self.clone())
    }

    /// Returns its ranges, by guest address.
    pub(crate) fn regions(&self) -> impl Iterator<Item = MappedRegion> {
        self.mmap.iter().map(|region| MappedRegion {
            guest_address: region.start_addr().0,
            bytes: region.len(),
            host_address: region.as_ptr() as u64,
        })
    }
}

/// Maps the ranges of RAM, by guest address.
fn map(memory: MemoryConfig) -> io::Result<Vec<(u64, Mapping)>> {
    let file = match memory.backing() {
        MemoryBacking::Memfd => Some(nameless_file::create_in_memory(c"coracle-ram", memory.bytes())?),
        MemoryBacking::Anonymous | MemoryBacking::HugePages(_) => None,
    };
    let mut mappings = Vec::new();
    let mut offset = 0;
    for RamRegion { start, len } in layout::ram_regions(memory.bytes()) {
        let bytes = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mapping = match (memory.backing(), &file) {
            (MemoryBacking::HugePages(page), _) => Mapping::huge_pages(bytes, page)?,
            (_, Some(file)) => Mapping::small_pages(bytes, Source::SharedFile { file, offset })?,
            (_, None) => Mapping::small_pages(bytes, Source::Anonymous)?,
        };
        mappings.push((start, mapping));
        offset += len;
    }
    Ok(mappings)
}

fn map_error(memory: MemoryConfig, source: io::Error) -> MemoryError {
    let MemoryBacking::HugePages(page) = memory.backing() else {
        return MemoryError::Map { memory, source };
    };
    let folder = PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10));
    let count = |name: &str| -> Option<u64> {
        std::fs::read_to_string(folder.join(name)).ok().and_then(|text| text.trim().parse().ok())
    };
    let counts = count("nr_hugepages").zip(count("free_hugepages")).zip(count("resv_hugepages"));
    let Some(((all, free), reserved)) = counts else {
        return MemoryError::NoHugePages { memory, page };
    };
    let (needed, free) = (memory.bytes() / page.bytes(), free.saturating_sub(reserved));
    if free >= needed {
        return MemoryError::Map { memory, source };
    }
    let (wanted, file) = (all + needed - free, folder.join("nr_hugepages"));
    MemoryError::HugePages { memory, page, needed, free, wanted, file }
}

fn guest_region(mapping: &Mapping, start: u64) -> Option<GuestRegionMmap> {
    let builder = MmapRegionBuilder::new(mapping.bytes);
    // SAFETY: the mapping covers `bytes` bytes from its address and lives as long as `GuestRam`.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.address) };
    let region = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().ok()?;
    GuestRegionMmap::new(region, GuestAddress(start))
}

/// The source of pages of the usual size.
#[derive(Clone, Copy)]
enum Source<'a> {
    Anonymous,
    SharedFile { file: &'a File, offset: u64 },
}

/// Memory of this process that is unmapped on drop.
#[derive(Debug)]
struct Mapping {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory, and all accesses to it are volatile.
unsafe impl Send for Mapping {}
// SAFETY: the mapping is plain memory, and all accesses to it are volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps pages of the usual size, at an address that suits transparent huge pages.
    fn small_pages(bytes: usize, from: Source<'_>) -> io::Result<Mapping> {
        let padded = bytes.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        // First reserves space for the alignment, then maps the memory itself inside it.
        let (flags, none) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, libc::PROT_NONE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), padded, none, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = raw.cast::<u8>().align_offset(HUGE_PAGE);
        let after = HUGE_PAGE - before;
        let address = raw.cast::<u8>().wrapping_add(before);
        if before > 0 {
            // SAFETY: the pages before the aligned address are part of the mapping above, and nothing uses
            // them.
            unsafe { libc::munmap(raw, before) };
        }
        // SAFETY: the pages after the last wanted byte are part of the mapping above too, and nothing uses
        // them.
        unsafe { libc::munmap(address.wrapping_add(bytes).cast(), after) };
        let mapping = Mapping { address, bytes };
        let (kind, fd, offset) = match from {
            Source::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            Source::SharedFile { file, offset } => (libc::MAP_SHARED, file.as_raw_fd(), offset),
        };
        let flags = kind | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: it replaces a part of the mapping above, which is not used yet.
        let placed = unsafe { libc::mmap(address.cast(), bytes, READ_WRITE, flags, fd, offset) };
        if placed == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Asks for transparent huge pages, except for the first `small` bytes.
    fn advise(&self, small: usize) {
        let small = self.bytes.min(small);
        let rest = self.address.wrapping_add(small);
        // Advice that the host does not take changes nothing but costs.
        if small > 0 {
            // SAFETY: advice on pages of this mapping.
            unsafe { libc::madvise(self.address.cast(), small, libc::MADV_NOHUGEPAGE) };
        }
        // SAFETY: as above.
        unsafe { libc::madvise(rest.cast(), self.bytes - small, libc::MADV_HUGEPAGE) };
    }

    /// Maps reserved huge pages, none of which is allocated yet.
    fn huge_pages(bytes: usize, page: HugePageSize) -> io::Result<Mapping> {
        let size = match page {
            HugePageSize::Size2M => libc::MAP_HUGE_2MB,
            HugePageSize::Size1G => libc::MAP_HUGE_1GB,
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | size;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, READ_WRITE, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { address: raw.cast(), bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by a constructor and unmapped once, after the last user (`vm::stop`).
        unsafe { libc::munmap(self.address.cast(), self.bytes) };
    }
}

/// The size of an x86-64 large page.
const HUGE_PAGE: usize = 2 << 20;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn memory(text: &str) -> MemoryConfig {
        text.parse().unwrap()
    }

    #[test]
    fn ram_is_aligned_for_huge_pages_and_holds_what_is_written() {
        for text in ["5G", "size=5G,memfd"] {
            let ram = GuestRam::new(memory(text), 0).unwrap();
            for region in ram.regions() {
                assert_eq!(region.host_address % HUGE_PAGE as u64, 0);
            }
            assert_eq!(ram.regions().map(|region| region.bytes).sum::<u64>(), 5 << 30);
            let last = ram.regions().last().unwrap();
            let address = GuestAddress(last.guest_address + last.bytes - 8);
            ram.mmap().write_obj(0x1122_3344_5566_7788_u64, address).unwrap();
            assert_eq!(ram.mmap().read_obj::<u64>(address).unwrap(), 0x1122_3344_5566_7788);
            assert_eq!(ram.mmap().read_obj::<u64>(GuestAddress(0)).unwrap(), 0, "regions do not share pages");
        }
    }

    #[test]
    fn huge_pages_are_reserved_or_the_error_says_how_to_have_more() {
        let wanted = memory("size=1T,hugepages=2M");
        let error = GuestRam::new(wanted, 0).unwrap_err().to_string();
        assert!(error.contains("524288 huge pages of 2M") && error.contains("nr_hugepages"), "{error}");
        match GuestRam::new(memory("size=4M,hugepages=2M"), 0) {
            Ok(ram) => ram.mmap().write_obj(1u64, GuestAddress(3 << 20)).unwrap(),
            Err(error) => assert!(error.to_string().contains("it takes 2 huge pages of 2M"), "{error}"),
        }
    }
}
