//! The life of a bare guest's process: its times, and what it holds while its guest waits.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coracle_payload::Payload;

use super::process_time::wait_cpu_time;
use super::statistics::Samples;
use crate::process;

/// The times of one monitor's runs.
#[derive(Debug, Default)]
pub(super) struct Lives {
    /// From before the fork to the guest's first byte.
    pub(super) first_byte: Samples,
    /// From before the fork to the end of the process.
    pub(super) whole: Samples,
    /// The CPU time that the kernel accounts to the process.
    pub(super) cpu: Samples,
    /// From the guest's first byte to the end of the process.
    pub(super) after_first_byte: Samples,
}

/// The memory and threads of a process while its guest waits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// The memory of the process apart from the guest's RAM, shared pages in equal parts.
    pub(super) pss_kib: u64,
    /// The written memory of the process apart from the guest's RAM.
    pub(super) private_dirty_kib: u64,
    /// The part of the guest's RAM that has memory of the host.
    pub(super) guest_ram_kib: u64,
    /// The threads of the process.
    pub(super) threads: usize,
}

/// Writes the ELF file of a payload, and beside it the bzImage for kvmtool.
pub(super) fn write_payload(folder: &Path, name: &str) -> Result<PathBuf> {
    let payload = Payload::named(name).with_context(|| format!("there is no payload {name}"))?;
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.elf"));
    fs::write(&path, payload.elf())?;
    fs::write(path.with_extension("bzImage"), payload.real_mode_bzimage())?;
    Ok(path)
}

impl Lives {
    /// Runs the command to its end.
    pub(super) fn measure(&mut self, command: &mut Command) -> Result<()> {
        let start = Instant::now();
        let (mut child, mut stdout) = spawn(command)?;
        let read = read_first_byte(&mut stdout, command).and_then(|()| {
            let first_byte = start.elapsed();
            let mut piece = [0; 4096];
            while read_in_time(&mut stdout, &mut piece)? > 0 {}
            Ok(first_byte)
        });
        if read.is_err() {
            // It may have ended by itself.
            let _ = child.kill();
        }
        let cpu = wait_cpu_time(&child)?;
        let whole = start.elapsed();
        let first_byte = read?;
        self.first_byte.push(first_byte);
        self.whole.push(whole);
        self.cpu.push(cpu);
        self.after_first_byte.push(whole.saturating_sub(first_byte));
        Ok(())
    }
}

/// A process whose guest has printed a byte and waits. It is killed on drop.
pub(super) struct Waiting {
    child: Child,
    /// The time of the first byte.
    since: Instant,
}

impl Waiting {
    pub(super) fn start(command: &mut Command) -> Result<Waiting> {
        let (child, mut stdout) = spawn(command)?;
        let mut waiting = Waiting { child, since: Instant::now() };
        read_first_byte(&mut stdout, command)?;
        waiting.since = Instant::now();
        Ok(waiting)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the process holds once it has put away what it needed to start.
    pub(super) fn held(&self, guest_mib: u64) -> Result<Held> {
        std::thread::sleep(SETTLED.saturating_sub(self.since.elapsed()));
        let process = PathBuf::from(format!("/proc/{}", self.id()));
        let threads = fs::read_dir(process.join("task")).context("the threads")?.count();
        let smaps = fs::read_to_string(process.join("smaps")).context("the mappings")?;
        Ok(Held { threads, ..Held::of_mappings(&smaps, guest_mib << 10) })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A process that has ended by itself is only waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Held {
    /// Adds up `/proc/PID/smaps`. The guest's RAM is the mapping, or the mappings one after the other, with
    /// exactly its size: advice on a part of it makes two of one.
    fn of_mappings(smaps: &str, guest_kib: u64) -> Held {
        let mappings = mappings(smaps);
        let guest = guest_ram(&mappings, guest_kib);
        let mut held = Held::default();
        for (index, mapping) in mappings.iter().enumerate() {
            if guest.contains(&index) {
                held.guest_ram_kib += mapping.rss_kib;
            } else {
                held.pss_kib += mapping.pss_kib;
                held.private_dirty_kib += mapping.private_dirty_kib;
            }
        }
        held
    }
}

/// A mapping of `/proc/PID/smaps`.
#[derive(Default)]
struct Mapping {
    /// The addresses, as the file has them.
    start: String,
    end: String,
    size_kib: u64,
    rss_kib: u64,
    pss_kib: u64,
    private_dirty_kib: u64,
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        if let Some((start, end)) = key.split_once('-') {
            mappings.push(Mapping { start: start.to_owned(), end: end.to_owned(), ..Mapping::default() });
            continue;
        }
        let (Some(mapping), Some(kib)) =
            (mappings.last_mut(), words.next().and_then(|kib| kib.parse::<u64>().ok()))
        else {
            continue;
        };
        match key {
            "Size:" => mapping.size_kib = kib,
            "Rss:" => mapping.rss_kib = kib,
            "Pss:" => mapping.pss_kib = kib,
            "Private_Dirty:" => mapping.private_dirty_kib = kib,
            _ => {}
        }
    }
    mappings
}

/// Returns the indices of the mappings that are the guest's RAM; none if no mappings have its size.
fn guest_ram(mappings: &[Mapping], guest_kib: u64) -> Range<usize> {
    for (first, rest) in (0..mappings.len()).filter_map(|first| Some((first, mappings.get(first..)?))) {
        let (mut size_kib, mut end) = (0, None);
        for (count, mapping) in rest.iter().enumerate() {
            if end.is_some_and(|end| end != &mapping.start) || size_kib > guest_kib {
                break;
            }
            size_kib += mapping.size_kib;
            end = Some(&mapping.end);
            if size_kib == guest_kib {
                return first..first + count + 1;
            }
        }
    }
    0..0
}

fn spawn(command: &mut Command) -> Result<(Child, File)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", process::line(command)))?;
    let stdout = child.stdout.take().context("the child's stdout")?;
    Ok((child, File::from(OwnedFd::from(stdout))))
}

/// Reads until the guest's first byte, which no monitor prints by itself.
pub(super) fn read_first_byte(stdout: &mut (impl Read + AsRawFd), command: &Command) -> Result<()> {
    let mut byte = [0];
    while byte != *b"!" {
        if read_in_time(stdout, &mut byte)? == 0 {
            bail!("`{}` ended without output of its guest", process::line(command));
        }
    }
    Ok(())
}

/// Reads what is there within [`PATIENCE`].
fn read_in_time(stdout: &mut (impl Read + AsRawFd), piece: &mut [u8]) -> Result<usize> {
    let mut poll = libc::pollfd { fd: stdout.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the call reads and writes one `pollfd`.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
    ensure!(ready != 0, "no output for {PATIENCE:?}");
    Ok(stdout.read(piece)?)
}

/// Much longer than a guest of the measurements takes between two outputs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any monitor takes to put away what it needed to start.
const SETTLED: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_without_output_of_a_guest_is_an_error_and_leaves_no_sample() {
        let mut lives = Lives::default();
        let error = lives.measure(Command::new("sh").args(["-c", "echo no mark"])).unwrap_err();
        assert!(error.to_string().contains("ended without output of its guest"), "{error}");
        assert_eq!(lives.whole.median_ms(), 0.0);
        lives.measure(Command::new("sh").args(["-c", "echo a mark!; exit 3"])).unwrap();
        assert!(lives.whole.median_ms() > 0.0);
    }

    #[test]
    fn guest_ram_is_counted_by_itself_in_one_mapping_or_more() {
        let program = "5500-5501 r-xp 00000000 00:00 0\nSize: 64 kB\nRss: 64 kB\nPss: 60 kB\n\
                       Pss_Dirty: 1 kB\nPrivate_Dirty: 4 kB\n";
        let whole = "7f00-7f02 rw-p 00000000 00:00 0\nSize: 131072 kB\nRss: 2050 kB\nPss: 2048 kB\n\
                     Private_Dirty: 2048 kB\n";
        let halves = "7f00-7f01 rw-p 00000000 00:00 0\nSize: 2048 kB\nRss: 50 kB\nPss: 50 kB\n\
                      Private_Dirty: 50 kB\n7f01-7f02 rw-p 00000000 00:00 0\nSize: 129024 kB\nRss: 2000 kB\n";
        let expected = Held { pss_kib: 60, private_dirty_kib: 4, guest_ram_kib: 2050, threads: 0 };
        for ram in [whole, halves] {
            assert_eq!(Held::of_mappings(&format!("{program}{ram}"), 131_072), expected);
        }
        let apart = halves.replace("7f01-7f02", "8000-8001");
        assert_eq!(Held::of_mappings(&format!("{program}{apart}"), 131_072).guest_ram_kib, 0);
    }
}
