//! The output of `coracle test` on stdout: the guest's output as it comes, or the table of a suite. A
//! separate thread writes, so that a slow reader delays neither the guest nor the verdict. The queue is
//! bounded: beyond that, the guest's output is dropped and counted, which does not affect the verdict.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::commands::run::copying::OutputFile;

/// Stdout, and the thread that writes to it.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether stdout is a terminal.
    is_terminal: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The number of bytes that the thread has taken but not written yet.
    in_flight: usize,
    /// The number of bytes that were written.
    written: u64,
    /// The number of bytes that were dropped from the queue.
    dropped: u64,
    /// Whether the last byte that was queued is not the end of a line.
    is_in_line: bool,
    /// Why stdout no longer takes anything.
    failure: Option<io::Error>,
}

/// The output that could not be shown.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// The number of bytes that were dropped because stdout was not read in time.
    pub(crate) bytes: u64,
    /// Why stdout took no more. A closed pipe does not count: its reader has seen enough.
    pub(crate) failure: Option<io::Error>,
}

impl Shown {
    /// Starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// The host cannot start the thread, or stdout cannot be used.
    pub(crate) fn start() -> io::Result<Arc<Shown>> {
        Self::to(OutputFile::stdout()?, io::stdout().is_terminal())
    }

    fn to(output: impl Write + Send + 'static, is_terminal: bool) -> io::Result<Arc<Shown>> {
        let shown = Arc::new(Shown { is_terminal, ..Shown::default() });
        let served = shown.clone();
        thread::Builder::new().name("stdout".into()).spawn(move || served.serve(output))?;
        Ok(shown)
    }

    /// Shows a guest's output. This never waits.
    pub(crate) fn output(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len().saturating_add(bytes.len()) > MAX_WAITING {
            state.dropped = state.dropped.saturating_add(bytes.len() as u64);
        } else {
            state.push(bytes);
            self.changed.notify_all();
        }
    }

    /// Shows a text of the command itself, which is never dropped.
    pub(crate) fn text(&self, text: &str) {
        self.lock().push(text.as_bytes());
        self.changed.notify_all();
    }

    /// Ends the guest's last line if it has no end, at a terminal only: there the verdict follows on stderr.
    /// Files and pipes get the output as the guest wrote it.
    pub(crate) fn end_line(&self) {
        if self.is_terminal && self.lock().is_in_line {
            self.text("\n");
        }
    }

    /// Waits until everything is written: as long as stdout is being read, but not for a reader that stands
    /// still, and for at most [`FINISH_LIMIT`].
    pub(crate) fn finish(&self) -> Lost {
        let start = Instant::now();
        let mut state = self.lock();
        while state.unwritten() > 0 && start.elapsed() < FINISH_LIMIT {
            let before = state.written;
            let stands_still = |state: &mut State| state.unwritten() > 0 && state.written == before;
            let wait = self.changed.wait_timeout_while(state, STANDSTILL, stands_still);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
            if state.written == before {
                break;
            }
        }
        Lost { bytes: state.dropped.saturating_add(state.unwritten()), failure: state.failure.take() }
    }

    fn serve(&self, mut output: impl Write) {
        let mut state = self.lock();
        loop {
            let bytes = std::mem::take(&mut state.waiting);
            if bytes.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.in_flight = bytes.len();
            drop(state);
            let failure = self.write(&mut output, &bytes).err();
            state = self.lock();
            if let Some(error) = failure {
                state.waiting = Vec::new();
                state.in_flight = 0;
                state.failure = Some(error).filter(|error| error.kind() != ErrorKind::BrokenPipe);
                self.changed.notify_all();
                drop(state);
                return self.swallow();
            }
        }
    }

    fn write(&self, output: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            output.write_all(piece)?;
            let mut state = self.lock();
            state.written = state.written.saturating_add(piece.len() as u64);
            state.in_flight = state.in_flight.saturating_sub(piece.len());
            self.changed.notify_all();
        }
        output.flush()
    }

    /// Discards the queue, because nothing can be shown any more.
    fn swallow(&self) {
        let mut state = self.lock();
        loop {
            state.waiting.clear();
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, bytes: &[u8]) {
        self.is_in_line = bytes.last().map_or(self.is_in_line, |last| *last != b'\n');
        self.waiting.extend_from_slice(bytes);
    }

    fn unwritten(&self) -> u64 {
        self.waiting.len().saturating_add(self.in_flight) as u64
    }
}

/// About what a guest prints in a second, and more than a pager reads ahead.
const MAX_WAITING: usize = 1 << 20;
/// A pipe takes a piece of this size (PIPE_BUF) whole or not at all, so that a write that succeeds shows that
/// the reader makes progress.
const PIECE: usize = 4096;
/// A reader that takes nothing for this long is considered gone.
const STANDSTILL: Duration = Duration::from_secs(1);
/// The longest time that the end of the command waits for a reader that takes a little now and then.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn reader_that_stands_still_costs_what_does_not_fit_and_no_more() {
        let (mut reader, writer) = io::pipe().unwrap();
        let shown = Shown::to(writer, false).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..3000 {
            shown.output(&line);
        }
        shown.text("the end");
        let lost = shown.finish();
        assert!(lost.bytes > 1_000_000 && lost.failure.is_none(), "{lost:?}");
        // What was taken is whole and in order; a reader that continues gets the rest.
        let mut seen = Vec::new();
        let expected = 3_000_000 - usize::try_from(shown.lock().dropped).unwrap() + "the end".len();
        while seen.len() < expected {
            let mut bytes = [0; 65_536];
            let count = reader.read(&mut bytes).unwrap();
            seen.extend_from_slice(&bytes[..count]);
        }
        assert!(seen.ends_with(b"xthe end"));
        assert!(shown.lock().waiting.len() <= MAX_WAITING);
        assert_eq!(shown.finish().bytes, shown.lock().dropped);
    }

    #[test]
    fn stdout_that_fails_is_told_and_a_reader_that_has_gone_is_not() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let shown = Shown::to(full, false).unwrap();
        shown.text("text");
        assert_eq!(shown.finish().failure.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let shown = Shown::to(writer, false).unwrap();
        for _ in 0..3 {
            shown.text("text");
            let lost = shown.finish();
            assert_eq!((lost.bytes, lost.failure.is_none()), (0, true));
        }
    }
}
