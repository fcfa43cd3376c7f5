//! What the control thread does while a guest runs: it waits for the first event, and looks at guests that end without
//! one.
//!
//! Two kinds of guest do. One whose kernel panicked and stopped: the text of the panic is its last line, and silence
//! follows. And one that has halted on every vCPU with interrupts off: KVM keeps halted vCPUs to itself, so that the
//! sign is that no vCPU has left the guest for a while. Both are looked at from here, by counters that are kept anyway:
//! a running guest pays nothing.

use std::time::{Duration, Instant};

use coracle_devices::backend::console_buffer::ConsoleBuffer;

use super::lifecycle::{STOP_LIMIT, Shared};
use super::outcome::PanicEvidence;
use crate::config::HaltPolicy;
use crate::control::{Gate, VmEvent, Wake};
use crate::vcpu::VcpuHandle;

/// The watch over one life of a guest.
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    console: &'a ConsoleBuffer,
    /// Since the text of a panic came.
    panic: Option<Stillness>,
    /// With the policy that a halt ends the machine.
    halt: Option<Stillness>,
}

/// A number that is to stand still for some time.
#[derive(Debug, Clone, Copy)]
struct Stillness {
    number: u64,
    look_at: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(shared: &'a Shared, console: &'a ConsoleBuffer, on_halt: HaltPolicy) -> Watch<'a> {
        let halt = match on_halt {
            HaltPolicy::Wait => None,
            HaltPolicy::Exit => Some(Stillness::of(0, HALT_TIME)),
        };
        Watch { shared, console, panic: None, halt }
    }

    /// Waits for the event that ends this life; a time-out when `limit` has passed since the first start.
    pub(super) fn wait_end(mut self, limit: Option<Duration>) -> VmEvent {
        loop {
            let looks = self.panic.iter().chain(&self.halt);
            let look_at = looks.map(|stillness| stillness.look_at).min();
            match self.shared.control.wait_event(limit, look_at) {
                Wake::Ended(event) => return event,
                Wake::PanicText => self.panic = Some(Stillness::of(self.console.pushed_bytes(), SILENCE)),
                Wake::Pause(reason) => {
                    // Who reads of it may resume at once.
                    self.shared.pause();
                    log::warn!("{reason}; the virtual machine is paused");
                }
                Wake::Look => self.look(),
            }
        }
    }

    fn look(&mut self) {
        if let Some(panic) = self.panic.take_if(|panic| panic.is_due()) {
            self.panic = self.look_at_console(panic);
        }
        if let Some(halt) = self.halt.take_if(|halt| halt.is_due()) {
            self.halt = Some(self.look_at_vcpus(halt));
        }
    }

    /// Reports a panic when nothing came after its text. None when the guest has printed something else.
    fn look_at_console(&self, before: Stillness) -> Option<Stillness> {
        if !self.console.stops_in_panic() {
            return None;
        }
        let now = Stillness::of(self.console.pushed_bytes(), SILENCE);
        if now.number == before.number && self.shared.control.gate() == Gate::Open {
            self.shared.control.post(VmEvent::GuestPanic(PanicEvidence::Silence));
        }
        Some(now)
    }

    /// Reports a halt when no vCPU has left the guest and all have halted for good.
    fn look_at_vcpus(&self, before: Stillness) -> Stillness {
        let now = Stillness::of(self.exits(), HALT_TIME);
        if now.number == before.number && self.shared.control.gate() == Gate::Open && self.all_have_halted() {
            self.shared.control.post(VmEvent::GuestHalted);
        }
        now
    }

    /// Exits that the guest made: kicks are left out.
    fn exits(&self) -> u64 {
        self.shared.vcpus().iter().map(|vcpu| vcpu.exits().made_by_guest()).sum()
    }

    /// Takes the vCPUs out of the guest to see. A guest that has not halted runs on.
    fn all_have_halted(&self) -> bool {
        self.shared.control.hold(true);
        let vcpus = self.shared.vcpus();
        vcpus.iter().for_each(VcpuHandle::kick);
        let parked = self.shared.control.wait_parked(vcpus.len() as u32, STOP_LIMIT);
        let halted = parked && vcpus.iter().all(VcpuHandle::has_halted_for_good);
        drop(vcpus);
        self.shared.control.hold(false);
        halted
    }
}

impl Stillness {
    fn of(number: u64, time: Duration) -> Stillness {
        Stillness { number, look_at: Instant::now() + time }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.look_at
    }
}

/// A kernel prints a panic in one go: two seconds of silence are its end, on a slow host too.
const SILENCE: Duration = Duration::from_secs(2);
/// A guest with a timer leaves it many times a second; one that idles without one is looked at each time, which costs
/// one kick a second.
const HALT_TIME: Duration = Duration::from_secs(1);
