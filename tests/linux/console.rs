//! A stock kernel whose console is a virtio one, `hvc0`.

use std::io::Write;
use std::process::Stdio;

use coracle::guest_data::GuestData;

use super::common::{collect, coracle, finish, scratch};
use super::{common, data, no_linux, run};

#[test]
fn hvc0_is_the_console_and_the_serial_port_keeps_the_kernels_words() {
    needs_linux!();
    let log = scratch().join("kernel.log");
    let serial = format!("file={}", log.display());
    let run = run("report", &["--console", "virtio", "--serial", &serial, "-a", "console=hvc0 loglevel=5"]);
    run.expect(0, "the guest powered off");
    let text = run.text();
    assert!(text.contains("console  ttyS0 hvc0") || text.contains("console  hvc0 ttyS0"), "{text}");
    assert!(text.contains("virtio0 (virtio_console)"), "{text}");
    let serial = std::fs::read_to_string(log).unwrap();
    assert!(!serial.contains("coracle guest"), "the report is on hvc0 alone: {serial}");
}

#[test]
fn shell_on_hvc0_reads_what_is_typed_and_a_flood_arrives_whole() {
    needs_linux!();
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "50s", "--console", "virtio"]);
    command.arg(data(GuestData::GuestVmlinux)).arg("-i").arg(data(GuestData::GuestInitramfs));
    command.args(["-a", "quiet coracle.init=shell"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let typed = "stty -echo -opost; echo st''art; head -c 1000000 /dev/zero | tr '\\0' x; echo e''nd; exit\n";
    stdin.write_all(typed.as_bytes()).unwrap();
    let run = collect(child);
    run.expect(0, "the guest powered off");
    let text = run.text();
    let flood = text.rsplit_once("start").and_then(|(_, rest)| rest.split_once("end"));
    let (flood, _) = flood.unwrap_or_else(|| panic!("{} bytes", text.len()));
    assert_eq!(flood.bytes().filter(|byte| *byte == b'x').count(), 1_000_000, "{}", run.stderr);
    assert!(!run.stderr.contains("were lost"), "{}", run.stderr);
}

#[test]
fn two_devices_cannot_have_one_terminal() {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--console", "virtio", "--serial", "stdio"]);
    finish(command.arg(common::payload("poweroff"))).expect(125, "--serial stdio: the virtio console has");
}
