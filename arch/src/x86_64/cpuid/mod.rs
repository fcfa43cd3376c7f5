//! CPUID: turns the leaves that KVM offers into those of one vCPU, in a machine that may have several.
//!
//! KVM answers KVM_GET_SUPPORTED_CPUID with the host CPU's own topology, which is not the guest's. Here each
//! vCPU is one core of a single package, without hyper-threads. Sources: Intel SDM volume 2A, CPUID; AMD APM
//! volume 3, appendix E.

pub use missing::{CpuFeature, missing_features, vendor_name};
use serde::{Deserialize, Serialize};
pub use xsave::{has_xsave, without_xsave};

mod missing;
mod xsave;

const LEAF_VENDOR: u32 = 0x0;
const LEAF_FEATURES: u32 = 0x1;
const LEAF_INTEL_CACHES: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_HYPERVISOR_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical CPU.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the logical CPUs are cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0x4000_0001, EAX: either version of kvm-clock (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const CLOCKSOURCE: u32 = 1 << 0;
const CLOCKSOURCE2: u32 = 1 << 3;

/// The frequency of the local APIC's timer under KVM: its bus ticks once per nanosecond.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// The signature of KVM in leaf 0x4000_0000: EBX, ECX, EDX.
const KVM_SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];

/// A CPUID leaf, as KVM takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf: EAX at the time of CPUID.
    pub function: u32,
    /// The sub-leaf: ECX at the time of CPUID.
    pub index: u32,
    /// Whether the answer depends on `index`.
    pub index_significant: bool,
    /// EAX that CPUID returns.
    pub eax: u32,
    /// EBX that CPUID returns.
    pub ebx: u32,
    /// ECX that CPUID returns.
    pub ecx: u32,
    /// EDX that CPUID returns.
    pub edx: u32,
}

/// The facts that differ from one vCPU or machine to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuIdentity {
    /// The APIC id, from 0.
    pub apic_id: u32,
    /// The number of vCPUs in the machine, at least 1.
    pub count: u32,
    /// Whether KVM offers the TSC-deadline mode of the local APIC timer (KVM_CAP_TSC_DEADLINE_TIMER). Its
    /// list of CPUID leaves does not show it.
    pub tsc_deadline: bool,
    /// The guest's TSC frequency, if KVM reports it (KVM_GET_TSC_KHZ).
    pub tsc_khz: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD, and Hygon, which has the same leaves.
    Amd,
    Other,
}

/// Returns the CPUID of one vCPU, given the leaves that KVM supports on this host. Leaves that are not about
/// identity, topology or frequency are passed on unchanged, and so are KVM's signature and feature leaves.
pub fn for_vcpu(supported: &[CpuidEntry], cpu: &CpuIdentity) -> Vec<CpuidEntry> {
    let vendor = vendor(supported);
    let mut entries: Vec<CpuidEntry> = supported
        .iter()
        .filter(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
        .map(|entry| adapted(*entry, cpu, vendor))
        .collect();
    for function in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if supported.iter().any(|entry| entry.function == function) {
            entries.extend(topology(function, cpu));
        }
    }
    add_timing_leaf(&mut entries, cpu);
    entries
}

fn vendor(supported: &[CpuidEntry]) -> Vendor {
    let Some(leaf) = supported.iter().find(|entry| entry.function == LEAF_VENDOR) else {
        return Vendor::Other;
    };
    let mut name = [0; 12];
    for (to, from) in
        name.iter_mut().zip([leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes))
    {
        *to = from;
    }
    match &name {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn adapted(mut entry: CpuidEntry, cpu: &CpuIdentity, vendor: Vendor) -> CpuidEntry {
    match entry.function {
        LEAF_FEATURES => adapt_features(&mut entry, cpu),
        LEAF_INTEL_CACHES => adapt_cache(&mut entry, cpu, true),
        LEAF_AMD_CACHES => adapt_cache(&mut entry, cpu, false),
        LEAF_TSC | LEAF_FREQUENCY if vendor == Vendor::Intel => adapt_frequency(&mut entry, cpu),
        LEAF_AMD_FEATURES if vendor == Vendor::Amd => set_flag(&mut entry.ecx, CMP_LEGACY, cpu.count > 1),
        LEAF_ADDRESS_SIZES if vendor == Vendor::Amd => {
            // Bits 7:0: cores less one; bits 15:12: bits of the APIC id that number them.
            let cores = cpu.count.saturating_sub(1).min(0xff);
            entry.ecx = entry.ecx & !0xf0ff | id_bits(cpu.count) << 12 | cores;
        }
        LEAF_AMD_TOPOLOGY => {
            // EBX bits 7:0: the core, bits 15:8: its threads less one; ECX: node 0 of 1.
            (entry.eax, entry.ebx, entry.ecx) = (cpu.apic_id, cpu.apic_id & 0xff, 0);
        }
        _ => {}
    }
    entry
}

fn adapt_features(entry: &mut CpuidEntry, cpu: &CpuIdentity) {
    // EBX bits 31:24: APIC id; bits 23:16: logical CPUs of the package.
    let count = cpu.count.min(0xff);
    entry.ebx = entry.ebx & 0xffff | (cpu.apic_id & 0xff) << 24 | count << 16;
    set_flag(&mut entry.ecx, X2APIC | HYPERVISOR, true);
    set_flag(&mut entry.ecx, TSC_DEADLINE, cpu.tsc_deadline);
    set_flag(&mut entry.edx, HTT, cpu.count > 1);
}

/// Adapts the sharing of one cache. Level 1 and 2 belong to one core, higher levels to the package.
fn adapt_cache(entry: &mut CpuidEntry, cpu: &CpuIdentity, has_core_count: bool) {
    // EAX bits 4:0: type, 0 ends the list; bits 7:5: level.
    if entry.eax & 0x1f == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let ids = cpu.count.checked_next_power_of_two().unwrap_or(u32::MAX).saturating_sub(1);
    let sharing = if level >= 3 { ids.min(0xfff) } else { 0 };
    // Bits 25:14: ids that share the cache, less one.
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    if has_core_count {
        // Bits 31:26, Intel only: ids of cores in the package, less one.
        entry.eax = entry.eax & 0x03ff_ffff | ids.min(0x3f) << 26;
    }
}

/// Fills in frequencies that KVM leaves at 0 although it knows the TSC's. A guest without kvm-clock reads
/// them. The crystal's frequency is set to the APIC bus's, because guests take the frequency of the APIC
/// timer from the crystal. The ratio is in MHz per 1000, so that `crystal kHz * numerator` fits the 32 bits
/// in which Linux multiplies. Other vendors have no such leaf.
fn adapt_frequency(entry: &mut CpuidEntry, cpu: &CpuIdentity) {
    let Some(tsc_khz) = cpu.tsc_khz else { return };
    let tsc_mhz = tsc_khz.saturating_add(500) / 1000;
    match entry.function {
        LEAF_TSC if entry.eax == 0 || entry.ebx == 0 => {
            (entry.eax, entry.ebx, entry.ecx) = (1000, tsc_mhz, APIC_BUS_KHZ.saturating_mul(1000));
        }
        // Base and maximum frequency in MHz. The bus frequency stays unknown.
        LEAF_FREQUENCY if entry.eax == 0 => (entry.eax, entry.ebx) = (tsc_mhz & 0xffff, tsc_mhz & 0xffff),
        _ => {}
    }
}

/// Builds the extended topology leaves: one thread per core, all cores in one package.
fn topology(function: u32, cpu: &CpuIdentity) -> [CpuidEntry; 3] {
    const SMT_LEVEL: u32 = 1 << 8;
    const CORE_LEVEL: u32 = 2 << 8;
    let level = |index: u32, shift: u32, count: u32, kind: u32| CpuidEntry {
        function,
        index,
        index_significant: true,
        eax: shift,
        ebx: count & 0xffff,
        ecx: kind | index,
        edx: cpu.apic_id,
    };
    [level(0, 0, 1, SMT_LEVEL), level(1, id_bits(cpu.count), cpu.count, CORE_LEVEL), level(2, 0, 0, 0)]
}

/// Adds the timing leaf that several hypervisors share: TSC and APIC bus frequency in kHz, for guests that do
/// not calibrate (for example FreeBSD). It lies above KVM's own leaves, so the maximum in the signature leaf
/// is raised to it. The leaves between them read as zero.
fn add_timing_leaf(entries: &mut Vec<CpuidEntry>, cpu: &CpuIdentity) {
    let Some(tsc_khz) = cpu.tsc_khz else { return };
    let taken = entries.iter().any(|entry| entry.function == LEAF_HYPERVISOR_TIMING);
    let signature = entries.iter_mut().find(|entry| is_kvm_signature(entry));
    let Some(signature) = signature.filter(|entry| !taken && entry.eax < LEAF_HYPERVISOR_TIMING) else {
        return;
    };
    signature.eax = LEAF_HYPERVISOR_TIMING;
    entries.push(CpuidEntry {
        function: LEAF_HYPERVISOR_TIMING,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..CpuidEntry::default()
    });
}

/// Returns whether these leaves offer kvm-clock, from which a guest has the date as well as the time.
#[must_use]
pub fn has_kvm_clock(entries: &[CpuidEntry]) -> bool {
    let offers = |entry: &CpuidEntry| {
        entry.function == LEAF_KVM_FEATURES && entry.eax & (CLOCKSOURCE | CLOCKSOURCE2) != 0
    };
    entries.iter().any(is_kvm_signature) && entries.iter().any(offers)
}

fn is_kvm_signature(entry: &CpuidEntry) -> bool {
    entry.function == LEAF_HYPERVISOR && [entry.ebx, entry.ecx, entry.edx] == KVM_SIGNATURE
}

/// Returns the number of bits of an APIC id that distinguish `count` CPUs.
fn id_bits(count: u32) -> u32 {
    count.checked_next_power_of_two().map_or(u32::BITS, u32::trailing_zeros)
}

fn set_flag(register: &mut u32, mask: u32, on: bool) {
    *register = if on { *register | mask } else { *register & !mask };
}

#[cfg(test)]
mod tests;
