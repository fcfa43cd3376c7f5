//! A thread that hears signals while the main thread cannot: while a machine is prepared, and while a report
//! is written to a FIFO that nobody reads.

use std::io::{self, IsTerminal, PipeWriter};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use coracle::command::RawTerminal;
use coracle::host::on_emulated_host;
use coracle::outcome::{Ending, OutcomeReport};
use coracle_devices::thread::spawn_with_signals_blocked;

use super::signals::{Blocked, ends};
use super::write_report_at_once;
use crate::end_at_once;
use crate::stderr::{self, say};

/// Ends the process by the first signal that asks for it, until this is dropped. Later signals are the main
/// thread's.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Closed to end the thread.
    end: Option<PipeWriter>,
    state: Arc<AtomicU8>,
    start: Instant,
    thread: Option<JoinHandle<()>>,
}

/// The thread reads signals.
const WATCHING: u8 = 0;
/// The thread has read one, and ends the process.
const ENDING: u8 = 1;
/// The main thread reads signals from now on.
const OVER: u8 = 2;

/// What the end of the process is told of.
#[derive(Debug)]
enum Work {
    /// The machine is prepared: with the file for the outcome.
    Preparation { outcome: Option<PathBuf> },
    /// The report is written, and the guest has ended.
    Report,
    /// Guests run, of which none hears a signal.
    Tests,
}

impl Watch {
    /// While a machine is prepared. At a terminal, a preparation that takes long shows that it goes on.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub(crate) fn preparation(signals: &Blocked, outcome: Option<PathBuf>) -> io::Result<Watch> {
        Watch::start(signals, Work::Preparation { outcome })
    }

    /// While the report of a guest that has ended is written.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub(crate) fn report() -> io::Result<Watch> {
        Watch::start(&Blocked::new()?, Work::Report)
    }

    /// While tests run.
    ///
    /// # Errors
    /// The host gives no thread or descriptor.
    pub(crate) fn tests() -> io::Result<Watch> {
        Watch::start(&Blocked::new()?, Work::Tests)
    }

    fn start(signals: &Blocked, work: Work) -> io::Result<Watch> {
        let signals = signals.read_end()?;
        let (ended, end) = io::pipe()?;
        let shows_progress = matches!(work, Work::Preparation { .. }) && io::stderr().is_terminal();
        let state = Arc::new(AtomicU8::new(WATCHING));
        let shared = state.clone();
        let run = move || {
            let progress = shows_progress.then(Progress::start);
            loop {
                let wait = progress.as_ref().map_or(-1, Progress::millis);
                match signals.wait(ended.as_raw_fd(), wait) {
                    Ok(false) => {}
                    // The main thread reads the signals later, also after an error.
                    Ok(true) | Err(_) => return,
                }
                if let Some(signal) = signals.read().filter(|signal| ends(*signal)) {
                    if shared.swap(ENDING, Ordering::AcqRel) == OVER {
                        return give_back(signal);
                    }
                    work.end(signal);
                }
                if let Some(progress) = &progress {
                    progress.show();
                }
            }
        };
        let thread = spawn_with_signals_blocked(Builder::new().name("signals".into()), run)?;
        Ok(Watch { end: Some(end), state, start: Instant::now(), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end = None;
        let is_ending = self.state.swap(OVER, Ordering::AcqRel) == ENDING;
        // Waiting for the thread would delay each start. It matters only where the thread may have shown a
        // line, or ends the process: then it does not come back.
        if (is_ending || self.start.elapsed() >= Duration::from_secs(1))
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Sends a signal again that was read at the very moment at which the main thread took over.
fn give_back(signal: i32) {
    // SAFETY: raises a signal for this thread's process, in which all threads block it; no memory is
    // involved.
    unsafe { libc::kill(std::process::id().cast_signed(), signal) };
}

impl Work {
    fn end(&self, signal: i32) {
        RawTerminal::restore();
        let ending = Ending::Signalled { signal };
        let code = ending.exit_code();
        match self {
            Work::Preparation { outcome } => {
                let reason = format!("{ending} before the guest ran");
                say(&reason);
                let report = OutcomeReport::not_run(code, reason, on_emulated_host());
                if let Some(path) = outcome {
                    write_report_at_once(path, &report);
                }
            }
            Work::Report => {}
            Work::Tests => say(&ending.to_string()),
        }
        stderr::flush();
        // The main thread is amid its work.
        end_at_once(code);
    }
}

/// The line at a terminal that says for how long a machine has been prepared.
#[derive(Debug)]
struct Progress {
    start: Instant,
}

impl Progress {
    fn start() -> Progress {
        Progress { start: Instant::now() }
    }

    /// When to look again.
    fn millis(&self) -> i32 {
        let next = Duration::from_secs(self.start.elapsed().as_secs() + 1);
        i32::try_from(next.saturating_sub(self.start.elapsed()).as_millis()).unwrap_or(1000).saturating_add(1)
    }

    fn show(&self) {
        let seconds = self.start.elapsed().as_secs();
        if seconds >= FIRST_SECONDS {
            stderr::show_progress(Some(&format!("coracle: preparing the guest: {seconds} s")));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        stderr::show_progress(None);
    }
}

/// What takes less needs no line.
const FIRST_SECONDS: u64 = 2;
