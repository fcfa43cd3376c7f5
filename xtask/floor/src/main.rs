//! `kvm-floor MIB PAYLOAD`: runs a bare guest with the calls that no monitor on KVM can do without, and with
//! nothing else: no options, no devices but a serial port that only prints, no threads, no signals, no clean
//! end. `cargo xtask bench peers` shows its times and memory as the floor of each row.
//!
//! The start of Rust's standard library is part of the floor, as it is of each monitor in Rust: some 0.1 ms.
//! The guest's interrupt controllers are Coracle's: local APICs in KVM, nothing else.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod payload;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1), &mut io::stdout().lock()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kvm-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the guest to its end and returns its code.
fn run(mut arguments: impl Iterator<Item = OsString>, console: &mut impl Write) -> io::Result<u8> {
    let usage = || io::Error::other("the arguments are MIB PAYLOAD");
    let mib: usize = arguments
        .next()
        .and_then(|mib| mib.to_str()?.parse().ok())
        .filter(|mib| *mib > 1)
        .ok_or_else(usage)?;
    let mut file = File::open(arguments.next().ok_or_else(usage)?)?;

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let ram = memory(&vm, mib << 20)?;
    // SAFETY: the memory is mapped for the rest of the process, and its vCPU does not run yet.
    let bytes = unsafe { std::slice::from_raw_parts_mut(ram, mib << 20) };
    let entry = payload::load(&mut file, bytes)?;
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS)?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = IOAPIC_PINS;
    vm.enable_cap(&split)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    enter_protected_mode(&vcpu, entry)?;
    serve(&mut vcpu, console)
}

/// Maps the guest's RAM and gives it to the guest.
fn memory(vm: &VmFd, len: usize) -> io::Result<*mut u8> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: the kernel chooses where the new mapping is.
    let ram = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if ram == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: len as u64,
        userspace_addr: ram as u64,
    };
    // SAFETY: the mapping stays for the rest of the process.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(ram.cast())
}

/// Sets the vCPU to the state of a PVH entry: flat 32-bit segments, no paging (Xen, `docs/misc/pvh.pandoc`).
fn enter_protected_mode(vcpu: &VcpuFd, entry: u32) -> io::Result<()> {
    let mut special = vcpu.get_sregs()?;
    let flat = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11, // code, readable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, ..flat };
    special.cs = flat;
    for segment in [&mut special.ds, &mut special.es, &mut special.ss, &mut special.fs, &mut special.gs] {
        *segment = data;
    }
    special.cr0 |= 1;
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    general.rip = u64::from(entry);
    general.rflags = 2;
    Ok(vcpu.set_regs(&general)?)
}

/// Runs the vCPU until the guest writes its code to the debug-exit port. The first byte of the serial port is
/// written at once, and the others when there are many, or at the end.
fn serve(vcpu: &mut VcpuFd, console: &mut impl Write) -> io::Result<u8> {
    let mut printed = Vec::new();
    let mut first = true;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(SERIAL, bytes) => {
                printed.extend_from_slice(bytes);
                if first || printed.len() >= PIECE {
                    flush(console, &mut printed)?;
                }
                first = false;
            }
            VcpuExit::IoOut(DEBUG_EXIT, bytes) => {
                let code = bytes.first().copied().unwrap_or_default();
                flush(console, &mut printed)?;
                return Ok(code);
            }
            VcpuExit::IoIn(_, bytes) => bytes.fill(0xff),
            VcpuExit::IoOut(..) => {}
            other => return Err(io::Error::other(format!("the guest ended with {other:?}"))),
        }
    }
}

fn flush(console: &mut impl Write, printed: &mut Vec<u8>) -> io::Result<()> {
    console.write_all(printed)?;
    console.flush()?;
    printed.clear();
    Ok(())
}

const SERIAL: u16 = 0x3f8;
const DEBUG_EXIT: u16 = 0xf4;
/// Large enough for the calls to cost nothing beside the exits of as many bytes.
const PIECE: usize = 4096;
/// The pages that KVM needs on some Intel CPUs, outside RAM as in Coracle's machine.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// As in Coracle, whose I/O APIC is not KVM's.
const IOAPIC_PINS: u64 = 24;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use coracle_payload::Payload;

    use super::*;

    #[test]
    fn guests_of_the_comparison_print_and_end() {
        if Kvm::new().is_err() {
            let _ = writeln!(io::stderr(), "skipped: no usable /dev/kvm");
            return;
        }
        assert_eq!(run_payload("hello-exit", "128"), (0, b"!".to_vec()));
        assert_eq!(run_payload("exit-7", "16"), (7, Vec::new()));
        let (code, printed) = run_payload("serial-20000", "128");
        assert_eq!((code, printed.len()), (0, 20_000));
    }

    #[test]
    fn arguments_that_it_does_not_take_are_an_error_with_the_reason() {
        for (arguments, reason) in [
            (vec!["128", "/no/such/file"], "No such file"),
            (vec!["much", "/dev/null"], "the arguments are MIB PAYLOAD"),
            (vec!["128"], "the arguments are MIB PAYLOAD"),
        ] {
            let error = run(arguments.iter().map(OsString::from), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(reason), "{arguments:?}: {error}");
        }
    }

    fn run_payload(name: &str, mib: &str) -> (u8, Vec<u8>) {
        let path: PathBuf = std::env::temp_dir().join(format!("floor-{}-{name}.elf", std::process::id()));
        std::fs::write(&path, Payload::named(name).unwrap().elf()).unwrap();
        let mut printed = Vec::new();
        let code = run([mib.into(), path.clone().into()].into_iter(), &mut printed).unwrap();
        std::fs::remove_file(path).unwrap();
        (code, printed)
    }
}
