//! The bare guests of the benchmarks as other monitors than Coracle run them: entered in real mode as a BIOS
//! loader does, and with a disk on the PCI bus.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};

use common::{fresh_path, kvm_or_skip, skip};
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

#[test]
fn disk_on_the_pci_bus_is_found_and_read() {
    let (payload, disk) = (fresh_path("payload.elf"), fresh_path("disk.img"));
    fs::write(&payload, Payload::named("block-count-1").unwrap().elf()).unwrap();
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let mut qemu = Command::new("timeout");
    qemu.args(["120", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256M"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    qemu.arg("-drive").arg(format!("if=none,id=d,format=raw,file={}", disk.display()));
    qemu.args(["-device", "virtio-blk-pci,drive=d,disable-legacy=on"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(&payload);
    let output = qemu.stdin(Stdio::null()).output().unwrap();
    fs::remove_file(&payload).unwrap();
    fs::remove_file(&disk).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(127) {
        skip("qemu-system-x86_64 is not installed");
        return;
    }
    // QEMU's device ends with twice the guest's code and one more.
    assert_eq!(output.status.code(), Some(1), "{text}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.split_whitespace().count(), 4, "{printed:?}");
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
