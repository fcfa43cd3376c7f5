//! The floor runs the bare guests of the comparison, on `/dev/kvm` of any kind.

use std::path::PathBuf;
use std::process::{Command, Output};

use coracle_payload::Payload;

#[test]
fn guests_of_the_comparison_print_and_end() {
    if kvm_ioctls::Kvm::new().is_err() {
        eprintln!("skipped: no usable /dev/kvm");
        return;
    }
    let hello = run("hello-exit", "128");
    assert_eq!((hello.status.code(), hello.stdout.as_slice()), (Some(0), &b"!"[..]), "{hello:?}");
    assert_eq!(run("exit-7", "16").status.code(), Some(7));
    let serial = run("serial-20000", "128");
    assert_eq!((serial.status.code(), serial.stdout.len()), (Some(0), 20_000));
}

#[test]
fn what_it_cannot_run_is_an_error_with_the_reason() {
    let no_payload = std::env::current_exe().unwrap();
    for (arguments, reason) in [
        (vec!["128".to_owned(), "/no/such/file".to_owned()], "No such file"),
        (vec!["much".to_owned(), no_payload.display().to_string()], "the arguments are MIB PAYLOAD"),
        (vec!["128".to_owned()], "the arguments are MIB PAYLOAD"),
    ] {
        let output = Command::new(FLOOR).args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(reason), "{arguments:?}: {text}");
    }
}

fn run(name: &str, mib: &str) -> Output {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.elf"));
    std::fs::write(&path, Payload::named(name).unwrap().elf()).unwrap();
    Command::new(FLOOR).arg(mib).arg(&path).output().unwrap()
}

const FLOOR: &str = env!("CARGO_BIN_EXE_kvm-floor");
