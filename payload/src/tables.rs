//! The memory image of a payload: start-up code, page tables, descriptor tables, body, stack. Called by
//! `elf`.
//!
//! The layout is done when the image is made, so that almost nothing has to run in ring 0 before the body
//! does.

use crate::Ring;
use crate::bodies::start_code;

/// The bytes of an image from [`BASE`] on, and its entries.
pub(crate) struct Image {
    /// The content of the file.
    pub bytes: Vec<u8>,
    /// Bytes in memory: the file content and the stack.
    pub memory_size: u64,
    /// Address of the 64-bit entry.
    pub entry64: u64,
    /// Address of the 32-bit (PVH) entry.
    pub entry32: u32,
}

impl Image {
    /// Builds an image that runs `body` at `ring`.
    pub(crate) fn new(body: &[u8], ring: Ring) -> Image {
        let start = start_code(ring);
        let mut bytes = vec![0u8; BODY + body.len()];
        put(&mut bytes, 0, start.code);
        put_page_tables(&mut bytes);
        put_descriptors(&mut bytes);
        put(&mut bytes, BODY, body);
        let memory_size = (STACK_TOP) as u64;
        assert!(bytes.len() < STACK_TOP - 0x1000, "a payload body is larger than the room before its stack");
        Image {
            bytes,
            memory_size,
            entry64: BASE + start.entry64 as u64,
            entry32: BASE as u32 + start.entry32 as u32,
        }
    }
}

/// An identity map of the first 4 GiB by 2 MiB pages, open to ring 3. Intel SDM vol. 3, "4-Level Paging".
fn put_page_tables(bytes: &mut [u8]) {
    const PRESENT_WRITE_USER: u64 = 0b111;
    const PAGE_2M: u64 = 1 << 7;
    put_u64(bytes, PML4, (BASE + PDPT as u64) | PRESENT_WRITE_USER);
    for gib in 0..4 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        put_u64(bytes, PDPT + gib * 8, (BASE + directory as u64) | PRESENT_WRITE_USER);
        for entry in 0..512 {
            let address = ((gib * 512 + entry) as u64) << 21;
            put_u64(bytes, directory + entry * 8, address | PAGE_2M | PRESENT_WRITE_USER);
        }
    }
}

/// GDT, its pointers, and a TSS whose I/O permission bitmap opens every port to ring 3.
fn put_descriptors(bytes: &mut [u8]) {
    let tss = BASE + TSS as u64;
    let tss_limit = (TSS_BYTES - 1) as u64;
    let tss_low = (tss_limit & 0xffff) | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    let gdt = [
        0,
        0x00cf_9b00_0000_ffff, // 0x08: 32-bit code, ring 0
        0x00af_9b00_0000_ffff, // 0x10: 64-bit code, ring 0
        0x00cf_9300_0000_ffff, // 0x18: data, ring 0
        0x00cf_f300_0000_ffff, // 0x20: data, ring 3
        0x00af_fb00_0000_ffff, // 0x28: 64-bit code, ring 3
        tss_low,               // 0x30: TSS, 16 bytes
        tss >> 32,
    ];
    for (index, descriptor) in gdt.iter().enumerate() {
        put_u64(bytes, GDT + index * 8, *descriptor);
    }
    put(bytes, GDT_POINTER, &((gdt.len() * 8 - 1) as u16).to_le_bytes());
    put_u64(bytes, GDT_POINTER + 2, BASE + GDT as u64);
    put_u64(bytes, TSS + 4, BASE + RING0_STACK_TOP as u64);
    put(bytes, TSS + 102, &TSS_BITMAP.to_le_bytes());
    put(bytes, TSS + TSS_BYTES - 1, &[0xff]);
}

/// Copies `value` into `bytes` at the offset `at`.
#[expect(
    clippy::indexing_slicing,
    reason = "offsets are constants of this crate: a wrong one must fail the tests, which build every payload"
)]
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

/// The load address of the image. The first megabyte is left to the boot protocols.
pub(crate) const BASE: u64 = 0x10_0000;

// Offsets from BASE. `src/asm/start.s` has the same figures.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGE_DIRECTORIES: usize = 0x3000;
const GDT_POINTER: usize = 0x7000;
const GDT: usize = 0x7010;
const TSS: usize = 0x7100;
const TSS_BITMAP: u16 = 104;
/// The TSS proper, one bit per port, and the byte of ones that has to follow (SDM vol. 1, "I/O Permission Bit
/// Map").
const TSS_BYTES: usize = TSS_BITMAP as usize + 65536 / 8 + 1;
const BODY: usize = 0xa000;
const RING0_STACK_TOP: usize = 0x1_7000;
const STACK_TOP: usize = 0x1_8000;
