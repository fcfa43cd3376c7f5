//! Tests of a stock kernel whose devices are used heavily: by fio, which verifies what it reads, and by
//! iperf3.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::common::network::{in_own_network, ip, tap};
use super::common::{self, collect, eventually};
use super::no_linux;
use super::shell::{Shell, tools};
use super::virtio::{Scratch, host};

/// The jobs of fio, in order: the name of each and its target in the guest.
const JOBS: [(&str, &str); 4] = [
    ("raw-sync", "/dev/vdb"),
    ("raw-io_uring", "/dev/vdc"),
    ("file-sync", "/mnt/a/file"),
    ("file-io_uring", "/mnt/b/file"),
];
/// The amount that each job writes and reads, in KiB.
const JOB_KIB: u32 = 4096;

#[test]
fn fio_reads_back_what_it_has_written_at_random_to_devices_and_to_files_by_both_engines() {
    needs_linux!();
    let Some(tools) = tools() else { return };
    let folder = Scratch::new("fio");
    let file_systems = ["a.ext4", "b.ext4"].map(|name| folder.disk(name));
    file_systems.iter().for_each(|disk| drop(host("mkfs.ext4", &["-q", disk.to_str().unwrap()])));
    let [a, b] = &file_systems;
    let disks =
        [(&folder.disk("raw-a"), "sync"), (&folder.disk("raw-b"), "io_uring"), (a, "sync"), (b, "io_uring")];
    let words = disks.map(|(disk, engine)| format!("path={},engine={engine}", disk.display()));
    let args: Vec<&str> = words.iter().flat_map(|disk| ["--disk", disk]).collect();
    let mut guest = Shell::with_tools(&tools, &args);
    guest.run("mount -t ext4 /dev/vdd /mnt/a && mount -t ext4 /dev/vde /mnt/b");
    let jobs = JOBS.map(|(name, target)| format!("--name={name} --filename={target} --stonewall"));
    guest.run(&format!(
        "fio --minimal --output=/tmp/said --thread --rw=randwrite --size={JOB_KIB}k --bsrange=4k-32k --direct=1 \
         --ioengine=libaio --iodepth=8 --fdatasync=64 --verify=crc32c --verify_fatal=1 {} || {{ cat /tmp/said; \
         false; }}",
        jobs.join(" ")
    ));
    // From each line (fio's HOWTO, "Terse output", version 3): the job, its error, and the KiB read and
    // written.
    let said = guest.run("cut -d';' -f3,5,6,47 /tmp/said");
    for (name, _) in JOBS {
        assert!(said.contains(&format!("{name};0;{JOB_KIB};{JOB_KIB}")), "{name}: {said}");
    }
    guest.run("umount /mnt/a /mnt/b");
    guest.end();
    for disk in &file_systems {
        host("fsck.ext4", &["-fn", disk.to_str().unwrap()]);
    }
}

#[test]
fn iperf3_moves_bytes_both_ways_over_a_tap() {
    needs_linux!();
    let Some(tools) = tools() else { return };
    in_own_network(move || {
        tap("tap0");
        ip("addr add 10.9.0.254/24 dev tap0");
        let mut guest = Shell::with_tools(&tools, &["--net", "tap=tap0"]);
        guest.run("ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up");
        for (direction, end) in [("", "sum_received"), ("--reverse", "sum_sent")] {
            let server = iperf3_server();
            guest.run(&format!("iperf3 -c 10.9.0.254 -n {IPERF3_BYTES} {direction} > /tmp/said"));
            let said = collect(server).text();
            let report: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(report.get("error"), None, "{said}");
            assert!(report["end"][end]["bytes"].as_u64().unwrap() >= IPERF3_BYTES / 2, "{said}");
        }
        guest.run("cd /sys/class/net/eth0/statistics; test $(cat rx_errors)$(cat tx_errors) = 00");
        guest.end();
    });
}

const IPERF3_BYTES: u64 = 8 << 20;

/// Serves one client on the host, in the network of this thread.
fn iperf3_server() -> Child {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    // 1451 is the port 5201, and 0A LISTEN (Linux, include/net/tcp_states.h).
    let is_ours = |line: &str| line.contains(":1451 ") && line.contains(" 0A ");
    let sockets = || fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
    eventually("iperf3 listens", || sockets().lines().any(is_ours));
    child
}
