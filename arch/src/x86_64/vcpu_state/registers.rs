//! The registers of a vCPU by name: Intel SDM volume 1, 3.4, and volume 3A, 2.1.

use serde::{Deserialize, Serialize};

/// General registers, instruction pointer and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// Segments, descriptor tables and control registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpecialRegisters {
    /// Code segment.
    pub cs: SegmentRegister,
    /// Data segment.
    pub ds: SegmentRegister,
    /// Extra data segment.
    pub es: SegmentRegister,
    /// Data segment with a base of its own in 64-bit mode.
    pub fs: SegmentRegister,
    /// Data segment with a base of its own in 64-bit mode.
    pub gs: SegmentRegister,
    /// Stack segment.
    pub ss: SegmentRegister,
    /// Task register.
    pub tr: SegmentRegister,
    /// Local descriptor table.
    pub ldtr: SegmentRegister,
    /// Global descriptor table.
    pub gdtr: DescriptorTableRegister,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTableRegister,
    /// Operating mode and states of the processor.
    pub cr0: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Architectural extensions.
    pub cr4: u64,
    /// Task priority: 4 bits.
    pub cr8: u64,
    /// Extended feature enable register (IA32_EFER).
    pub efer: u64,
    /// Address and mode of the local APIC (IA32_APIC_BASE).
    pub apic_base: u64,
    /// The vector of the external interrupt that the CPU is about to deliver, as a bitmap: bit n of word w is
    /// vector 64 w + n. At most one bit is set.
    pub interrupt_bitmap: [u64; 4],
}

/// A segment register with its hidden part (Intel SDM volume 3A, 3.4.3 and 3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentRegister {
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The type field: 4 bits.
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
    /// The bit that is available to system software.
    pub avl: bool,
    /// Whether the register holds a null selector (Intel SDM volume 3C, 24.4.1, "segment unusable").
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Bytes of the table less one.
    pub limit: u16,
}

/// An extended control register: XCR0, which selects the states that XSAVE manages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xcr {
    /// The number of the register.
    pub number: u32,
    /// Its value.
    pub value: u64,
}

/// Breakpoint registers (Intel SDM volume 3B, 17.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// Linear addresses of the breakpoints: DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR6: the conditions that the last debug exception was raised for. The upper 32 bits are 0.
    pub status: u64,
    /// DR7: the conditions that raise one. The upper 32 bits are 0.
    pub control: u64,
}
