//! Tests of the CPUID rules, on leaves made by hand.
#![allow(clippy::arithmetic_side_effects)]

use super::*;

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn vendor_leaf([ebx, ecx, edx]: [u32; 3]) -> CpuidEntry {
    leaf(0, [0x1f, ebx, ecx, edx])
}

fn kvm_leaf() -> CpuidEntry {
    leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d])
}

fn cpu(apic_id: u32, count: u32) -> CpuIdentity {
    CpuIdentity { apic_id, count, tsc_deadline: true, tsc_khz: None }
}

fn only(entries: &[CpuidEntry], function: u32) -> CpuidEntry {
    let found: Vec<_> = entries.iter().filter(|entry| entry.function == function).collect();
    assert_eq!(found.len(), 1, "leaf {function:#x}: {found:x?}");
    *found[0]
}

fn answer(entry: CpuidEntry) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

#[test]
fn features_carry_identity_and_hypervisor_bit() {
    let supported = [leaf(1, [0x000a_0655, 0xffff_0800, 1 << 3, 1 << 4])];
    let features = only(&for_vcpu(&supported, &cpu(3, 4)), 1);
    assert_eq!(features.eax, 0x000a_0655);
    assert_eq!(features.ebx, 0x0304_0800);
    assert_eq!(features.ecx, 1 << 3 | 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(features.edx, 1 << 4 | 1 << 28);
}

#[test]
fn one_cpu_without_tsc_deadline_clears_both_flags() {
    let supported = [leaf(1, [0, 0, u32::MAX, u32::MAX])];
    let identity = CpuIdentity { tsc_deadline: false, ..cpu(0, 1) };
    let features = only(&for_vcpu(&supported, &identity), 1);
    assert_eq!(features.ebx, 0x0001_0000);
    assert_eq!(features.ecx & TSC_DEADLINE, 0);
    assert_eq!(features.edx & HTT, 0);
}

#[test]
fn topology_leaves_are_rebuilt_where_the_host_has_them() {
    let host = |index| CpuidEntry { index, ..leaf(0xb, [7, 7, 7, 7]) };
    let entries = for_vcpu(&[host(0), host(1)], &cpu(5, 6));
    let answers: Vec<_> = entries.iter().map(|entry| (entry.index, answer(*entry))).collect();
    let expected = [(0, [0, 1, 0x100, 5]), (1, [3, 6, 0x201, 5]), (2, [0, 0, 2, 5])];
    assert_eq!(answers, expected);
    assert!(entries.iter().all(|entry| entry.function == 0xb && entry.index_significant));
    assert_eq!(for_vcpu(&[leaf(7, [0; 4])], &cpu(0, 2)).len(), 1, "no leaf is invented");
    assert_eq!(for_vcpu(&[host(0), leaf(0x1f, [0; 4])], &cpu(0, 2)).len(), 6);
}

#[test]
fn caches_are_private_up_to_level_2_and_shared_above() {
    // Type in bits 4:0, level in 7:5; all sharing bits set as if the host had many threads.
    let host = |level: u32| leaf(4, [0xffff_c000 | level << 5 | 1, 1, 2, 3]);
    let sharing = |entry: CpuidEntry| (entry.eax >> 14 & 0xfff, entry.eax >> 26);
    let entries = for_vcpu(&[host(1), host(2), host(3), leaf(4, [0; 4])], &cpu(0, 6));
    let found: Vec<_> = entries.iter().map(|entry| sharing(*entry)).collect();
    assert_eq!(found, [(0, 7), (0, 7), (7, 7), (0, 0)]);
    assert_eq!(entries[0].eax & 0x3fff, 0x21);
    assert_eq!((entries[0].ebx, entries[0].ecx, entries[0].edx), (1, 2, 3));
}

#[test]
fn amd_leaves_tell_cores_and_no_threads() {
    let supported = [
        vendor_leaf(AMD),
        leaf(0x8000_0001, [0; 4]),
        leaf(0x8000_0008, [0x3030, 0, 0xffff_ffff, 0]),
        leaf(0x8000_001d, [0x03ff_c000 | 3 << 5 | 3, 0, 0, 0]),
        leaf(0x8000_001e, [9, 9, 9, 0]),
    ];
    let entries = for_vcpu(&supported, &cpu(2, 3));
    assert_eq!(only(&entries, 0x8000_0001).ecx, CMP_LEGACY);
    assert_eq!(only(&entries, 0x8000_0008).ecx, 0xffff_2f02);
    assert_eq!(only(&entries, 0x8000_001d).eax, 3 << 14 | 3 << 5 | 3);
    assert_eq!(answer(only(&entries, 0x8000_001e)), [2, 2, 0, 0]);
}

#[test]
fn address_sizes_of_intel_stay() {
    let sizes = leaf(0x8000_0008, [0x3930, 0, 0, 0]);
    assert_eq!(only(&for_vcpu(&[vendor_leaf(INTEL), sizes], &cpu(1, 4)), 0x8000_0008), sizes);
}

#[test]
fn unknown_frequencies_of_intel_are_filled_and_known_ones_stay() {
    let identity = CpuIdentity { tsc_khz: Some(2_499_998), ..cpu(0, 1) };
    let zeros = [vendor_leaf(INTEL), leaf(0x15, [0; 4]), leaf(0x16, [0; 4])];
    let entries = for_vcpu(&zeros, &identity);
    let tsc = only(&entries, 0x15);
    assert_eq!(answer(tsc), [1000, 2500, 1_000_000_000, 0]);
    assert!((tsc.ecx / 1000).checked_mul(tsc.ebx).is_some(), "Linux multiplies these in 32 bits");
    assert_eq!(answer(only(&entries, 0x16)), [2500, 2500, 0, 0]);
    let known = [vendor_leaf(INTEL), leaf(0x15, [2, 200, 25_000_000, 0]), leaf(0x16, [2400, 3000, 100, 0])];
    assert_eq!(for_vcpu(&known, &identity), known);
    assert_eq!(for_vcpu(&zeros, &cpu(0, 1)), zeros, "nothing is invented without a frequency");
}

#[test]
fn frequency_leaves_of_amd_stay() {
    let identity = CpuIdentity { tsc_khz: Some(2_500_000), ..cpu(0, 1) };
    let supported = [vendor_leaf(AMD), leaf(0x15, [0; 4]), leaf(0x16, [0; 4])];
    assert_eq!(for_vcpu(&supported, &identity), supported);
}

#[test]
fn timing_leaf_is_added_under_kvm_s_signature() {
    let identity = CpuIdentity { tsc_khz: Some(2_500_000), ..cpu(0, 1) };
    let entries = for_vcpu(&[kvm_leaf(), leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0])], &identity);
    assert_eq!(only(&entries, 0x4000_0000), CpuidEntry { eax: 0x4000_0010, ..kvm_leaf() });
    assert_eq!(only(&entries, 0x4000_0001).eax, 0x0100_7efb);
    assert_eq!(answer(only(&entries, 0x4000_0010)), [2_500_000, 1_000_000, 0, 0]);
}

#[test]
fn kvm_clock_needs_kvm_s_signature_and_either_version() {
    let features = |eax| leaf(0x4000_0001, [eax, 0, 0, 0]);
    for eax in [1, 1 << 3, 0x0100_7efb] {
        assert!(has_kvm_clock(&[kvm_leaf(), features(eax)]), "{eax:#x}");
    }
    assert!(!has_kvm_clock(&[kvm_leaf(), features(!0b1001)]));
    assert!(!has_kvm_clock(&[kvm_leaf()]) && !has_kvm_clock(&[features(!0)]));
    let other = CpuidEntry { ebx: 0x7263_694d, ..kvm_leaf() };
    assert!(!has_kvm_clock(&[other, features(!0)]));
}

#[test]
fn timing_leaf_is_not_added_without_frequency_or_under_another_signature() {
    assert_eq!(for_vcpu(&[kvm_leaf()], &cpu(0, 1)), [kvm_leaf()]);
    let identity = CpuIdentity { tsc_khz: Some(2_500_000), ..cpu(0, 1) };
    let other = CpuidEntry { ebx: 0x7263_694d, ..kvm_leaf() };
    assert_eq!(for_vcpu(&[other], &identity), [other]);
    let present = leaf(0x4000_0010, [1, 2, 0, 0]);
    assert_eq!(for_vcpu(&[kvm_leaf(), present], &identity), [kvm_leaf(), present]);
}

#[test]
fn extreme_identities_do_not_overflow() {
    let supported: Vec<_> = [0, 1, 4, 0xb, 0x15, 0x16, 0x1f, 0x8000_0008, 0x8000_001d, 0x8000_001e]
        .map(|function| CpuidEntry { function, eax: u32::MAX, ..vendor_leaf(AMD) })
        .to_vec();
    let identity =
        CpuIdentity { apic_id: u32::MAX, count: u32::MAX, tsc_deadline: true, tsc_khz: Some(u32::MAX) };
    assert_eq!(for_vcpu(&supported, &identity).len(), supported.len() + 4);
    let none = CpuIdentity { apic_id: 0, count: 0, tsc_deadline: false, tsc_khz: Some(0) };
    assert_eq!(for_vcpu(&supported, &none).len(), supported.len() + 4);
}
