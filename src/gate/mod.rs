//! The queue of events that can end a virtual machine, and the gate that its vCPUs pass before each entry.
//!
//! Devices, vCPUs, handles and time limits post; the control thread (`vm::lifecycle`) takes the first terminal
//! event and acts. Posting never waits. The gate closes with the first terminal event, so that a guest which has
//! asked for its end never runs on. It opens again only for a guest that was reset and starts anew.
//!
//! ```text
//! gate:  Paused <-> Open           (pause, resume; the control thread holds the vCPUs)
//!        Paused, Open -> Closed    (first terminal event)
//!        Closed -> Paused, Open    (begin_again, when all vCPU threads have ended)
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_devices::guest_request::{GuestRequest, GuestRequestSink, ResetSource};

use crate::ending::{HostFailure, PanicEvidence, TimeLimit};
use crate::kvm::{VcpuFault, VcpuRegisters};

/// Something that ends a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VmEvent {
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset.
    GuestReset(ResetSource),
    /// The guest's workload ended.
    GuestExit(u32),
    /// The guest's kernel panicked.
    GuestPanic(PanicEvidence),
    /// Every vCPU has halted for good.
    GuestHalted,
    /// A triple fault.
    GuestCrash { vcpu: u32, registers: Option<Box<VcpuRegisters>> },
    /// KVM cannot go on.
    VcpuFault { vcpu: u32, fault: VcpuFault, registers: Option<Box<VcpuRegisters>> },
    /// Something failed on this side.
    HostFailure(HostFailure),
    /// The owner wants it to stop.
    Stop,
    /// The owner was sent a signal.
    Signal(i32),
    /// A time that it was given is over.
    Timeout { of: TimeLimit, limit: Duration },
}

/// What the control thread wakes up for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The first terminal event.
    Ended(VmEvent),
    /// The guest printed the text of a kernel panic.
    PanicText,
    /// A disk has a fault that the machine is to be paused for: which, in words.
    Pause(String),
    /// The guest should have come to its init by now.
    BootLimit(Duration),
    /// The time to look at the guest has come.
    Look,
}

/// Times that count from when the vCPUs are first let run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StartLimits {
    /// When it ends.
    pub wall: Option<Duration>,
    /// When to wake up with [`Wake::BootLimit`].
    pub boot: Option<Duration>,
}

/// Shared by everything that can end the virtual machine, pause it, or wait for its end.
#[derive(Debug)]
pub(crate) struct Control {
    gate: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When the vCPUs were first let run.
    started: Option<Instant>,
    first: Option<VmEvent>,
    /// What the owner asked for after the first event: it ends a machine that would have outlived that.
    overruling: Option<VmEvent>,
    host_failure: Option<HostFailure>,
    /// The machine does not outlive the first event.
    over: bool,
    later: u64,
    /// The guest printed the text of a panic, and the control thread has not heard of it.
    panic_text: bool,
    /// A crash kernel runs in place of one that panicked.
    crash_kernel: bool,
    /// Requests to disks that failed.
    disk_errors: u64,
    /// What the machine is to be paused for.
    pause_reason: Option<String>,
    /// The owner lets the vCPUs run.
    resumed: bool,
    /// The control thread keeps the vCPUs out of the guest: to look at them, or until all of them are there.
    held: bool,
    /// vCPU threads that are outside the guest because the gate is not open.
    parked: u32,
    /// vCPU threads that have ended.
    ended: u32,
}

/// What the gate says to a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Enter the guest.
    Open,
    /// Wait for one of the others.
    Paused,
    /// Never enter the guest again.
    Closed,
}

impl Control {
    /// With the gate in the state `Paused`.
    pub(crate) fn new() -> Control {
        Control { gate: AtomicU8::new(Gate::Paused as u8), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Tells the control thread. Only the first event counts, and a failure of the host beats a clean ending.
    pub(crate) fn post(&self, event: VmEvent) {
        let mut state = self.lock();
        match event {
            event if state.first.is_none() => state.first = Some(event),
            VmEvent::HostFailure(failure) => drop(state.host_failure.get_or_insert(failure)),
            event @ (VmEvent::Stop | VmEvent::Signal(_)) => drop(state.overruling.get_or_insert(event)),
            _ => state.later = state.later.saturating_add(1),
        }
        self.move_gate(&state);
    }

    /// What the gate says now. One load: it is read before every entry into the guest.
    pub(crate) fn gate(&self) -> Gate {
        match self.gate.load(Ordering::Acquire) {
            value if value == Gate::Open as u8 => Gate::Open,
            value if value == Gate::Paused as u8 => Gate::Paused,
            _ => Gate::Closed,
        }
    }

    /// Called by a vCPU that found the gate not open: waits until it opens (true) or closes (false).
    pub(crate) fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        let state = self.wait_while(state, |_| self.gate() == Gate::Paused);
        let mut state = state;
        state.parked -= 1;
        self.gate() == Gate::Open
    }

    /// Called by a vCPU's thread when it ends, however it ends.
    pub(crate) fn vcpu_ended(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// Lets the vCPUs run, unless the gate is closed. The time limit counts from the first call.
    pub(crate) fn open_gate(&self) {
        let mut state = self.lock();
        state.started.get_or_insert_with(Instant::now);
        state.resumed = true;
        self.move_gate(&state);
    }

    /// When the vCPUs were first let run.
    pub(crate) fn started(&self) -> Option<Instant> {
        self.lock().started
    }

    /// Keeps the vCPUs from entering again, unless the gate is closed. The caller kicks those inside.
    pub(crate) fn pause_gate(&self) {
        let mut state = self.lock();
        state.resumed = false;
        self.move_gate(&state);
    }

    /// The same on behalf of the control thread, which undoes it without a word to the owner.
    pub(crate) fn hold(&self, held: bool) {
        let mut state = self.lock();
        state.held = held;
        self.move_gate(&state);
    }

    /// Says that the machine ends with the first event: it will not begin again.
    pub(crate) fn set_over(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits for the end of a reset that closed the gate: true when the machine has begun again, or never stopped.
    pub(crate) fn wait_begun_again(&self, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.first.is_none() || state.over) && self.gate() != Gate::Closed
    }

    /// Forgets the reset that came first, when all vCPU threads have ended and new ones are to be started. They are held
    /// until [`Control::hold`] lets them go.
    ///
    /// # Errors
    /// What somebody else than the guest has asked for since, or what has failed: it is the first event now.
    pub(crate) fn begin_again(&self) -> Result<(), VmEvent> {
        let mut state = self.lock();
        let failure = state.host_failure.take().map(VmEvent::HostFailure);
        if let Some(event) = failure.or(state.overruling.take()) {
            state.first = Some(event.clone());
            return Err(event);
        }
        state.first = None;
        (state.parked, state.ended) = (0, 0);
        (state.panic_text, state.crash_kernel) = (false, false);
        state.held = true;
        self.move_gate(&state);
        Ok(())
    }

    /// Waits until `vcpus` threads are parked or have ended: true when all are.
    pub(crate) fn wait_parked(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.parked + state.ended >= vcpus)
    }

    /// Waits until `vcpus` threads have ended: true when all have.
    pub(crate) fn wait_vcpus_ended(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.ended >= vcpus)
    }

    /// Waits for the first event, which is a time-out when the wall limit is over; at the latest until `look_at`.
    pub(crate) fn wait_event(&self, limits: StartLimits, look_at: Option<Instant>) -> Wake {
        let mut state = self.lock();
        loop {
            if let Some(event) = &state.first {
                return Wake::Ended(event.clone());
            }
            let now = Instant::now();
            // What is beyond all time never comes.
            let since_start = |limit: Option<Duration>| state.started?.checked_add(limit?);
            let (end, booted) = (since_start(limits.wall), since_start(limits.boot));
            let is_due = |at: Instant| now >= at;
            if let Some(limit) = limits.wall.filter(|_| end.is_some_and(is_due)) {
                state.first = Some(VmEvent::Timeout { of: TimeLimit::Wall, limit });
                self.move_gate(&state);
                continue;
            }
            if let Some(limit) = limits.boot.filter(|_| booted.is_some_and(is_due)) {
                return Wake::BootLimit(limit);
            }
            if look_at.is_some_and(is_due) {
                return Wake::Look;
            }
            // After all that has a time: a guest can print such a text as often as it likes.
            if std::mem::take(&mut state.panic_text) {
                return Wake::PanicText;
            }
            if let Some(reason) = state.pause_reason.take() {
                return Wake::Pause(reason);
            }
            let deadline = [end, booted, look_at].into_iter().flatten().min();
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = self.changed.wait_timeout(state, at - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// What came after the first event.
    pub(crate) fn afterwards(&self) -> (Option<HostFailure>, u64) {
        let state = self.lock();
        (state.host_failure.clone(), state.later)
    }

    /// Counts a request to a disk that the host could not carry out; with `pause_reason`, the control thread is to pause
    /// the machine.
    pub(crate) fn disk_failed(&self, pause_reason: Option<String>) {
        let mut state = self.lock();
        state.disk_errors = state.disk_errors.saturating_add(1);
        if pause_reason.is_some() {
            state.pause_reason = pause_reason;
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

    /// Puts the gate where `state` wants it, and wakes everyone who waits for a change.
    fn move_gate(&self, state: &State) {
        let gate = if state.first.is_some() {
            Gate::Closed
        } else if state.resumed && !state.held {
            Gate::Open
        } else {
            Gate::Paused
        };
        self.gate.store(gate as u8, Ordering::Release);
        self.changed.notify_all();
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let wait = self.changed.wait_timeout_while(self.lock(), limit, |state| !done(state));
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        done(&state)
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, |state| condition(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread that panicked while it held the lock left counters and an event, which are valid at any time.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestRequestSink for Control {
    fn post(&self, request: GuestRequest) {
        let event = match request {
            GuestRequest::PowerOff => VmEvent::GuestShutdown,
            GuestRequest::Reset(source) => VmEvent::GuestReset(source),
            GuestRequest::DebugExit(code) => VmEvent::GuestExit(code),
            GuestRequest::Panicked => VmEvent::GuestPanic(PanicEvidence::Device),
            GuestRequest::CrashKernelTakesOver => {
                self.lock().crash_kernel = true;
                return;
            }
            GuestRequest::PanicText => {
                self.lock().panic_text = true;
                self.changed.notify_all();
                return;
            }
        };
        Control::post(self, event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn first_event_counts_and_later_ones_are_counted() {
        let control = Control::new();
        control.post(VmEvent::GuestShutdown);
        control.post(VmEvent::GuestReset(ResetSource::I8042));
        assert_eq!(control.wait_event(StartLimits::default(), None), Wake::Ended(VmEvent::GuestShutdown));
        assert_eq!(control.afterwards(), (None, 1));
    }

    #[test]
    fn host_failure_after_a_clean_ending_is_kept() {
        let control = Control::new();
        let failure = HostFailure::ThreadPanicked { thread: "io-0".into() };
        control.post(VmEvent::GuestShutdown);
        control.post(VmEvent::HostFailure(failure.clone()));
        assert_eq!(control.afterwards(), (Some(failure), 0));
    }

    #[test]
    fn closed_gate_stays_closed() {
        let control = Control::new();
        control.open_gate();
        assert_eq!(control.gate(), Gate::Open);
        control.post(VmEvent::Stop);
        control.open_gate();
        control.pause_gate();
        assert_eq!(control.gate(), Gate::Closed);
        assert!(!control.park());
    }

    #[test]
    fn parked_vcpu_leaves_when_the_gate_opens() {
        let control = Arc::new(Control::new());
        let vcpu = thread::spawn({
            let control = control.clone();
            move || control.park()
        });
        assert!(control.wait_parked(1, LIMIT));
        control.open_gate();
        assert!(vcpu.join().unwrap());
    }

    #[test]
    fn waiting_ends_with_its_limit() {
        let control = Control::new();
        let limit = Duration::from_millis(5);
        assert!(!control.wait_parked(1, limit));
        control.open_gate();
        assert_eq!(
            control.wait_event(StartLimits { wall: Some(limit), boot: None }, None),
            Wake::Ended(VmEvent::Timeout { of: TimeLimit::Wall, limit })
        );
        assert_eq!(control.gate(), Gate::Closed);
    }

    #[test]
    fn limit_beyond_all_time_never_comes() {
        let control = Control::new();
        control.open_gate();
        let limits = StartLimits { wall: Some(Duration::MAX), boot: Some(Duration::MAX) };
        assert_eq!(control.wait_event(limits, Some(Instant::now())), Wake::Look);
    }

    #[test]
    fn waiting_ends_for_a_look_and_for_the_text_of_a_panic() {
        let control = Control::new();
        assert_eq!(
            control.wait_event(StartLimits::default(), Some(Instant::now() + Duration::from_millis(5))),
            Wake::Look
        );
        GuestRequestSink::post(&control, GuestRequest::PanicText);
        assert_eq!(control.gate(), Gate::Paused, "the text ends nothing");
        assert_eq!(control.wait_event(StartLimits::default(), None), Wake::PanicText);
        assert_eq!(
            control.wait_event(StartLimits::default(), Some(Instant::now())),
            Wake::Look,
            "it is told once"
        );
    }

    #[test]
    fn limits_and_looks_come_before_texts_that_a_guest_prints_without_end() {
        let control = Control::new();
        control.open_gate();
        let (limit, now) = (Duration::ZERO, Instant::now());
        let wait = |limits, look_at| {
            GuestRequestSink::post(&control, GuestRequest::PanicText);
            control.disk_failed(Some("a fault".into()));
            control.wait_event(limits, look_at)
        };
        assert_eq!(wait(StartLimits::default(), Some(now)), Wake::Look);
        let boot = StartLimits { boot: Some(limit), ..StartLimits::default() };
        assert_eq!(wait(boot, Some(now)), Wake::BootLimit(limit));
        let wall = StartLimits { wall: Some(limit), boot: Some(limit) };
        let over = Wake::Ended(VmEvent::Timeout { of: TimeLimit::Wall, limit });
        assert_eq!(wait(wall, Some(now)), over);
    }

    #[test]
    fn reset_machine_begins_again_with_the_gate_as_the_owner_left_it() {
        let control = Control::new();
        control.open_gate();
        control.post(VmEvent::GuestReset(ResetSource::I8042));
        control.vcpu_ended();
        assert_eq!(control.gate(), Gate::Closed);
        assert_eq!(control.begin_again(), Ok(()));
        assert_eq!(control.gate(), Gate::Paused, "not before all vCPUs are there");
        control.hold(false);
        assert_eq!(control.gate(), Gate::Open);
        assert!(!control.wait_vcpus_ended(1, Duration::ZERO));
        control.pause_gate();
        control.post(VmEvent::GuestReset(ResetSource::I8042));
        assert_eq!(control.begin_again(), Ok(()));
        control.hold(false);
        assert_eq!(control.gate(), Gate::Paused);
    }

    #[test]
    fn waiting_for_the_end_of_a_reset_ends_with_the_machine_too() {
        let control = Control::new();
        assert!(control.wait_begun_again(LIMIT));
        control.post(VmEvent::GuestReset(ResetSource::I8042));
        assert!(!control.wait_begun_again(Duration::ZERO));
        control.set_over();
        assert!(!control.wait_begun_again(LIMIT));
    }

    #[test]
    fn stop_during_a_reset_ends_the_machine() {
        let control = Control::new();
        control.open_gate();
        control.post(VmEvent::GuestReset(ResetSource::I8042));
        control.post(VmEvent::GuestShutdown);
        control.post(VmEvent::Stop);
        assert_eq!(control.begin_again(), Err(VmEvent::Stop));
        assert_eq!(control.gate(), Gate::Closed);
        assert_eq!(control.wait_event(StartLimits::default(), None), Wake::Ended(VmEvent::Stop));
    }

    #[test]
    fn look_at_the_vcpus_neither_resumes_nor_outlasts_a_pause() {
        let control = Control::new();
        control.hold(true);
        control.open_gate();
        assert_eq!(control.gate(), Gate::Paused);
        control.hold(false);
        assert_eq!(control.gate(), Gate::Open);
        control.hold(true);
        control.pause_gate();
        control.hold(false);
        assert_eq!(control.gate(), Gate::Paused);
    }
}
