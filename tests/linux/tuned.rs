//! Tests of the tuned kernel: it has every driver of the machine built in, it ends in each way that the stock
//! kernel does, and it needs less.

use std::fs;

use coracle::guest_data::{self, GuestData};

use super::common::network::{in_own_network, tap};
use super::common::{self, Finished, collect, finish, scratch, signal};
use super::{linux, no_linux, outcome, started};

macro_rules! needs_tuned {
    () => {
        if let Some(why) = no_tuned() {
            common::skip(&why);
            return;
        }
    };
}

fn no_tuned() -> Option<String> {
    no_linux().or_else(|| guest_data::find(GuestData::TunedVmlinux).err().map(|error| error.to_string()))
}

fn run(action: &str, args: &[&str]) -> Finished {
    finish(linux(GuestData::TunedVmlinux, action).args(args))
}

/// Checks that the guest's report has all of these lines, and that nothing precedes it: `quiet` still shows
/// errors, including the agent's.
#[track_caller]
fn expect_report(run: &Finished, lines: &[&str]) {
    run.expect(0, "the guest powered off");
    let text = run.text();
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    let before = text.split("coracle guest").next().unwrap_or_default();
    assert_eq!(before, "");
}

/// Kernel, CPUs, memory, tables and clock: each value of one is combined with each value of another in some
/// row.
#[test]
fn kernels_cpus_memory_and_tables_work_pairwise() {
    needs_tuned!();
    let rows = [
        (GuestData::GuestVmlinux, "1", 128, "on", "on"),
        // Debian's full kernel: its cloud kernel cannot parse MP tables.
        (GuestData::HostVmlinux, "4", 5120, "off", "on"),
        (GuestData::TunedVmlinux, "1", 5120, "off", "auto"),
        (GuestData::TunedVmlinux, "4", 48, "off", "on"),
        (GuestData::TunedVmlinux, "4", 5120, "on", "auto"),
        (GuestData::GuestVmlinux, "4", 128, "on", "auto"),
    ];
    for (kernel, cpus, mib, acpi, clock) in rows {
        println!("{kernel} {cpus} {mib} {acpi} {clock}");
        let memory = format!("{mib}M");
        let args = ["--cpus", cpus, "--memory", &memory, "--acpi", acpi, "--rtc", clock];
        let run = finish(linux(kernel, "report").args(args));
        let clock = if clock == "on" { "rtc      rtc0" } else { "rtc      none" };
        expect_report(&run, &[&format!("cpus     {cpus} online"), "console  ttyS0", clock]);
        let text = run.text();
        let memory = text.lines().find_map(|line| line.trim().strip_prefix("memory "));
        let seen: u32 = memory.unwrap().trim().trim_end_matches(" MiB").parse().unwrap();
        // The rest belongs to the kernel, most of it to its page structures.
        assert!(seen <= mib && seen >= (mib * 31 / 32).saturating_sub(70), "{seen} MiB of {mib}");
    }
}

/// The kernel has no module directory anywhere, and needs none.
#[test]
fn tuned_kernel_elsewhere_has_its_drivers_without_a_warning() {
    needs_tuned!();
    let folder = scratch().join("no-modules");
    fs::create_dir_all(&folder).unwrap();
    let kernel = folder.join("vmlinux");
    fs::copy(super::data(GuestData::TunedVmlinux), &kernel).unwrap();
    let disk = scratch().join("no-modules.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut command = common::coracle();
    command
        .args(["run", "--accel", "kvm", "--timeout", "50s"])
        .arg(&kernel)
        .arg("--disk")
        .arg(&disk)
        .arg("-i");
    command.arg(super::data(GuestData::GuestInitramfs)).args(["-a", "quiet coracle.init=report"]);
    let run = finish(&mut command);
    run.expect(0, "the guest powered off");
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
}

/// Through the tables, and without them through parameters of the command line, which the stock kernels do
/// not read.
#[test]
fn tuned_kernel_finds_each_device_once_with_and_without_acpi() {
    needs_tuned!();
    in_own_network(|| {
        let disk = scratch().join("once.img");
        fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let disk = format!("path={},ro", disk.display());
        tap("tap0");
        for acpi in ["on", "off"] {
            let args = ["--acpi", acpi, "--disk", &disk, "--net", "tap=tap0", "--rng"];
            let run = run("report", &args);
            let devices = "virtio   virtio0 (virtio_blk) virtio1 (virtio_net) virtio2 (virtio_rng)\r\n";
            expect_report(&run, &[devices, "block    vda\r\n", "network  eth0 lo\r\n"]);
        }
    });
}

#[test]
fn tuned_vmlinuz_unpacks_itself_and_is_unpacked_here_for_its_pvh_entry() {
    needs_tuned!();
    for args in [&["--kaslr"][..], &["--protocol", "pvh"]] {
        finish(linux(GuestData::TunedVmlinuz, "poweroff").args(args)).expect(0, "the guest powered off");
    }
}

#[test]
fn tuned_kernel_reboots_with_and_without_acpi() {
    needs_tuned!();
    run("reboot", &[]).expect(112, "asked for a reset");
    run("reboot", &["--acpi", "off"]).expect(112, "reset (keyboard controller)");
}

#[test]
fn panic_of_the_tuned_kernel_is_told_by_the_device_and_has_names() {
    needs_tuned!();
    let path = scratch().join("tuned-panic.json");
    // Without an init, nobody would load a driver.
    let args = ["-a", "rdinit=/no/such/init panic=0", "--outcome", path.to_str().unwrap()];
    let run = run("report", &args);
    run.expect(110, "kernel panicked");
    assert_eq!(outcome(&path)["panic_evidence"], "device");
    assert!(run.text().contains("mount_block_root"), "no stack trace with names: {}", run.text());
}

#[test]
fn tuned_kernel_hears_the_power_button() {
    needs_tuned!();
    let child = started(&mut linux(GuestData::TunedVmlinux, "wait"), "waiting for the power button");
    signal(&child, libc::SIGTERM);
    collect(child).expect(143, "the guest powered off, asked to by signal 15 (SIGTERM)");
}

#[test]
fn tuned_kernel_boots_with_the_least_memory_that_is_not_refused() {
    needs_tuned!();
    let refused = run("poweroff", &["--memory", "16M"]);
    refused.expect(125, "--memory 16M: this kernel");
    let least = refused.stderr.split_whitespace().last().unwrap().to_owned();
    run("report", &["--memory", &least]).expect(0, "the guest powered off");
}

#[test]
fn boot_of_the_tuned_kernel_leaves_the_guest_seldom() {
    needs_tuned!();
    let path = scratch().join("tuned-exits.json");
    run("poweroff", &["--outcome", path.to_str().unwrap()]).expect(0, "the guest powered off");
    let exits = outcome(&path)["exits"].clone();
    let count = |kind: &str| exits[kind].as_u64().unwrap();
    let ports = count("port_in") + count("port_out");
    let memory = count("mmio_read") + count("mmio_write");
    assert!(ports <= MAX_PORT_EXITS && memory <= MAX_MMIO_EXITS, "{exits}");
}

#[test]
fn tuned_kernel_is_the_default_guests() {
    needs_tuned!();
    let run = finish(common::coracle().args(["run", "--accel", "kvm", "--timeout", "200s"]));
    expect_report(&run, &["-coracle"]);
}

#[test]
fn configuration_beside_the_tuned_kernel_has_what_the_machine_needs() {
    needs_tuned!();
    let image = guest_data::find(GuestData::TunedVmlinux).unwrap();
    let config = fs::read_to_string(image.with_file_name("config")).unwrap();
    for option in ["CONFIG_IKCONFIG_PROC=y", "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y", "CONFIG_PVH=y"] {
        assert!(config.lines().any(|line| line == option), "{option}");
    }
}

/// The limit of port exits: one and a half times the measured number (docs/kernels.md).
const MAX_PORT_EXITS: u64 = 450;
/// The same for MMIO exits, all of which are the I/O APIC's.
const MAX_MMIO_EXITS: u64 = 800;
