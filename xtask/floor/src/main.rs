//! `kvm-floor MIB PAYLOAD`: runs a bare guest with the calls that no monitor on KVM can do without, and with
//! nothing else: no options, no devices but a serial port that only prints, no threads, no signals, no clean
//! end. `cargo xtask bench peers` shows its times and memory as the floor of each row.
//!
//! `kvm-floor restore FOLDER`: lets a guest go on from the files of a template until it prints a byte.
//!
//! The start of Rust's standard library is part of the floor, as it is of each monitor in Rust: some 0.1 ms.
//! The guest's interrupt controllers are Coracle's: local APICs in KVM, nothing else.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::ExitCode;

use coracle_floor::forks::Template;
use coracle_floor::guest::{Ram, SERIAL, create_local_apics, enter_protected_mode};
use coracle_floor::payload;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

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
    let usage = || io::Error::other("the arguments are MIB PAYLOAD, or restore FOLDER");
    let first = arguments.next();
    if first.as_ref().is_some_and(|word| word == "restore") {
        let template = Template::open(Path::new(&arguments.next().ok_or_else(usage)?))?;
        // It stays to the end of the process, as everything does.
        let mut fork = ManuallyDrop::new(template.fork()?);
        flush(console, &mut vec![fork.run_to_byte()?])?;
        return Ok(0);
    }
    let mib: usize =
        first.and_then(|mib| mib.to_str()?.parse().ok()).filter(|mib| *mib > 1).ok_or_else(usage)?;
    let mut file = File::open(arguments.next().ok_or_else(usage)?)?;

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    // It stays to the end of the process, as everything does.
    let mut ram = ManuallyDrop::new(Ram::anonymous(mib << 20)?);
    ram.give(&vm)?;
    let entry = payload::load(&mut file, ram.bytes())?;
    create_local_apics(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    enter_protected_mode(&vcpu, entry)?;
    serve(&mut vcpu, console)
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

const DEBUG_EXIT: u16 = 0xf4;
/// Large enough for the calls to cost nothing beside the exits of as many bytes.
const PIECE: usize = 4096;

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
            (vec!["much", "/dev/null"], "the arguments are MIB PAYLOAD, or restore FOLDER"),
            (vec!["128"], "the arguments are MIB PAYLOAD, or restore FOLDER"),
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
