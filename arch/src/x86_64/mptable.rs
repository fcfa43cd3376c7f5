//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4): processors and interrupt wiring for a
//! kernel without ACPI.
//!
//! The builder calls either [`write_table`] or [`crate::x86_64::acpi::write_tables`], never both: a kernel
//! that found both would see each device twice.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{COM1_IRQ, IOAPIC, LAPIC, MP_TABLE, MP_TABLE_END};

/// The reason why the table was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MpTableError {
    /// The table is larger than the area for it.
    #[error("the MP table takes {needed} bytes, but only {room} are kept for it")]
    TooLarge {
        /// Bytes of the table and its pointer.
        needed: u64,
        /// Bytes of the area.
        room: u64,
    },
    /// Guest memory does not hold the area.
    #[error("cannot write the MP table to guest memory: {0}")]
    Write(GuestMemoryError),
}

impl From<GuestMemoryError> for MpTableError {
    fn from(error: GuestMemoryError) -> MpTableError {
        MpTableError::Write(error)
    }
}

/// Writes the floating pointer and the configuration table for `cpus` processors to [`MP_TABLE`]. APIC ids
/// start at 0. `interrupts` are those of the devices that not every machine has.
///
/// # Errors
/// The area is not RAM, or is too small for the table.
pub fn write_table(memory: &GuestMemoryMmap, cpus: u8, interrupts: &[u32]) -> Result<(), MpTableError> {
    let table = configuration_table(cpus, interrupts);
    let bytes = [floating_pointer().as_slice(), &table].concat();
    let (needed, room) = (bytes.len() as u64, MP_TABLE_END.saturating_sub(MP_TABLE));
    if needed > room {
        return Err(MpTableError::TooLarge { needed, room });
    }
    Ok(memory.write_slice(&bytes, GuestAddress(MP_TABLE))?)
}

/// Builds the floating pointer (section 4.1). Feature bytes of 0: there is a configuration table, and no PIC
/// mode to leave.
fn floating_pointer() -> [u8; POINTER_LEN] {
    let mut pointer = [0; POINTER_LEN];
    let table = (MP_TABLE as u32).saturating_add(POINTER_LEN as u32);
    fill(&mut pointer, 0, b"_MP_");
    fill(&mut pointer, 4, &table.to_le_bytes());
    fill(&mut pointer, 8, &[(POINTER_LEN / PARAGRAPH) as u8, SPECIFICATION]);
    let checksum = checksum(&pointer);
    fill(&mut pointer, 10, &[checksum]);
    pointer
}

/// Builds the header (section 4.2) and the entries (section 4.3), sorted by type.
fn configuration_table(cpus: u8, interrupts: &[u32]) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = (0..cpus).map(processor).collect();
    entries.push(isa_bus());
    entries.push(io_apic());
    entries.extend(
        ISA_INTERRUPTS
            .iter()
            .chain(interrupts)
            .map(|irq| interrupt(IO_INTERRUPT, INT, *irq as u8, IO_APIC_ID, *irq as u8)),
    );
    entries.push(interrupt(LOCAL_INTERRUPT, EXTINT, 0, ALL_LOCAL_APICS, 0));
    entries.push(interrupt(LOCAL_INTERRUPT, NMI, 0, ALL_LOCAL_APICS, 1));

    let mut table = vec![0; HEADER_LEN];
    table.extend(entries.concat());
    // 255 processors make 5.2 KB, so the length fits.
    let (length, count) = (table.len() as u16, entries.len() as u16);
    fill(&mut table, 0, b"PCMP");
    fill(&mut table, 4, &length.to_le_bytes());
    fill(&mut table, 6, &[SPECIFICATION]);
    fill(&mut table, 8, b"CORACLE CORACLE     ");
    fill(&mut table, 34, &count.to_le_bytes());
    fill(&mut table, 36, &LAPIC.to_le_bytes());
    let checksum = checksum(&table);
    fill(&mut table, 7, &[checksum]);
    table
}

/// Builds an entry of section 4.3.1. Signature and feature flags stay 0: kernels take them from CPUID.
fn processor(apic_id: u8) -> Vec<u8> {
    let flags = if apic_id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
    let mut entry = vec![PROCESSOR, apic_id, LOCAL_APIC_VERSION, flags];
    entry.resize(PROCESSOR_LEN, 0);
    entry
}

/// Builds the entry of section 4.3.2.
fn isa_bus() -> Vec<u8> {
    [&[BUS, ISA_BUS_ID], b"ISA   ".as_slice()].concat()
}

/// Builds the entry of section 4.3.3.
fn io_apic() -> Vec<u8> {
    [&[IO_APIC, IO_APIC_ID, IO_APIC_VERSION, ENABLED], IOAPIC.to_le_bytes().as_slice()].concat()
}

/// Builds an entry of section 4.3.4 or 4.3.5. Polarity and trigger mode follow the bus: active high and edge.
fn interrupt(entry: u8, kind: u8, source_irq: u8, to_apic: u8, to_pin: u8) -> Vec<u8> {
    vec![entry, kind, 0, 0, ISA_BUS_ID, source_irq, to_apic, to_pin]
}

/// Writes `value` at `offset`, which lies inside `bytes`.
fn fill(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes.iter_mut().skip(offset).zip(value).for_each(|(byte, value)| *byte = *value);
}

/// Returns the byte that makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Interrupts of the devices that every machine has. Each is the I/O APIC's input of the same number.
const ISA_INTERRUPTS: [u32; 1] = [COM1_IRQ];

/// Version 1.4 of the specification.
const SPECIFICATION: u8 = 4;
/// The unit of the floating pointer's length, in bytes.
const PARAGRAPH: usize = 16;
const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const PROCESSOR_LEN: usize = 20;

/// Entry types (table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Flags of processors and I/O APICs.
const ENABLED: u8 = 1 << 0;
const BOOTSTRAP: u8 = 1 << 1;
/// An integrated local APIC (Intel SDM volume 3A, 11.4.8), and the I/O APIC of `devices::legacy::ioapic`.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x20;
/// The id that the MADT has too.
const IO_APIC_ID: u8 = 0;
const ISA_BUS_ID: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn written(cpus: u8) -> (Vec<u8>, Vec<u8>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write_table(&memory, cpus, &[]).unwrap();
        let read = |address, len| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        };
        let length: u16 = memory.read_obj(GuestAddress(MP_TABLE + 16 + 4)).unwrap();
        (read(MP_TABLE, 16), read(MP_TABLE + 16, length.into()))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn floating_pointer_is_where_kernels_scan_and_points_at_the_table() {
        let (pointer, table) = written(1);
        assert_eq!(pointer[..10], *b"_MP_\x10\x00\x0f\x00\x01\x04");
        assert_eq!(pointer[11..], [0; 5], "a configuration table, virtual wire mode");
        assert_eq!(table[..4], *b"PCMP");
        assert_eq!((sum(&pointer), sum(&table)), (0, 0));
    }

    #[test]
    fn table_lists_processors_bus_io_apic_and_interrupts() {
        let (_, table) = written(2);
        assert_eq!(table[6], 4, "version 1.4");
        assert_eq!(table[8..28], *b"CORACLE CORACLE     ");
        assert_eq!(table[34..36], [7, 0], "entries");
        assert_eq!(table[36..40], [0, 0, 0xe0, 0xfe]);
        let processor = |id, flags| [&[0, id, 0x14, flags], [0; 16].as_slice()].concat();
        let expected: [&[u8]; 7] = [
            &processor(0, 3),
            &processor(1, 1),
            b"\x01\x00ISA   ",
            &[2, 0, 0x20, 1, 0, 0, 0xc0, 0xfe],
            &[3, 0, 0, 0, 0, 4, 0, 4],
            &[4, 3, 0, 0, 0, 0, 0xff, 0],
            &[4, 1, 0, 0, 0, 0, 0xff, 1],
        ];
        assert_eq!(table[44..], expected.concat());
    }

    #[test]
    fn table_of_255_processors_fits_its_area() {
        let (_, table) = written(255);
        assert_eq!(table.len(), 44 + 255 * 20 + 5 * 8);
        assert_eq!(sum(&table), 0);
    }

    #[test]
    fn interrupts_of_other_devices_follow_the_fixed_ones() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write_table(&memory, 1, &[5, 23]).unwrap();
        let mut entries = [0; 16];
        memory.read_slice(&mut entries, GuestAddress(MP_TABLE + 16 + 44 + 20 + 8 + 8 + 8)).unwrap();
        assert_eq!(entries, [3, 0, 0, 0, 0, 5, 0, 5, 3, 0, 0, 0, 0, 23, 0, 23]);
    }

    #[test]
    fn memory_without_the_area_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xe_0000)]).unwrap();
        assert!(matches!(write_table(&memory, 1, &[]), Err(MpTableError::Write(_))));
    }
}
