//! The state in which the first CPU starts, as plain data. [`crate::x86_64::load::load`] makes it, and
//! `src/kvm` of the `coracle` crate turns it into KVM's structures.

use super::gdt;
use super::image::BootProtocol;
use super::layout::{BOOT_STACK_TOP, PML4, PVH_START_INFO, ZERO_PAGE};
use super::msr;

/// CR0: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0: extension type, fixed to 1 on every CPU since the 486.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, which long mode needs.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set. Interrupts are off, as both protocols demand.
const RFLAGS: u64 = 1 << 1;

/// The part of the first CPU's state that differs from its state after reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// General registers; those not named here are 0.
    pub registers: Registers,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the root of the page tables, 0 without paging.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The extended feature enable register.
    pub efer: u64,
    /// Segment registers.
    pub segments: Segments,
    /// Global descriptor table register.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table register: empty, so an exception before the kernel has its own is a triple
    /// fault.
    pub idt: DescriptorTable,
    /// Numbers and values of model-specific registers. They hold for each CPU of the machine.
    pub msrs: Vec<(u32, u64)>,
}

/// General registers of the first CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Instruction pointer: the entry of the kernel.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// The address of the zero page, in the Linux protocol.
    pub rsi: u64,
    /// The address of `hvm_start_info`, in the PVH protocol.
    pub rbx: u64,
    /// The flags register.
    pub rflags: u64,
}

/// Segment registers of the first CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
}

/// A segment register with its hidden part (Intel SDM volume 3A, 3.4.3 and 3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes.
    pub limit: u32,
    /// The visible part: offset of the descriptor in the GDT.
    pub selector: u16,
    /// The type field.
    pub type_: u8,
    /// Whether the segment is present.
    pub present: bool,
    /// The privilege level, 0 to 3.
    pub dpl: u8,
    /// The default size: 1 for 32-bit.
    pub db: bool,
    /// 1 for code and data, 0 for system segments.
    pub s: bool,
    /// 1 for 64-bit code.
    pub l: bool,
    /// 1 if the descriptor counts its limit in pages.
    pub g: bool,
}

impl Segment {
    /// A data segment of 4 GiB for 32-bit code at privilege level 0: read/write, accessed (Intel SDM volume
    /// 3A, table 3-1). The selector is that of the null descriptor.
    pub const FLAT: Segment = Segment {
        base: 0,
        limit: u32::MAX,
        selector: 0,
        type_: 3,
        present: true,
        dpl: 0,
        db: true,
        s: true,
        l: false,
        g: true,
    };
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Bytes of the table less one.
    pub limit: u16,
}

impl BootState {
    /// Returns the state for entering a kernel at `entry` by `protocol`, with the tables where the layout has
    /// them.
    pub(crate) fn new(protocol: BootProtocol, entry: u64) -> Self {
        let segments = gdt::segments(protocol);
        let registers = Registers { rip: entry, rsp: BOOT_STACK_TOP, rflags: RFLAGS, ..Registers::default() };
        let common = Self {
            registers,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            segments,
            gdt: gdt::register(),
            idt: DescriptorTable::default(),
            msrs: msr::boot_msrs(),
        };
        match protocol {
            BootProtocol::Linux64 => Self {
                registers: Registers { rsi: ZERO_PAGE, ..registers },
                cr0: common.cr0 | CR0_PG,
                cr3: PML4,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..common
            },
            BootProtocol::Pvh => Self { registers: Registers { rbx: PVH_START_INFO, ..registers }, ..common },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_starts_in_long_mode_with_the_zero_page() {
        let state = BootState::new(BootProtocol::Linux64, 0x100_0200);
        assert_eq!(state.registers.rip, 0x100_0200);
        assert_eq!((state.registers.rsi, state.registers.rbx), (ZERO_PAGE, 0));
        assert_eq!(state.registers.rflags, 0x2);
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x8000_0011, PML4, 0x20, 0x500));
        assert!(state.segments.code.l && !state.segments.code.db);
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_the_start_info() {
        let state = BootState::new(BootProtocol::Pvh, 0x100_0850);
        assert_eq!((state.registers.rsi, state.registers.rbx), (0, PVH_START_INFO));
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x11, 0, 0, 0));
        assert!(!state.segments.code.l && state.segments.code.db);
    }
}
