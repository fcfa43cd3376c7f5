//! From the first ending of a virtual machine to its outcome: the control thread and the ordered stop.
//!
//! The order is: vCPUs out of the guest and their threads joined; the virtio devices drained; the I/O threads drained and
//! joined; the devices and what they have open given back; the outcome told; KVM's file descriptors and memory given back. A vCPU that does not come out keeps what it uses.
//!
//! A reset that the machine outlives takes the first step, makes the guest anew ([`Recipe`]) and waits again.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_devices::journal::Journal;
use coracle_devices::legacy::event::{Event, EventRegister};
use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::console::TerminalSize;
use coracle_devices::virtio::net::NetCounts;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::BuildError;
use super::builder::{Recipe, start_vcpus};
use super::events::{Event as LifeEvent, Subscribers};
use super::outcome::{Ending, HostFailure, Outcome, PanicEvidence, Times};
use super::platform::Platform;
use super::watch::{Limits, Watch};
use crate::agent::AgentAttachment;
use crate::config::HaltPolicy;
use crate::console::{ConsoleCounts, Pump};
use crate::diagnosis::{self, Findings, Milestone, Remains, Sign, Subject};
use crate::gate::{Gate, GateState};
use crate::host;
use crate::io_loop::{self, IoLoop};
use crate::kvm::{Interrupts, KvmError, KvmVm, Vcpu};
use crate::memory::GuestRam;
use crate::thread::ThreadKind;
use crate::vcpu::{ExitCounts, VcpuHandle};
use crate::virtio::VirtioDevices;

/// What the control thread shares with the handles.
pub(super) struct Shared {
    pub(super) gate: Arc<Gate>,
    pub(super) outcome_event: EventFd,
    pub(super) events: Subscribers,
    pub(super) console_path: Option<PathBuf>,
    /// Where this machine's log lines go.
    pub(super) journal: Arc<Journal>,
    outcome: Mutex<Option<Outcome>>,
    told: Condvar,
    /// Empty before the threads are started and once they are being joined.
    vcpus: Mutex<Vec<VcpuHandle>>,
    /// Gone with the machine, whoever holds a handle: what the devices have open on the host is free with the outcome.
    virtio: Weak<VirtioDevices>,
    /// The agent, in a machine that has one.
    pub(super) agent: Option<AgentAttachment>,
    /// Where the power button is wired to, in a machine that has one.
    button: Option<Arc<EventRegister>>,
    /// The signal for whose sake the guest was asked to end.
    signal: Mutex<Option<i32>>,
}

/// Everything that a running virtual machine holds.
pub(super) struct Machine {
    pub(super) io_loop: IoLoop,
    pub(super) pump: Option<Pump>,
    pub(super) platform: Platform,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) virtio: Arc<VirtioDevices>,
    /// None only while it is made anew.
    pub(super) guest: Option<Guest>,
    /// What the guest is made from, in a machine that outlives a reset.
    pub(super) recipe: Option<Recipe>,
    pub(super) limits: Limits,
    pub(super) on_halt: HaltPolicy,
    pub(super) subject: Subject,
    /// How long its building took.
    pub(super) prepared_in: Duration,
}

/// What a guest runs in, from one reset to the next. Its vCPUs belong to their threads.
pub(super) struct Guest {
    // Dropped in this order: the virtual machine before its memory.
    pub(super) kvm: KvmVm,
    pub(super) ram: GuestRam,
}

impl Guest {
    /// Connects the devices to this life of the guest.
    pub(super) fn connect(&self, interrupts: &Interrupts, virtio: &VirtioDevices) -> Result<(), KvmError> {
        interrupts.connect(self.kvm.clone())?;
        virtio.connect(&self.kvm, &self.ram.for_devices())
    }
}

impl Shared {
    pub(super) fn new(
        gate: Arc<Gate>,
        console_path: Option<PathBuf>,
        button: Option<Arc<EventRegister>>,
        virtio: &Arc<VirtioDevices>,
        agent: Option<AgentAttachment>,
    ) -> io::Result<Shared> {
        Ok(Shared {
            gate,
            agent,
            button,
            virtio: Arc::downgrade(virtio),
            signal: Mutex::new(None),
            outcome_event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            events: Subscribers::default(),
            console_path,
            journal: Journal::current(),
            outcome: Mutex::new(None),
            told: Condvar::new(),
            vcpus: Mutex::new(Vec::new()),
        })
    }

    /// Takes over the threads of the vCPUs, which wait at the gate.
    pub(super) fn adopt(&self, vcpus: Vec<VcpuHandle>) {
        *self.vcpus() = vcpus;
    }

    /// The vCPUs. While a guest is made anew nobody gets them.
    pub(super) fn vcpus(&self) -> MutexGuard<'_, Vec<VcpuHandle>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pause(&self) -> bool {
        let _journal = self.journal.enter();
        self.gate.pause();
        // A reset may come in between. The guest that is made anew then waits at the gate, and does not reset again.
        for _ in 0..2 {
            let vcpus = self.vcpus();
            vcpus.iter().for_each(VcpuHandle::kick);
            let count = vcpus.len() as u32;
            drop(vcpus);
            if self.gate.wait_parked(count, STOP_LIMIT) && self.gate.state() == GateState::Paused {
                return self.pause_devices();
            }
            if !self.gate.wait_begun_again(STOP_LIMIT) {
                return false;
            }
        }
        false
    }

    /// Takes the devices off their queues too, unless somebody lets the guest run again meanwhile.
    fn pause_devices(&self) -> bool {
        // A guest that is made anew has devices that do nothing yet.
        let _no_reset = self.vcpus();
        self.gate.state() == GateState::Paused && self.virtio().is_some_and(|virtio| virtio.pause())
    }

    pub(super) fn resume(&self) {
        let _journal = self.journal.enter();
        let _no_reset = self.vcpus();
        if let Some(virtio) = self.virtio() {
            virtio.resume();
        }
        self.gate.open();
    }

    /// The devices of a machine that has not ended.
    pub(super) fn virtio(&self) -> Option<Arc<VirtioDevices>> {
        self.virtio.upgrade()
    }

    pub(super) fn balloon(&self) -> Option<Arc<Balloon>> {
        self.virtio()?.balloon().cloned()
    }

    pub(super) fn resize_console(&self, size: TerminalSize) -> bool {
        let _journal = self.journal.enter();
        let virtio = self.virtio();
        let console = virtio.as_ref().and_then(|virtio| virtio.console());
        console.map(|console| console.resize(size)).is_some()
    }

    pub(super) fn press_power_button(&self) -> bool {
        let Some(button) = &self.button else { return false };
        button.raise(Event::PowerButton);
        true
    }

    pub(super) fn set_signal(&self, signal: i32) {
        *self.signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
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
        let end = LifeEvent::Ended(Box::new(outcome.clone()));
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.told.notify_all();
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.outcome_event.write(1);
        self.events.send(end);
    }
}

/// Starts the control thread, which owns the machine until its end.
pub(super) fn start_control(shared: Arc<Shared>, machine: Machine) -> io::Result<JoinHandle<()>> {
    ThreadKind::Control.spawn(move || live(&shared, machine))
}

/// From the first start, over every reset that the machine outlives, to its end.
fn live(shared: &Shared, mut machine: Machine) {
    let mut past = Past::default();
    loop {
        let ending = Watch::new(shared, &machine).wait_end();
        let mut ending = machine.with_panic(ending, &shared.gate);
        if let (Ending::Reset { .. }, Some(_)) = (&ending, &machine.recipe) {
            match start_anew(shared, &mut machine, &mut past) {
                Ok(()) => continue,
                Err(instead) => {
                    // The gate closes for vCPUs that have been started already.
                    shared.gate.post(instead.clone());
                    ending = instead;
                }
            }
        }
        return stop(shared, machine, &past, ending);
    }
}

impl Machine {
    /// Makes a reset that follows a kernel panic the ending of that panic: a kernel with `panic=` resets itself.
    fn with_panic(&self, ending: Ending, gate: &Gate) -> Ending {
        let has_panicked = || self.platform.console.panic_explains_reset() || gate.crash_kernel_runs();
        match ending {
            Ending::Reset { .. } if has_panicked() => Ending::Panicked { evidence: PanicEvidence::Reset },
            other => other,
        }
    }
}

/// What is left of the guest from before its resets.
#[derive(Default)]
struct Past {
    exits: ExitCounts,
    resets: u64,
}

/// Makes the guest anew after a reset: memory, KVM's part and vCPUs are fresh, the devices are reset, and all that the
/// host sees of the machine stays.
///
/// # Errors
/// What ends the machine instead.
fn start_anew(shared: &Shared, machine: &mut Machine, past: &mut Past) -> Result<(), Ending> {
    let Machine { platform, interrupts, virtio, guest, recipe: Some(recipe), .. } = machine else {
        return Ok(());
    };
    // Held to the end: a pause waits for the new vCPUs.
    let mut vcpus = shared.vcpus();
    let stopped = stop_vcpus(&shared.gate, std::mem::take(&mut *vcpus));
    past.exits.add(&stopped.exits);
    if let Some(stuck) = stopped.stuck {
        // Its thread may still be inside the guest.
        std::mem::forget(guest.take());
        return Err(Ending::HostFailed { reason: stuck });
    }
    shared.gate.begin_again()?;
    drop(stopped.vcpus);
    virtio.disconnect().map_err(|reason| Ending::HostFailed { reason })?;
    interrupts.disconnect();
    platform.reset();
    // The old memory goes before the new one is touched.
    drop(guest.take());
    let (fresh, new_vcpus) = recipe.make().map_err(|error| cannot_restart(&error))?;
    fresh.connect(interrupts, virtio).map_err(|error| cannot_restart(&error.into()))?;
    *guest = Some(fresh);
    let started = start_vcpus(new_vcpus, &platform.buses, &shared.gate, recipe.cpu_affinity());
    *vcpus = started.map_err(|error| cannot_restart(&error))?;
    past.resets = past.resets.saturating_add(1);
    shared.gate.hold(false);
    shared.events.send(LifeEvent::Restarted);
    Ok(())
}

fn cannot_restart(error: &BuildError) -> Ending {
    Ending::HostFailed { reason: HostFailure::Restart { reason: error.to_string() } }
}

/// The ordered stop.
fn stop(shared: &Shared, machine: Machine, past: &Past, ending: Ending) {
    let Machine {
        io_loop,
        pump,
        platform,
        interrupts,
        virtio,
        guest,
        recipe,
        limits: _,
        on_halt: _,
        subject,
        prepared_in,
    } = machine;
    let &Past { mut exits, resets } = past;
    let started = shared.gate.started();
    let duration = started.map(|started| started.elapsed()).unwrap_or_default();
    shared.gate.set_over();
    let vcpus = std::mem::take(&mut *shared.vcpus());
    let stopped = stop_vcpus(&shared.gate, vcpus);
    exits.add(&stopped.exits);
    // Before the devices close its connection, so that it knows why.
    let panic =
        diagnosis::panic_reason(&ending, &platform.console, virtio.console().map(|port| &**port.output()));
    shared.agent.iter().for_each(|agent| agent.machine_ends(&ending, panic.clone()));
    let device_stuck = virtio.disconnect().err();
    virtio.close();
    virtio.end_threads(device_stuck.is_some());
    let drained = io_loop.stop() && pump.as_ref().is_none_or(|pump| pump.finish(io_loop::STOP_LIMIT));
    shared.agent.iter().for_each(AgentAttachment::join);
    let io_stuck = (!drained).then_some(HostFailure::IoStuck { limit: io_loop::STOP_LIMIT });
    let console = &platform.console;
    let virtio_output = virtio.console().map(|port| port.output().clone());
    let virtio_output = virtio_output.as_ref();
    if drained {
        // A thread that is stuck holds the buffer.
        console.discard();
        virtio_output.inspect(|output| output.discard());
    }

    let counts = ConsoleCounts::of(console, virtio_output.map(Arc::as_ref), pump.as_ref());
    let dropped = |counts: NetCounts| counts.receive_dropped + counts.send_dropped;
    let frames_dropped = virtio.net_counts().into_iter().map(dropped).sum();
    let (failure, later_events) = shared.gate.afterwards();
    let ending = match stopped.stuck.or(device_stuck).or(io_stuck).or(failure) {
        Some(reason) => Ending::HostFailed { reason },
        None => ending,
    };
    let StoppedVcpus { vcpus, leaked, .. } = stopped;
    let no_ram = GuestMemoryMmap::new();
    let Findings { phase, progress, diagnosis } = subject.examine(&Remains {
        ending: &ending,
        vcpus: &vcpus,
        ram: guest.as_ref().map_or(&no_ram, |guest| guest.ram.mmap()),
        console,
        virtio_console: virtio_output.map(Arc::as_ref),
        started,
    });
    let times = times(prepared_in, &progress, duration);
    let outcome = Outcome {
        ending,
        phase,
        progress,
        diagnosis,
        duration,
        exits,
        console_bytes: counts.sent,
        console_bytes_dropped: counts.lost,
        console_lost_from: counts.lost_from,
        disk_errors: shared.gate.disk_errors(),
        frames_dropped,
        later_events,
        resets,
        signal: *shared.signal.lock().unwrap_or_else(PoisonError::into_inner),
        command: None,
        times,
    };
    // Files, sockets and taps are free for the next machine with the outcome; KVM's part takes its time.
    drop((platform, virtio, recipe));
    shared.journal.flush(LOG_LIMIT);
    shared.tell(outcome);
    drop((vcpus, interrupts));
    if leaked {
        // A thread may still be inside the guest: its memory and its virtual machine stay for as long as we do.
        std::mem::forget(guest);
    }
}

/// The steps that every guest shows; the last is open until its end.
fn times(prepared_in: Duration, progress: &[Milestone], duration: Duration) -> Times {
    let init = progress.iter().find(|milestone| milestone.sign == Sign::InitMark).and_then(|mark| mark.at);
    Times {
        emulated_host: host::boot_time(),
        prepare: Some(prepared_in),
        kernel: init,
        init: init.map(|init| duration.saturating_sub(init)),
        ..Times::default()
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
fn stop_vcpus(gate: &Gate, vcpus: Vec<VcpuHandle>) -> StoppedVcpus {
    let deadline = Instant::now() + STOP_LIMIT;
    let count = vcpus.len() as u32;
    loop {
        vcpus.iter().filter(|vcpu| !vcpu.has_ended()).for_each(VcpuHandle::kick);
        // One kick is enough; the repetition is for a host that is very slow to deliver it.
        if gate.wait_vcpus_ended(count, KICK_INTERVAL) || Instant::now() >= deadline {
            break;
        }
    }
    let mut stopped =
        StoppedVcpus { vcpus: Vec::new(), exits: ExitCounts::default(), stuck: None, leaked: false };
    let all_ended = gate.wait_vcpus_ended(count, Duration::ZERO);
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

/// A vCPU leaves the guest within microseconds of a kick. This is when to give up on it: a host with far more to do
/// than it has CPUs takes a second now and then.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);
const KICK_INTERVAL: Duration = Duration::from_millis(100);
/// What the machine logged is there with its outcome, unless the program's back end takes longer than this.
pub(super) const LOG_LIMIT: Duration = Duration::from_millis(100);
