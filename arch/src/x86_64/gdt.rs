//! The global descriptor table that the first CPU starts with, and the segment registers that match it.
//!
//! Linux's 64-bit protocol wants code at selector 0x10 and data at 0x18, flat (Linux,
//! Documentation/arch/x86/boot.rst); PVH wants flat 32-bit segments and leaves the selectors open (Xen,
//! docs/misc/pvh.pandoc). Both use the same layout of the table.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::image::BootProtocol;
use super::layout::GDT;
use super::registers::{DescriptorTable, Segment, Segments};

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Null, unused, code, data, and the task descriptor, which takes two entries in 64-bit mode.
const ENTRIES: u16 = 6;
const ENTRY_LEN: u16 = 8;

/// Segment types (Intel SDM volume 3A, tables 3-1 and 3-2): code, execute/read, accessed; 32- or 64-bit task
/// state, busy. They are accessed and busy because loading a register would set these bits.
const TYPE_CODE: u8 = 0xb;
const TYPE_TASK_BUSY: u8 = 0xb;

/// Last byte of a task state segment without an I/O bitmap.
const TASK_LIMIT: u32 = 0x67;

/// Returns the segment registers for `protocol`.
pub(crate) fn segments(protocol: BootProtocol) -> Segments {
    let long = protocol == BootProtocol::Linux64;
    let flat = Segment { selector: DATA_SELECTOR, ..Segment::FLAT };
    Segments {
        code: Segment { selector: CODE_SELECTOR, type_: TYPE_CODE, db: !long, l: long, ..flat },
        data: flat,
        task: Segment {
            limit: TASK_LIMIT,
            selector: TASK_SELECTOR,
            type_: TYPE_TASK_BUSY,
            db: false,
            s: false,
            g: false,
            ..flat
        },
    }
}

/// Returns the GDTR for the table.
pub(crate) fn register() -> DescriptorTable {
    DescriptorTable { base: GDT, limit: ENTRIES.saturating_mul(ENTRY_LEN).saturating_sub(1) }
}

/// Writes the table for `protocol`.
pub(crate) fn write(memory: &GuestMemoryMmap, protocol: BootProtocol) -> Result<(), GuestMemoryError> {
    let segments = segments(protocol);
    let table =
        [0, 0, descriptor(&segments.code), descriptor(&segments.data), descriptor(&segments.task), 0u64];
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(GDT))
}

/// The 8 bytes of a segment descriptor (Intel SDM volume 3A, figure 3-8).
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.g { segment.limit >> 12 } else { segment.limit });
    let flag = |set: bool, bit: u32| u64::from(set) << bit;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.type_ & 0xf) << 40
        | flag(segment.s, 44)
        | u64::from(segment.dpl & 3) << 45
        | flag(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | flag(segment.l, 53)
        | flag(segment.db, 54)
        | flag(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mode_descriptors_have_the_architectural_values() {
        let segments = segments(BootProtocol::Linux64);
        assert_eq!(descriptor(&segments.code), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segments.data), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&segments.task), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn protected_mode_code_is_32_bit() {
        assert_eq!(descriptor(&segments(BootProtocol::Pvh).code), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn table_in_memory_matches_the_selectors() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        write(&memory, BootProtocol::Linux64).unwrap();
        let entry = |selector: u16| memory.read_obj::<u64>(GuestAddress(GDT + u64::from(selector))).unwrap();
        assert_eq!(entry(0), 0);
        assert_eq!(entry(0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(0x18), 0x00cf_9300_0000_ffff);
        assert_eq!(entry(0x20), 0x0000_8b00_0000_0067);
        assert_eq!(register(), DescriptorTable { base: GDT, limit: 47 });
    }
}
