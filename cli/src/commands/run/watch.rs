//! A thread that handles signals while the main thread cannot: while a machine is prepared, while the main
//! thread takes care of a machine, and while a report is written to a FIFO that nobody reads.

use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use coracle::VmHandle;
use coracle::command::RawTerminal;
use coracle::host::on_emulated_host;
use coracle::outcome::{Ending, OutcomeReport};
use coracle_devices::thread::spawn_with_signals_blocked;

use super::signals::{Blocked, ReadEnd, ends, give_back};
use super::write_report_at_once;
use crate::end_at_once;
use crate::stderr::{self, say};

/// Ends the process at the first signal that asks for it, until this is dropped, or passed on by
/// [`Watch::attend`]. After a drop, signals are left to the main thread.
pub(crate) struct Watch {
    /// Closing it ends the wait of the thread.
    end: Option<PipeWriter>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

/// The meaning of a signal.
enum State {
    /// The end of the process.
    Watching,
    /// Nothing: an earlier one is ending the process.
    Ending,
    /// Whatever the main thread makes of it.
    Over,
    /// The end of this machine's guest.
    Attending(Box<(Blocked, VmHandle)>),
}

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
        let state = Arc::new(Mutex::new(State::Watching));
        let shared = state.clone();
        let run = move || {
            watch(&signals, &ended, &shared, shows_progress, &work);
            drop((signals, ended));
            let state = std::mem::replace(&mut *lock(&shared), State::Over);
            if let State::Attending(machine) = state {
                attend(&machine.0, &machine.1);
            }
        };
        let thread = spawn_with_signals_blocked(Builder::new().name("signals".into()), run)?;
        Ok(Watch { end: Some(end), state, thread: Some(thread) })
    }

    /// Passes signals to a machine from now on, until it has its outcome. The main thread is free to take
    /// care of the machine.
    pub(super) fn attend(mut self, signals: Blocked, vm: VmHandle) {
        self.leave(State::Attending(Box::new((signals, vm))));
    }

    /// Ends the watch, unless a signal is ending the process: then this never returns.
    fn leave(&mut self, next: State) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Ending) {
            drop(state);
            // Not waiting for the thread otherwise: it would delay each start.
            let _ = self.thread.take().map(JoinHandle::join);
            return;
        }
        if matches!(*state, State::Watching) {
            *state = next;
            // Under the lock, so that the line does not appear again.
            stderr::show_progress(None);
        }
        drop(state);
        self.end = None;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave(State::Over);
    }
}

/// Waits for signals until the other end of `ended` is closed, and shows the progress meanwhile.
fn watch(signals: &ReadEnd, ended: &PipeReader, state: &Mutex<State>, shows_progress: bool, work: &Work) {
    let progress = shows_progress.then(Progress::start);
    loop {
        let wait = progress.as_ref().map_or(-1, Progress::millis);
        match signals.wait(ended.as_raw_fd(), wait) {
            Ok(false) => {}
            Ok(true) => return,
            // Whoever reads the signals later meets the error, too.
            Err(_) => return wait_closed(ended),
        }
        if let Some(signal) = signals.read() {
            let mut state = lock(state);
            if !matches!(*state, State::Watching) {
                return give_back(signal);
            }
            if ends(signal) {
                *state = State::Ending;
                drop(state);
                work.end(signal);
            }
        }
        if let (Some(progress), State::Watching) = (&progress, &*lock(state)) {
            progress.show();
        }
    }
}

/// Waits until the other end of the pipe is closed.
fn wait_closed(mut ended: &PipeReader) {
    // Nobody writes to it, so a read ends with the pipe.
    let _ = ended.read(&mut [0]);
}

/// Passes signals to a machine until it has its outcome.
fn attend(signals: &Blocked, vm: &VmHandle) {
    if let Err(error) = signals.wait(vm) {
        say(&format!("cannot wait for signals: {error}; the machine is stopped"));
        vm.stop();
    }
}

/// Locks the state, which is valid whatever a thread that panicked was doing.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A shorter preparation shows no line.
const FIRST_SECONDS: u64 = 2;
