//! Stock Linux guests: they boot, and each way in which they end is told. `cargo xtask test` runs this program where
//! there is a KVM that runs Linux: on hardware, else on the emulated host.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Finished, collect, coracle, eventually, finish, pseudo_terminal, scratch, signal};
use coracle::guest_data::{self, GuestData};
use coracle::host::KvmKind;

macro_rules! needs_linux {
    () => {
        if let Some(why) = no_linux() {
            common::skip(&why);
            return;
        }
    };
}

fn no_linux() -> Option<String> {
    match KvmKind::probe() {
        KvmKind::Hardware { .. } => {}
        other => return Some(format!("this host's KVM runs no stock Linux ({other:?})")),
    }
    guest_data::find(GuestData::GuestVmlinux).err().map(|error| error.to_string())
}

fn data(what: GuestData) -> PathBuf {
    guest_data::find(what).unwrap()
}

/// The stock kernel with the default guest's initramfs, told what to do.
fn linux(kernel: GuestData, action: &str) -> Command {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "50s"]).arg(data(kernel)).arg("-i");
    command.arg(data(GuestData::GuestInitramfs)).args(["-a", &format!("quiet coracle.init={action}")]);
    command
}

fn run(action: &str, args: &[&str]) -> Finished {
    finish(linux(GuestData::GuestVmlinux, action).args(args))
}

fn outcome(path: &PathBuf) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn vmlinux_boots_to_our_init_and_powers_off_with_0() {
    needs_linux!();
    let path = scratch().join("linux.json");
    let run = run("report", &["--cpus", "2", "--outcome", path.to_str().unwrap()]);
    run.expect(0, "the guest powered off");
    let text = run.text();
    assert!(text.contains("kernel   6.") && text.contains("cpus     2 online"), "{text}");
    assert!(!text.contains("coracle: "), "stdout is the guest's alone: {text}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert_eq!(outcome(&path)["phase"], "console");
}

#[test]
fn linux_brings_up_four_vcpus_of_the_baseline_cpu() {
    needs_linux!();
    let run = run("report", &["--cpus", "4", "--cpu", "baseline"]);
    run.expect(0, "the guest powered off");
    assert!(run.text().contains("cpus     4 online"), "{}", run.text());
}

#[test]
fn vmlinuz_boots_to_our_init_and_powers_off_with_0() {
    needs_linux!();
    finish(&mut linux(GuestData::GuestVmlinuz, "poweroff")).expect(0, "the guest powered off");
}

#[test]
fn reboot_ends_with_112() {
    needs_linux!();
    run("reboot", &[]).expect(112, "asked for a reset");
}

#[test]
fn kernel_panic_ends_with_110() {
    needs_linux!();
    let run = run("panic", &[]);
    run.expect(110, "kernel panicked");
    assert!(run.text().contains("Kernel panic - not syncing"), "{}", run.text());
}

#[test]
fn init_that_ends_is_a_panic() {
    needs_linux!();
    let run = run("exit", &[]);
    run.expect(110, "kernel panicked");
    assert!(run.text().contains("Attempted to kill init"), "{}", run.text());
}

#[test]
fn missing_init_and_root_is_a_panic() {
    needs_linux!();
    let run = run("report", &["-a", "rdinit=/no/such/init"]);
    run.expect(110, "kernel panicked");
    assert!(run.text().contains("Unable to mount root"), "{}", run.text());
}

#[test]
fn guest_that_hangs_ends_with_124() {
    needs_linux!();
    let path = scratch().join("hang.json");
    run("hang", &["--timeout", "8s", "--outcome", path.to_str().unwrap()]).expect(124, "timed out after 8 s");
    assert_eq!(outcome(&path)["ending"], "timed-out");
}

#[test]
fn sigterm_ends_a_running_linux() {
    needs_linux!();
    let mut command = linux(GuestData::GuestVmlinux, "hang");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    signal(&child, libc::SIGTERM);
    let run = collect(child);
    run.expect(143, "SIGTERM");
    assert!(run.elapsed.as_secs() < 6, "{run:?}");
}

#[test]
fn too_little_memory_is_refused_with_the_size_that_boots() {
    needs_linux!();
    let refused = run("poweroff", &["--memory", "64M"]);
    refused.expect(125, "--memory 64M: this kernel");
    let words: Vec<&str> = refused.stderr.split_whitespace().collect();
    let least = words.last().unwrap();
    assert!(least.ends_with('M'), "{refused:?}");
    run("poweroff", &["--memory", least]).expect(0, "powered off");
}

#[test]
fn default_guest_without_a_terminal_prints_a_report() {
    needs_linux!();
    let run = finish(coracle().args(["run", "--accel", "kvm", "--timeout", "50s"]));
    run.expect(0, "powered off");
    assert!(run.text().contains("coracle guest"), "{}", run.text());
}

#[test]
fn default_guest_at_a_terminal_is_a_shell() {
    needs_linux!();
    let (mut terminal, inside) = pseudo_terminal();
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "50s"]);
    let stream = || Stdio::from(inside.try_clone().unwrap());
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    drop(inside);
    let mut seen = Transcript::default();
    seen.until(&mut terminal, "# ");
    terminal.write_all(b"echo answer $((6*7))\r").unwrap();
    seen.until(&mut terminal, "answer 42");
    terminal.write_all(b"exit\r").unwrap();
    seen.until(&mut terminal, "the guest powered off");
    assert_eq!(common::wait(&mut child).code(), Some(0));
}

/// What a terminal has shown.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    /// Reads on until `words` have come.
    #[track_caller]
    fn until(&mut self, terminal: &mut File, words: &str) {
        let mut found = None;
        eventually(words, || {
            let mut bytes = [0; 4096];
            // The terminal does not block: nothing to read is nothing new.
            if let Ok(count) = terminal.read(&mut bytes) {
                self.0.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            found = self.0.find(words);
            found.is_some()
        });
        self.0.drain(..found.unwrap() + words.len());
    }
}
