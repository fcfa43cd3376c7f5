//! Fills guest memory with everything that the first CPU finds: kernel, initrd, command line and boot tables.
//!
//! The builder calls [`load`] once, when the machine's memory exists and its tables are known. It opens no
//! file and makes no KVM call. File contents go straight from the file into guest memory.

use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::boot_params::ZeroPage;
use super::image::{BootProtocol, KernelImage};
use super::initrd::{self, InitrdFile};
use super::layout::{CMDLINE, CMDLINE_AREA, HIGH_MEMORY, PAGE_SIZE, low_ram_end};
use super::pvh::StartInfo;
use super::registers::BootState;
use super::{gdt, paging, reset_vector};
use crate::field::{INITRDS, MEMORY};

/// The longest command line of an image that states no limit: Linux's COMMAND_LINE_SIZE on x86 without the
/// NUL.
const DEFAULT_CMDLINE_MAX: u64 = 2047;
/// The highest initrd address of an image that states none: the one that every x86-64 Linux has in its
/// bzImage.
const DEFAULT_INITRD_ADDR_MAX: u64 = 0x7fff_ffff;
/// Memory that Linux needs beside its image and initrd to reach a first process: page structures, per-CPU
/// memory, slabs and that process. A small Linux 6.1 with one vCPU boots with 5 MiB and dies with 3. Debian's
/// stock cloud kernel boots with this value, which leaves the process a little.
const LINUX_RESERVE: u64 = 8 * MIB;

const MIB: u64 = 1 << 20;

/// The files to load, and the memory that they go to.
#[derive(Debug)]
pub struct LoadRequest<'a> {
    /// The kernel.
    pub image: &'a KernelImage,
    /// Initrds in this order. The guest sees them as one.
    pub initrds: &'a [InitrdFile],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Bytes of RAM: those of `ram_regions` that made the guest memory.
    pub ram_bytes: u64,
    /// The guest-physical address of the RSDP, from `acpi::write_tables`.
    pub acpi_rsdp: Option<u64>,
}

/// A range of guest-physical memory with something in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    /// First address.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// The reason why a kernel was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The machine has less memory than the kernel and its initrd need.
    #[error("{MEMORY} {}M: this kernel{} needs at least {needed_mib}M", given / MIB, with_initrd(*initrd_bytes))]
    MemoryTooSmall {
        /// Bytes of RAM.
        given: u64,
        /// Bytes of all initrds.
        initrd_bytes: u64,
        /// The smallest size that works, in MiB.
        needed_mib: u64,
    },
    /// The initrds do not fit below the highest address that this kernel can reach, whatever the memory size.
    #[error(
        "{INITRDS}: {bytes} bytes are too many: this kernel has room for {room} at the addresses that it can \
         reach"
    )]
    InitrdTooLarge {
        /// Bytes of all initrds.
        bytes: u64,
        /// Bytes between the kernel and the highest address of an initrd.
        room: u64,
    },
    /// The command line is longer than the kernel accepts.
    #[error("the kernel command line is {len} bytes long, but this kernel takes at most {max}")]
    CommandLineTooLong {
        /// Bytes of the command line.
        len: u64,
        /// The largest number of bytes, without the NUL.
        max: u64,
    },
    /// The command line has a character that would end or split it.
    #[error("the kernel command line has a {name} at byte {position}; remove it")]
    CommandLineCharacter {
        /// The character's name.
        name: &'static str,
        /// Its position, counted from 0.
        position: usize,
    },
    /// A file could not be read into guest memory.
    #[error(
        "cannot read {path:?} into guest memory; it may have become shorter since it was checked: {source}"
    )]
    ReadFile {
        /// The path of the kernel or initrd.
        path: PathBuf,
        /// The error of the read or of guest memory.
        r#source: GuestMemoryError,
    },
    /// A boot table could not be written.
    #[error("cannot write the boot tables to guest memory: {0}")]
    WriteTables(GuestMemoryError),
}

/// Loads `request` into `memory` and returns the state in which the first CPU starts.
///
/// `memory` must be fresh, that is, zero. The zero part of a segment (its bss) is not written, so that its
/// pages cost nothing until the guest uses them.
///
/// # Errors
/// Something does not fit, the command line cannot be used, or a file cannot be read.
pub fn load(memory: &GuestMemoryMmap, request: &LoadRequest<'_>) -> Result<BootState, LoadError> {
    let &LoadRequest { image, initrds, cmdline, ram_bytes, acpi_rsdp } = request;
    let initrd = checked_placement(request)?;
    for segment in image.segments() {
        image
            .file()
            .read_into(memory, segment.file_offset, segment.address, segment.file_len)
            .map_err(|source| read_failed(image.path(), source))?;
    }
    if let Some(initrd) = initrd {
        load_initrds(memory, initrds, initrd.start)?;
    }
    write_tables(memory, image, cmdline, |protocol| match protocol {
        BootProtocol::Linux64 => {
            let header = image.bzimage().map(|bzimage| &bzimage.raw);
            let kernel = image.segments().first().map_or(0, |segment| segment.address);
            let cmdline_len = cmdline.len() as u32;
            paging::write(memory)?;
            ZeroPage { header, kernel, ram_bytes, cmdline_len, initrd, acpi_rsdp }.write(memory)
        }
        BootProtocol::Pvh => StartInfo { ram_bytes, initrd, acpi_rsdp }.write(memory),
    })
    .map_err(LoadError::WriteTables)?;
    Ok(BootState::new(image.protocol(), image.entry()))
}

/// Checks that `request` fits into a memory of its size, so that the caller need not create that memory
/// first.
///
/// # Errors
/// Something does not fit, or the command line cannot be used.
pub fn check(request: &LoadRequest<'_>) -> Result<(), LoadError> {
    checked_placement(request).map(drop)
}

/// Checks `request` and returns the place of its initrds.
fn checked_placement(request: &LoadRequest<'_>) -> Result<Option<Placement>, LoadError> {
    let &LoadRequest { image, initrds, cmdline, ram_bytes, .. } = request;
    check_cmdline(cmdline, cmdline_max(image))?;
    check_memory(image, initrds, ram_bytes)?;
    place_initrd(image, bytes_of(initrds), ram_bytes)
}

/// Checks that `ram_bytes` of RAM can hold `image` and `initrds`.
///
/// # Errors
/// [`LoadError::MemoryTooSmall`]: they cannot.
pub fn check_memory(image: &KernelImage, initrds: &[InitrdFile], ram_bytes: u64) -> Result<(), LoadError> {
    let initrd_bytes = bytes_of(initrds);
    let needed_mib = minimum_memory_mib(image, initrd_bytes);
    if ram_bytes / MIB < needed_mib {
        return Err(LoadError::MemoryTooSmall { given: ram_bytes, initrd_bytes, needed_mib });
    }
    Ok(())
}

/// Returns the length of all initrds, or more than fits into any RAM if it overflows.
fn bytes_of(initrds: &[InitrdFile]) -> u64 {
    initrd::combined_len(initrds).unwrap_or(u64::MAX)
}

/// Returns the smallest size of RAM, in whole MiB, that works for `image` and `initrd_bytes` of initrds.
///
/// For Linux, that is its memory, the initrd, the same again for the unpacked initrd, and a reserve. It is a
/// lower bound, because a packed initrd needs more. For another image, it is the segments, the boot tables
/// and the initrd.
pub fn minimum_memory_mib(image: &KernelImage, initrd_bytes: u64) -> u64 {
    let initrd = initrd_bytes.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
    let kernel = image.memory_end().max(HIGH_MEMORY);
    let bytes = if image.is_linux() {
        kernel.saturating_add(initrd.saturating_mul(2)).saturating_add(LINUX_RESERVE)
    } else {
        kernel.saturating_add(initrd)
    };
    bytes.div_ceil(MIB)
}

fn read_failed(path: &Path, source: GuestMemoryError) -> LoadError {
    LoadError::ReadFile { path: path.to_owned(), source }
}

fn with_initrd(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" with {}M of initrd", bytes.div_ceil(MIB)),
    }
}

/// Returns the longest command line in bytes, without its NUL, that `image` accepts and that the layout has
/// room for.
fn cmdline_max(image: &KernelImage) -> u64 {
    let stated = image.bzimage().map_or(DEFAULT_CMDLINE_MAX, |bzimage| u64::from(bzimage.cmdline_size));
    stated.min(CMDLINE_AREA.saturating_sub(1))
}

fn check_cmdline(cmdline: &str, max: u64) -> Result<(), LoadError> {
    check_characters(cmdline)?;
    match cmdline.len() as u64 {
        len if len > max => Err(LoadError::CommandLineTooLong { len, max }),
        _ => Ok(()),
    }
}

/// Checks that a kernel reads the whole command line: that it contains no character that ends it.
///
/// # Errors
/// [`LoadError::CommandLineCharacter`] for the first NUL, or else the first newline.
pub fn check_characters(cmdline: &str) -> Result<(), LoadError> {
    for (character, name) in [('\0', "NUL"), ('\n', "newline")] {
        if let Some(position) = cmdline.find(character) {
            return Err(LoadError::CommandLineCharacter { name, position });
        }
    }
    Ok(())
}

/// Returns the highest page-aligned range in RAM that is within the kernel's reach and above the kernel's
/// memory.
fn place_initrd(image: &KernelImage, bytes: u64, ram_bytes: u64) -> Result<Option<Placement>, LoadError> {
    if bytes == 0 {
        return Ok(None);
    }
    let reach = image.bzimage().map_or(DEFAULT_INITRD_ADDR_MAX, |bzimage| u64::from(bzimage.initrd_addr_max));
    let limit = low_ram_end(ram_bytes).min(reach.saturating_add(1));
    let start = limit.saturating_sub(bytes) & !PAGE_SIZE.saturating_sub(1);
    if start < image.memory_end() {
        return Err(LoadError::InitrdTooLarge { bytes, room: limit.saturating_sub(image.memory_end()) });
    }
    Ok(Some(Placement { start, len: bytes }))
}

fn load_initrds(memory: &GuestMemoryMmap, initrds: &[InitrdFile], start: u64) -> Result<(), LoadError> {
    let mut address = start;
    for initrd in initrds {
        let file = initrd.file();
        file.read_into(memory, 0, address, file.len()).map_err(|source| read_failed(file.path(), source))?;
        // The initrds were placed as a whole, so the sum cannot pass the end.
        address = address.saturating_add(initrd::padded_len(initrd).unwrap_or_default());
    }
    Ok(())
}

fn write_tables(
    memory: &GuestMemoryMmap,
    image: &KernelImage,
    cmdline: &str,
    write_information: impl FnOnce(BootProtocol) -> Result<(), GuestMemoryError>,
) -> Result<(), GuestMemoryError> {
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE.saturating_add(cmdline.len() as u64)))?;
    gdt::write(memory, image.protocol())?;
    reset_vector::write(memory)?;
    write_information(image.protocol())
}

#[cfg(test)]
mod tests;
