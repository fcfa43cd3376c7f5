//! The queue of events that can end a virtual machine, and the gate that its vCPUs pass before each entry.
//!
//! Devices, vCPUs, handles and time limits post; the control thread (`vm::lifecycle`) takes the first terminal
//! event and acts. Posting never waits. The gate closes with the first terminal event, so that a guest which has
//! asked for its end never runs on.
//!
//! ```text
//! gate:  Paused <-> Open     (pause, resume)
//!        Paused, Open -> Closed   (first terminal event; for good)
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_devices::guest_request::{GuestRequest, GuestRequestSink, ResetSource};

use crate::kvm::{VcpuFault, VcpuRegisters};
use crate::vm::outcome::HostFailure;

/// Something that ends a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VmEvent {
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset.
    GuestReset(ResetSource),
    /// The guest's workload ended.
    GuestExit(u32),
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
    /// Its time is over.
    Timeout(Duration),
}

/// Shared by everything that can end the virtual machine, pause it, or wait for its end.
#[derive(Debug)]
pub(crate) struct Control {
    gate: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// When the vCPUs were first let run.
    started: Option<Instant>,
    first: Option<VmEvent>,
    host_failure: Option<HostFailure>,
    later: u64,
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
        let state = State { started: None, first: None, host_failure: None, later: 0, parked: 0, ended: 0 };
        Control { gate: AtomicU8::new(Gate::Paused as u8), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Tells the control thread. Only the first event counts, and a failure of the host beats a clean ending.
    pub(crate) fn post(&self, event: VmEvent) {
        let mut state = self.lock();
        self.set_gate(Gate::Closed);
        match event {
            VmEvent::HostFailure(failure) if state.first.is_some() => {
                state.host_failure.get_or_insert(failure);
            }
            _ if state.first.is_some() => state.later = state.later.saturating_add(1),
            event => state.first = Some(event),
        }
        self.changed.notify_all();
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
        self.lock().started.get_or_insert_with(Instant::now);
        self.move_gate(Gate::Open);
    }

    /// When the vCPUs were first let run.
    pub(crate) fn started(&self) -> Option<Instant> {
        self.lock().started
    }

    /// Keeps the vCPUs from entering again, unless the gate is closed. The caller kicks those inside.
    pub(crate) fn pause_gate(&self) {
        self.move_gate(Gate::Paused);
    }

    /// Waits until `vcpus` threads are parked or have ended: true when all are.
    pub(crate) fn wait_parked(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.parked + state.ended >= vcpus)
    }

    /// Waits until `vcpus` threads have ended: true when all have.
    pub(crate) fn wait_vcpus_ended(&self, vcpus: u32, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.ended >= vcpus)
    }

    /// Waits for the first event, which is a time-out when `limit` has passed since the vCPUs were first let run.
    pub(crate) fn wait_event(&self, limit: Option<Duration>) -> VmEvent {
        let mut state = self.lock();
        loop {
            if let Some(event) = &state.first {
                return event.clone();
            }
            let deadline = state.started.zip(limit).map(|(start, limit)| (start + limit, limit));
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some((deadline, limit)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.set_gate(Gate::Closed);
                        self.changed.notify_all();
                        state.first = Some(VmEvent::Timeout(limit));
                        continue;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// What came after the first event.
    pub(crate) fn afterwards(&self) -> (Option<HostFailure>, u64) {
        let state = self.lock();
        (state.host_failure.clone(), state.later)
    }

    fn move_gate(&self, gate: Gate) {
        let _state = self.lock();
        if self.gate() != Gate::Closed {
            self.set_gate(gate);
            self.changed.notify_all();
        }
    }

    fn set_gate(&self, gate: Gate) {
        self.gate.store(gate as u8, Ordering::Release);
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let state = self.lock();
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(state, left, |state| !done(state));
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
        Control::post(
            self,
            match request {
                GuestRequest::PowerOff => VmEvent::GuestShutdown,
                GuestRequest::Reset(source) => VmEvent::GuestReset(source),
                GuestRequest::DebugExit(code) => VmEvent::GuestExit(code),
            },
        );
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
        assert_eq!(control.wait_event(None), VmEvent::GuestShutdown);
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
        assert_eq!(control.wait_event(Some(limit)), VmEvent::Timeout(limit));
        assert_eq!(control.gate(), Gate::Closed);
    }
}
