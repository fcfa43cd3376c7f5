//! Carries the output of a command in a guest to a stream or a reader of ours.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// An output of the command that is being copied.
pub(crate) struct Copying {
    thread: thread::JoinHandle<()>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// True while the thread waits for the guest, and not for our reader.
    waits_for_guest: AtomicBool,
    /// True if the output is a pipe or socket whose reader has gone, or if more of it was lost than a program
    /// writes that checks its writes.
    has_no_reader: AtomicBool,
    /// Why the rest is lost.
    failure: OnceLock<io::Error>,
}

impl Copying {
    /// Copies the output, piece by piece, until it ends. What `to` does not take is read all the same, so
    /// that a command that ignores its missing reader reaches its end.
    ///
    /// # Errors
    /// There cannot be another thread.
    pub(crate) fn start(
        mut output: impl Read + Send + 'static,
        mut to: impl Write + Send + 'static,
    ) -> io::Result<Copying> {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let thread = thread::Builder::new().spawn(move || {
            let mut bytes = vec![0; PIECE];
            let mut lost: u64 = 0;
            loop {
                shared.waits_for_guest.store(true, Ordering::Relaxed);
                let Ok(count @ 1..) = output.read(&mut bytes) else { return };
                let is_broken = lost > 0;
                shared.waits_for_guest.store(is_broken, Ordering::Relaxed);
                if is_broken || !shared.deliver(&mut to, bytes.get(..count).unwrap_or_default()) {
                    lost = lost.saturating_add(count as u64);
                }
                if lost > MAX_LOST {
                    shared.has_no_reader.store(true, Ordering::Relaxed);
                }
            }
        });
        Ok(Copying { thread: thread?, state })
    }

    /// Returns whether the command has to be told that nobody reads the output, as the kernel does with
    /// SIGPIPE.
    pub(crate) fn has_no_reader(&self) -> bool {
        self.state.has_no_reader.load(Ordering::Relaxed)
    }

    /// Returns why a part of the output is lost. That its reader has gone is not a failure.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.state.failure.get()
    }

    /// Returns whether the copying waits for the guest; `None` once everything is written.
    fn waits_for_guest(&self) -> Option<bool> {
        (!self.thread.is_finished()).then(|| self.state.waits_for_guest.load(Ordering::Relaxed))
    }
}

/// How long to wait for outputs whose command has ended. The time that our own reader takes does not count.
pub(crate) struct Rest {
    seen: Instant,
    waited: Duration,
}

impl Rest {
    pub(crate) fn new() -> Rest {
        Rest { seen: Instant::now(), waited: Duration::ZERO }
    }

    /// Returns whether everything is written, or a process that the command has left behind holds an output
    /// for too long.
    pub(crate) fn is_over(&mut self, outputs: &[Option<Copying>]) -> bool {
        let passed = self.seen.elapsed();
        self.seen += passed;
        let open: Vec<bool> = outputs.iter().flatten().filter_map(Copying::waits_for_guest).collect();
        if open.iter().all(|waits| *waits) {
            self.waited = self.waited.saturating_add(passed);
        }
        open.is_empty() || self.waited > LEFT_BEHIND
    }
}

impl State {
    /// Writes `bytes` to `to`; `false` if it takes no more.
    fn deliver(&self, to: &mut impl Write, bytes: &[u8]) -> bool {
        match to.write_all(bytes).and_then(|()| to.flush()) {
            Ok(()) => return true,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.has_no_reader.store(true, Ordering::Relaxed);
            }
            Err(error) => drop(self.failure.set(error)),
        }
        false
    }
}

/// Standard output or standard error as a file. It reports all errors, including those that [`io::Stdout`]
/// ignores, and waits for an output that its owner has made non-blocking.
pub(crate) struct OutputFile(File);

impl OutputFile {
    pub(crate) fn stdout() -> io::Result<OutputFile> {
        Ok(OutputFile(io::stdout().as_fd().try_clone_to_owned()?.into()))
    }

    pub(crate) fn stderr() -> io::Result<OutputFile> {
        Ok(OutputFile(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_room(&self.0)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until a non-blocking file is writable or broken; the next write finds out which.
fn wait_for_room(file: &File) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one live entry, and the count is one.
    let ready = unsafe { libc::poll(&raw mut entry, 1, -1) };
    let error = io::Error::last_os_error();
    if ready < 0 && error.kind() != ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}

/// How long to wait for a process that the command has left behind: it may hold its streams for ever, or
/// write without end. The agent releases streams that have been silent for 1 s, so that only a guest that
/// stalls for longer, on a busy host, loses output.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
/// The size of a piece: a frame of the agent's protocol.
const PIECE: usize = 64 << 10;
/// How much may be lost before the command is told that it has no reader: more than a program writes that
/// checks its writes. One that writes without end has to end.
const MAX_LOST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Copies `bytes` bytes to `to`, until the end.
    fn copied(bytes: usize, to: impl Write + Send + 'static) -> Copying {
        let copying = Copying::start(Cursor::new(vec![b'x'; bytes]), to).unwrap();
        while !copying.thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        copying
    }

    fn raw_error(copying: &Copying) -> Option<i32> {
        copying.failure().and_then(io::Error::raw_os_error)
    }

    #[test]
    fn reader_that_has_gone_is_not_a_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let copying = copied(PIECE * 3, writer);
        assert!(copying.has_no_reader() && copying.failure().is_none());
    }

    #[test]
    fn output_of_a_guest_that_stands_still_for_a_while_is_waited_for() {
        let (source, mut guest) = io::pipe().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let outputs = [Some(Copying::start(source, writer).unwrap()), None];
        let start = Instant::now();
        let mut rest = Rest::new();
        // Wait for longer than the agent does.
        while start.elapsed() < Duration::from_secs(2) {
            assert!(!rest.is_over(&outputs), "after {:?}", start.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        guest.write_all(b"late").unwrap();
        drop(guest);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"late");
        while !rest.is_over(&outputs) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(rest.waited < LEFT_BEHIND, "its end was seen");
    }

    #[test]
    fn process_that_is_left_behind_and_never_stops_writing_is_not_waited_for() {
        struct Drip;
        impl Read for Drip {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                thread::sleep(Duration::from_millis(1));
                bytes.fill(b'y');
                Ok(bytes.len())
            }
        }
        let outputs = [Some(Copying::start(Drip, io::sink()).unwrap()), None];
        // As if almost the whole time had been waited already.
        let mut rest = Rest { waited: LEFT_BEHIND - Duration::from_millis(50), ..Rest::new() };
        while !rest.is_over(&outputs) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn full_device_is_a_failure_that_the_command_outlives() {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let copying = copied(PIECE * 3, OutputFile(full()));
        assert_eq!(raw_error(&copying), Some(libc::ENOSPC));
        assert!(!copying.has_no_reader(), "only a pipe without a reader is one");
        let copying = copied(MAX_LOST as usize + PIECE, OutputFile(full()));
        assert!(copying.has_no_reader(), "one that writes without end has to end");
        assert_eq!(raw_error(&copying), Some(libc::ENOSPC));
    }

    #[test]
    fn descriptor_that_is_not_open_for_writing_is_a_failure() {
        let copying = copied(1, OutputFile(File::open("/dev/null").unwrap()));
        assert_eq!(raw_error(&copying), Some(libc::EBADF));
    }

    #[test]
    fn output_that_is_made_non_blocking_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        coracle_agent::relay::set_non_blocking(&writer).unwrap();
        let copying = Copying::start(
            Cursor::new(vec![b'x'; 300_000]),
            OutputFile(File::from(std::os::fd::OwnedFd::from(writer))),
        )
        .unwrap();
        thread::sleep(Duration::from_millis(20));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 300_000);
        assert!(copying.failure().is_none() && !copying.has_no_reader());
    }
}
