//! The name of a kernel's function at an address, from the symbol table of its ELF file (System V gABI,
//! chapter 4).
//!
//! The file is read only when a guest has died. It is untrusted: whatever it holds costs a bounded number of
//! reads and a bounded amount of memory, and a damaged table gives no name.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use coracle_arch::regular_file;
use coracle_arch::x86_64::input_file::InputFile;
use serde::Serialize;

/// A function and an offset in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Function {
    /// The function's name.
    pub name: String,
    /// The offset from its start in bytes.
    pub offset: u64,
}

impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

/// The file of a loaded kernel, which is opened again if its symbols are needed.
#[derive(Debug, Clone)]
pub(super) struct SymbolFile {
    path: PathBuf,
    identity: Identity,
}

/// The properties that distinguish a file from one that has taken its place.
type Identity = (u64, u64, u64, i64, i64);

impl SymbolFile {
    /// Remembers the open `file` of a kernel. Returns `None` if it is not a file of the host.
    pub(super) fn of(file: &InputFile) -> Option<SymbolFile> {
        Some(SymbolFile { path: file.path().to_owned(), identity: identity(&file.metadata()?) })
    }

    /// Returns the functions at `addresses`: linked (virtual) addresses, or physical ones where the kernel
    /// was loaded, as early code has them. None where the file tells nothing; nothing at all when it is
    /// another file now.
    pub(super) fn functions_at(&self, addresses: &[u64]) -> Vec<Option<Function>> {
        self.lookup(addresses).unwrap_or_default()
    }

    fn lookup(&self, addresses: &[u64]) -> Option<Vec<Option<Function>>> {
        let (file, metadata) = regular_file::open(&self.path).ok()?;
        if identity(&metadata) != self.identity {
            return None;
        }
        let elf = Elf::open(&file)?;
        let linked: Vec<u64> =
            addresses.iter().map(|address| elf.linked_address(*address).unwrap_or(*address)).collect();
        elf.symbol_table()?.functions_at(&linked)
    }
}

fn identity(metadata: &std::fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// An ELF64 file in little-endian order.
struct Elf<'a> {
    file: &'a File,
    header: [u8; HEADER_LEN],
}

impl<'a> Elf<'a> {
    fn open(file: &'a File) -> Option<Elf<'a>> {
        let header = read(file, 0)?;
        header.starts_with(b"\x7fELF\x02\x01").then_some(Elf { file, header })
    }

    /// Returns the first symbol table that has names.
    fn symbol_table(&self) -> Option<SymbolTable<'a>> {
        let count = u16_at(&self.header, 60)?.min(MAX_HEADERS);
        let symbols = (0..count).filter_map(|index| self.section(index)).find(|s| s.kind == SHT_SYMTAB)?;
        let names = self.section(u16::try_from(symbols.link).ok()?).filter(|s| s.kind == SHT_STRTAB)?;
        let right = symbols.entry_len == SYMBOL_LEN as u64 && symbols.len <= MAX_SYMBOLS_LEN;
        right.then_some(SymbolTable { file: self.file, symbols, names })
    }

    fn section(&self, index: u16) -> Option<Section> {
        let table = u64_at(&self.header, 40)?;
        let entry_len = u16_at(&self.header, 58)?;
        let offset = table.checked_add(u64::from(index) * u64::from(entry_len))?;
        let header: [u8; SECTION_HEADER_LEN] = read(self.file, offset)?;
        Some(Section {
            kind: u32_at(&header, 4)?,
            offset: u64_at(&header, 24)?,
            len: u64_at(&header, 32)?,
            link: u32_at(&header, 40)?,
            entry_len: u64_at(&header, 56)?,
        })
    }

    /// Returns the linked address of the byte that was loaded at `physical`.
    fn linked_address(&self, physical: u64) -> Option<u64> {
        let table = u64_at(&self.header, 32)?;
        let entry_len = u16_at(&self.header, 54)?;
        let count = u16_at(&self.header, 56)?.min(MAX_HEADERS);
        (0..count).find_map(|index| {
            let offset = table.checked_add(u64::from(index) * u64::from(entry_len))?;
            let header: [u8; PROGRAM_HEADER_LEN] = read(self.file, offset)?;
            let inside = physical.checked_sub(u64_at(&header, 24)?)?;
            let loaded = u32_at(&header, 0)? == PT_LOAD && inside < u64_at(&header, 40)?;
            if loaded { u64_at(&header, 16)?.checked_add(inside) } else { None }
        })
    }
}

struct Section {
    kind: u32,
    offset: u64,
    len: u64,
    link: u32,
    entry_len: u64,
}

struct SymbolTable<'a> {
    file: &'a File,
    symbols: Section,
    names: Section,
}

impl SymbolTable<'_> {
    /// Returns, for each address, the last function that starts at or before it, unless it has ended by then.
    /// Makes one pass over the table, however many addresses there are.
    fn functions_at(&self, addresses: &[u64]) -> Option<Vec<Option<Function>>> {
        let mut nearest: Vec<Option<Symbol>> = vec![None; addresses.len()];
        let mut buffer = vec![0; SYMBOL_LEN * SYMBOLS_AT_ONCE];
        let mut done = 0;
        while done < self.symbols.len {
            let left = usize::try_from(self.symbols.len - done).unwrap_or(usize::MAX);
            let length = left.min(buffer.len());
            let part = buffer.get_mut(..length)?;
            self.file.read_exact_at(part, self.symbols.offset.checked_add(done)?).ok()?;
            for symbol in part.chunks_exact(SYMBOL_LEN).filter_map(Symbol::parse) {
                for (address, nearest) in addresses.iter().zip(&mut nearest) {
                    if symbol.value <= *address
                        && nearest.is_none_or(|nearest| symbol.is_nearer_than(&nearest))
                    {
                        *nearest = Some(symbol);
                    }
                }
            }
            done += length as u64;
        }
        Some(
            addresses.iter().zip(nearest).map(|(address, symbol)| self.function(*address, symbol?)).collect(),
        )
    }

    fn function(&self, address: u64, symbol: Symbol) -> Option<Function> {
        let offset = address.checked_sub(symbol.value)?;
        let length = if symbol.size == 0 { MAX_LABEL_LEN } else { symbol.size };
        if offset >= length {
            return None;
        }
        Some(Function { name: self.name(symbol.name)?, offset })
    }

    fn name(&self, offset: u32) -> Option<String> {
        let left = self.names.len.checked_sub(u64::from(offset))?;
        let mut bytes = [0; MAX_NAME_LEN];
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_NAME_LEN);
        let bytes = bytes.get_mut(..room)?;
        self.file.read_exact_at(bytes, self.names.offset.checked_add(u64::from(offset))?).ok()?;
        let name = bytes.split(|&byte| byte == 0).next()?;
        let shown = name.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' });
        Some(shown.collect::<String>()).filter(|name| !name.is_empty())
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    name: u32,
    value: u64,
    size: u64,
    is_function: bool,
}

impl Symbol {
    /// Parses a function, or a label of assembly code, that is defined in a section.
    fn parse(bytes: &[u8]) -> Option<Symbol> {
        let kind = bytes.get(4)? & 0xf;
        let section = u16_at(bytes, 6)?;
        let defined = section != SHN_UNDEF && section < SHN_LORESERVE;
        let code = kind == STT_FUNC || kind == STT_NOTYPE;
        (defined && code).then_some(Symbol {
            name: u32_at(bytes, 0)?,
            value: u64_at(bytes, 8)?,
            size: u64_at(bytes, 16)?,
            is_function: kind == STT_FUNC,
        })
    }

    /// Returns whether this symbol is the better one. Of two at one address, a function is better than a
    /// label.
    fn is_nearer_than(&self, other: &Symbol) -> bool {
        (self.value, self.is_function) > (other.value, other.is_function)
    }
}

fn read<const LENGTH: usize>(file: &File, offset: u64) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn bytes_at<const LENGTH: usize>(bytes: &[u8], offset: usize) -> Option<[u8; LENGTH]> {
    bytes.get(offset..)?.get(..LENGTH)?.try_into().ok()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

const HEADER_LEN: usize = 64;
const SECTION_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const SYMBOL_LEN: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHN_UNDEF: u16 = 0;
const SHN_LORESERVE: u16 = 0xff00;
const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
const PT_LOAD: u32 = 1;

/// The largest number of headers of segments and of sections that are read. Each costs a read, and for
/// segments one per address. A kernel has some sixty.
const MAX_HEADERS: u16 = 512;
/// Symbols per read: 64 KiB of the table.
const SYMBOLS_AT_ONCE: usize = 2730;
/// The largest symbol table that is searched. A distribution's kernel has 5 MiB.
const MAX_SYMBOLS_LEN: u64 = 64 << 20;
/// The largest distance from a label without a size to an address that counts as inside it.
const MAX_LABEL_LEN: u64 = 0x1_0000;
/// The longest part of a name that is shown. Names in the kernel have at most 512 characters, and most are
/// below 40.
const MAX_NAME_LEN: usize = 128;

#[cfg(test)]
mod tests;
