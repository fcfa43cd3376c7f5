//! The layout of the machine: guest-physical addresses, ports and interrupts.
//!
//! The tables of this crate, the wiring of the devices and KVM's memory slots all take their numbers from
//! here, so that the tables cannot differ from the machine. Nothing here touches guest memory.

/// Bytes of one page.
pub const PAGE_SIZE: u64 = 0x1000;

/// Global descriptor table of the first CPU (a few entries, see the `gdt` module).
pub const GDT: u64 = 0x500;

/// `hvm_start_info` of the PVH protocol, followed in the same page by its memory map and module list.
pub const PVH_START_INFO: u64 = 0x6000;

/// The "zero page" (`struct boot_params`) of the Linux boot protocol, one page.
pub const ZERO_PAGE: u64 = 0x7000;

/// Initial stack pointer: the page below [`PML4`] is the stack. Linux sets its own; small payloads use this
/// one.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;

/// Root of the initial page tables: one page.
pub const PML4: u64 = 0x9000;

/// Second level of the initial page tables: one page.
pub const PDPT: u64 = 0xa000;

/// Third level of the initial page tables: [`PAGE_DIRECTORIES`] pages, each mapping 1 GiB.
pub const PAGE_DIRECTORY: u64 = 0xb000;

/// Page directories of the initial page tables: together they map the first 4 GiB, RAM and devices alike.
pub const PAGE_DIRECTORIES: u64 = 4;

/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;

/// Bytes from [`CMDLINE`] that are kept for the command line, its NUL included: far above the 2048 of Linux.
pub const CMDLINE_AREA: u64 = 0x1_0000;

/// End of the low RAM that a kernel may use; the 1 KiB above it is where a BIOS keeps its extended data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;

/// End of the extended BIOS data area, start of what was video memory on a PC.
pub const EBDA_END: u64 = 0xa_0000;

/// ACPI tables, the RSDP first. ACPI 6.5, 5.2.5.1: the area up to 1 MiB is where a kernel without a hint
/// scans.
pub const ACPI_TABLES: u64 = 0xe_0000;

/// End of the area for ACPI tables.
pub const ACPI_TABLES_END: u64 = GENERATION_ID;

/// The generation id of the machine (16 bytes), in a page of its own, where ACPI tables describe the machine:
/// Microsoft's specification "Virtual Machine Generation ID" lets a guest map that page.
pub const GENERATION_ID: u64 = 0xf_e000;

/// The MP floating pointer, followed by the MP configuration table, on a machine without ACPI tables: the
/// MultiProcessor Specification 1.4, chapter 4, has kernels scan the 64 KiB below 1 MiB.
pub const MP_TABLE: u64 = 0xf_0000;

/// End of the area for the MP table.
pub const MP_TABLE_END: u64 = RESET_VECTOR;

/// The entry of a PC's BIOS, ffff:0 in real mode: 16 bytes that reset the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;

/// The lowest address for kernels. Everything below it is for the tables of this module.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the hole in RAM for memory-mapped devices.
pub const MMIO_HOLE: u64 = 0xc000_0000;

/// End of the hole in RAM for memory-mapped devices; the rest of RAM continues here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// First address for virtio-mmio register windows, which follow one another.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of one virtio-mmio register window.
pub const VIRTIO_MMIO_LEN: u32 = 0x1000;
/// Interrupts (GSIs) of virtio devices, in order of use: the inputs of the I/O APIC that no other device has.
/// The first inputs of a PC are left out, because kernels without ACPI expect a timer there.
pub const VIRTIO_IRQS: [u32; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Registers of the I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;

/// Registers of each CPU's local APIC.
pub const LAPIC: u32 = 0xfee0_0000;

/// The page KVM uses on Intel CPUs for the page table of a guest without paging
/// (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The three pages KVM uses on Intel CPUs for the task state of a guest in real mode (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First address after the pages of [`KVM_IDENTITY_MAP`] and [`KVM_TSS`].
pub const KVM_PAGES_END: u64 = 0xfffc_0000;

/// Port of the first serial device, a 16550A with 8 registers.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports of the first serial device.
pub const COM1_PORTS: u16 = 8;
/// Interrupt (GSI) of the first serial device, edge-triggered.
pub const COM1_IRQ: u32 = 4;

/// Port of the second serial device, a 16550A as well. An agent may use it.
pub const COM2_PORT: u16 = 0x2f8;
/// Interrupt (GSI) of the second serial device, edge-triggered.
pub const COM2_IRQ: u32 = 3;

/// Index port of the CMOS clock; the data port follows it.
pub const RTC_PORT: u16 = 0x70;
/// Ports of the CMOS clock.
pub const RTC_PORTS: u16 = 2;
/// Interrupt (GSI) of the CMOS clock, edge-triggered.
pub const RTC_IRQ: u32 = 8;

/// Data port of the keyboard controller, of which only the CPU reset command exists.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command and status port of the keyboard controller.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// The ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The ACPI sleep status register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The ACPI reset register (ACPI 6.5, 4.8.3.6).
pub const RESET_PORT: u16 = 0x602;
/// The value that the guest writes to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of power-off (S5), as in the DSDT's `_S5`. The guest writes it to bits 4:2 of
/// [`SLEEP_CONTROL_PORT`], together with [`SLEEP_ENABLE`].
pub const SLEEP_TYPE_S5: u8 = 5;
/// The bit of [`SLEEP_CONTROL_PORT`] that starts the sleep (ACPI 6.5, table 4.19).
pub const SLEEP_ENABLE: u8 = 1 << 5;

/// The event register. A read returns and clears the events that the Generic Event Device has for the guest.
pub const EVENT_PORT: u16 = 0x603;
/// The bit of [`EVENT_PORT`] for a press of the power button.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// The bit of [`EVENT_PORT`] for a new generation id: the machine goes on from a snapshot.
pub const EVENT_NEW_GENERATION: u8 = 1 << 1;
/// Interrupt (GSI) of the Generic Event Device, edge-triggered: the ACPI interrupt of other machines.
pub const EVENT_IRQ: u32 = 9;

/// Port of the pvpanic device, the first ISA port of QEMU's `docs/specs/pvpanic.rst`.
pub const PVPANIC_PORT: u16 = 0x505;

/// The port where a bare payload writes its exit code.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// The port to which a guest's first process writes a byte once it runs. Like [`DEBUG_EXIT_PORT`], it lies in
/// the range of a PC's coprocessor (0xf0 to 0xff), which Linux does not use.
pub const BOOT_MARK_PORT: u16 = 0xf8;

/// The address and interrupt of a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// First address of its register window of [`VIRTIO_MMIO_LEN`] bytes.
    pub base: u64,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

impl VirtioMmio {
    /// Returns the window and interrupt of the device with index `number`; `None` from the length of
    /// [`VIRTIO_IRQS`] on.
    pub fn nth(number: usize) -> Option<VirtioMmio> {
        let gsi = *VIRTIO_IRQS.get(number)?;
        let offset = u64::from(VIRTIO_MMIO_LEN).checked_mul(u64::try_from(number).ok()?)?;
        Some(VirtioMmio { base: VIRTIO_MMIO.checked_add(offset)?, gsi })
    }

    /// Returns the kernel parameter that announces the device to a Linux without ACPI (`virtio_mmio.device`
    /// in Linux's `kernel-parameters.txt`).
    pub fn cmdline_word(self) -> String {
        let VirtioMmio { base, gsi } = self;
        format!("virtio_mmio.device={VIRTIO_MMIO_LEN:#x}@{base:#x}:{gsi}")
    }
}

/// A range of guest-physical memory that is RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes; never 0.
    pub len: u64,
}

/// The kind of a range of physical memory, as the guest's memory map has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// RAM that the kernel may use.
    Ram,
    /// Reserved: tables, or addresses of devices.
    Reserved,
}

/// An entry of the memory map that a kernel gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// Whether the kernel may use it.
    pub kind: MemoryKind,
}

/// Returns the ranges of `bytes` of RAM: from 0 up to [`MMIO_HOLE`], and the rest from [`MMIO_HOLE_END`] on.
///
/// No RAM gives no region. A size that would pass the end of the 64-bit address space is cut there.
pub fn ram_regions(bytes: u64) -> Vec<RamRegion> {
    let low = bytes.min(MMIO_HOLE);
    let high = bytes.saturating_sub(low).min(u64::MAX.saturating_sub(MMIO_HOLE_END));
    [RamRegion { start: 0, len: low }, RamRegion { start: MMIO_HOLE_END, len: high }]
        .into_iter()
        .filter(|region| region.len > 0)
        .collect()
}

/// Returns the end of the RAM below the hole in a machine with `bytes` of RAM.
pub fn low_ram_end(bytes: u64) -> u64 {
    bytes.min(MMIO_HOLE)
}

/// Returns the memory map of a machine with `bytes` of RAM, sorted by address, without overlaps.
///
/// The zero page's e820 table and the PVH memory map carry it.
pub fn memory_map(bytes: u64) -> Vec<MemoryMapEntry> {
    let ram = |start, end| (start, end, MemoryKind::Ram);
    let reserved = |start, end| (start, end, MemoryKind::Reserved);
    let low_end = low_ram_end(bytes);
    let high_end = ram_regions(bytes)
        .last()
        .filter(|region| region.start == MMIO_HOLE_END)
        .map_or(0, |region| region.start.saturating_add(region.len));
    [
        ram(0, LOW_RAM_END.min(low_end)),
        reserved(LOW_RAM_END, EBDA_END),
        reserved(ACPI_TABLES, HIGH_MEMORY),
        ram(HIGH_MEMORY, low_end),
        reserved(KVM_IDENTITY_MAP, KVM_PAGES_END),
        ram(MMIO_HOLE_END, high_end),
    ]
    .into_iter()
    .filter_map(|(start, end, kind)| {
        let len = end.checked_sub(start).filter(|len| *len > 0)?;
        Some(MemoryMapEntry { start, len, kind })
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn overlaps_hole(start: u64, len: u64) -> bool {
        start < MMIO_HOLE_END && start + len > MMIO_HOLE
    }

    #[test]
    fn ram_below_the_hole_is_one_region() {
        assert_eq!(ram_regions(128 << 20), [RamRegion { start: 0, len: 128 << 20 }]);
        assert_eq!(ram_regions(3 * GIB), [RamRegion { start: 0, len: 3 * GIB }]);
    }

    #[test]
    fn ram_past_the_hole_continues_at_4_gib() {
        let expected = [RamRegion { start: 0, len: 3 * GIB }, RamRegion { start: 4 * GIB, len: 4096 }];
        assert_eq!(ram_regions(3 * GIB + 4096), expected);
    }

    #[test]
    fn no_ram_gives_no_region() {
        assert_eq!(ram_regions(0), []);
    }

    #[test]
    fn memory_map_of_128_mib_lists_every_range() {
        let map: Vec<_> = memory_map(128 << 20).iter().map(|e| (e.start, e.start + e.len, e.kind)).collect();
        let expected = [
            (0, 0x9_fc00, MemoryKind::Ram),
            (0x9_fc00, 0xa_0000, MemoryKind::Reserved),
            (0xe_0000, 0x10_0000, MemoryKind::Reserved),
            (0x10_0000, 128 << 20, MemoryKind::Ram),
            (0xfffb_c000, 0xfffc_0000, MemoryKind::Reserved),
        ];
        assert_eq!(map, expected);
    }

    #[test]
    fn virtio_devices_have_windows_in_the_hole_and_interrupts_of_their_own() {
        let places: Vec<_> = (0..).map_while(VirtioMmio::nth).collect();
        assert_eq!(places.len(), VIRTIO_IRQS.len());
        let last = places.last().unwrap();
        assert!(last.base + u64::from(VIRTIO_MMIO_LEN) <= u64::from(IOAPIC));
        for gsi in [COM1_IRQ, COM2_IRQ, RTC_IRQ, EVENT_IRQ] {
            assert!(places.iter().all(|place| place.gsi != gsi));
        }
        assert_eq!(places[1].cmdline_word(), "virtio_mmio.device=0x1000@0xd0001000:6");
    }

    #[test]
    fn boot_areas_do_not_overlap() {
        let areas = [
            (GDT, PVH_START_INFO),
            (PVH_START_INFO, PVH_START_INFO + PAGE_SIZE),
            (ZERO_PAGE, ZERO_PAGE + PAGE_SIZE),
            (BOOT_STACK_TOP & !(PAGE_SIZE - 1), BOOT_STACK_TOP),
            (PML4, PML4 + PAGE_SIZE),
            (PDPT, PDPT + PAGE_SIZE),
            (PAGE_DIRECTORY, PAGE_DIRECTORY + PAGE_DIRECTORIES * PAGE_SIZE),
            (CMDLINE, CMDLINE + CMDLINE_AREA),
            (LOW_RAM_END, EBDA_END),
            (ACPI_TABLES, ACPI_TABLES_END),
            (GENERATION_ID, GENERATION_ID + PAGE_SIZE),
            (RESET_VECTOR, HIGH_MEMORY),
        ];
        for pair in areas.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{:#x?} overlaps {:#x?}", pair[0], pair[1]);
        }
    }

    proptest! {
        #[test]
        fn regions_hold_all_bytes_outside_the_hole(bytes in 0..(1u64 << 46)) {
            let regions = ram_regions(bytes);
            prop_assert_eq!(regions.iter().map(|r| r.len).sum::<u64>(), bytes);
            for region in &regions {
                prop_assert!(region.len > 0);
                prop_assert!(!overlaps_hole(region.start, region.len));
            }
            for pair in regions.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
        }

        #[test]
        fn memory_map_is_sorted_and_its_ram_lies_in_regions(bytes in 0..(1u64 << 46)) {
            let map = memory_map(bytes);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            let regions = ram_regions(bytes);
            for entry in map.iter().filter(|e| e.kind == MemoryKind::Ram) {
                let inside = |r: &RamRegion| r.start <= entry.start && entry.start + entry.len <= r.start + r.len;
                prop_assert!(regions.iter().any(inside), "{:#x?}", entry);
            }
        }

        #[test]
        fn any_size_gives_regions_inside_the_address_space(bytes in any::<u64>()) {
            for region in ram_regions(bytes) {
                prop_assert!(region.start.checked_add(region.len).is_some());
            }
        }
    }
}
