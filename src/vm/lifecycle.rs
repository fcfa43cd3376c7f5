//! From the first event that ends a virtual machine to its outcome: the control thread and the ordered stop.
//!
//! The order is: vCPUs out of the guest and their threads joined; the I/O thread drained and joined; the outcome
//! told; devices, KVM's file descriptors and memory given back. A vCPU that does not come out keeps what it uses.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::outcome::{Ending, HostFailure, Outcome};
use crate::console::Pump;
use crate::control::{Control, Gate, VmEvent};
use crate::diagnosis::{Findings, Remains, Subject};
use crate::io_loop::{self, IoLoop};
use crate::kvm::{KvmVm, Vcpu, spawn_with_signals_blocked};
use crate::memory::GuestRam;
use crate::vcpu::{Buses, ExitCounts, VcpuHandle};

/// What the control thread shares with the handles.
pub(super) struct Shared {
    pub(super) control: Arc<Control>,
    pub(super) outcome_event: EventFd,
    pub(super) console_path: Option<PathBuf>,
    outcome: Mutex<Option<Outcome>>,
    told: Condvar,
    /// Empty before the threads are started and once they are being joined.
    vcpus: Mutex<Vec<VcpuHandle>>,
}

/// Everything that a running virtual machine holds. Fields are dropped in the order of the ordered stop.
pub(super) struct Machine {
    pub(super) io_loop: IoLoop,
    pub(super) pump: Option<Pump>,
    pub(super) buses: Arc<Buses>,
    pub(super) console: Arc<ConsoleBuffer>,
    pub(super) kvm: KvmVm,
    pub(super) ram: GuestRam,
    pub(super) timeout: Option<Duration>,
    pub(super) subject: Subject,
}

impl Shared {
    pub(super) fn new(control: Arc<Control>, console_path: Option<PathBuf>) -> io::Result<Shared> {
        Ok(Shared {
            control,
            outcome_event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            console_path,
            outcome: Mutex::new(None),
            told: Condvar::new(),
            vcpus: Mutex::new(Vec::new()),
        })
    }

    /// Takes over the threads of the vCPUs, which wait at the gate.
    pub(super) fn adopt(&self, vcpus: Vec<VcpuHandle>) {
        *self.vcpus.lock().unwrap_or_else(PoisonError::into_inner) = vcpus;
    }

    pub(super) fn pause(&self) -> bool {
        self.control.pause_gate();
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().for_each(VcpuHandle::kick);
        let count = vcpus.len() as u32;
        drop(vcpus);
        self.control.wait_parked(count, STOP_LIMIT) && self.control.gate() == Gate::Paused
    }

    pub(super) fn wait_outcome(&self) -> Outcome {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone();
            }
            slot = self.told.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn wait_outcome_for(&self, limit: Duration) -> Option<Outcome> {
        let slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.told.wait_timeout_while(slot, limit, |slot| slot.is_none());
        wait.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn tell(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.told.notify_all();
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.outcome_event.write(1);
    }
}

/// Starts the control thread, which owns the machine until its end.
pub(super) fn start_control(shared: Arc<Shared>, machine: Machine) -> io::Result<JoinHandle<()>> {
    spawn_with_signals_blocked("control".into(), move || {
        let event = shared.control.wait_event(machine.timeout);
        stop(&shared, machine, event);
    })
}

/// The ordered stop.
fn stop(shared: &Shared, machine: Machine, event: VmEvent) {
    let Machine { io_loop, pump, buses, console, kvm, ram, timeout: _, subject } = machine;
    let started = shared.control.started();
    let duration = started.map(|started| started.elapsed()).unwrap_or_default();
    let vcpus = std::mem::take(&mut *shared.vcpus.lock().unwrap_or_else(PoisonError::into_inner));
    let stopped = stop_vcpus(&shared.control, vcpus);
    let drained = io_loop.stop() && pump.is_none_or(|pump| pump.finish(io_loop::STOP_LIMIT));
    let io_stuck = (!drained).then_some(HostFailure::IoStuck { limit: io_loop::STOP_LIMIT });
    console.discard();

    let (failure, later_events) = shared.control.afterwards();
    let ending = match stopped.stuck.or(io_stuck).or(failure) {
        Some(reason) => Ending::HostFailed { reason },
        None => ending(event, console.panic_seen()),
    };
    let StoppedVcpus { vcpus, exits, leaked, .. } = stopped;
    let Findings { phase, progress, diagnosis } = subject.examine(&Remains {
        ending: &ending,
        vcpus: &vcpus,
        ram: ram.mmap(),
        console: &console,
        started,
    });
    shared.tell(Outcome {
        ending,
        phase,
        progress,
        diagnosis,
        duration,
        exits,
        console_bytes: console.pushed_bytes(),
        console_bytes_dropped: console.dropped_bytes(),
        later_events,
    });

    drop(vcpus);
    drop(buses);
    if leaked {
        // A thread may still be inside the guest: its memory and its virtual machine stay for as long as we do.
        std::mem::forget((kvm, ram));
    } else {
        drop(kvm);
        drop(ram);
    }
}

struct StoppedVcpus {
    /// Those whose threads have ended.
    vcpus: Vec<Vcpu>,
    exits: ExitCounts,
    stuck: Option<HostFailure>,
    leaked: bool,
}

/// Kicks the vCPUs until their threads have ended, and joins them. The gate is closed.
fn stop_vcpus(control: &Control, vcpus: Vec<VcpuHandle>) -> StoppedVcpus {
    let deadline = Instant::now() + STOP_LIMIT;
    let count = vcpus.len() as u32;
    loop {
        vcpus.iter().filter(|vcpu| !vcpu.has_ended()).for_each(VcpuHandle::kick);
        // One kick is enough; the repetition is for a host that is very slow to deliver it.
        if control.wait_vcpus_ended(count, KICK_INTERVAL) || Instant::now() >= deadline {
            break;
        }
    }
    let mut stopped =
        StoppedVcpus { vcpus: Vec::new(), exits: ExitCounts::default(), stuck: None, leaked: false };
    let all_ended = control.wait_vcpus_ended(count, Duration::ZERO);
    for vcpu in vcpus {
        stopped.exits.add(&vcpu.exits());
        if all_ended || vcpu.has_ended() {
            // A panic of its thread has been reported by itself.
            stopped.vcpus.extend(vcpu.join());
        } else {
            stopped.leaked = true;
            stopped.stuck = Some(HostFailure::VcpuStuck { vcpu: vcpu.index(), limit: STOP_LIMIT });
        }
    }
    stopped
}

fn ending(event: VmEvent, panic_seen: bool) -> Ending {
    match event {
        VmEvent::GuestShutdown => Ending::PoweredOff,
        VmEvent::GuestReset(_) if panic_seen => Ending::Panicked,
        VmEvent::GuestReset(source) => Ending::Reset { source },
        VmEvent::GuestExit(code) => Ending::Exited { code },
        VmEvent::GuestCrash { vcpu, registers } => Ending::Crashed { vcpu, registers },
        VmEvent::VcpuFault { vcpu, fault, registers } => Ending::CannotRun { vcpu, fault, registers },
        VmEvent::HostFailure(reason) => Ending::HostFailed { reason },
        VmEvent::Stop => Ending::Stopped,
        VmEvent::Signal(signal) => Ending::Signalled { signal },
        VmEvent::Timeout(limit) => Ending::TimedOut { limit },
    }
}

/// A vCPU leaves the guest within microseconds of a kick. This is when to give up on it: a host with far more to do
/// than it has CPUs takes a second now and then.
const STOP_LIMIT: Duration = Duration::from_secs(5);
const KICK_INTERVAL: Duration = Duration::from_millis(100);
