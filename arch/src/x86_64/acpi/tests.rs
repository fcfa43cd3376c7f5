//! Tests of the ACPI tables: written to guest memory, then found and read as a kernel does.
#![allow(clippy::arithmetic_side_effects)]

use super::*;

const GENERATION: u128 = 0x0102_0304;

fn written(cpus: u8) -> GuestMemoryMmap {
    written_for(&config(cpus))
}

fn written_for(config: &AcpiConfig<'_>) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert_eq!(write_tables(&memory, config).unwrap(), ACPI_TABLES);
    memory
}

fn config(cpus: u8) -> AcpiConfig<'static> {
    AcpiConfig { cpus, virtio: &[], has_com2: false, has_rtc: true, generation_id: GENERATION }
}

fn bytes_at(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
    bytes[offset..offset + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Reads the table at `address` and checks its alignment, length, checksum, signature and place.
fn table_at(memory: &GuestMemoryMmap, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let len = number(&bytes_at(memory, address, 8), 4, 4);
    assert!(address >= ACPI_TABLES && address + len <= ACPI_TABLES_END);
    assert_eq!(address % 16, 0);
    let table = bytes_at(memory, address, len as usize);
    assert_eq!(&table[..4], signature);
    assert_eq!(sum(&table), 0, "checksum of {signature:?}");
    assert_eq!(&table[10..16], b"CORACL");
    table
}

/// RSDP, then XSDT, then the FADT and the MADT it lists.
fn fadt_and_madt(memory: &GuestMemoryMmap) -> (Vec<u8>, Vec<u8>) {
    let rsdp = bytes_at(memory, ACPI_TABLES, 36);
    let xsdt = table_at(memory, number(&rsdp, 24, 8), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table_at(memory, number(&xsdt, 36, 8), b"FACP");
    let madt = table_at(memory, number(&xsdt, 44, 8), b"APIC");
    (fadt, madt)
}

#[test]
fn rsdp_is_revision_2_with_both_checksums() {
    let rsdp = bytes_at(&written(1), ACPI_TABLES, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((rsdp[15], number(&rsdp, 20, 4)), (2, 36));
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
}

#[test]
fn fadt_describes_a_reduced_machine_with_sleep_and_reset_ports() {
    let (fadt, _) = fadt_and_madt(&written(1));
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "version 6.5");
    let flags = number(&fadt, 112, 4);
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "HW_REDUCED_ACPI, RESET_REG_SUP");
    assert_eq!(number(&fadt, 109, 2), 0b101, "legacy devices, no 8042, no VGA, a CMOS clock");
    // System I/O, 8 bits wide, byte access.
    let register = |offset| (fadt[offset..offset + 4] == [1, 8, 0, 1]).then(|| number(&fadt, offset + 4, 8));
    assert_eq!((register(116), fadt[128]), (Some(0x602), 1));
    assert_eq!((register(244), register(256)), (Some(0x600), Some(0x601)));
    assert!(fadt[148..244].iter().all(|byte| *byte == 0), "no event, control or timer block");
}

#[test]
fn madt_lists_every_cpu_the_ioapic_and_nmi() {
    let (_, madt) = fadt_and_madt(&written(3));
    assert_eq!((number(&madt, 36, 4), number(&madt, 40, 4)), (0xfee0_0000, 0));
    let expected: [&[u8]; 5] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(madt[44..], expected.concat());
}

#[test]
fn dsdt_holds_power_off_serial_and_clock() {
    let memory = written(1);
    let (fadt, _) = fadt_and_madt(&memory);
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    assert_eq!(dsdt[8], 2);
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"), "Name (_S5, Package (5, 0, 0, 0))");
    // _HID of each device, packed (ACPI 6.5, 19.3.4), its ports and its interrupt.
    assert!(contains(b"COM1") && contains(&[0x41, 0xd0, 0x05, 0x01]), "PNP0501");
    assert!(contains(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]) && contains(&[0x89, 6, 0, 3, 1, 4, 0, 0, 0]));
    assert!(contains(b"RTC0") && contains(&[0x41, 0xd0, 0x0b, 0x00]), "PNP0B00");
    assert!(contains(&[0x47, 1, 0x70, 0, 0x70, 0, 1, 2]) && contains(&[0x89, 6, 0, 3, 1, 8, 0, 0, 0]));
}

#[test]
fn clock_that_is_not_announced_is_in_neither_table() {
    let memory = written_for(&AcpiConfig { has_rtc: false, ..config(1) });
    let (fadt, _) = fadt_and_madt(&memory);
    assert_eq!(number(&fadt, 109, 2), 0b10_0101, "legacy devices, no VGA, no CMOS clock");
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"COM1") && !contains(b"RTC0") && !contains(&[0x41, 0xd0, 0x0b, 0x00]));
}

#[test]
fn dsdt_tells_the_power_button_by_the_event_device() {
    let memory = written(1);
    let (fadt, _) = fadt_and_madt(&memory);
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"PWRB") && contains(&[0x41, 0xd0, 0x0c, 0x0c]), "PNP0C0C");
    assert!(contains(b"GED0") && contains(b"\x0dACPI0013\0"));
    assert!(contains(&[0x89, 6, 0, 3, 1, 9, 0, 0, 0]), "interrupt 9, edge, active high");
    assert!(contains(b"\x5b\x80EREG\x01\x0b\x03\x06\x01"), "OperationRegion (EREG, SystemIO, 0x603, 1)");
    assert!(contains(b"\x5b\x81\x0bEREG\x41EVTS\x08"), "Field (EREG, ByteAcc, NoLock, WriteAsZeros)");
    // Local0 = EVTS; If (Local0 & 2) { Notify (\_SB.VGEN, 0x80) }, and the same for 1 and \_SB.PWRB
    let method: &[u8] = b"_EVT\x09\x70EVTS\x60\xa0\x13\x7b\x60\x0a\x02\x00\x86\\\x2e_SB_VGEN\x0a\x80\
        \xa0\x12\x7b\x60\x01\x00\x86\\\x2e_SB_PWRB\x0a\x80";
    assert!(contains(method), "{dsdt:x?}");
}

#[test]
fn generation_id_is_where_the_dsdt_says() {
    let memory = written(1);
    let (fadt, _) = fadt_and_madt(&memory);
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"\x08_HID\x0dVMGENCTR\0") && contains(b"\x08_CID\x0dVM_Gen_Counter\0"));
    assert!(contains(b"\x08_DDN\x0dVM_Gen_Counter\0"));
    assert!(contains(b"\x08ADDR\x12\x08\x02\x0c\x00\xe0\x0f\x00\x00"), "Package (0xfe000, 0): {dsdt:x?}");
    let id = |memory| number(&bytes_at(memory, 0xf_e000, 16), 0, 8);
    assert_eq!(id(&memory), GENERATION as u64);
    write_generation_id(&memory, 7).unwrap();
    assert_eq!(id(&memory), 7);
}

#[test]
fn dsdt_holds_pvpanic() {
    let memory = written(1);
    let (fadt, _) = fadt_and_madt(&memory);
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"\x0dQEMU0001\0") && contains(&[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1]));
}

#[test]
fn dsdt_holds_each_virtio_device_with_its_window_and_interrupt() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let virtio: Vec<_> = (0..).map_while(VirtioMmio::nth).collect();
    assert_eq!(virtio.len(), 17);
    write_tables(
        &memory,
        &AcpiConfig { cpus: 255, virtio: &virtio, has_com2: false, has_rtc: true, generation_id: GENERATION },
    )
    .unwrap();
    let (fadt, _) = fadt_and_madt(&memory);
    let dsdt = table_at(&memory, number(&fadt, 140, 8), b"DSDT");
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(contains(b"\x0dLNRO0005\0") && contains(b"VR00") && contains(b"VR10") && !contains(b"VR11"));
    // Memory32Fixed (ReadWrite, 0xD0001000, 0x1000), then interrupt 6, edge, active high.
    assert!(contains(&[0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 6, 0, 0, 0]));
}

#[test]
fn tables_of_255_cpus_fit_their_area() {
    let (_, madt) = fadt_and_madt(&written(255));
    assert_eq!(madt.len(), 44 + 255 * 8 + 12 + 6);
}

#[test]
fn memory_without_the_area_is_an_error() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xe_0000)]).unwrap();
    let error = write_tables(
        &memory,
        &AcpiConfig { cpus: 1, virtio: &[], has_com2: false, has_rtc: true, generation_id: GENERATION },
    )
    .unwrap_err();
    assert!(matches!(error, AcpiError::Write(_)), "{error}");
}
