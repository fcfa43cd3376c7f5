//! `--snapshot-on-signal`: SIGUSR1 writes a snapshot of the machine.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use coracle::outcome::Seconds;
use coracle::{VmHandle, exit_code, snapshot};

use super::signals::Blocked;
use super::watch::Watch;
use crate::commands::settings::Failure;
use crate::commands::{chain, say};

/// The meaning of SIGUSR1 in a run: that of any signal, or a snapshot.
#[derive(Default)]
pub(crate) struct Snapshots {
    folder: Option<PathBuf>,
    taker: OnceCell<Arc<SnapshotOnSignal>>,
}

impl Snapshots {
    /// Checks that snapshots can be written to `folder`.
    ///
    /// # Errors
    /// The reason why not.
    pub(crate) fn to(folder: Option<PathBuf>) -> Result<Snapshots, Failure> {
        let checked = folder.as_ref().map_or(Ok(()), snapshot::check_free);
        checked.map_err(|error| Failure::usage(format!("--snapshot-on-signal: {}", chain(&error))))?;
        Ok(Snapshots { folder, taker: OnceCell::new() })
    }

    /// Takes SIGUSR1 from `signals` for snapshots of `vm`.
    pub(super) fn attach(&self, signals: &Blocked, vm: VmHandle) {
        if let Some(folder) = self.folder.clone() {
            let taker = Arc::new(SnapshotOnSignal { vm, folder, state: Mutex::default() });
            signals.on_usr1(taker.clone());
            let _ = self.taker.set(taker);
        }
    }

    /// Waits until the snapshot that is being written is complete; a signal ends the process meanwhile.
    /// Returns `code`, or the code for bad usage if it is 0 and the last snapshot could not be written.
    pub(super) fn finish(&self, code: u8) -> u8 {
        let has_failed = self.taker.get().is_some_and(|taker| taker.finish());
        if code == 0 && has_failed { exit_code::BAD_USAGE } else { code }
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
