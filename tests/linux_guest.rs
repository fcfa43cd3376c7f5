//! Tests of stock Linux guests: they boot, and each way in which they end is reported. `cargo xtask test`
//! runs this program where KVM can run Linux: on hardware, or else on the emulated host.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

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

#[path = "linux/boot_test.rs"]
mod boot_test;

#[path = "linux/boot_exits.rs"]
mod boot_exits;

#[path = "linux/agent.rs"]
mod agent;
#[path = "linux/cargo_runner.rs"]
mod cargo_runner;
#[path = "linux/command.rs"]
mod command;

#[path = "linux/clock.rs"]
mod clock;

#[path = "linux/console.rs"]
mod console;

#[path = "linux/exit_codes.rs"]
mod exit_codes;
#[path = "linux/forks.rs"]
mod forks;
#[path = "linux/forks_net.rs"]
mod forks_net;
#[path = "linux/formats.rs"]
mod formats;
#[path = "linux/identity.rs"]
mod identity;
#[path = "linux/many.rs"]
mod many;
#[path = "linux/net.rs"]
mod net;
#[path = "linux/restore.rs"]
mod restore;
#[path = "linux/root.rs"]
mod root;
#[path = "linux/shell.rs"]
mod shell;
#[path = "linux/snapshots.rs"]
mod snapshots;
#[path = "linux/surroundings.rs"]
mod surroundings;
#[path = "linux/tools.rs"]
mod tools;
#[path = "linux/virtio.rs"]
mod virtio;

#[path = "linux/vsock.rs"]
mod vsock;

#[path = "linux/tuned.rs"]
mod tuned;

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

/// Returns the stock kernel with the default guest's initramfs, and parameters for it.
fn linux(kernel: GuestData, action: &str) -> Command {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(kernel)).arg("-i");
    command.arg(data(GuestData::GuestInitramfs)).args(["-a", &format!("quiet coracle.init={action}")]);
    command
}

fn run(action: &str, args: &[&str]) -> Finished {
    finish(linux(GuestData::GuestVmlinux, action).args(args))
}

/// A kernel that fails before its init: its arguments, how it ended, and its outcome.
fn fail(name: &str, args: &[&str]) -> (Finished, serde_json::Value) {
    let path = scratch().join(format!("{name}.json"));
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s", "--outcome"]).arg(&path);
    command.arg(data(GuestData::GuestVmlinux)).args(args);
    (finish(&mut command), outcome(&path))
}

fn signs(outcome: &serde_json::Value) -> Vec<String> {
    let progress = outcome["progress"].as_array().unwrap();
    progress.iter().map(|milestone| milestone["sign"].as_str().unwrap().to_owned()).collect()
}

fn hints(outcome: &serde_json::Value) -> Vec<String> {
    let hints = outcome["diagnosis"]["hints"].as_array().unwrap();
    hints.iter().map(|hint| hint["hint"].as_str().unwrap().to_owned()).collect()
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
    // A host with one CPU warns that two vCPUs share it.
    let said = run.stderr.lines().filter(|line| !line.contains("vCPUs share the"));
    assert_eq!(said.count(), 1, "{}", run.stderr);
    let outcome = outcome(&path);
    assert_eq!(outcome["phase"], "init");
    let signs = signs(&outcome);
    for sign in
        ["interrupts-set-up", "second-vcpu", "serial-probed", "console-opened", "user-mode", "init-mark"]
    {
        assert!(signs.iter().any(|seen| seen == sign), "{sign} is not in {signs:?}");
    }
    assert_eq!(outcome.get("diagnosis"), None);
}

/// `ignore_loglevel` puts all kernel messages on the console.
#[test]
fn stock_kernel_boots_without_a_warning() {
    needs_linux!();
    let mut command = coracle();
    command
        .args(["test", "--accel", "kvm", "--cpus", "2", "--timeout", "200s"])
        .arg(data(GuestData::GuestVmlinux));
    command.arg("-i").arg(data(GuestData::GuestInitramfs));
    command.args(["-a", "ignore_loglevel coracle.init=report", "--expect", "cpus     2 online"]);
    let complaints = "BUG:|WARNING:|consistency problem|PCI: Fatal|initcall_blacklist requires";
    finish(command.args(["--reject", complaints])).expect(0, "");
}

#[test]
fn linux_brings_up_four_vcpus_of_the_baseline_cpu() {
    needs_linux!();
    let run = run("report", &["--cpus", "4", "--cpu", "baseline"]);
    run.expect(0, "the guest powered off");
    assert!(run.text().contains("cpus     4 online"), "{}", run.text());
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
    let path = scratch().join("init-ended.json");
    let run = run("exit", &["--outcome", path.to_str().unwrap()]);
    run.expect(110, "the guest's kernel panicked: Attempted to kill init! exitcode=0x");
    run.expect(110, "hint: the guest's init ended with code 0: an init");
    assert!(run.text().contains("Attempted to kill init"), "{}", run.text());
    let outcome = outcome(&path);
    assert_eq!((&outcome["phase"], hints(&outcome)), (&"init".into(), vec!["init-ended".to_owned()]));
    assert!(outcome["diagnosis"]["panic"].as_str().unwrap().contains("Attempted to kill init"), "{outcome}");
}

#[test]
fn guest_that_hangs_ends_with_124() {
    needs_linux!();
    let path = scratch().join("hang.json");
    // The time of a boot depends on the machine: one and a half times that, plus a margin, is after the
    // init's start.
    let boot = run("poweroff", &[]).elapsed.as_secs();
    let limit = format!("{}s", (boot * 3 / 2 + 4).min(200));
    let run = run("hang", &["--timeout", &limit, "--outcome", path.to_str().unwrap()]);
    run.expect(124, "timed out after ");
    assert!(!run.stderr.contains("vCPU 0 was"), "it had come up: {}", run.stderr);
    let outcome = outcome(&path);
    assert_eq!(outcome["ending"], "timed-out");
    assert_eq!(outcome["phase"], "init");
    assert_eq!(hints(&outcome), [""; 0]);
}

#[test]
fn kernel_without_initrd_and_root_is_told_what_is_missing() {
    needs_linux!();
    let (run, outcome) = fail("no-root", &["-a", "quiet", "--serial", "null"]);
    run.expect(110, "hint: there is no initrd and no root=");
    assert!(run.stderr.contains("| ") && run.stderr.contains("Unable to mount root fs"), "{}", run.stderr);
    assert_eq!(hints(&outcome), ["no-root"]);
    assert_eq!(outcome["phase"], "devices", "quiet hides the banner, not the signs: {:?}", signs(&outcome));
    assert!(!signs(&outcome).contains(&"banner".to_owned()));
}

#[test]
fn kernel_without_a_console_is_told_so_although_it_says_nothing() {
    needs_linux!();
    let (run, outcome) = fail("no-console", &["--cmdline", "panic=-1 pci=off root=/dev/sda"]);
    run.expect(112, "hint: the command line has no console=");
    assert_eq!(run.text(), "");
    assert_eq!(hints(&outcome), ["no-console", "root-device"]);
    assert_eq!(outcome["phase"], "devices", "{:?}", signs(&outcome));
}

#[test]
fn kernel_that_finds_no_init_names_it() {
    needs_linux!();
    let initrd = data(GuestData::GuestInitramfs);
    let args = ["-i", initrd.to_str().unwrap(), "-a", "rdinit=/no/such/init"];
    let (run, outcome) = fail("no-init", &args);
    run.expect(110, "hint: the kernel found no /no/such/init");
    assert!(!run.stderr.contains("| "), "the console is on stdout: {}", run.stderr);
    let lines = outcome["diagnosis"]["console"].as_array().unwrap();
    assert!(
        lines.len() == 20 && lines.iter().any(|line| line.as_str().unwrap().contains("Unable to mount root"))
    );
    assert!(signs(&outcome).contains(&"banner".to_owned()));
}

#[test]
fn sigterm_has_the_default_guest_power_off() {
    needs_linux!();
    let path = scratch().join("sigterm.json");
    common::unless_spoilt(|| {
        let mut command = linux(GuestData::GuestVmlinux, "wait");
        let child = started(command.arg("--outcome").arg(&path), "waiting for the power button");
        signal(&child, libc::SIGTERM);
        powered_off_in_time(&collect(child), "15 (SIGTERM)", 143)
    });
    assert_eq!((&outcome(&path)["ending"], &outcome(&path)["signal"]), (&"powered-off".into(), &15.into()));
}

#[test]
fn sigterm_has_a_shell_end_too() {
    needs_linux!();
    common::unless_spoilt(|| {
        let mut command = linux(GuestData::GuestVmlinux, "shell");
        let child = started(&mut command, "# ");
        signal(&child, libc::SIGINT);
        powered_off_in_time(&collect(child), "2 (SIGINT)", 130)
    });
}

/// Checks that the guest powered off within its grace of 5 s, for which a busy machine may be too slow.
fn powered_off_in_time(run: &Finished, signal: &str, code: i32) -> Result<(), String> {
    assert_eq!(run.code(), code, "{run:?}");
    let powered_off = format!("the guest powered off, asked to by signal {signal}");
    if run.stderr.contains(&powered_off) { Ok(()) } else { Err(run.stderr.clone()) }
}

#[test]
fn linux_that_is_deaf_to_the_button_is_stopped() {
    needs_linux!();
    let mut command = linux(GuestData::GuestVmlinux, "hang");
    // Nothing else is on its console.
    let child = started(command.args(["-a", "CORACLE_MARK=1"]), "first process");
    signal(&child, libc::SIGTERM);
    collect(child).expect(143, "stopped by signal 15 (SIGTERM)");
}

#[test]
fn pvpanic_ends_a_panic_that_would_not_reset() {
    needs_linux!();
    let path = scratch().join("pvpanic.json");
    let run = run("panic", &["-a", "panic=0", "--outcome", path.to_str().unwrap()]);
    run.expect(110, "kernel panicked");
    assert_eq!(outcome(&path)["panic_evidence"], "device");
    assert!(run.text().contains("Kernel panic - not syncing"), "{}", run.text());
}

#[test]
fn panic_that_neither_tells_nor_resets_ends_by_its_silence() {
    needs_linux!();
    let path = scratch().join("silence.json");
    // Without an init, nobody loads the pvpanic driver.
    let args = ["-a", "rdinit=/no/such/init panic=0", "--outcome", path.to_str().unwrap()];
    run("report", &args).expect(110, "kernel panicked");
    assert_eq!(outcome(&path)["panic_evidence"], "silence");
}

#[test]
fn halted_linux_ends_with_116_where_that_is_wanted() {
    needs_linux!();
    let run = run("halt", &["--cpus", "2", "--on-halt", "exit"]);
    run.expect(116, "the guest halted");
    assert!(run.text().contains("System halted"), "{}", run.text());
}

#[test]
fn reboot_restarts_linux_if_the_policy_says_so() {
    needs_linux!();
    let path = scratch().join("reboot.json");
    let mut command = linux(GuestData::GuestVmlinux, "reboot");
    command.args(["--timeout", "200s", "--cpus", "2", "--on-reset", "reboot", "--outcome"]).arg(&path);
    let mut child = started(&mut command, "Restarting system");
    Transcript::default().until(child.stdout.as_mut().unwrap(), "Restarting system");
    signal(&child, libc::SIGQUIT);
    collect(child).expect(131, "SIGQUIT");
    assert!(outcome(&path)["resets"].as_u64().unwrap() >= 1);
}

/// Debian's full kernel can parse MP tables; its cloud kernel cannot.
#[test]
fn machine_without_acpi_shows_its_cpus_and_powers_off() {
    needs_linux!();
    let mut command = linux(GuestData::HostVmlinux, "report");
    let run = finish(command.args(["--acpi", "off", "--cpus", "2", "--memory", "512M"]));
    run.expect(0, "the guest powered off");
    assert!(
        run.text().contains("cpus     2 online") && run.text().contains("rtc      none"),
        "{}",
        run.text()
    );
}

#[test]
fn machine_without_acpi_resets() {
    needs_linux!();
    let mut command = linux(GuestData::HostVmlinux, "reboot");
    let run = finish(command.args(["--acpi", "off", "--memory", "512M"]));
    run.expect(112, "reset (keyboard controller)");
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
    let run = finish(coracle().args(["run", "--accel", "kvm", "--timeout", "200s"]));
    run.expect(0, "powered off");
    assert!(run.text().contains("coracle guest"), "{}", run.text());
}

/// Runs the default guest on a terminal: the text to type after the first prompt, and the last text to
/// expect.
fn talk(lines: &[(&str, &str)], code: i32) {
    let (mut terminal, inside) = pseudo_terminal();
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]);
    let stream = || Stdio::from(inside.try_clone().unwrap());
    let mut child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    drop(inside);
    let mut seen = Transcript::default();
    seen.until(&mut terminal, "# ");
    for (typed, answer) in lines {
        terminal.write_all(typed.as_bytes()).unwrap();
        terminal.write_all(b"\r").unwrap();
        seen.until(&mut terminal, answer);
    }
    assert_eq!(common::wait(&mut child).code(), Some(code));
}

#[test]
fn default_guest_at_a_terminal_is_a_shell() {
    needs_linux!();
    talk(&[("echo answer $((6*7))", "answer 42"), ("exit", "the guest powered off")], 0);
}

#[test]
fn commands_of_the_shell_end_the_machine() {
    needs_linux!();
    talk(&[("poweroff", "the guest powered off")], 0);
    talk(&[("reboot", "asked for a reset")], 112);
}

/// Starts a command and reads its stdout up to `words`.
fn started(command: &mut Command, words: &str) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    Transcript::default().until(child.stdout.as_mut().unwrap(), words);
    child
}

/// The output of a terminal.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    /// Continues to read until `words` have come, and returns the output before them.
    #[track_caller]
    fn until(&mut self, terminal: &mut impl Read, words: &str) -> String {
        let mut found = None;
        eventually(words, || {
            let mut bytes = [0; 4096];
            // The terminal does not block: nothing to read means nothing new.
            if let Ok(count) = terminal.read(&mut bytes) {
                self.0.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            found = self.0.find(words);
            found.is_some()
        });
        let rest = self.0.split_off(found.unwrap() + words.len());
        let mut before = std::mem::replace(&mut self.0, rest);
        before.truncate(found.unwrap());
        before
    }
}
