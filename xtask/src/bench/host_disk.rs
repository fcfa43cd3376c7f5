//! The limit of a file's performance: what this host's own system calls achieve.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};

/// A way to access a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostWay {
    /// `pread`, one at a time.
    Read,
    /// `pwrite`, one at a time.
    Write,
    /// io_uring reads, 32 in flight.
    UringRead,
}

impl HostWay {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "pread",
            Self::Write => "pwrite",
            Self::UringRead => "io_uring",
        }
    }
}

/// Returns the operations per second, of `bytes` bytes each, at random multiples of `bytes`.
pub(super) fn operations_per_second(path: &Path, way: HostWay, bytes: usize) -> Result<f64> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let places = file.metadata()?.len() / bytes as u64;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut offset = || random.next() % places * bytes as u64;
    let mut buffers = vec![vec![0xa5_u8; bytes]; DEPTH];
    let mut ring = IoUring::new(DEPTH as u32).context("this host has no io_uring")?;
    let start = Instant::now();
    let mut done = 0_u32;
    while start.elapsed() < FOR {
        match way {
            HostWay::Read => {
                buffers.iter_mut().try_for_each(|buffer| file.read_exact_at(buffer, offset()))?;
            }
            HostWay::Write => buffers.iter().try_for_each(|buffer| file.write_all_at(buffer, offset()))?,
            HostWay::UringRead => {
                for buffer in &mut buffers {
                    let read =
                        opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), bytes as u32);
                    // SAFETY: the buffer lives until the completion, which is waited for below.
                    unsafe { ring.submission().push(&read.offset(offset()).build()) }
                        .context("the ring is full")?;
                }
                ring.submit_and_wait(DEPTH)?;
                let short = ring.completion().filter(|entry| entry.result() != bytes as i32).count();
                ensure!(short == 0, "{short} reads of {} were short", path.display());
            }
        }
        done += DEPTH as u32;
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

/// The generator of the payloads (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const DEPTH: usize = 32;
const FOR: Duration = Duration::from_millis(500);
