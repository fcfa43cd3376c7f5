//! The thread of one vCPU: it passes the gate, enters the guest, handles the exit, and starts again.
//!
//! The thread posts endings and waits for nothing but the gate. When the gate has closed, the thread ends and
//! returns its vCPU, so that the control thread decides when KVM's vCPU is closed.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counts::{ExitCounters, ExitCounts};
use super::dispatch::{Buses, Next};
use super::mailbox::{Mailbox, SavedVcpu, VcpuCommand};
use super::{affinity, cpu_clock};
use crate::ending::{Ending, HostFailure};
use crate::gate::{Gate, GateState};
use crate::kvm::{Kicker, StateError, StateFormat, Vcpu, VcpuRegisters};
use crate::thread::ThreadKind;

/// A vCPU with everything that its thread needs.
pub(crate) struct VcpuThread {
    /// The vCPU, ready to run.
    pub vcpu: Vcpu,
    /// The devices of its virtual machine.
    pub buses: Arc<Buses>,
    /// The gate that lets the vCPU run and takes the ending that it reports.
    pub gate: Arc<Gate>,
}

/// The control thread's side of a vCPU's thread.
pub(crate) struct VcpuHandle {
    index: u32,
    shown: Arc<Shown>,
    thread: JoinHandle<Vcpu>,
}

/// The state of a vCPU's thread that others can see.
#[derive(Default)]
struct Shown {
    counters: ExitCounters,
    /// Whether the vCPU had halted for good when the thread last parked.
    halted_for_good: AtomicBool,
    /// The commands that the thread serves while it is parked.
    mailbox: Mailbox,
}

impl VcpuThread {
    /// Starts the thread, which waits at the gate.
    pub(crate) fn spawn(self) -> io::Result<VcpuHandle> {
        let index = self.vcpu.index();
        let shown = Arc::new(Shown::default());
        let thread = ThreadKind::Vcpu(index).spawn({
            let shown = shown.clone();
            move || self.run(&shown)
        })?;
        Ok(VcpuHandle { index, shown, thread })
    }

    fn run(self, shown: &Shown) -> Vcpu {
        let VcpuThread { mut vcpu, buses, gate } = self;
        let _report = EndReport { gate: gate.clone(), vcpu: vcpu.index() };
        if let Err(error) = vcpu.allow_kicks() {
            let failure = HostFailure::VcpuStart { vcpu: vcpu.index(), reason: error.to_string() };
            gate.post(failure.into());
            return vcpu;
        }
        loop {
            match gate.state() {
                GateState::Open => {}
                GateState::Paused => {
                    // A parked vCPU stands between two instructions, so that it can be inspected and saved.
                    if let Some(ending) = complete_exit(&mut vcpu, &buses, &shown.counters) {
                        gate.post(ending);
                        continue;
                    }
                    shown.halted_for_good.store(vcpu.has_halted_for_good(), Ordering::Release);
                    if gate.park(|| shown.mailbox.serve(&vcpu)) {
                        vcpu.report_pause();
                    }
                    continue;
                }
                GateState::Closed => return vcpu,
            }
            let next = buses.handle(vcpu.run(), &shown.counters);
            if let Some(ending) = ending(next, &vcpu) {
                gate.post(ending);
            }
        }
    }
}

impl VcpuHandle {
    /// Makes the vCPU leave the guest and check the gate.
    pub(crate) fn kick(&self) {
        Kicker::new(&self.thread).kick();
    }

    /// Binds the thread to these CPUs of the host.
    pub(crate) fn pin(&self, cpus: &[u16]) -> io::Result<()> {
        affinity::pin(self.thread.as_pthread_t(), cpus)
    }

    /// Returns the CPU time that the thread has used, inside and outside the guest.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_clock::read(self.thread.as_pthread_t())
    }

    /// Returns the vCPU's index.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Returns the vCPU's exits so far.
    pub(crate) fn exits(&self) -> ExitCounts {
        self.shown.counters.counts()
    }

    /// Returns whether the vCPU, when it last parked, had halted with interrupts off or had never been
    /// started.
    pub(crate) fn has_halted_for_good(&self) -> bool {
        self.shown.halted_for_good.load(Ordering::Acquire)
    }

    /// Asks for the vCPU's registers, which arrive in the channel at once. Call this within
    /// [`Gate::ask_parked`]; otherwise there may be no answer.
    pub(crate) fn ask_registers(&self) -> Receiver<Option<VcpuRegisters>> {
        let (answer, receiver) = mpsc::sync_channel(1);
        self.shown.mailbox.post(VcpuCommand::Registers(answer));
        receiver
    }

    /// Asks for the vCPU's whole state, under the same conditions as [`VcpuHandle::ask_registers`].
    pub(crate) fn ask_state(&self, format: &'static StateFormat) -> Receiver<Result<SavedVcpu, StateError>> {
        let (answer, receiver) = mpsc::sync_channel(1);
        self.shown.mailbox.post(VcpuCommand::State(format, answer));
        receiver
    }

    /// Returns whether the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Returns the vCPU once the thread has ended; `None` if the thread panicked.
    pub(crate) fn join(self) -> Option<Vcpu> {
        self.thread.join().ok()
    }
}

/// Completes the access with which the vCPU left the guest, and those that follow in the same instruction,
/// and lets KVM raise the interrupt of a timer that has expired. Returns the ending if the vCPU cannot go on.
fn complete_exit(vcpu: &mut Vcpu, buses: &Buses, counters: &ExitCounters) -> Option<Ending> {
    while let Some(exit) = vcpu.complete_exit() {
        let next = buses.handle(exit, counters);
        if let Some(ending) = ending(next, vcpu) {
            return Some(ending);
        }
    }
    // Its interrupt is raised here, so that a restored machine does not raise it once more.
    let next = vcpu.settle_timer().map(|exit| buses.handle(exit, counters));
    next.and_then(|next| ending(next, vcpu))
}

fn ending(next: Next, vcpu: &Vcpu) -> Option<Ending> {
    let registers = || vcpu.registers().map(Box::new);
    match next {
        Next::Enter => None,
        Next::Crash => Some(Ending::Crashed { vcpu: vcpu.index(), registers: registers() }),
        Next::Fault(fault) => Some(Ending::CannotRun { vcpu: vcpu.index(), fault, registers: registers() }),
    }
}

/// Reports the end of a vCPU's thread to the gate on drop, and so after a panic as well.
struct EndReport {
    gate: Arc<Gate>,
    vcpu: u32,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = format!("vcpu-{}", self.vcpu);
            self.gate.post(HostFailure::ThreadPanicked { thread }.into());
        }
        self.gate.count_ended_vcpu();
    }
}

#[cfg(test)]
mod tests;
