//! What a command in a guest writes, on its way to a stream or a reader of ours: for those who run such
//! commands.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// One of the command's outputs on its way.
pub(crate) struct Copying {
    thread: thread::JoinHandle<()>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The thread waits for the guest, and not for our reader.
    waits_for_guest: AtomicBool,
    /// A pipe or socket whose reader has gone, or an output that loses more than is worth the while.
    has_no_reader: AtomicBool,
    /// Why the rest is lost.
    failure: OnceLock<io::Error>,
}

impl Copying {
    /// Copies it, piece by piece, until it ends. What `to` does not take is read all the same, so that a
    /// command which goes on without its reader comes to its end.
    pub(crate) fn start(
        mut output: impl Read + Send + 'static,
        mut to: impl Write + Send + 'static,
    ) -> Copying {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let thread = thread::spawn(move || {
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
                if lost > MOST_LOST {
                    shared.has_no_reader.store(true, Ordering::Relaxed);
                }
            }
        });
        Copying { thread, state }
    }

    /// Whether the command is to be told, as the kernel tells a program by SIGPIPE, that nobody reads this.
    pub(crate) fn has_no_reader(&self) -> bool {
        self.state.has_no_reader.load(Ordering::Relaxed)
    }

    /// Why a part of it is lost: never because its reader has gone.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.state.failure.get()
    }

    /// Whether it waits for what the guest may still send; none when it is all written.
    fn waits_for_guest(&self) -> Option<bool> {
        (!self.thread.is_finished()).then(|| self.state.waits_for_guest.load(Ordering::Relaxed))
    }
}

/// The patience with outputs whose command has ended. Time that our own reader takes is not counted.
pub(crate) struct Rest {
    seen: Instant,
    waited: Duration,
}

impl Rest {
    pub(crate) fn new() -> Rest {
        Rest { seen: Instant::now(), waited: Duration::ZERO }
    }

    /// Whether all is written, or a process that the command has left behind goes on for too long.
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
    /// False when `to` takes no more.
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

/// Standard output or error as a file: its errors are all told, also those that [`io::Stdout`] keeps to
/// itself, and an output that its owner has made non-blocking is waited for.
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

/// Waits until a non-blocking file takes something, or is broken, which the next write tells.
fn wait_for_room(file: &File) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live entry is passed with a count of one.
    let ready = unsafe { libc::poll(&raw mut entry, 1, -1) };
    let error = io::Error::last_os_error();
    if ready < 0 && error.kind() != ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}

/// A process that the command has left behind may hold its streams for ever, or write without end. The agent
/// lets go of streams that are silent after 1 s; a guest that stands still for longer on a busy host loses
/// nothing.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
/// A frame of the agent's protocol.
const PIECE: usize = 64 << 10;
/// More than a program writes that does not look at what becomes of it; one that writes without end is to
/// end.
const MOST_LOST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Copies `bytes` to `to`, to the end.
    fn copied(bytes: usize, to: impl Write + Send + 'static) -> Copying {
        let copying = Copying::start(Cursor::new(vec![b'x'; bytes]), to);
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
        let outputs = [Some(Copying::start(source, writer)), None];
        let start = Instant::now();
        let mut rest = Rest::new();
        // Longer than the agent's own patience.
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
        let outputs = [Some(Copying::start(Drip, io::sink())), None];
        // As if it had been waited for almost as long as may be.
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
        let copying = copied(MOST_LOST as usize + PIECE, OutputFile(full()));
        assert!(copying.has_no_reader(), "one that writes without end is to end");
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
        );
        thread::sleep(Duration::from_millis(20));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 300_000);
        assert!(copying.failure().is_none() && !copying.has_no_reader());
    }
}
