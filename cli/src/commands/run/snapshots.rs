//! `--snapshot-on-signal`: SIGUSR1 writes a snapshot of the machine. `--snapshot-on-ready`: the guest's
//! workload asks for one.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use coracle::agent::AgentError;
use coracle::outcome::Seconds;
use coracle::{VmHandle, exit_code, snapshot};

use super::signals::Blocked;
use super::watch::Watch;
use crate::commands::settings::Failure;
use crate::commands::{chain, say};

/// The snapshots that a run writes.
#[derive(Default)]
pub(crate) struct Snapshots {
    on_signal: Option<PathBuf>,
    on_ready: Option<OnReady>,
    taker: OnceCell<Arc<SnapshotOnSignal>>,
    at_branch_point: OnceCell<JoinHandle<AtBranchPoint>>,
}

/// The request for a snapshot at a branch point.
struct OnReady {
    folder: PathBuf,
    /// Whether a process of any user may ask for it, and not only one of root.
    any_user: bool,
}

impl Snapshots {
    /// Checks that the snapshots can be written: one at each signal, and one when a process of root, or of
    /// any user, has reached its branch point.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn new(
        on_signal: &Option<PathBuf>,
        (on_ready, any_user): (&Option<PathBuf>, bool),
    ) -> Result<Snapshots, Failure> {
        let on_signal = on_signal.clone();
        let on_ready = on_ready.clone().map(|folder| OnReady { folder, any_user });
        let ready = on_ready.as_ref().map(|ready| ("--snapshot-on-ready", &ready.folder));
        for (option, folder) in on_signal.iter().map(|folder| (ON_SIGNAL, folder)).chain(ready) {
            let checked = snapshot::check_free(folder);
            checked.map_err(|error| Failure::usage(format!("{option}: {}", chain(&error))))?;
        }
        Ok(Snapshots { on_signal, on_ready, ..Snapshots::default() })
    }

    /// Takes SIGUSR1 from `signals` for snapshots of `vm`.
    pub(in crate::commands) fn attach(&self, signals: &Blocked, vm: VmHandle) {
        if let Some(folder) = self.on_signal.clone() {
            let taker = Arc::new(SnapshotOnSignal { vm, folder, state: Mutex::default() });
            signals.on_usr1(taker.clone());
            let _ = self.taker.set(taker);
        }
    }

    /// Waits, on a thread of its own, for the workload of `vm` to ask for a snapshot. The guest's agent is
    /// ready.
    pub(in crate::commands) fn wait_branch_point(&self, vm: VmHandle) {
        let Some(OnReady { folder, any_user }) = &self.on_ready else { return };
        let (folder, any_user) = (folder.clone(), *any_user);
        let thread = Builder::new().name("snapshot-ready".into());
        match thread.spawn(move || at_branch_point(&vm, &folder, any_user)) {
            Ok(waiting) => drop(self.at_branch_point.set(waiting)),
            Err(error) => say(&format!("--snapshot-on-ready: cannot start a thread: {error}")),
        }
    }

    /// Waits until the snapshot that is being written is complete; a signal ends the process meanwhile.
    /// Returns `code`, or the code for bad usage if it is 0 and the last snapshot could not be written, or
    /// none was asked for at a branch point.
    pub(in crate::commands) fn finish(self, code: u8) -> u8 {
        let has_failed = self.taker.get().is_some_and(|taker| taker.finish());
        let is_missing =
            self.on_ready.is_some() && !self.at_branch_point.into_inner().is_some_and(is_written);
        if code == 0 && (has_failed || is_missing) { exit_code::BAD_USAGE } else { code }
    }
}

/// The end of the wait for a branch point.
enum AtBranchPoint {
    Written,
    /// This has been reported.
    NotWritten,
    NotReached(AgentError),
}

/// Waits until the machine has ended, and tells if it had no snapshot at a branch point.
fn is_written(waiting: JoinHandle<AtBranchPoint>) -> bool {
    let _watch = Watch::report().ok();
    match waiting.join() {
        Ok(AtBranchPoint::Written) => return true,
        Ok(AtBranchPoint::NotReached(AgentError::MachineEnded { .. })) => {
            say(
                "--snapshot-on-ready: no snapshot was written: the machine ended before its command had called \
                 `coracle-agent branch-here`",
            );
        }
        Ok(AtBranchPoint::NotReached(error)) => {
            say(&format!("--snapshot-on-ready: no snapshot was written: {}", chain(&error)));
        }
        Ok(AtBranchPoint::NotWritten) | Err(_) => {}
    }
    false
}

fn at_branch_point(vm: &VmHandle, folder: &Path, any_user: bool) -> AtBranchPoint {
    let reached = vm.agent().and_then(|agent| match any_user {
        true => agent.wait_branch_point_of_any_user(Duration::MAX),
        false => agent.wait_branch_point(Duration::MAX),
    });
    match reached {
        // The process goes on when this is dropped.
        Ok(_point) if write(vm, folder) => AtBranchPoint::Written,
        Ok(_point) => AtBranchPoint::NotWritten,
        Err(error) => AtBranchPoint::NotReached(error),
    }
}

/// Writes a snapshot of a machine at each SIGUSR1. A thread of its own does that: a file may hang, and the
/// signals of the machine must not wait for it.
pub(crate) struct SnapshotOnSignal {
    vm: VmHandle,
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    writing: Option<JoinHandle<bool>>,
    /// Whether the last one could not be written.
    has_failed: bool,
    /// Set when the machine has ended.
    is_over: bool,
}

impl SnapshotOnSignal {
    /// Takes the signal that asks for a snapshot.
    pub(super) fn take(&self) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        if state.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return say(
                "--snapshot-on-signal: the snapshot before this signal is still being written; send it again",
            );
        }
        state.collect();
        let (vm, folder) = (self.vm.clone(), self.folder.clone());
        let thread = Builder::new().name("snapshot-signal".into());
        match thread.spawn(move || write(&vm, &folder)) {
            Ok(writing) => state.writing = Some(writing),
            Err(error) => {
                state.has_failed = true;
                say(&format!("--snapshot-on-signal: cannot start a thread: {error}"));
            }
        }
    }

    /// Waits until the snapshot that is being written is complete. Returns whether the last one failed.
    fn finish(&self) -> bool {
        let writing = {
            let mut state = self.lock();
            state.is_over = true;
            state.writing.take()
        };
        if let Some(writing) = writing {
            let _watch = Watch::report().ok();
            let is_written = writing.join().unwrap_or(false);
            self.lock().has_failed = !is_written;
        }
        self.lock().has_failed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the result of a snapshot that is complete.
    fn collect(&mut self) {
        if let Some(written) = self.writing.take() {
            self.has_failed = !written.join().unwrap_or(false);
        }
    }
}

/// Writes a snapshot and tells how that went. Returns whether it was written.
fn write(vm: &VmHandle, folder: &Path) -> bool {
    let start = Instant::now();
    let written = vm.snapshot_to(folder);
    match &written {
        Ok(()) => say(&format!("snapshot {}: complete after {}", folder.display(), Seconds(start.elapsed()))),
        Err(error) => say(&chain(error)),
    }
    written.is_ok()
}

const ON_SIGNAL: &str = "--snapshot-on-signal";
