//! The thread of one vCPU: pass the gate, enter the guest, serve the exit, and again.
//!
//! It posts endings and waits for nothing but the gate. After the gate has closed it ends and hands its vCPU
//! back, so that the control thread decides when KVM's part of it is closed.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counts::{ExitCounters, ExitCounts};
use super::dispatch::{Buses, Next};
use super::mailbox::{Mailbox, VcpuCommand};
use super::{affinity, cpu_clock};
use crate::ending::{Ending, HostFailure};
use crate::gate::{Gate, GateState};
use crate::kvm::{Kicker, Vcpu, VcpuRegisters};
use crate::thread::ThreadKind;

/// A vCPU with all that its thread needs.
pub(crate) struct VcpuThread {
    /// The vCPU, ready to run.
    pub vcpu: Vcpu,
    /// The devices of its virtual machine.
    pub buses: Arc<Buses>,
    /// Where it reports its ending, and what lets it run.
    pub gate: Arc<Gate>,
}

/// The control thread's side of a vCPU's thread.
pub(crate) struct VcpuHandle {
    index: u32,
    shown: Arc<Shown>,
    thread: JoinHandle<Vcpu>,
}

/// What a vCPU's thread shares with others.
#[derive(Default)]
struct Shown {
    counters: ExitCounters,
    /// As it was when the thread last parked.
    halted_for_good: AtomicBool,
    /// What it is asked while it is parked.
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
                    shown.halted_for_good.store(vcpu.has_halted_for_good(), Ordering::Release);
                    if gate.park(|| shown.mailbox.serve(&vcpu)) {
                        vcpu.tell_of_pause();
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
    /// Makes the vCPU leave the guest and look at the gate.
    pub(crate) fn kick(&self) {
        Kicker::new(&self.thread).kick();
    }

    /// Keeps its thread on these CPUs of the host.
    pub(crate) fn pin(&self, cpus: &[u16]) -> io::Result<()> {
        affinity::pin(self.thread.as_pthread_t(), cpus)
    }

    /// The CPU time that its thread has used, in the guest and outside.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_clock::read(self.thread.as_pthread_t())
    }

    /// Its index.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Its exits so far.
    pub(crate) fn exits(&self) -> ExitCounts {
        self.shown.counters.counts()
    }

    /// Whether it had halted with interrupts off, or had never been started, when it last parked at the gate.
    pub(crate) fn has_halted_for_good(&self) -> bool {
        self.shown.halted_for_good.load(Ordering::Acquire)
    }

    /// Asks for its registers, which come through the channel at once. Call this within [`Gate::ask_parked`];
    /// otherwise nobody may answer.
    pub(crate) fn ask_registers(&self) -> Receiver<Option<VcpuRegisters>> {
        let (answer, receiver) = mpsc::sync_channel(1);
        self.shown.mailbox.leave(VcpuCommand::Registers(answer));
        receiver
    }

    /// True when the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// The vCPU, once the thread has ended; none when it panicked.
    pub(crate) fn join(self) -> Option<Vcpu> {
        self.thread.join().ok()
    }
}

fn ending(next: Next, vcpu: &Vcpu) -> Option<Ending> {
    let registers = || vcpu.registers().map(Box::new);
    match next {
        Next::Enter => None,
        Next::Crash => Some(Ending::Crashed { vcpu: vcpu.index(), registers: registers() }),
        Next::Fault(fault) => Some(Ending::CannotRun { vcpu: vcpu.index(), fault, registers: registers() }),
    }
}

/// Tells the control thread that a vCPU's thread ends, by a panic too.
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
        self.gate.vcpu_ended();
    }
}
