//! The built-in template: x86-64-v2 (System V ABI, AMD64 supplement, 3.1.1, "micro-architecture levels").
//!
//! A guest gets the instructions of this level and no others. Features that a kernel needs to run or to
//! protect itself stay as the host has them: paging features, invariant TSC, the always-running APIC timer,
//! SMEP, SMAP and UMIP, and the controls against speculative execution, whose absence would leave the guest
//! open.

use super::{CpuTemplate, LeafRule, OtherLeaves, Rule};

pub(super) fn template() -> CpuTemplate {
    let kept = |leaf| LeafRule {
        leaf,
        subleaf: 0,
        eax: Rule::default(),
        ebx: Rule::default(),
        ecx: Rule::default(),
        edx: Rule::default(),
    };
    let none = Rule::keeping(0);
    let mut cpuid: Vec<LeafRule> = WHOLE_LEAVES.iter().map(|leaf| kept(*leaf)).collect();
    // Caches: one sub-leaf each; CPUs have four or five.
    for subleaf in 0..8 {
        cpuid.push(LeafRule { subleaf, ..kept(0x4) });
        cpuid.push(LeafRule { subleaf, ..kept(0x8000_001d) });
    }
    let level = |kept: u32, required: u32| Rule { keep: kept, set: required };
    cpuid.extend([
        LeafRule {
            ecx: level(LEAF_1_ECX_KEPT, LEAF_1_ECX),
            edx: level(LEAF_1_EDX_KEPT, LEAF_1_EDX),
            ..kept(0x1)
        },
        LeafRule { eax: Rule::keeping(ARAT), ebx: none, ecx: none, edx: none, ..kept(0x6) },
        LeafRule {
            eax: none,
            ebx: Rule::keeping(SMEP | SMAP),
            ecx: Rule::keeping(UMIP),
            edx: Rule::keeping(SPECULATION),
            ..kept(0x7)
        },
        LeafRule {
            ecx: level(EXT_ECX_KEPT, LAHF),
            edx: level(EXT_EDX_KEPT, SYSCALL | NX | LONG_MODE),
            ..kept(0x8000_0001)
        },
        LeafRule { eax: none, ebx: none, ecx: none, edx: Rule::keeping(INVARIANT_TSC), ..kept(0x8000_0007) },
        LeafRule { ebx: Rule::keeping(AMD_SPECULATION), ..kept(0x8000_0008) },
    ]);
    CpuTemplate { other_leaves: OtherLeaves::Hide, cpuid, msrs: Vec::new() }
}

/// Leaves without features: maximum leaf and vendor, cache descriptors, KVM's features, name, old cache
/// leaves, AMD's topology.
const WHOLE_LEAVES: &[u32] = &[
    0x0,
    0x2,
    0x4000_0001,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_001e,
];

/// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT.
const LEAF_1_ECX: u32 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
/// x2APIC, TSC-deadline, hypervisor.
const LEAF_1_ECX_KEPT: u32 = LEAF_1_ECX | 1 << 21 | 1 << 24 | 1 << 31;
/// FPU, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, PAT, MMX, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = 1 << 0
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 9
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// The features above, and VME, DE, PSE, MCE, SEP, MTRR, MCA, PSE-36, CLFSH, self-snoop, HTT.
const LEAF_1_EDX_KEPT: u32 = LEAF_1_EDX
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 7
    | 1 << 11
    | 1 << 12
    | 1 << 14
    | 1 << 17
    | 1 << 19
    | 1 << 27
    | 1 << 28;
/// Leaf 6 EAX: the APIC timer runs in every power state.
const ARAT: u32 = 1 << 2;
/// Leaf 7 EBX.
const SMEP: u32 = 1 << 7;
const SMAP: u32 = 1 << 20;
/// Leaf 7 ECX.
const UMIP: u32 = 1 << 2;
/// Leaf 7 EDX: MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, IA32_ARCH_CAPABILITIES, SSBD.
const SPECULATION: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// Leaf 0x8000_0001 ECX: LAHF and SAHF in 64-bit mode; CmpLegacy and extended APIC space describe the
/// machine.
const LAHF: u32 = 1 << 0;
const EXT_ECX_KEPT: u32 = LAHF | 1 << 1 | 1 << 3;
/// Leaf 0x8000_0001 EDX. AMD repeats bits of leaf 1 there: 9:0, 17:12, 24:23.
const SYSCALL: u32 = 1 << 11;
const NX: u32 = 1 << 20;
const LONG_MODE: u32 = 1 << 29;
const EXT_EDX_KEPT: u32 = SYSCALL | NX | LONG_MODE | 0x0183_f3ff;
/// Leaf 0x8000_0007 EDX.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x8000_0008 EBX: IBPB, IBRS, STIBP, SSBD, virtual SSBD, SSBD not needed.
const AMD_SPECULATION: u32 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
