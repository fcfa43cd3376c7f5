//! The limit of a file's performance: what this host's own system calls achieve.

use std::fs::{File, OpenOptions};
use std::hint;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A way to access a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostWay {
    /// `pread`, one at a time.
    Read,
    /// `pwrite`, one at a time.
    Write,
    /// io_uring reads, 32 in flight.
    UringRead,
    /// `pread`, one at a time, on a thread that an eventfd wakes for each, as a doorbell does. The thread
    /// that wants the block waits for it without sleeping, as the guest does.
    ReadWhenWoken,
}

impl HostWay {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "pread",
            Self::Write => "pwrite",
            Self::UringRead => "io_uring",
            Self::ReadWhenWoken => "pread by a woken thread",
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
    let reader = SleepingReader::start(file.try_clone()?, bytes)?;
    let start = Instant::now();
    let mut done = 0_u32;
    while start.elapsed() < FOR {
        match way {
            HostWay::Read => {
                buffers.iter_mut().try_for_each(|buffer| file.read_exact_at(buffer, offset()))?;
            }
            HostWay::ReadWhenWoken => (0..DEPTH).try_for_each(|_| reader.read(offset()))?,
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

/// A thread that sleeps until a block is wanted. Dropping it ends the thread.
struct SleepingReader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    doorbell: EventFd,
    /// The offset of the wanted block.
    wanted: AtomicU64,
    /// The number of blocks that were read.
    done: AtomicU64,
    is_over: AtomicBool,
}

impl SleepingReader {
    fn start(file: File, bytes: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            doorbell: EventFd::new(EFD_NONBLOCK)?,
            wanted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let epoll = Epoll::new()?;
        let events = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, shared.doorbell.as_raw_fd(), events)?;
        let thread = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut buffer = vec![0; bytes];
                loop {
                    epoll.wait(-1, &mut [EpollEvent::default()])?;
                    if shared.is_over.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    file.read_exact_at(&mut buffer, shared.wanted.load(Ordering::Acquire))?;
                    shared.done.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    fn read(&self, offset: u64) -> Result<()> {
        let before = self.shared.done.load(Ordering::Acquire);
        self.shared.wanted.store(offset, Ordering::Release);
        self.shared.doorbell.write(1)?;
        while self.shared.done.load(Ordering::Acquire) == before {
            ensure!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "the thread cannot read");
            hint::spin_loop();
        }
        Ok(())
    }
}

impl Drop for SleepingReader {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        let _ = self.shared.doorbell.write(1);
        let _ = self.thread.take().map(JoinHandle::join);
    }
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
