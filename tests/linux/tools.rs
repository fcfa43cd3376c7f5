//! A stock kernel whose devices are used hard by the tools for that: fio, which checks what it reads.

use std::fs::{self, File};
use std::path::PathBuf;

use super::common;
use super::no_linux;
use super::shell::{Shell, tools};
use super::virtio::host;

/// fio's jobs, done one after the other: the name of each and its target in the guest.
const JOBS: [(&str, &str); 4] = [
    ("raw-sync", "/dev/vdb"),
    ("raw-io_uring", "/dev/vdc"),
    ("file-sync", "/mnt/a/file"),
    ("file-io_uring", "/mnt/b/file"),
];
/// What each job writes and reads, in KiB.
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
         --ioengine=libaio --iodepth=8 --fdatasync=64 --verify=crc32c --verify_fatal=1 {} || {{ cat /tmp/said; false; }}",
        jobs.join(" ")
    ));
    // Of each line (fio's HOWTO, "Terse output", version 3) the job, its error, and the KiB that it read and wrote.
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

/// A folder in memory, for disks: where the host is an emulated one, its other folders are slow. Removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = PathBuf::from(format!("/dev/shm/coracle-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// An empty disk.
    fn disk(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
