//! The gate that the vCPUs pass before each entry into the guest, and the first [`Ending`] of the virtual
//! machine.
//!
//! Devices, vCPUs, handles and time limits post an ending; the control thread (`vm::lifecycle`) takes the
//! first one and acts. Posting never waits. The gate closes with the first ending, so that a guest which has
//! asked for its end never runs on. It opens again only for a guest that was reset and starts again.
//!
//! ```text
//! gate:  Paused <-> Open           (pause, open; hold, on behalf of the control thread or of a snapshot)
//!        Paused, Open -> Closed    (post: the first ending)
//!        Closed -> Paused, Open    (restart, when all vCPU threads have ended)
//! ```
//!
//! The gate and what the control thread waits for share one lock, because each change of one may end a wait
//! for the other. Only [`Gate::state`] does without the lock: vCPUs call it before every entry.

mod requests;
mod wake;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use self::wake::{StartLimits, Wake};
use crate::ending::{Ending, EndingKind, HostFailure};

/// The gate and the first ending, shared by everything that can end the virtual machine, pause it, or wait
/// for its end.
#[derive(Debug)]
pub(crate) struct Gate {
    /// A [`GateState`]. It follows from `record` and is written under its lock.
    state: AtomicU8,
    record: Mutex<Record>,
    changed: Condvar,
}

/// The posted endings and requests, from which the gate's state follows.
#[derive(Debug, Default)]
struct Record {
    /// The time at which the vCPUs were first allowed to run.
    started: Option<Instant>,
    first: Option<Ending>,
    /// An ending that the owner requested after the first one. It prevails if the machine would have survived
    /// the first ending, as it does a reset.
    overruling: Option<Ending>,
    /// The first host failure after the first ending.
    host_failure: Option<HostFailure>,
    /// True if the machine does not survive the first ending.
    over: bool,
    /// The signal because of which the guest was asked to end.
    signal: Option<i32>,
    /// The number of endings that changed nothing because others came first.
    later: u64,
    /// True if the guest printed the text of a panic and the control thread has not noticed yet.
    panic_text: bool,
    /// True if a crash kernel runs in place of a kernel that panicked.
    crash_kernel: bool,
    /// The number of disk requests that failed.
    disk_errors: u64,
    /// True if a handle has left work for the control thread.
    requested: bool,
    /// Set while the control thread has to pause the machine: the reason for it.
    pause_reason: Option<String>,
    /// True while the owner allows the vCPUs to run.
    resumed: bool,
    /// True while the control thread keeps the vCPUs out of the guest: to inspect them, or until all of them
    /// have started.
    held: bool,
    /// True while a snapshot of the machine keeps the vCPUs out of the guest, whatever the control thread
    /// does.
    saved: bool,
    /// The number of vCPU threads that are outside the guest because the gate is not open.
    parked: u32,
    /// The number of vCPU threads that have ended.
    ended: u32,
    /// How often [`Gate::ask_parked`] has asked the vCPU threads to serve a command.
    asked: u64,
}

/// The state of the gate, which decides what a vCPU does when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateState {
    /// The vCPU enters the guest.
    Open,
    /// The vCPU waits for another state.
    Paused,
    /// The vCPU never enters the guest again, and its thread ends.
    Closed,
}

impl Gate {
    /// Creates a gate that is paused.
    pub(crate) fn new() -> Gate {
        let state = AtomicU8::new(GateState::Paused as u8);
        Gate { state, record: Mutex::default(), changed: Condvar::new() }
    }

    /// Ends the machine, unless another ending was posted before. A failure of the host is recorded in any
    /// case: the stop reports it in place of a clean ending.
    pub(crate) fn post(&self, ending: Ending) {
        let mut record = self.lock();
        match ending {
            ending if record.first.is_none() => record.first = Some(ending),
            Ending::HostFailed { reason } => {
                record.host_failure.get_or_insert(reason);
            }
            asked if asked.kind() == EndingKind::Asked => {
                record.overruling.get_or_insert(asked);
            }
            _ => record.later = record.later.saturating_add(1),
        }
        self.set_state(&record);
    }

    /// Ends the machine, unless another ending was posted before: then it returns `false`.
    pub(crate) fn post_first(&self, ending: Ending) -> bool {
        let mut record = self.lock();
        let is_first = record.first.is_none();
        if is_first {
            record.first = Some(ending);
            self.set_state(&record);
        }
        is_first
    }

    /// Notes the signal because of which the guest is asked to end. Returns `false` if it comes after an
    /// ending that the machine does not survive: that one was not because of the signal.
    pub(crate) fn note_signal(&self, signal: i32) -> bool {
        let mut record = self.lock();
        let is_survivable = |ending: &Ending| matches!(ending, Ending::Reset { .. });
        let is_in_time = !record.over && record.first.as_ref().is_none_or(is_survivable);
        if is_in_time {
            record.signal = Some(signal);
        }
        is_in_time
    }

    /// Returns the last signal that was noted.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.lock().signal
    }

    /// Ends the machine on behalf of its owner.
    pub(crate) fn stop(&self) {
        self.post(Ending::Stopped);
    }

    /// Returns the current state. It costs a single load, because vCPUs read it before every entry into the
    /// guest.
    pub(crate) fn state(&self) -> GateState {
        match self.state.load(Ordering::Acquire) {
            value if value == GateState::Open as u8 => GateState::Open,
            value if value == GateState::Paused as u8 => GateState::Paused,
            _ => GateState::Closed,
        }
    }

    /// Waits until the gate opens (`true`) or closes (`false`). A vCPU that finds the gate paused calls this.
    /// It calls `serve`, without the lock, after each [`Gate::ask_parked`] and once more before it returns,
    /// so that every command that was left while it was parked is answered.
    pub(crate) fn park(&self, mut serve: impl FnMut()) -> bool {
        let mut record = self.lock();
        record.parked += 1;
        self.changed.notify_all();
        let mut served = record.asked;
        loop {
            let is_idle = |record: &mut Record| self.state() == GateState::Paused && record.asked == served;
            record = self.changed.wait_while(record, is_idle).unwrap_or_else(PoisonError::into_inner);
            if record.asked == served {
                break;
            }
            served = record.asked;
            drop(record);
            serve();
            record = self.lock();
        }
        record.parked -= 1;
        self.state() == GateState::Open
    }

    /// Waits until all `vcpus` threads are parked in a machine that its owner has paused. Returns `false` at
    /// once if the owner has not paused it; a hold by the control thread is not a pause.
    pub(crate) fn wait_paused(&self, vcpus: u32, limit: Duration) -> bool {
        let is_early = |record: &mut Record| self.is_paused_in(record) && record.parked < vcpus;
        let wait = self.changed.wait_timeout_while(self.lock(), limit, is_early);
        let (record, _) = wait.unwrap_or_else(PoisonError::into_inner);
        self.is_paused_in(&record) && record.parked >= vcpus
    }

    /// Calls `post_commands`, which posts a command for each vCPU, and makes the parked threads serve it. It
    /// does so and returns `true` only in the state that [`Gate::wait_paused`] waits for, in which every
    /// thread serves at once. `post_commands` runs under the lock, so it must not wait.
    pub(crate) fn ask_parked(&self, vcpus: u32, post_commands: impl FnOnce()) -> bool {
        self.ask(vcpus, |record| !record.resumed, post_commands)
    }

    /// [`Gate::ask_parked`] for a snapshot, which holds the vCPUs by [`Gate::hold_for_snapshot`].
    pub(crate) fn ask_held(&self, vcpus: u32, post_commands: impl FnOnce()) -> bool {
        self.ask(vcpus, |record| record.saved, post_commands)
    }

    fn ask(
        &self,
        vcpus: u32,
        stays_paused: impl FnOnce(&Record) -> bool,
        post_commands: impl FnOnce(),
    ) -> bool {
        let mut record = self.lock();
        let is_paused = self.state() == GateState::Paused && stays_paused(&record);
        let is_ready = is_paused && record.parked >= vcpus;
        if is_ready {
            post_commands();
            record.asked = record.asked.wrapping_add(1);
            self.changed.notify_all();
        }
        is_ready
    }

    /// Returns whether the owner has paused the machine, or not started it. A hold by the control thread is
    /// not a pause: it ends without the owner.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused_in(&self.lock())
    }

    fn is_paused_in(&self, record: &Record) -> bool {
        self.state() == GateState::Paused && !record.resumed
    }

    /// Returns whether the owner's last call was [`Gate::open`] rather than [`Gate::pause`].
    pub(crate) fn is_resumed(&self) -> bool {
        self.lock().resumed
    }

    /// Counts a vCPU thread that ends. Each thread calls this once, even after a panic.
    pub(crate) fn count_ended_vcpu(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// Lets the vCPUs run, unless the gate is closed. The time limits start with the first call.
    pub(crate) fn open(&self) {
        let mut record = self.lock();
        record.started.get_or_insert_with(Instant::now);
        record.resumed = true;
        self.set_state(&record);
    }

    /// Returns the time at which the vCPUs were first allowed to run.
    pub(crate) fn started(&self) -> Option<Instant> {
        self.lock().started
    }

    /// Keeps the vCPUs from entering the guest, unless the gate is closed. The caller kicks those that are
    /// inside.
    pub(crate) fn pause(&self) {
        let mut record = self.lock();
        record.resumed = false;
        self.set_state(&record);
    }

    /// Keeps the vCPUs out, or stops doing so, on behalf of the control thread. The owner's last
    /// [`Gate::open`] or [`Gate::pause`] stays in force and applies afterwards.
    pub(crate) fn hold(&self, held: bool) {
        let mut record = self.lock();
        record.held = held;
        self.set_state(&record);
    }

    /// Keeps the vCPUs out on behalf of a snapshot. Returns `false` if another snapshot does so already. The
    /// owner's last [`Gate::open`] or [`Gate::pause`] applies after [`Gate::release_from_snapshot`].
    pub(crate) fn hold_for_snapshot(&self) -> bool {
        let mut record = self.lock();
        let is_first = !std::mem::replace(&mut record.saved, true);
        self.set_state(&record);
        is_first
    }

    /// Stops keeping the vCPUs out.
    pub(crate) fn release_from_snapshot(&self) {
        let mut record = self.lock();
        record.saved = false;
        self.set_state(&record);
    }

    /// Records that the first ending ends the machine: there will be no restart.
    pub(crate) fn set_over(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Returns whether the machine has ended. While it is unknown whether it survives an ending, waits for
    /// that, up to `limit`.
    pub(crate) fn is_over(&self, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.first.is_none() || record.over);
        self.lock().over
    }

    /// Waits for the end of a reset that has closed the gate. Returns `true` if the guest has been restarted,
    /// or the gate was not closed.
    pub(crate) fn wait_restarted(&self, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.first.is_none() || record.over)
            && self.state() != GateState::Closed
    }

    /// Discards the reset that was the first ending, once all vCPU threads have ended and before new ones
    /// start. The new threads are held until [`Gate::hold`] releases them.
    ///
    /// # Errors
    /// The ending that was requested, or the failure that occurred, since the reset: it is now the first
    /// ending.
    pub(crate) fn restart(&self) -> Result<(), Ending> {
        let mut record = self.lock();
        let failure = record.host_failure.take().map(Ending::from);
        if let Some(ending) = failure.or(record.overruling.take()) {
            record.first = Some(ending.clone());
            return Err(ending);
        }
        record.first = None;
        (record.parked, record.ended) = (0, 0);
        (record.panic_text, record.crash_kernel) = (false, false);
        record.held = true;
        self.set_state(&record);
        Ok(())
    }

    /// Waits until `vcpus` threads are parked or have ended; `false` if the limit expires first.
    pub(crate) fn wait_parked(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.parked + record.ended >= vcpus)
    }

    /// Waits until `vcpus` threads have ended; `false` if the limit expires first.
    pub(crate) fn wait_vcpus_ended(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.ended >= vcpus)
    }

    /// Returns the first host failure after the first ending, and the number of other endings after it.
    pub(crate) fn later_endings(&self) -> (Option<HostFailure>, u64) {
        let record = self.lock();
        (record.host_failure.clone(), record.later)
    }

    /// Counts a disk request that the host could not carry out. With a `pause_reason`, the control thread
    /// pauses the machine.
    pub(crate) fn count_disk_error(&self, pause_reason: Option<String>) {
        let mut record = self.lock();
        record.disk_errors = record.disk_errors.saturating_add(1);
        if pause_reason.is_some() {
            record.pause_reason = pause_reason;
            self.changed.notify_all();
        }
    }

    /// Wakes the control thread for work that a handle has left for it.
    pub(crate) fn request(&self) {
        self.lock().requested = true;
        self.changed.notify_all();
    }

    /// Returns the number of disk requests that the host could not carry out.
    pub(crate) fn disk_errors(&self) -> u64 {
        self.lock().disk_errors
    }

    /// Returns whether a crash kernel has taken over from a kernel that panicked.
    pub(crate) fn crash_kernel_runs(&self) -> bool {
        self.lock().crash_kernel
    }

    /// Sets the state that follows from `record`, and wakes everyone who waits for a change.
    fn set_state(&self, record: &Record) {
        let state = if record.first.is_some() {
            GateState::Closed
        } else if record.resumed && !record.held && !record.saved {
            GateState::Open
        } else {
            GateState::Paused
        };
        self.state.store(state as u8, Ordering::Release);
        self.changed.notify_all();
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&Record) -> bool) -> bool {
        let wait = self.changed.wait_timeout_while(self.lock(), limit, |record| !done(record));
        let (record, _) = wait.unwrap_or_else(PoisonError::into_inner);
        done(&record)
    }

    /// Takes the lock. It ignores poisoning: whatever a thread that panicked has left, the counters and the
    /// ending are valid.
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
