//! `coracle cargo-runner`: the tests of `examples/cargo-runner`, as cargo would run them, and other programs
//! of the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle::guest_data::GuestData;

use super::common::{self, coracle, finish, scratch};
use super::{data, no_linux};

/// Returns the example's directory, and its tests where `cargo xtask test` puts them.
fn example() -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cargo-runner");
    let tests = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("examples").join("machine");
    if !tests.is_file() {
        common::skip(&format!("{} is missing: `cargo xtask test` makes it", tests.display()));
        return None;
    }
    Some((folder, tests))
}

/// Returns the command of the example's `.cargo/config.toml`, in that directory and with a variable of
/// cargo's.
fn runner(folder: &Path, options: &[&str]) -> Command {
    let mut command = coracle();
    command.args(["cargo-runner", "--accel", "kvm", "--copy", "tests/data"]).args(options);
    command.current_dir(folder).env("CARGO_PKG_NAME", "cargo-runner-example");
    command
}

#[test]
fn tests_of_a_package_run_with_a_machine_of_their_own() {
    needs_linux!();
    let Some((folder, tests)) = example() else { return };
    let name = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = name();
    let run = finish(runner(&folder, &[]).arg(&tests));
    run.expect(0, "");
    assert!(run.text().contains("5 passed; 0 failed; 1 ignored"), "{run:?}");
    assert!(!run.stderr.contains("coracle: "), "there is nothing to say: {}", run.stderr);
    assert_eq!(name(), before);
}

#[test]
fn filters_and_the_code_of_a_failure_pass_through() {
    needs_linux!();
    let Some((folder, tests)) = example() else { return };
    let run = finish(runner(&folder, &["--cpus", "2"]).arg(&tests).args(["renamed", "--nocapture"]));
    run.expect(0, "");
    let text = run.text();
    assert!(text.contains("now renamed-by-a-test") && text.contains("1 passed; 0 failed"), "{text}");
    assert!(text.contains("5 filtered out"), "{text}");
    let run = finish(runner(&folder, &[]).arg(&tests).arg("--ignored"));
    run.expect(101, "");
    assert!(run.text().contains("failure_is_reported_by_the_exit_code"), "{run:?}");
    assert!(!run.stderr.contains("coracle: "), "cargo knows this code: {}", run.stderr);
}

#[test]
fn other_kernels_folders_and_codes_are_the_program_s_too() {
    needs_linux!();
    let folder = scratch().join("package");
    fs::create_dir_all(folder.join("data/deep")).unwrap();
    fs::write(folder.join("data/deep/words"), "some words\n").unwrap();
    let kernel = data(GuestData::GuestVmlinux);
    let shell = |script: &str| {
        let mut command = coracle();
        command.args(["cargo-runner", "--accel", "kvm", "--copy", "data", "--env", "A=b c", "--kernel"]);
        finish(command.arg(&kernel).current_dir(&folder).args(["/bin/sh", "-c", script, "-v", "--cpus"]))
    };
    let run = shell("pwd; echo $A $1 $0; while read line; do echo $line; done < data/deep/words; exit 7");
    run.expect(7, "");
    let here = folder.to_str().unwrap();
    assert_eq!(run.text(), format!("{here}\nb c --cpus -v\nsome words\n"));
    shell("exit 200").expect(100, "workload ended with code 200");
}

#[test]
fn program_whose_time_is_over_is_told_of_the_option() {
    needs_linux!();
    let mut command = coracle();
    command.args(["cargo-runner", "--accel", "kvm", "--timeout", "1s", "/bin/sleep", "600"]);
    let run = finish(&mut command);
    run.expect(124, "the command was killed after 1 s");
    run.expect(124, "the limit comes from --timeout; --timeout none removes it");
}

#[test]
fn what_cannot_run_in_a_guest_is_refused_in_one_line() {
    needs_linux!();
    let refused = |arguments: &[&str], words: &str| {
        let run = finish(coracle().args(["cargo-runner", "--accel", "kvm"]).args(arguments));
        run.expect(125, words);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    };
    refused(&["/no/such/program"], "the program /no/such/program cannot be read");
    refused(&["/etc/passwd"], "the program /etc/passwd is not an ELF file");
    refused(
        &["--root", "/etc", "/bin/sh"],
        "--root /etc: the program and its libraries come as an initramfs",
    );
    refused(
        &["-a", "root=/dev/vda", "/bin/sh"],
        "-a root=: the program and its libraries come as an initramfs",
    );
    refused(&["--copy", "/no/such", "/bin/sh"], "/no/such cannot be read");
    refused(&["--copy", "/proc/cpuinfo", "/bin/sh"], "/proc belongs to its kernel");
    // The amount depends on what cargo names, and this test is one of cargo's.
    refused(&["--memory", "100M", "/bin/sh"], "while it unpacks them; it needs at least ");
}
