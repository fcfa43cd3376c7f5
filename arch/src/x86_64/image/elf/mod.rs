//! The ELF format: an unpacked Linux kernel, another kernel, or a bare payload (System V gABI, chapters 4 and
//! 5). A 32-bit file, such as Xen or GRUB, is entered at its PVH entry.
//!
//! Only the file header, the program headers and the notes are read. Everything a header says is checked
//! against the file and the machine before anything is loaded.

use std::fmt;

use memchr::memmem;

use super::super::bytes::{u16_at, u32_at, u64_at};
use super::super::input_file::InputFile;
use super::super::layout::{HIGH_MEMORY, MMIO_HOLE};
use super::foreign::Foreign;
use super::{Contents, Defect, ImageSegment, release};

const MAGIC: &[u8] = b"\x7fELF";
/// `e_ident`: byte order.
const BIG_ENDIAN: u8 = 2;
/// `e_type` of files that can be entered: at fixed addresses, or position-independent.
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
/// `e_machine` of 32-bit x86 and of x86-64.
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Program header types.
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// The largest number of program headers. Linux has five; a file with hundreds is damaged.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// The largest number of bytes of one note segment that are searched. Linux's notes take about 600.
const MAX_NOTES_LEN: u64 = 64 * 1024;
/// The owner, with its NUL, and the type of the note with the PVH entry (Xen, public/elfnote.h,
/// XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE_OWNER: &[u8] = b"Xen\0";
const PVH_NOTE_TYPE: u32 = 18;
/// Bytes of a note's header.
const NOTE_HEADER_LEN: usize = 12;
/// The address where x86-64 Linux links its text (`__START_KERNEL_map`). Nothing but a kernel lies there.
const LINUX_TEXT: u64 = 0xffff_ffff_8000_0000;
/// The start of Linux's `linux_banner`.
const LINUX_BANNER: &[u8] = b"Linux version ";
/// Bytes per read in the search for the banner: few calls, and little memory.
const SEARCH_CHUNK: usize = 256 * 1024;

/// The defects of the headers of an ELF kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElfDefect {
    /// The size of a program header is not that of its class.
    ProgramHeaderSize(u16),
    /// More program headers than any kernel has.
    ProgramHeaderCount(u16),
    /// A segment's file range passes 2^64 bytes.
    SegmentFileRange(u16),
    /// A segment has more bytes in the file than in memory.
    SegmentShorterThanFile(u16),
    /// A segment lies below 1 MiB, in the area of the boot tables.
    SegmentTooLow(u16, u64),
    /// A segment passes 3 GiB, where the MMIO hole starts.
    SegmentTooHigh(u16, u64, u64),
    /// Two segments overlap at an address.
    SegmentsOverlap(u64),
    /// There is no segment to load.
    NoSegments,
    /// The entry point lies outside all segments.
    EntryOutside(u64),
}

impl fmt::Display for ElfDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ProgramHeaderSize(size) => {
                write!(f, "its program headers are {size} bytes each; ELF64 has 56, and ELF32 has 32")
            }
            Self::ProgramHeaderCount(count) => {
                write!(f, "it has {count} program headers, at most {MAX_PROGRAM_HEADERS} are accepted")
            }
            Self::SegmentFileRange(index) => {
                write!(f, "the file range of program header {index} is impossible; copy or build it again")
            }
            Self::SegmentShorterThanFile(index) => {
                write!(f, "program header {index} has more bytes in the file than in memory")
            }
            Self::SegmentTooLow(index, address) => write!(
                f,
                "program header {index} loads at {address:#x}, below 1 MiB where the boot tables are; link it higher"
            ),
            Self::SegmentTooHigh(index, address, len) => write!(
                f,
                "program header {index} loads {len:#x} bytes at {address:#x}, past 3 GiB where devices are; \
                 link it lower"
            ),
            Self::SegmentsOverlap(address) => write!(f, "two of its segments overlap at {address:#x}"),
            Self::NoSegments => write!(f, "it has no segment to load"),
            Self::EntryOutside(entry) => {
                write!(f, "its entry point {entry:#x} lies in none of its segments (physical addresses)")
            }
        }
    }
}

/// Returns whether a file that starts with `head` is an ELF file.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

pub(super) fn parse(file: &InputFile, head: &[u8]) -> Result<Contents, Defect> {
    let header = FileHeader::parse(head)?;
    let program_headers = read_program_headers(file, &header)?;
    if program_headers.iter().any(|header| header.kind == PT_INTERP) {
        return Err(Defect::Foreign(Foreign::ElfProgram));
    }
    let segments = check_segments(file, &program_headers)?;
    let Some(memory_end) = segments.last().map(|last| last.address.saturating_add(last.memory_len)) else {
        return Err(ElfDefect::NoSegments.into());
    };
    let pvh_entry = find_pvh_entry(file, &program_headers)?;
    let release = find_release(file, &program_headers)?;
    let (entry, is_linux) = (header.entry, release.is_some());
    let has_64_bit_entry = header.class == Class::Elf64;
    if !has_64_bit_entry && pvh_entry.is_none() {
        return Err(Defect::Foreign(Foreign::Elf32));
    }
    let contents = Contents {
        segments,
        memory_end,
        entry,
        has_64_bit_entry,
        pvh_entry,
        is_linux,
        names_other: false,
        release,
        bzimage: None,
    };
    let used_entry = pvh_entry.filter(|_| !is_linux).map_or(entry, u64::from);
    if contents.has_file_bytes_at(used_entry) {
        Ok(contents)
    } else {
        Err(ElfDefect::EntryOutside(used_entry).into())
    }
}

/// The width of a file's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Elf32,
    Elf64,
}

impl Class {
    fn header_len(self) -> usize {
        match self {
            Self::Elf32 => 52,
            Self::Elf64 => 64,
        }
    }

    fn program_header_len(self) -> usize {
        match self {
            Self::Elf32 => 32,
            Self::Elf64 => 56,
        }
    }

    /// Returns the `e_machine` of a file of this class that can run here.
    fn machine(self) -> u16 {
        match self {
            Self::Elf32 => EM_386,
            Self::Elf64 => EM_X86_64,
        }
    }

    /// Reads an address, offset or length at `offset` of `bytes`.
    fn number(self, bytes: &[u8], offset: usize) -> Option<u64> {
        match self {
            Self::Elf32 => u32_at(bytes, offset).map(u64::from),
            Self::Elf64 => u64_at(bytes, offset),
        }
    }
}

struct FileHeader {
    class: Class,
    entry: u64,
    program_headers_offset: u64,
    program_headers: u16,
}

impl FileHeader {
    fn parse(head: &[u8]) -> Result<Self, Defect> {
        let class = match head.get(4) {
            Some(1) => Class::Elf32,
            Some(2) => Class::Elf64,
            Some(_) => return Err(Defect::Foreign(Foreign::Unknown)),
            None => return Err(Defect::Truncated { needed: Class::Elf64.header_len() as u64 }),
        };
        let truncated = || Defect::Truncated { needed: class.header_len() as u64 };
        if head.get(5) == Some(&BIG_ENDIAN) {
            return Err(Defect::Foreign(Foreign::ElfBigEndian));
        }
        let head = head.get(..class.header_len()).ok_or_else(truncated)?;
        let machine = u16_at(head, 18).ok_or_else(truncated)?;
        if (class, machine) == (Class::Elf32, EM_X86_64) {
            return Err(Defect::Foreign(Foreign::Elf32));
        }
        if machine != class.machine() {
            return Err(Defect::Foreign(Foreign::ElfMachine(machine)));
        }
        let kind = u16_at(head, 16).ok_or_else(truncated)?;
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(Defect::Foreign(Foreign::ElfType(kind)));
        }
        let (entry, table, entry_size, count) = match class {
            Class::Elf32 => (24, 28, 42, 44),
            Class::Elf64 => (24, 32, 54, 56),
        };
        let entry_size = u16_at(head, entry_size).ok_or_else(truncated)?;
        let program_headers = u16_at(head, count).ok_or_else(truncated)?;
        if program_headers == 0 {
            return Err(ElfDefect::NoSegments.into());
        }
        if usize::from(entry_size) != class.program_header_len() {
            return Err(ElfDefect::ProgramHeaderSize(entry_size).into());
        }
        if program_headers > MAX_PROGRAM_HEADERS {
            return Err(ElfDefect::ProgramHeaderCount(program_headers).into());
        }
        Ok(Self {
            class,
            entry: class.number(head, entry).ok_or_else(truncated)?,
            program_headers_offset: class.number(head, table).ok_or_else(truncated)?,
            program_headers,
        })
    }
}

struct ProgramHeader {
    index: u16,
    kind: u32,
    offset: u64,
    virtual_address: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
    align: u64,
}

fn read_program_headers(file: &InputFile, header: &FileHeader) -> Result<Vec<ProgramHeader>, Defect> {
    let mut headers = Vec::with_capacity(usize::from(header.program_headers));
    let mut offset = header.program_headers_offset;
    let mut buffer = [0; 56];
    let bytes = buffer.get_mut(..header.class.program_header_len()).unwrap_or_default();
    for index in 0..header.program_headers {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > file.len() {
            return Err(Defect::Truncated { needed: end });
        }
        file.read_at(offset, bytes)?;
        headers.push(ProgramHeader::parse(header.class, index, bytes));
        offset = end;
    }
    Ok(headers)
}

impl ProgramHeader {
    fn parse(class: Class, index: u16, bytes: &[u8]) -> Self {
        let fields = match class {
            Class::Elf32 => [4, 8, 12, 16, 20, 28],
            Class::Elf64 => [8, 16, 24, 32, 40, 48],
        };
        // All offsets lie inside the bytes, so none of these defaults is ever used.
        let [offset, virtual_address, address, file_len, memory_len, align] =
            fields.map(|offset| class.number(bytes, offset).unwrap_or_default());
        let kind = u32_at(bytes, 0).unwrap_or_default();
        Self { index, kind, offset, virtual_address, address, file_len, memory_len, align }
    }

    /// Checks the segment's bytes against the file's length.
    fn check_file_range(&self, file: &InputFile) -> Result<(), Defect> {
        let end = self.offset.checked_add(self.file_len).ok_or(ElfDefect::SegmentFileRange(self.index))?;
        if end > file.len() {
            return Err(Defect::Truncated { needed: end });
        }
        Ok(())
    }
}

/// Checks each PT_LOAD, and returns those that have bytes, sorted by address.
fn check_segments(file: &InputFile, headers: &[ProgramHeader]) -> Result<Vec<ImageSegment>, Defect> {
    let mut segments = Vec::with_capacity(headers.len());
    for header in headers.iter().filter(|header| header.kind == PT_LOAD && header.memory_len > 0) {
        let &ProgramHeader { index, address, file_len, memory_len, .. } = header;
        header.check_file_range(file)?;
        if file_len > memory_len {
            return Err(ElfDefect::SegmentShorterThanFile(index).into());
        }
        if address < HIGH_MEMORY {
            return Err(ElfDefect::SegmentTooLow(index, address).into());
        }
        if address.checked_add(memory_len).is_none_or(|end| end > MMIO_HOLE) {
            return Err(ElfDefect::SegmentTooHigh(index, address, memory_len).into());
        }
        segments.push(ImageSegment { file_offset: header.offset, file_len, address, memory_len });
    }
    segments.sort_by_key(|segment| segment.address);
    for (before, after) in segments.iter().zip(segments.iter().skip(1)) {
        if before.address.saturating_add(before.memory_len) > after.address {
            return Err(ElfDefect::SegmentsOverlap(after.address).into());
        }
    }
    Ok(segments)
}

/// Searches the note segments for the PVH entry, and returns the first.
fn find_pvh_entry(file: &InputFile, headers: &[ProgramHeader]) -> Result<Option<u32>, Defect> {
    for header in headers.iter().filter(|header| header.kind == PT_NOTE) {
        header.check_file_range(file)?;
        let len = usize::try_from(header.file_len.min(MAX_NOTES_LEN)).unwrap_or_default();
        let mut notes = vec![0; len];
        file.read_at(header.offset, &mut notes)?;
        // Notes are aligned to 4 bytes, but to 8 in a segment that says so (GNU property notes).
        let align = if header.align == 8 { 8 } else { 4 };
        if let Some(entry) = pvh_entry_in(&notes, align) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Searches one note segment for the entry. A note that passes the end of the segment ends the search.
fn pvh_entry_in(mut notes: &[u8], align: usize) -> Option<u32> {
    loop {
        let owner_len = u32_at(notes, 0)? as usize;
        let content_len = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let content_start = NOTE_HEADER_LEN.checked_add(owner_len)?.checked_next_multiple_of(align)?;
        let content_end = content_start.checked_add(content_len)?;
        let owner = notes.get(NOTE_HEADER_LEN..NOTE_HEADER_LEN.checked_add(owner_len)?)?;
        if kind == PVH_NOTE_TYPE && owner == PVH_NOTE_OWNER {
            return pvh_entry_from(notes.get(content_start..content_end)?);
        }
        notes = notes.get(content_end.checked_next_multiple_of(align)?..)?;
    }
}

/// Reads the entry, a 32-bit address, from a note of 4 or 8 bytes.
fn pvh_entry_from(content: &[u8]) -> Option<u32> {
    match content.len() {
        4 => u32_at(content, 0),
        8 => u32::try_from(u64_at(content, 0)?).ok(),
        _ => None,
    }
}

/// Finds the release in the version text that only Linux has. The link address is checked first, because that
/// costs nothing and spares other files the search.
fn find_release(file: &InputFile, headers: &[ProgramHeader]) -> Result<Option<String>, Defect> {
    let mut loads = headers.iter().filter(|header| header.kind == PT_LOAD && header.file_len > 0).peekable();
    if loads.peek().is_none_or(|first| first.virtual_address < LINUX_TEXT) {
        return Ok(None);
    }
    for load in loads {
        if let Some(release) = release_in(file, load.offset, load.file_len)? {
            return Ok(Some(release));
        }
    }
    Ok(None)
}

/// Searches `len` bytes from `offset` of the file, in chunks that overlap by a banner and the release after
/// it.
fn release_in(file: &InputFile, offset: u64, len: u64) -> Result<Option<String>, Defect> {
    let finder = memmem::Finder::new(LINUX_BANNER);
    let overlap = LINUX_BANNER.len().saturating_add(release::TEXT_LEN) as u64;
    let mut buffer = vec![0; SEARCH_CHUNK];
    let mut done = 0u64;
    while done < len {
        let chunk_len =
            usize::try_from(len.saturating_sub(done)).map_or(SEARCH_CHUNK, |n| n.min(SEARCH_CHUNK));
        let chunk = buffer.get_mut(..chunk_len).unwrap_or_default();
        file.read_at(offset.saturating_add(done), chunk)?;
        for start in finder.find_iter(chunk) {
            let text = chunk.get(start.saturating_add(LINUX_BANNER.len())..).unwrap_or_default();
            let text = text.get(..release::TEXT_LEN).unwrap_or(text);
            if let Some(release) = release::parse(text) {
                return Ok(Some(release));
            }
        }
        if chunk_len < SEARCH_CHUNK {
            return Ok(None);
        }
        done = done.saturating_add((SEARCH_CHUNK as u64).saturating_sub(overlap));
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
