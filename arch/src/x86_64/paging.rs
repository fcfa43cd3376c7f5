//! The page tables that a kernel is entered with in 64-bit mode: the first 4 GiB mapped onto themselves.
//!
//! All pages have 2 MiB, because KVM without hardware virtualization cannot run a guest with 1 GiB pages.
//! They map all of 4 GiB, so that a small payload reaches RAM, the APICs and later devices without tables of
//! its own.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{PAGE_DIRECTORIES, PAGE_DIRECTORY, PAGE_SIZE, PDPT, PML4};

/// Entry bits (Intel SDM volume 3A, 4.5.4): present and writable; in a page directory, a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// Bytes mapped by one entry of a page directory.
const LARGE_PAGE_SHIFT: u32 = 21;
/// Entries of each table.
const ENTRIES: u64 = 512;

/// Writes the page tables.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    let directories = (PAGE_DIRECTORY..).step_by(PAGE_SIZE as usize).take(PAGE_DIRECTORIES as usize);
    let directories: Vec<u8> =
        directories.flat_map(|directory| (directory | PRESENT_WRITABLE).to_le_bytes()).collect();
    memory.write_slice(&directories, GuestAddress(PDPT))?;
    let pages: Vec<u8> = (0..PAGE_DIRECTORIES.saturating_mul(ENTRIES))
        .flat_map(|page| (page << LARGE_PAGE_SHIFT | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    memory.write_slice(&pages, GuestAddress(PAGE_DIRECTORY))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Walks the tables as the CPU does; `None` if nothing is mapped.
    fn translate(memory: &GuestMemoryMmap, address: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| -> Option<u64> {
            let entry: u64 = memory.read_obj(GuestAddress(table + (index & 511) * 8)).unwrap();
            (entry & 0b11 == 0b11).then_some(entry)
        };
        let pdpt = entry(PML4, address >> 39)? & !0xfff;
        let directory = entry(pdpt, address >> 30)? & !0xfff;
        let page = entry(directory, address >> 21)?;
        assert_ne!(page & LARGE_PAGE, 0);
        Some((page & !0x1f_ffff) + (address & 0x1f_ffff))
    }

    #[test]
    fn first_4_gib_map_onto_themselves_and_nothing_else_is_mapped() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
        write(&memory).unwrap();
        for address in (0..4u64 << 30).step_by(0x1f_f123) {
            assert_eq!(translate(&memory, address), Some(address));
        }
        assert_eq!(translate(&memory, 0xfee0_0020), Some(0xfee0_0020));
        assert_eq!(translate(&memory, 4 << 30), None);
        assert_eq!(translate(&memory, 1 << 39), None);
    }
}
