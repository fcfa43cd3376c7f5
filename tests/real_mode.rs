//! The bare guests' bzImages for loaders that enter in real mode: loaded and entered as a BIOS loader does,
//! on `/dev/kvm` of any kind.

mod common;

use common::kvm_or_skip;
use coracle_payload::Payload;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

#[test]
fn real_mode_entry_reaches_the_body_in_both_rings() {
    if !kvm_or_skip() {
        return;
    }
    assert_eq!(outputs("hello-exit", 2), [(0x3f8, b'!'), (0xf4, 0)]);
    assert_eq!(outputs("poweroff-ring3", 1), [(0x600, 0x34)]);
}

/// Runs a payload up to its `count`th write to a port, and returns the ports and bytes.
fn outputs(name: &str, count: usize) -> Vec<(u16, u8)> {
    let file = Payload::named(name).unwrap().real_mode_bzimage();
    let (setup, kernel) = file.split_at(512 * (1 + usize::from(file[0x1f1])));
    let ram = vm_memory::MmapRegion::<()>::new(RAM).unwrap();
    // SAFETY: the mapping has this length, and nothing else refers to it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(ram.as_ptr(), RAM) };
    bytes[SETUP..SETUP + setup.len()].copy_from_slice(setup);
    bytes[KERNEL..KERNEL + kernel.len()].copy_from_slice(kernel);

    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: ram.as_ptr() as u64,
    };
    // SAFETY: the mapping outlives the virtual machine, which is dropped first.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    vm.set_identity_map_address(0xfeff_c000).unwrap();
    vm.set_tss_address(0xfeff_d000).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    for segment in [&mut special.cs, &mut special.ds, &mut special.es, &mut special.ss] {
        segment.base = SETUP as u64;
        segment.selector = (SETUP >> 4) as u16;
    }
    vcpu.set_sregs(&special).unwrap();
    let mut general = vcpu.get_regs().unwrap();
    (general.rip, general.rsp, general.rflags) = (0x200, 0x8000, 2);
    vcpu.set_regs(&general).unwrap();

    let mut outputs = Vec::new();
    while outputs.len() < count {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(port, bytes) => outputs.push((port, bytes[0])),
            other => panic!("{name}: {other:?} after {outputs:x?}"),
        }
    }
    outputs
}

const RAM: usize = 4 << 20;
/// The address of the set-up code, and the base of the segment in which loaders enter it.
const SETUP: usize = 0x1_0000;
const KERNEL: usize = 0x10_0000;
