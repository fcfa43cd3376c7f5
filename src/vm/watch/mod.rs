//! The control thread's work while a guest runs: it waits for the first ending, and looks for guests that end
//! without one.
//!
//! There are two such guests. One has a kernel that panicked and stopped: the text of the panic is its last
//! line, followed by silence. The other has halted every vCPU with interrupts off: KVM keeps a halted vCPU
//! inside KVM_RUN, so the only sign is that no vCPU leaves the guest for a while. Both are detected from
//! counters that exist anyway, so that a running guest pays nothing.

mod idle;
mod throttle;

use std::time::{Duration, Instant};

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::journal;

use self::idle::Idleness;
use self::throttle::Throttle;
use super::events::Event;
use super::machine::Machine;
use super::outcome::{Ending, PanicEvidence, TimeLimit};
use super::shared::Shared;
use super::vcpus::STOP_LIMIT;
use crate::config::{CpuQuota, HaltPolicy, VmConfig};
use crate::gate::{GateState, StartLimits, Wake};
use crate::vcpu::VcpuHandle;

/// The limits of a guest's time and CPU use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    start: StartLimits,
    idle: Option<Duration>,
    cpu: Option<CpuQuota>,
}

impl Limits {
    pub(super) fn of(config: &VmConfig) -> Limits {
        let &VmConfig { timeout: wall, boot_timeout: boot, idle_timeout: idle, cpu_quota: cpu, .. } = config;
        Limits { start: StartLimits { wall, boot }, idle, cpu }
    }
}

/// Watches over one life of a guest: from its start to its ending.
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    machine: &'a Machine,
    limits: StartLimits,
    /// Set once the text of a panic has come.
    panic: Option<Stillness>,
    /// Set if the policy is that a halt ends the machine.
    halt: Option<Stillness>,
    idleness: Option<Idleness>,
    throttle: Option<Throttle>,
}

/// A counter that has to stand still for some time.
#[derive(Debug, Clone, Copy)]
struct Stillness {
    number: u64,
    look_at: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(shared: &'a Shared, machine: &'a Machine) -> Watch<'a> {
        let Limits { start, idle, cpu } = machine.limits;
        let halt = match machine.on_halt {
            HaltPolicy::Wait => None,
            HaltPolicy::Exit => Some(Stillness::of(0, HALT_TIME)),
        };
        let now = Instant::now();
        Watch {
            shared,
            machine,
            limits: start,
            panic: None,
            halt,
            idleness: idle.map(|limit| Idleness::new(limit, now)),
            throttle: cpu.map(|quota| Throttle::new(quota, now)),
        }
    }

    /// Waits for the ending of this guest.
    pub(super) fn wait_end(mut self) -> Ending {
        loop {
            match self.shared.gate.next_wake(self.limits, self.look_at()) {
                Wake::Ended(ending) => return ending,
                Wake::PanicText => self.panic = Some(Stillness::of(self.console().pushed_bytes(), SILENCE)),
                Wake::Pause(reason) => self.pause_after_fault(&reason),
                Wake::Requested => self.shared.requests.serve(self.shared, self.machine),
                Wake::BootLimit(limit) => self.look_at_boot(limit),
                Wake::Look => self.look(),
            }
        }
    }

    /// Pauses a machine whose disk has failed. An owner who resumes it at that moment has resumed the disk
    /// too.
    fn pause_after_fault(&self, reason: &str) {
        if self.shared.pause(Event::PausedByFault { reason: reason.to_owned() }) {
            journal!(Host Warn, "{reason}; the virtual machine is paused");
        } else {
            journal!(Host Warn, "{reason}; the virtual machine is not paused: it was resumed, has ended, or did \
                not stop");
        }
    }

    fn console(&self) -> &ConsoleBuffer {
        &self.machine.platform.console
    }

    fn look_at(&self) -> Option<Instant> {
        let still = self.panic.iter().chain(&self.halt).map(|stillness| stillness.look_at);
        let idle = self.idleness.iter().map(Idleness::look_at);
        still.chain(idle).chain(self.throttle.iter().map(Throttle::look_at)).min()
    }

    /// Ends a guest that has not reached its init in time. A guest that has is subject only to the other
    /// limits.
    fn look_at_boot(&mut self, limit: Duration) {
        self.limits.boot = None;
        if !self.machine.platform.signs.init_was_seen() {
            self.shared.gate.post(Ending::TimedOut { kind: TimeLimit::Boot, limit });
        }
    }

    fn look(&mut self) {
        if let Some(panic) = self.panic.take_if(|panic| panic.is_due()) {
            self.panic = self.look_at_console(panic);
        }
        if let Some(halt) = self.halt.take_if(|halt| halt.is_due()) {
            self.halt = Some(self.look_at_vcpus(halt));
        }
        let now = Instant::now();
        if let Some(mut idleness) = self.idleness.take_if(|idleness| now >= idleness.look_at()) {
            self.look_for_work(&mut idleness, now);
            self.idleness = Some(idleness);
        }
        if let Some(mut throttle) = self.throttle.take_if(|throttle| now >= throttle.look_at()) {
            self.keep_to_share(&mut throttle, now);
            self.throttle = Some(throttle);
        }
    }

    /// Ends a guest that has been idle for the whole limit.
    fn look_for_work(&self, idleness: &mut Idleness, now: Instant) {
        let runs = self.shared.gate.state() == GateState::Open;
        if idleness.look(now, self.cpu_time(), runs) {
            self.shared.gate.post(Ending::TimedOut { kind: TimeLimit::Idle, limit: idleness.limit() });
        }
    }

    /// Takes the vCPUs out of the guest while they are in debt, and lets them in again afterwards.
    fn keep_to_share(&self, throttle: &mut Throttle, now: Instant) {
        let waited = throttle.is_in_debt();
        throttle.look(now, self.cpu_time());
        if waited == throttle.is_in_debt() {
            return;
        }
        self.shared.gate.hold(throttle.is_in_debt());
        if throttle.is_in_debt() {
            self.shared.vcpus().iter().for_each(VcpuHandle::kick);
        }
    }

    fn cpu_time(&self) -> Duration {
        self.shared.vcpus().iter().map(VcpuHandle::cpu_time).sum()
    }

    /// Reports a panic if nothing came after its text; `None` if the guest has since printed something else.
    fn look_at_console(&self, before: Stillness) -> Option<Stillness> {
        if !self.console().stops_in_panic() {
            return None;
        }
        let now = Stillness::of(self.console().pushed_bytes(), SILENCE);
        if now.number == before.number && self.shared.gate.state() == GateState::Open {
            self.shared.gate.post(Ending::Panicked { evidence: PanicEvidence::Silence });
        }
        Some(now)
    }

    /// Reports a halt if no vCPU has left the guest and all of them have halted for good.
    fn look_at_vcpus(&self, before: Stillness) -> Stillness {
        let now = Stillness::of(self.exits(), HALT_TIME);
        if now.number == before.number
            && self.shared.gate.state() == GateState::Open
            && self.all_have_halted()
        {
            self.shared.gate.post(Ending::Halted);
        }
        now
    }

    /// Counts the exits that the guest caused; kicks are excluded.
    fn exits(&self) -> u64 {
        self.shared.vcpus().iter().map(|vcpu| vcpu.exits().made_by_guest()).sum()
    }

    /// Takes the vCPUs out of the guest to see whether they have halted. A guest that has not continues.
    fn all_have_halted(&self) -> bool {
        self.shared.gate.hold(true);
        let vcpus = self.shared.vcpus();
        vcpus.iter().for_each(VcpuHandle::kick);
        let parked = self.shared.gate.wait_parked(vcpus.len() as u32, STOP_LIMIT);
        let halted = parked && vcpus.iter().all(VcpuHandle::has_halted_for_good);
        drop(vcpus);
        self.shared.gate.hold(false);
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

/// How long the console has to be silent after the text of a panic. A kernel prints a panic without pauses,
/// so two seconds are its end even on a slow host.
const SILENCE: Duration = Duration::from_secs(2);
/// How long no vCPU may leave the guest before a closer look. A guest with a timer exits many times a second;
/// one that idles without a timer is looked at each time, which costs one kick a second.
const HALT_TIME: Duration = Duration::from_secs(1);
