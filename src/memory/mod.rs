//! Guest RAM: its addresses in the guest, and the memory that backs it. The builder calls this.
//!
//! Pages are allocated when they are first touched, by the thread that touches them.
//!
//! # Templates and forks
//!
//! [`GuestRam::freeze`] makes a [`FrozenRam`], a memory file that never changes again, and
//! [`GuestRam::private_over`] makes RAM that begins with its content and costs only the pages that are
//! written to. In a fork, only the parts with content are a private mapping of the file. All else is
//! anonymous memory, because a first access to a hole in a memory file allocates a page of the file, even
//! for a read and in spite of all seals, and a write copies that page once more.
//!
//! [`GuestRam::branch`] makes frozen RAM of a machine that runs on. Its own RAM becomes private over the same
//! file, so that the next branch copies only the pages that were written since: each is a file more, a layer
//! over those before it.
//!
//! [`GuestRam::save`] and [`FrozenRam::save`] copy the content to a file of the host's, and
//! [`FrozenRam::of_file`] is frozen RAM in such a file.
//!
//! # If the host has no memory for a page
//!
//! - No call can report that to the guest. A limit of a cgroup, or the end of the host's memory, brings the
//!   OOM killer, for anonymous memory, private mappings and memory files alike. A page of a memory file
//!   counts in the cgroup that touches it first: a template's pages count where it was frozen, even while
//!   forks elsewhere use them.
//! - A memory file lies on a mount of the kernel's own, without the limit of size that a tmpfs has.
//! - If the host does not overcommit (`vm.overcommit_memory=2`), private memory is refused when it is mapped,
//!   in its full size and for each fork, for `MAP_NORESERVE` is ignored (the kernel's
//!   `overcommit-accounting.rst`). Pages of a memory file are counted as they are allocated. One that is
//!   refused is SIGBUS for a thread of this process, and EFAULT for a system call and for `KVM_RUN`; while
//!   RAM is frozen, it is an error.
//! - Reserved huge pages are all claimed when they are mapped.

mod baseline;
mod branch;
mod copy;
mod error;
mod frozen;
mod layers;
mod mapping;
mod page_map;
mod save;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_arch::nameless_file;
use coracle_arch::x86_64::layout::{self, RamRegion};
use coracle_devices::memory::{GuestMemory, MappingKind, MemoryOwner};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::config::{MemoryBacking, MemoryConfig};
use layers::Piece;
use mapping::{HUGE_PAGE, Mapping, Source};

pub(crate) use baseline::{MAX_RANGES, WeakRam};
pub(crate) use branch::NextLayer;
pub use error::MemoryError;
pub(crate) use frozen::{FrozenRam, FrozenRegion, next_data};
pub(crate) use save::SaveError;

/// The RAM of one virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct GuestRam {
    mmap: GuestMemoryMmap,
    owned: Arc<Owned>,
}

/// The memory behind a [`GuestMemoryMmap`], which does not own memory that it did not map itself.
#[derive(Debug)]
struct Owned {
    memory: MemoryConfig,
    /// By guest address.
    mappings: Vec<Mapping>,
    origin: Mutex<Origin>,
}

impl Owned {
    fn origin(&self) -> MutexGuard<'_, Origin> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The origin of the pages that have not been written to.
#[derive(Debug)]
enum Origin {
    /// Zeroes of the host, in pages of any size.
    Zeroes,
    /// A memory file that this machine alone uses.
    File(File),
    /// Frozen RAM, which other machines use too.
    Frozen(FrozenRam),
}

/// A range of RAM without holes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappedRegion {
    pub guest_address: u64,
    pub bytes: u64,
    pub host_address: u64,
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
        let (mappings, origin) = map(memory).map_err(|source| map_error(memory, source))?;
        if !matches!(memory.backing(), MemoryBacking::HugePages(_)) {
            let small = if image_end <= HUGE_PAGE as u64 { HUGE_PAGE } else { 0 };
            for (start, mapping) in &mappings {
                mapping.advise(if *start == 0 { small } else { 0 });
            }
        }
        GuestRam::of(memory, mappings, origin)
    }

    /// Makes RAM with the content of `frozen`, which it never changes: pages that it writes to are its own.
    /// The number of system calls and of mappings does not depend on the size.
    ///
    /// Pages outside of the frozen content are advised for transparent huge pages, as those of other
    /// machines. The others are copied one by one when they are first written to.
    ///
    /// # Errors
    /// [`MemoryError::MapFork`]: the host refuses a mapping.
    pub(crate) fn private_over(frozen: &FrozenRam) -> Result<GuestRam, MemoryError> {
        let memory = frozen.memory();
        let mappings = frozen.regions().iter().map(fork_region).collect::<io::Result<Vec<_>>>();
        let mappings = mappings.map_err(|source| MemoryError::MapFork { memory, source })?;
        GuestRam::of(memory, mappings, Origin::Frozen(frozen.clone()))
    }

    fn of(
        memory: MemoryConfig,
        mappings: Vec<(u64, Mapping)>,
        origin: Origin,
    ) -> Result<GuestRam, MemoryError> {
        let layout_error = || MemoryError::Layout { memory };
        let regions = mappings.iter().map(|(start, mapping)| guest_region(mapping, *start));
        let regions = regions.collect::<Option<Vec<_>>>().ok_or_else(layout_error)?;
        let mmap = GuestMemoryMmap::from_regions(regions).map_err(|_| layout_error())?;
        let mappings = mappings.into_iter().map(|(_, mapping)| mapping).collect();
        let origin = Mutex::new(origin);
        Ok(GuestRam { mmap, owned: Arc::new(Owned { memory, mappings, origin }) })
    }

    /// Turns the memory into one that never changes again. Memory that is a file already is not copied. Of
    /// other memory, the pages with content are copied, and are returned to the host as it goes on.
    ///
    /// KVM's virtual machine is closed before, and no device uses the memory any more.
    ///
    /// # Errors
    /// In each case, the memory is gone.
    ///
    /// - [`MemoryError::FrozenHugePages`]: see [`FrozenRam::check`].
    /// - [`MemoryError::InUse`]: somebody else has a clone of this memory.
    /// - [`MemoryError::TouchedPages`], [`MemoryError::Freeze`]: the host refuses the copy. If a cgroup's
    ///   limit of memory is reached, its OOM killer ends the process.
    /// - [`MemoryError::Seal`]: another process has mapped the file of this memory for writing.
    pub(crate) fn freeze(self) -> Result<FrozenRam, MemoryError> {
        let GuestRam { mmap, owned } = self;
        drop(mmap);
        let memory = owned.memory;
        FrozenRam::check(memory)?;
        let owned = Arc::try_unwrap(owned).map_err(|_| MemoryError::InUse { memory })?;
        let Owned { memory, mappings, origin } = owned;
        let file = match origin.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Origin::File(file) => {
                drop(mappings);
                file
            }
            Origin::Zeroes => copy::copy(memory, mappings, None)?,
            Origin::Frozen(base) => copy::copy(memory, mappings, Some(&base))?,
        };
        FrozenRam::seal(memory, file)
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

impl MemoryOwner for GuestRam {
    fn kind(&self) -> MappingKind {
        match *self.owned.origin() {
            Origin::Zeroes | Origin::Frozen(_) => MappingKind::Private,
            Origin::File(_) => MappingKind::SharedFile,
        }
    }
}

/// Maps the ranges of RAM, by guest address.
fn map(memory: MemoryConfig) -> io::Result<(Vec<(u64, Mapping)>, Origin)> {
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
    Ok((mappings, file.map_or(Origin::Zeroes, Origin::File)))
}

/// Maps a region of frozen RAM for a fork.
fn fork_region(region: &FrozenRegion) -> io::Result<(u64, Mapping)> {
    let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    let mut mapping = Mapping::small_pages(bytes(region.bytes)?, Source::Anonymous)?;
    // The advice holds for what the file does not replace.
    mapping.advise(0);
    for Piece { range, file } in &region.pieces {
        mapping.lay_over(bytes(range.start)?..bytes(range.end)?, file, region.offset + range.start)?;
    }
    Ok((region.guest_address, mapping))
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
    let builder = MmapRegionBuilder::new(mapping.bytes());
    // SAFETY: the mapping covers `bytes` bytes from its address and lives as long as `GuestRam`.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.address()) };
    let region = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().ok()?;
    GuestRegionMmap::new(region, GuestAddress(start))
}

#[cfg(test)]
mod tests;
