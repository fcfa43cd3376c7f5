//! Hides XSAVE, and every feature that needs it, from a guest. `src/kvm` applies this to KVM's list of leaves
//! on hosts where a guest could not rely on XSAVE. Sources: Intel SDM volume 1, chapter 13; volume 2A, CPUID;
//! AMD APM volume 3.

use super::{CpuidEntry, LEAF_AMD_FEATURES, LEAF_FEATURES};

/// Returns whether the leaves announce XSAVE.
pub fn has_xsave(entries: &[CpuidEntry]) -> bool {
    entries.iter().any(|entry| entry.function == LEAF_FEATURES && entry.ecx & XSAVE != 0)
}

/// Returns the same leaves for a CPU without XSAVE: without the leaves that describe its states, and without
/// the features whose registers it saves.
pub fn without_xsave(entries: &[CpuidEntry]) -> Vec<CpuidEntry> {
    let described = |entry: &&CpuidEntry| !STATE_LEAVES.contains(&entry.function);
    entries.iter().filter(described).map(|entry| hidden(*entry)).collect()
}

fn hidden(mut entry: CpuidEntry) -> CpuidEntry {
    let found =
        HIDDEN.iter().find(|(function, index, _)| (*function, *index) == (entry.function, entry.index));
    if let Some((_, _, [eax, ebx, ecx, edx])) = found {
        entry.eax &= !eax;
        entry.ebx &= !ebx;
        entry.ecx &= !ecx;
        entry.edx &= !edx;
    }
    entry
}

/// Leaves of XSAVE's states, tiles (AMX), tile multiplication, and AVX10.
const STATE_LEAVES: [u32; 4] = [0xd, 0x1d, 0x1e, 0x24];

/// Leaf 1 ECX.
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const F16C: u32 = 1 << 29;
const FMA: u32 = 1 << 12;
/// Leaf 7 EBX: AVX2, MPX; AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL.
const AVX2_AND_MPX: u32 = 1 << 5 | 1 << 14;
const AVX512_EBX: u32 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
/// Leaf 7 ECX: PKU, OSPKE, shadow stacks, VAES, VPCLMULQDQ; AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
const KEYS_AND_STACKS: u32 = 1 << 3 | 1 << 4 | 1 << 7;
const WIDE_CIPHERS: u32 = 1 << 9 | 1 << 10;
const AVX512_ECX: u32 = 1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14;
/// Leaf 7 EDX: AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; user interrupts, IBT; AMX BF16, tiles, INT8.
const AVX512_EDX: u32 = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 23;
const OTHER_STATES: u32 = 1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25;
/// Leaf 7.1 EAX: SHA512, SM3, SM4, AVX-VNNI, AVX-512 BF16, AMX FP16, AVX-IFMA.
const LATER_EAX: u32 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 21 | 1 << 23;
/// Leaf 7.1 EDX: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10.
const LATER_EDX: u32 = 1 << 4 | 1 << 5 | 1 << 8 | 1 << 10 | 1 << 19;
/// Leaf 0x8000_0001 ECX: XOP, LWP, FMA4.
const OF_AMD: u32 = 1 << 11 | 1 << 15 | 1 << 16;

/// Function, index, and the bits of EAX, EBX, ECX and EDX to clear.
const HIDDEN: [(u32, u32, [u32; 4]); 4] = [
    (LEAF_FEATURES, 0, [0, 0, XSAVE | OSXSAVE | AVX | F16C | FMA, 0]),
    (
        0x7,
        0,
        [
            0,
            AVX2_AND_MPX | AVX512_EBX,
            KEYS_AND_STACKS | WIDE_CIPHERS | AVX512_ECX,
            AVX512_EDX | OTHER_STATES,
        ],
    ),
    (0x7, 1, [LATER_EAX, 0, 0, LATER_EDX]),
    (LEAF_AMD_FEATURES, 0, [0, 0, OF_AMD, 0]),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the leaves about XSAVE of an emulated CPU (QEMU 7.2, `max`).
    fn emulated() -> Vec<CpuidEntry> {
        let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
            function,
            index,
            index_significant: matches!(function, 0x7 | 0xd),
            eax,
            ebx,
            ecx,
            edx,
        };
        vec![
            leaf(0x1, 0, [0x60fb1, 0x10800, 0xf7f8_3203, 0xf8b_fbfd]),
            leaf(0x7, 0, [0, 0x0198_03ab, 0x1_020c, 0x2000_0000]),
            leaf(0xd, 0, [0x207, 0xa88, 0xa88, 0]),
            leaf(0xd, 1, [0x5, 0, 0, 0]),
            leaf(0xd, 2, [0x100, 0x240, 0, 0]),
            leaf(0xd, 9, [0x8, 0xa80, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0x1_8975, 0x2fd3_fbff]),
        ]
    }

    #[test]
    fn xsave_goes_with_its_leaves_and_with_what_needs_it() {
        let made = without_xsave(&emulated());
        let answers: Vec<_> =
            made.iter().map(|leaf| (leaf.function, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)).collect();
        let expected = [
            (0x1, 0x60fb1, 0x10800, 0xc3f8_2203, 0xf8b_fbfd),
            (0x7, 0, 0x0198_038b, 0x1_0004, 0x2000_0000),
            (0x8000_0001, 0, 0, 0x0175, 0x2fd3_fbff),
        ];
        assert_eq!(answers, expected);
        assert!(has_xsave(&emulated()) && !has_xsave(&made));
    }

    #[test]
    fn sub_leaves_have_masks_of_their_own() {
        let all = |index| CpuidEntry {
            function: 0x7,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..CpuidEntry::default()
        };
        let made = without_xsave(&[all(0), all(1), all(2)]);
        assert_eq!((made[0].eax, made[1].eax, made[2]), (u32::MAX, !LATER_EAX, all(2)));
        assert_eq!(made[1].ebx, u32::MAX);
        assert_eq!(without_xsave(&made), made, "a second time changes nothing");
    }
}
