//! The gate that the vCPUs pass before each entry into the guest, and the first [`Ending`] of the virtual
//! machine.
//!
//! Devices, vCPUs, handles and time limits post an ending; the control thread (`vm::lifecycle`) takes the
//! first one and acts. Posting never waits. The gate closes with the first ending, so that a guest which has
//! asked for its end never runs on. It opens again only for a guest that was reset and starts again.
//!
//! ```text
//! gate:  Paused <-> Open           (pause, open; hold, on behalf of the control thread)
//!        Paused, Open -> Closed    (post: the first ending)
//!        Closed -> Paused, Open    (begin_again, when all vCPU threads have ended)
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

/// Shared by everything that can end the virtual machine, pause it, or wait for its end.
#[derive(Debug)]
pub(crate) struct Gate {
    /// A [`GateState`]. Written under the lock of `record`, from which it follows.
    state: AtomicU8,
    record: Mutex<Record>,
    changed: Condvar,
}

/// What was posted, and what the gate's state follows from.
#[derive(Debug, Default)]
struct Record {
    /// When the vCPUs were first allowed to run.
    started: Option<Instant>,
    first: Option<Ending>,
    /// What the owner asked for after the first ending: it ends a machine that would have outlived that one.
    overruling: Option<Ending>,
    /// The first failure of the host after the first ending.
    host_failure: Option<HostFailure>,
    /// The machine does not outlive the first ending.
    over: bool,
    /// Endings that changed nothing because others came before them.
    later: u64,
    /// The guest printed the text of a panic, and the control thread has not taken it yet.
    panic_text: bool,
    /// A crash kernel runs in place of one that panicked.
    crash_kernel: bool,
    /// Requests to disks that failed.
    disk_errors: u64,
    /// Why the control thread is to pause the machine.
    pause_reason: Option<String>,
    /// The owner allows the vCPUs to run.
    resumed: bool,
    /// The control thread keeps the vCPUs out of the guest: to look at them, or until all of them have
    /// started.
    held: bool,
    /// vCPU threads that are outside the guest because the gate is not open.
    parked: u32,
    /// vCPU threads that have ended.
    ended: u32,
    /// How often [`Gate::ask_parked`] has asked.
    asked: u64,
}

/// What a vCPU does when it arrives at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateState {
    /// Enters the guest.
    Open,
    /// Waits for one of the other states.
    Paused,
    /// Never enters the guest again.
    Closed,
}

impl Gate {
    /// Makes a gate that is paused.
    pub(crate) fn new() -> Gate {
        let state = AtomicU8::new(GateState::Paused as u8);
        Gate { state, record: Mutex::default(), changed: Condvar::new() }
    }

    /// Ends the machine, unless another ending was posted before. A failure of the host is kept in any case:
    /// the stop puts it in place of a clean ending.
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

    /// Ends the machine because its owner wants it to end.
    pub(crate) fn stop(&self) {
        self.post(Ending::Stopped);
    }

    /// The state now. One load, because vCPUs read it before every entry into the guest.
    pub(crate) fn state(&self) -> GateState {
        match self.state.load(Ordering::Acquire) {
            value if value == GateState::Open as u8 => GateState::Open,
            value if value == GateState::Paused as u8 => GateState::Paused,
            _ => GateState::Closed,
        }
    }

    /// Waits until the gate opens (true) or closes (false). A vCPU that found it paused calls this. After
    /// each [`Gate::ask_parked`] it calls `serve`, without the lock; before it leaves, too, so that each
    /// question that was asked while it was parked is answered.
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

    /// Waits until `vcpus` threads, which are all, are parked in a machine that its owner has paused: true
    /// when they are, false at once in one that is not paused. A hold of the control thread's is not a pause.
    pub(crate) fn wait_paused(&self, vcpus: u32, limit: Duration) -> bool {
        let is_early = |record: &mut Record| self.is_paused(record) && record.parked < vcpus;
        let wait = self.changed.wait_timeout_while(self.lock(), limit, is_early);
        let (record, _) = wait.unwrap_or_else(PoisonError::into_inner);
        self.is_paused(&record) && record.parked >= vcpus
    }

    /// Calls `leave`, which leaves a question for each vCPU, and has them served. That is done, and true
    /// returned, only while [`Gate::wait_paused`] has nothing to wait for: then each thread serves at once.
    /// `leave` runs under the lock: it must not wait.
    pub(crate) fn ask_parked(&self, vcpus: u32, leave: impl FnOnce()) -> bool {
        let mut record = self.lock();
        let is_ready = self.is_paused(&record) && record.parked >= vcpus;
        if is_ready {
            leave();
            record.asked = record.asked.wrapping_add(1);
            self.changed.notify_all();
        }
        is_ready
    }

    /// Whether the owner has the machine paused.
    fn is_paused(&self, record: &Record) -> bool {
        self.state() == GateState::Paused && !record.resumed
    }

    /// Counts a vCPU's thread that ends. Each thread calls this once, after a panic too.
    pub(crate) fn vcpu_ended(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// Lets the vCPUs run, unless the gate is closed. The time limits count from the first call.
    pub(crate) fn open(&self) {
        let mut record = self.lock();
        record.started.get_or_insert_with(Instant::now);
        record.resumed = true;
        self.set_state(&record);
    }

    /// When the vCPUs were first allowed to run.
    pub(crate) fn started(&self) -> Option<Instant> {
        self.lock().started
    }

    /// Keeps the vCPUs from entering again, unless the gate is closed. The caller kicks those that are
    /// inside.
    pub(crate) fn pause(&self) {
        let mut record = self.lock();
        record.resumed = false;
        self.set_state(&record);
    }

    /// Keeps the vCPUs out, or stops doing so, on behalf of the control thread. What the owner asked for with
    /// [`Gate::open`] and [`Gate::pause`] stays as it is and holds afterwards.
    pub(crate) fn hold(&self, held: bool) {
        let mut record = self.lock();
        record.held = held;
        self.set_state(&record);
    }

    /// Records that the machine ends with the first ending: it will not begin again.
    pub(crate) fn set_over(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits for the end of a reset that closed the gate: true when the machine has begun again, or never
    /// stopped.
    pub(crate) fn wait_begun_again(&self, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.first.is_none() || record.over)
            && self.state() != GateState::Closed
    }

    /// Forgets the reset that came first, when all vCPU threads have ended and new ones are to be started.
    /// They are held until [`Gate::hold`] lets them go.
    ///
    /// # Errors
    /// What the owner has asked for since, or what has failed: it is the first ending now.
    pub(crate) fn begin_again(&self) -> Result<(), Ending> {
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

    /// Waits until `vcpus` threads are parked or have ended: true when all are.
    pub(crate) fn wait_parked(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.parked + record.ended >= vcpus)
    }

    /// Waits until `vcpus` threads have ended: true when all have.
    pub(crate) fn wait_vcpus_ended(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |record| record.ended >= vcpus)
    }

    /// The first failure of the host after the first ending, and how many other endings came after it.
    pub(crate) fn afterwards(&self) -> (Option<HostFailure>, u64) {
        let record = self.lock();
        (record.host_failure.clone(), record.later)
    }

    /// Counts a request to a disk that the host could not carry out; with `pause_reason`, the control thread
    /// pauses the machine.
    pub(crate) fn disk_failed(&self, pause_reason: Option<String>) {
        let mut record = self.lock();
        record.disk_errors = record.disk_errors.saturating_add(1);
        if pause_reason.is_some() {
            record.pause_reason = pause_reason;
            self.changed.notify_all();
        }
    }

    /// How many requests to disks the host could not carry out.
    pub(crate) fn disk_errors(&self) -> u64 {
        self.lock().disk_errors
    }

    /// Whether a crash kernel has taken over from one that panicked.
    pub(crate) fn crash_kernel_runs(&self) -> bool {
        self.lock().crash_kernel
    }

    /// Sets the state that follows from `record`, and wakes everyone who waits for a change.
    fn set_state(&self, record: &Record) {
        let state = if record.first.is_some() {
            GateState::Closed
        } else if record.resumed && !record.held {
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

    /// Takes the lock. A thread that panicked while it held the lock left counters and an ending, which are
    /// valid at any time.
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
