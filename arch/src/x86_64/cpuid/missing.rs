//! Finds the features that a guest was shown and that another CPU lacks, by their names.

use std::fmt;

use super::{CpuidEntry, LEAF_VENDOR};
use crate::x86_64::cpu_template::features_of;

/// A feature that a guest was shown: one bit of a CPUID leaf. Displayed, it is the name that Linux has for it
/// (arch/x86/include/asm/cpufeatures.h), or else its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeature {
    /// The leaf: EAX at the time of CPUID.
    pub leaf: u32,
    /// The sub-leaf: ECX at the time of CPUID.
    pub subleaf: u32,
    /// The register with the bit: EAX, EBX, ECX or EDX.
    pub register: &'static str,
    /// The number of the bit, 0 to 31.
    pub bit: u8,
}

impl CpuFeature {
    fn name(&self) -> Option<&'static str> {
        let Self { leaf, subleaf, register, bit } = *self;
        let (_, names) = NAMES.iter().find(|(place, _)| *place == (leaf, subleaf, register))?;
        names.split(' ').nth(bit.into()).filter(|name| *name != "-")
    }
}

impl fmt::Display for CpuFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, subleaf, register, bit } = self;
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "bit {bit} of {register} in CPUID leaf {leaf:#x}.{subleaf}"),
        }
    }
}

/// Returns the features of `shown`, the leaves of one vCPU, that are missing in `host`, those that KVM
/// supports or shows on another host. Identity and topology do not count. At most 64 are returned.
pub fn missing_features(shown: &[CpuidEntry], host: &[CpuidEntry]) -> Vec<CpuFeature> {
    const MOST: usize = 64;
    let mut missing = Vec::new();
    for entry in shown {
        let (leaf, subleaf) = (entry.function, entry.index);
        let own = host.iter().find(|other| (other.function, other.index) == (leaf, subleaf));
        let own = own.copied().unwrap_or_default();
        let registers = [
            ("EAX", entry.eax & !own.eax),
            ("EBX", entry.ebx & !own.ebx),
            ("ECX", entry.ecx & !own.ecx),
            ("EDX", entry.edx & !own.edx),
        ];
        for ((register, lacks), features) in registers.into_iter().zip(features_of(leaf, subleaf)) {
            let lacks = lacks & features & !set_by_the_guest(leaf, subleaf, register);
            let bits = (0..32_u8).filter(|bit| lacks >> bit & 1 != 0);
            missing.extend(bits.map(|bit| CpuFeature { leaf, subleaf, register, bit }));
            if missing.len() >= MOST {
                missing.truncate(MOST);
                return missing;
            }
        }
    }
    missing
}

/// Returns the vendor in the leaves, such as `GenuineIntel`, without control characters. `None` without a
/// leaf 0.
pub fn vendor_name(entries: &[CpuidEntry]) -> Option<String> {
    let leaf = entries.iter().find(|entry| entry.function == LEAF_VENDOR)?;
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    Some(bytes.as_flattened().escape_ascii().to_string())
}

/// Returns the bits that follow from what the guest has set in CR4, so that KVM's list does not have them:
/// OSPKE. (OSXSAVE is not among the features of leaf 1.)
fn set_by_the_guest(leaf: u32, subleaf: u32, register: &str) -> u32 {
    if (leaf, subleaf, register) == (0x7, 0, "ECX") { 1 << 4 } else { 0 }
}

/// Leaf, sub-leaf and register, and the names of its bits from 0 on.
const NAMES: [((u32, u32, &str), &str); 10] = [
    (
        (0x1, 0, "ECX"),
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
         sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        (0x1, 0, "EDX"),
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
         sse sse2 ss ht tm ia64 pbe",
    ),
    (
        (0x7, 0, "EBX"),
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx \
         rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd \
         sha_ni avx512bw avx512vl",
    ),
    (
        (0x7, 0, "ECX"),
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b \
         enqcmd sgx_lc pks",
    ),
    (
        (0x7, 0, "EDX"),
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
         tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile \
         amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    (
        (0x7, 1, "EAX"),
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs \
         wrmsrns - amx_fp16 - avx_ifma - - lam",
    ),
    ((0xd, 1, "EAX"), "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        (0x8000_0001, 0, "ECX"),
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
         fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    (
        (0x8000_0001, 0, "EDX"),
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
         fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        (0x8000_0008, 0, "EBX"),
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - - - - - - \
         amd_ssbd virt_ssbd amd_ssb_no",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, index, index_significant: true, eax, ebx, ecx, edx }
    }

    fn names(shown: &[CpuidEntry], host: &[CpuidEntry]) -> Vec<String> {
        missing_features(shown, host).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn features_that_are_missing_are_named() {
        let shown = [
            leaf(0x1, 0, [0x1234, u32::MAX, 1 << 28 | 1 << 12 | 1 << 27, 1 << 28]),
            leaf(0x7, 0, [0, 1 << 5 | 1 << 31, 1 << 3 | 1 << 4, 0]),
            leaf(0xd, 1, [0b1_1111, 0, 0, 0]),
            leaf(0x8000_0021, 0, [1 << 2, 0, 0, 0]),
            leaf(0x8000_0008, 0, [1, 1 << 26, 0, 0]),
        ];
        assert_eq!(names(&shown, &shown), [""; 0]);
        let host = [leaf(0x1, 0, [0, 0, 1 << 12, 0]), leaf(0x7, 0, [0, 1 << 5, 1 << 3, 0])];
        let expected = [
            "avx",
            "avx512vl",
            "xsaveopt",
            "xsavec",
            "xgetbv1",
            "xsaves",
            "xfd",
            "bit 2 of EAX in CPUID leaf 0x80000021.0",
            "amd_ssb_no",
        ];
        assert_eq!(names(&shown, &host), expected);
        assert_eq!(names(&host, &shown), [""; 0], "more than was shown");
    }

    #[test]
    fn names_stand_at_their_bits() {
        let at = |leaf, subleaf, register, bit| CpuFeature { leaf, subleaf, register, bit }.name();
        for ((leaf, subleaf, register), names) in NAMES {
            assert!(names.split(' ').count() <= 32, "{leaf:#x} {register}");
            assert_eq!(at(leaf, subleaf, register, 32), None);
        }
        // Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
        assert_eq!(at(0x1, 0, "ECX", 31), Some("hypervisor"));
        assert_eq!(at(0x1, 0, "EDX", 31), Some("pbe"));
        assert_eq!(at(0x7, 0, "EBX", 29), Some("sha_ni"));
        assert_eq!(at(0x7, 0, "ECX", 22), Some("rdpid"));
        assert_eq!(at(0x7, 0, "ECX", 31), Some("pks"));
        assert_eq!(at(0x7, 0, "EDX", 20), Some("ibt"));
        assert_eq!(at(0x7, 0, "EDX", 31), Some("spec_ctrl_ssbd"));
        assert_eq!(at(0x7, 1, "EAX", 23), Some("avx_ifma"));
        assert_eq!(at(0x8000_0001, 0, "ECX", 29), Some("mwaitx"));
        assert_eq!(at(0x8000_0001, 0, "EDX", 29), Some("lm"));
        assert_eq!(at(0x8000_0008, 0, "EBX", 24), Some("amd_ssbd"));
        assert_eq!(at(0x1, 0, "ECX", 16), None);
    }

    #[test]
    fn list_of_a_hostile_state_is_short() {
        let shown: Vec<CpuidEntry> = (0..1000).map(|index| leaf(0x7, index, [u32::MAX; 4])).collect();
        assert_eq!(missing_features(&shown, &[]).len(), 64);
    }

    #[test]
    fn vendor_is_shown_without_control_characters() {
        let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
        assert_eq!(vendor_name(&[leaf(0, 0, [0, ebx, ecx, edx])]).as_deref(), Some("GenuineIntel"));
        assert_eq!(
            vendor_name(&[leaf(0, 0, [0, 27, 0, 0])]).map(|name| name.contains('\u{1b}')),
            Some(false)
        );
        assert_eq!(vendor_name(&[]), None);
    }
}
