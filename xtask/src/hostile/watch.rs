//! Runs the program against an attack and observes it from outside: how long it takes to end, with which
//! code, and how much memory it uses meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A command to attack, and how.
pub(super) struct Run {
    pub(super) command: Command,
    /// The event from which the time to the end counts.
    pub(super) end: End,
    /// The content of its stdin.
    pub(super) input: &'static [u8],
    pub(super) stdout: Reader,
    pub(super) stderr: Reader,
    /// The size of the attacking file; 0 if there is none.
    pub(super) file_bytes: u64,
}

/// The event that ends an attack.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// The start: a file is refused without a guest.
    Start,
    /// The guest, in its own time, which is not measured.
    Guest,
    /// The program's own time limit.
    Limit(Duration),
    /// A signal, after this time.
    Signal(i32, Duration),
    /// The guest, just after it has written this byte to its console.
    Byte(u8),
}

/// The reader of an output of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Diligent,
    /// A pipe of one page that nobody reads until the program has ended.
    Asleep,
}

/// The observations of an attack.
#[derive(Debug)]
pub(super) struct Observed {
    /// `None` if a signal ended it: its own, or ours after [`LONGEST_RUN`].
    pub(super) code: Option<i32>,
    /// `None` if it is not measured.
    pub(super) to_end: Option<Duration>,
    pub(super) stderr: String,
    /// The peak of anonymous memory besides the guest's RAM, in bytes; `None` if it was never observed.
    pub(super) beside_ram: Option<u64>,
    /// The peak of resident memory, in bytes. It is at least that of this process, which has started the
    /// program.
    pub(super) resident_peak: u64,
}

impl Run {
    /// Creates a run whose outputs are read and whose guest ends by itself.
    pub(super) fn new(command: Command) -> Self {
        Self {
            command,
            end: End::Guest,
            input: b"",
            stdout: Reader::Diligent,
            stderr: Reader::Diligent,
            file_bytes: 0,
        }
    }

    pub(super) fn end(self, end: End) -> Self {
        Self { end, ..self }
    }
}

/// Runs the command to its end, for at most [`LONGEST_RUN`].
///
/// # Errors
/// The program cannot be started or waited for.
pub(super) fn watch(run: Run) -> Result<Observed> {
    let Run { mut command, end, input, stdout, stderr, file_bytes: _ } = run;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    hear_signals(&mut command);
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start the program")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // The input fits into any pipe. A program that has already ended does not take it.
    let _ = stdin.write_all(input);
    drop(stdin);
    let mark = match end {
        End::Byte(byte) => Some(byte),
        _ => None,
    };
    let out = Stream::new(child.stdout.take().context("no stdout")?, stdout, mark)?;
    let err = Stream::new(child.stderr.take().context("no stderr")?, stderr, None)?;
    let mut beside_ram_peak = None;
    let mut signalled = None;
    let (status, resident_peak) = loop {
        beside_ram_peak = beside_ram(child.id()).max(beside_ram_peak);
        if let (End::Signal(signal, after), None) = (end, signalled)
            && start.elapsed() >= after
        {
            signalled = Some(Instant::now());
            // SAFETY: the child has not been waited for, so its PID has not been reused.
            unsafe { libc::kill(child.id() as i32, signal) };
        }
        if let Some(ended) = wait(&child, libc::WNOHANG)? {
            break ended;
        }
        if start.elapsed() > LONGEST_RUN {
            child.kill().context("cannot end the program")?;
            break wait(&child, 0)?.context("the program does not end")?;
        }
        thread::sleep(if start.elapsed() < EARLY { EARLY_PAUSE } else { PAUSE });
    };
    let ended = Instant::now();
    let begin = match end {
        End::Guest => None,
        End::Start => Some(start),
        End::Limit(limit) => Some(start + limit),
        // If the event was not observed, count from the start, which gives a longer time.
        End::Signal(..) => Some(signalled.unwrap_or(start)),
        End::Byte(_) => Some(out.marked().unwrap_or(start)),
    };
    Ok(Observed {
        code: status.code(),
        to_end: begin.map(|begin| ended.saturating_duration_since(begin)),
        stderr: String::from_utf8_lossy(&err.rest()).into_owned(),
        beside_ram: beside_ram_peak,
        resident_peak,
    })
}

/// Gives the command the usual signals: a shell lets what it runs in the background ignore two of them, and
/// the program ignores what it was started to ignore.
fn hear_signals(command: &mut Command) {
    let reset = || {
        for signal in [libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: the call only sets the disposition of a signal in the new process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure makes only system calls.
    unsafe { command.pre_exec(reset) };
}

/// An output of the program.
enum Stream<S> {
    Read { thread: JoinHandle<Vec<u8>>, marked: Arc<OnceLock<Instant>> },
    Unread(S),
}

impl<S: Read + AsRawFd + Send + 'static> Stream<S> {
    /// Prepares to read a stream, and to note the time of `mark`.
    fn new(mut stream: S, reader: Reader, mark: Option<u8>) -> Result<Self> {
        if reader == Reader::Asleep {
            // SAFETY: the descriptor is open.
            let size = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_SETPIPE_SZ, SMALLEST_PIPE) };
            anyhow::ensure!(size == SMALLEST_PIPE, "a pipe cannot be made small");
            return Ok(Self::Unread(stream));
        }
        let marked = Arc::new(OnceLock::new());
        let shared = marked.clone();
        let thread = thread::spawn(move || {
            let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                let piece = piece.get(..count).unwrap_or_default();
                if mark.is_some_and(|mark| piece.contains(&mark)) {
                    let _ = shared.set(Instant::now());
                }
                kept.extend_from_slice(piece.get(..KEPT - kept.len()).unwrap_or(piece));
            }
            kept
        });
        Ok(Self::Read { thread, marked })
    }

    fn marked(&self) -> Option<Instant> {
        match self {
            Self::Read { marked, .. } => marked.get().copied(),
            Self::Unread(_) => None,
        }
    }

    /// Returns the output, once the program has ended.
    fn rest(self) -> Vec<u8> {
        match self {
            Self::Read { thread, .. } => thread.join().unwrap_or_default(),
            Self::Unread(stream) => {
                let mut kept = Vec::new();
                let _ = stream.take(KEPT as u64).read_to_end(&mut kept);
                kept
            }
        }
    }
}

/// Returns the status and the peak of resident memory of a child that has ended.
fn wait(child: &Child, options: libc::c_int) -> Result<Option<(ExitStatus, u64)>> {
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the child is ours and has not been waited for; both results have room.
    let waited = unsafe { libc::wait4(pid, &mut status, options, usage.as_mut_ptr()) };
    if waited == 0 {
        return Ok(None);
    }
    if waited != pid {
        return Err(std::io::Error::last_os_error()).context("cannot wait for the program");
    }
    // SAFETY: zero is a valid value, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    Ok(Some((ExitStatus::from_raw(status), (usage.ru_maxrss as u64) << 10)))
}

/// Returns the anonymous memory of a process outside the guest's RAM, in bytes; `None` once it has ended.
/// Private dirty memory would be misleading: it includes pages of a program that was just built and has not
/// been written back yet.
fn beside_ram(pid: u32) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok().filter(|maps| !maps.is_empty())?;
    let (mut size, mut anonymous, mut sum) = (0, 0, 0);
    for line in maps.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let bytes = || value.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10);
        match name {
            "Size" => size = bytes()?,
            "Anonymous" => anonymous = bytes()?,
            // The last line of a mapping.
            "VmFlags" if !is_ram(size, value) => sum += anonymous,
            _ => {}
        }
    }
    Some(sum)
}

/// Returns whether a mapping is the guest's RAM or a part of it: nothing else takes advice about huge pages,
/// by which the kernel splits a mapping. A kernel without huge pages leaves it whole.
fn is_ram(size: u64, flags: &str) -> bool {
    size == RAM || size < RAM && flags.split_ascii_whitespace().any(|flag| matches!(flag, "hg" | "nh"))
}

/// The guests' RAM: an odd size, by which its mapping is recognized.
pub(super) const RAM: u64 = 67 << 20;
pub(super) const RAM_OPTION: &str = "67M";
/// A run that takes longer hangs.
const LONGEST_RUN: Duration = Duration::from_secs(40);
/// How often memory is observed at first, because some guests end at once.
const EARLY: Duration = Duration::from_millis(50);
const EARLY_PAUSE: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_millis(10);
const SMALLEST_PIPE: i32 = 4096;
/// How many bytes of a stream are kept.
const KEPT: usize = 64 << 10;
