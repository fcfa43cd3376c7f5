//! Snapshots in files: how long writing one takes, beside the same bytes by one write, and how soon the guest
//! of one goes on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle::Vm;
use coracle_floor::forks as floor;
use serde::{Deserialize, Serialize};

use super::branch::Writer;
use super::part::{Times, micros, template};
use super::{GOES_ON, SnapshotPart, TOUCHED};

/// A folder for snapshots, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(part: &SnapshotPart) -> Result<Folder> {
        let around = part.folder.as_deref().context("--folder")?;
        let folder = Folder(around.join(format!("bench-snapshot-{}", std::process::id())));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Measures from before the start of a process to the next byte of its guest, which goes on from a snapshot.
pub(super) fn restores(part: &SnapshotPart) -> Result<Times> {
    let folder = Folder::new(part)?;
    let (snapshot, files) = (folder.path("snapshot"), folder.path("floor"));
    template(part)?.save_to(&snapshot)?;
    fs::create_dir(&files)?;
    let machine = floor::Machine::start(&part.payload, usize::try_from(part.mib)?, true)?;
    machine.freeze(&TOUCHED)?.0.save_to(&files, &TOUCHED)?;
    let mut times = Times::default();
    let (ours, floor) = (part.coracle.as_deref(), part.floor.as_deref());
    let (ours, floor) = (ours.context("--coracle")?, floor.context("--floor")?);
    // The first is not counted: it warms the caches.
    for round in 0..=part.rounds {
        let ours = to_byte(Command::new(ours).arg("restore").arg(&snapshot))?;
        let floor = to_byte(Command::new(floor).arg("restore").arg(&files))?;
        if round > 0 {
            times.ours.push(ours);
            times.floor.push(floor);
        }
    }
    Ok(times)
}

/// Starts a process, waits for a byte of its guest, and ends it.
fn to_byte(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut byte = [0];
    let read = child.stdout.take().context("its stdout")?.read_exact(&mut byte);
    let took = micros(start);
    let _ = child.kill();
    child.wait()?;
    read.context("its guest printed nothing")?;
    ensure!(byte == [GOES_ON], "its guest printed {byte:?}");
    Ok(took)
}

/// The times of writing snapshots, and the memory that it takes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Writes {
    pub(super) times: Times,
    /// The growth of the process while it writes, apart from its guest.
    pub(super) grown_kib: u64,
}

/// Writes snapshots of a machine with `count` MiB touched, each beside one write and sync of as many bytes.
pub(super) fn writes(part: &SnapshotPart) -> Result<Writes> {
    let folder = Folder::new(part)?;
    let mib = u8::try_from(part.count)?;
    let mut writer = Writer::start(part)?;
    writer.write(mib)?;
    let content = vec![1; usize::from(mib) << 20];
    let mut times = Times::default();
    let mut grown_kib = 0;
    for round in 0..=part.rounds {
        reset_peak()?;
        let before = status("VmRSS")?;
        let start = Instant::now();
        writer.vm.snapshot_to(folder.path("snapshot"))?;
        let ours = micros(start);
        grown_kib = grown_kib.max(status("VmHWM")?.saturating_sub(before));
        let floor = write_synced(&folder.path("floor"), &content)?;
        if round > 0 {
            times.ours.push(ours);
            times.floor.push(floor);
        }
    }
    Ok(Writes { times, grown_kib })
}

/// Writes snapshots with the memory that has changed, a tenth of `count` MiB, each beside one write and sync
/// of as many bytes.
pub(super) fn increments(part: &SnapshotPart) -> Result<Times> {
    let folder = Folder::new(part)?;
    let mib = u8::try_from(part.count)?;
    let mut writer = Writer::start(part)?;
    writer.write(mib)?;
    let mut parent = folder.path("0");
    writer.vm.snapshot_base(&parent)?;
    let content = vec![1; usize::from(mib / 10) << 20];
    let mut times = Times::default();
    for round in 1..=part.rounds.min(MAX_CHAIN) {
        writer.write(mib / 10)?;
        let next = folder.path(&round.to_string());
        let start = Instant::now();
        writer.vm.snapshot_over(&parent, &next)?;
        times.ours.push(micros(start));
        parent = next;
        times.floor.push(write_synced(&folder.path("floor"), &content)?);
    }
    goes_on(&parent, &folder.0)?;
    Ok(times)
}

/// Checks that a machine goes on from the last of a chain.
fn goes_on(path: &Path, parents: &Path) -> Result<()> {
    let vm = Vm::restore(path).parents_in(parents).timeout(Duration::from_secs(1)).start()?;
    drop(vm);
    Ok(())
}

/// Writes a new file and waits until it is on the medium.
fn write_synced(path: &Path, content: &[u8]) -> Result<f64> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let start = Instant::now();
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(micros(start))
}

/// Makes the present memory of this process its peak (proc(5), `/proc/PID/clear_refs`).
fn reset_peak() -> Result<()> {
    Ok(fs::write("/proc/self/clear_refs", "5")?)
}

/// Returns a figure of `/proc/self/status`, in KiB.
fn status(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number =
        line.and_then(|line| line.split_whitespace().next()).context("a line of /proc/self/status")?;
    Ok(number.parse()?)
}

/// Snapshots over each other in the measurement; Coracle allows 64.
const MAX_CHAIN: u32 = 50;
