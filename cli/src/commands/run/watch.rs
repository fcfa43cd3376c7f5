//! A thread that handles signals while the main thread cannot: while a machine is prepared, and while a
//! report is written to a FIFO that nobody reads.

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

/// Ends the process at the first signal that asks for it, until this is dropped. Later signals are left to
/// the main thread.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Closing it ends the thread.
    end: Option<PipeWriter>,
    state: Arc<AtomicU8>,
    start: Instant,
    thread: Option<JoinHandle<()>>,
}

/// The thread reads signals.
const WATCHING: u8 = 0;
/// The thread has read a signal and is ending the process.
const ENDING: u8 = 1;
/// The main thread reads the signals from now on.
const OVER: u8 = 2;

/// The current activity, which decides what the end of the process has to report.
#[derive(Debug)]
enum Work {
    /// A machine is being prepared; the outcome goes to this file.
    Preparation { outcome: Option<PathBuf> },
    /// The report is being written; the guest has ended.
    Report,
    /// Guests of tests are running, none of which gets signals.
    Tests,
}

impl Watch {
    /// Handles signals while a machine is prepared. At a terminal, a preparation that takes long shows its
    /// progress.
    ///
    /// # Errors
    /// The host cannot provide the thread or its pipe.
    pub(crate) fn preparation(signals: &Blocked, outcome: Option<PathBuf>) -> io::Result<Watch> {
        Watch::start(signals, Work::Preparation { outcome })
    }

    /// Handles signals while the report of a guest that has ended is written.
    ///
    /// # Errors
    /// The host cannot provide the thread or its pipe.
    pub(crate) fn report() -> io::Result<Watch> {
        Watch::start(&Blocked::new()?, Work::Report)
    }

    /// Handles signals while tests run.
    ///
    /// # Errors
    /// The host cannot provide the thread or its pipe.
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
                    // The main thread reads the signals later, also after an error here.
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
        // Waiting for the thread would delay each start. It is needed only if the thread may have shown a
        // progress line, or is ending the process, in which case the wait never returns.
        if (is_ending || self.start.elapsed() >= Duration::from_secs(1))
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Sends a signal again that was read at the moment at which the main thread took over.
fn give_back(signal: i32) {
    // SAFETY: kill takes two numbers; all threads of this process block the signal, so that it stays pending.
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
        // The main thread is in the middle of its work, so no destructors can run.
        end_at_once(code);
    }
}

/// The line on a terminal that shows for how long a machine has been prepared.
#[derive(Debug)]
struct Progress {
    start: Instant,
}

impl Progress {
    fn start() -> Progress {
        Progress { start: Instant::now() }
    }

    /// The time until the next look, in milliseconds.
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

/// A shorter preparation shows no line.
const FIRST_SECONDS: u64 = 2;
