//! The thread of one vCPU: pass the gate, enter the guest, serve the exit, and again.
//!
//! It posts events and waits for nobody but the gate. After the gate has closed it ends and hands its vCPU back, so
//! that the control thread decides when KVM's part of it is closed.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counts::{ExitCounters, ExitCounts};
use super::dispatch::{Buses, Next};
use super::{affinity, cpu_clock};
use crate::ending::HostFailure;
use crate::gate::{Control, Gate, VmEvent};
use crate::kvm::{Kicker, Vcpu};
use crate::thread::ThreadKind;

/// A vCPU with all that its thread needs.
pub(crate) struct VcpuThread {
    /// The vCPU, ready to run.
    pub vcpu: Vcpu,
    /// The devices of its virtual machine.
    pub buses: Arc<Buses>,
    /// Where it reports, and what lets it run.
    pub control: Arc<Control>,
}

/// The control thread's side of a vCPU's thread.
pub(crate) struct VcpuHandle {
    index: u32,
    shown: Arc<Shown>,
    thread: JoinHandle<Vcpu>,
}

/// What a vCPU's thread shows to others.
#[derive(Default)]
struct Shown {
    counters: ExitCounters,
    /// As it was when the thread last parked.
    halted_for_good: AtomicBool,
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
        let VcpuThread { mut vcpu, buses, control } = self;
        let _report = EndReport { control: control.clone(), vcpu: vcpu.index() };
        if let Err(error) = vcpu.allow_kicks() {
            let failure = HostFailure::VcpuStart { vcpu: vcpu.index(), reason: error.to_string() };
            control.post(VmEvent::HostFailure(failure));
            return vcpu;
        }
        loop {
            match control.gate() {
                Gate::Open => {}
                Gate::Paused => {
                    shown.halted_for_good.store(vcpu.has_halted_for_good(), Ordering::Release);
                    if control.park() {
                        vcpu.tell_of_pause();
                    }
                    continue;
                }
                Gate::Closed => return vcpu,
            }
            let next = buses.handle(vcpu.run(), &shown.counters);
            if let Some(event) = ending(next, &vcpu) {
                control.post(event);
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

    /// True when the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// The vCPU, once the thread has ended; none when it panicked.
    pub(crate) fn join(self) -> Option<Vcpu> {
        self.thread.join().ok()
    }
}

fn ending(next: Next, vcpu: &Vcpu) -> Option<VmEvent> {
    let registers = || vcpu.registers().map(Box::new);
    match next {
        Next::Enter => None,
        Next::Crash => Some(VmEvent::GuestCrash { vcpu: vcpu.index(), registers: registers() }),
        Next::Fault(fault) => Some(VmEvent::VcpuFault { vcpu: vcpu.index(), fault, registers: registers() }),
    }
}

/// Tells the control thread that a vCPU's thread ends, by a panic too.
struct EndReport {
    control: Arc<Control>,
    vcpu: u32,
}

impl Drop for EndReport {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = format!("vcpu-{}", self.vcpu);
            self.control.post(VmEvent::HostFailure(HostFailure::ThreadPanicked { thread }));
        }
        self.control.vcpu_ended();
    }
}
