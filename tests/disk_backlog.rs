//! Tests of guests that offer their disks far more than any host can do in the time for a stop: the backlog
//! is the guest's, and delays no stop, no time limit and no pause.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, finish_with_input, kvm_or_skip, payload, run_payload, scratch};
use coracle::config::{DiskConfig, DiskEngine, VmConfig};
use coracle::outcome::Ending;
use coracle::{Vm, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

const KINDS: [&str; 5] = ["read", "write", "flush", "discard", "zeroes"];
const ENGINES: [(&str, DiskEngine); 2] = [("sync", DiskEngine::Sync), ("io_uring", DiskEngine::IoUring)];
const MIB: u64 = 1 << 20;

/// Disks of a test, which are removed with it.
struct Disks(PathBuf);

impl Disks {
    fn new(name: &str, count: usize, bytes: u64) -> Self {
        let folder = scratch().join(name);
        fs::create_dir_all(&folder).unwrap();
        let disks = Self(folder);
        (0..count).for_each(|index| File::create(disks.path(index)).unwrap().set_len(bytes).unwrap());
        disks
    }

    fn path(&self, index: usize) -> PathBuf {
        self.0.join(format!("{index}.img"))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(kind: &str, engine: &str, disks: &Disks, count: usize, arguments: &[&str], input: &[u8]) -> Finished {
    let mut command = run_payload(&format!("backlog-{kind}"));
    command.args(["--memory", "128M"]).args(arguments);
    for index in 0..count {
        command.arg("--disk").arg(format!("path={},engine={engine}", disks.path(index).display()));
    }
    finish_with_input(&mut command, input)
}

#[test]
fn guest_with_a_backlog_powers_off_as_any() {
    needs_kvm!();
    for count in [1, 4] {
        let disks = Disks::new(&format!("off-{count}"), count, 256 * MIB);
        for kind in KINDS {
            for (engine, _) in ENGINES {
                let run = run(kind, engine, &disks, count, &["--timeout", "60s"], b"p");
                run.expect(0, "the guest powered off");
                assert_eq!(run.stderr.lines().count(), 1, "{kind}, {engine}: {}", run.stderr);
            }
        }
    }
}

#[test]
fn guest_with_a_backlog_is_ended_by_its_time_limit() {
    needs_kvm!();
    let disks = Disks::new("limit", 4, 256 * MIB);
    for kind in ["read", "zeroes"] {
        for (engine, _) in ENGINES {
            run(kind, engine, &disks, 4, &["--timeout", "300ms"], b"").expect(124, "timed out after 0.3 s");
        }
    }
}

/// Requests that are pending at a pause stay pending, and each is carried out once.
#[test]
fn backlog_goes_on_after_pauses() {
    needs_kvm!();
    for kind in KINDS {
        for (name, engine) in ENGINES {
            let disks = Disks::new(&format!("pause-{kind}-{name}"), 2, 4 * MIB);
            (0..2).for_each(|index| fill(&disks.path(index), kind));
            let vm = backlog(kind, engine, &disks);
            let outcome = vm.wait();
            assert_eq!(outcome.ending, Ending::Exited { code: 0 }, "{kind}, {name}");
            (0..2).for_each(|index| check(&disks.path(index), kind));
        }
    }
}

/// Starts the guest, pauses it repeatedly while its disks work, and lets it check the data.
fn backlog(kind: &str, engine: DiskEngine, disks: &Disks) -> Vm {
    let mut config = VmConfig::new(payload(&format!("backlog-{kind}")));
    config.timeout = Some(Duration::from_secs(60));
    config.disks = (0..2).map(|index| DiskConfig { engine, ..DiskConfig::new(disks.path(index)) }).collect();
    let mut vm = VmBuilder::new(config).console_piped().start().unwrap();
    let mut console = vm.take_console().unwrap();
    console.output.read_exact(&mut [0]).unwrap();
    for _ in 0..20 {
        assert!(vm.handle().pause(), "{kind}");
        vm.handle().resume();
        std::thread::sleep(Duration::from_millis(2));
    }
    console.input.write_all(b"w").unwrap();
    vm
}

/// The data that the guest has to read or overwrite.
fn fill(disk: &Path, kind: &str) {
    let file = File::options().write(true).open(disk).unwrap();
    for page in 0..4 * MIB / 4096 {
        let number = if kind == "write" { 0_u64 } else { page + 1 };
        file.write_all_at(&number.to_le_bytes(), page * 4096).unwrap();
    }
}

fn check(disk: &Path, kind: &str) {
    let content = fs::read(disk).unwrap();
    assert_eq!(content.len() as u64, 4 * MIB);
    for (page, bytes) in (1..).zip(content.chunks(4096)) {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        match kind {
            "zeroes" => assert_eq!(number, 0),
            // A page that is discarded may read as anything.
            "discard" => {}
            _ => assert_eq!(number, page, "{kind}"),
        }
    }
}
