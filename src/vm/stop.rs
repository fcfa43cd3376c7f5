//! The ordered stop, from the ending to the outcome.
//!
//! The steps, in order:
//!
//! 1. The vCPUs leave the guest and their threads are joined.
//! 2. The virtio devices are drained.
//! 3. The I/O threads are drained and joined.
//! 4. The devices, and what they have open on the host, are released.
//! 5. The outcome is reported.
//! 6. KVM's file descriptors and the guest's memory are released.
//!
//! A vCPU that does not leave the guest keeps what it uses.

use std::sync::PoisonError;
use std::time::Duration;

use coracle_devices::virtio::net::NetCounts;
use vm_memory::GuestMemoryMmap;

use super::machine::{Guest, Machine, Past};
use super::outcome::{Ending, HostFailure, Outcome, Times};
use super::release::release;
use super::shared::Shared;
use super::vcpus::{StoppedVcpus, stop_vcpus};
use crate::agent::AgentAttachment;
use crate::console::ConsoleCounts;
use crate::diagnosis::{self, Findings, Milestone, Remains, Sign};
use crate::kvm::{Interrupts, Vcpu};
use crate::{host, io_loop};

/// Stops the machine in that order, and reports the outcome.
// Not in the frame in which the thread waits for the end.
#[inline(never)]
pub(super) fn stop(shared: &Shared, machine: Machine, past: &Past, ending: Ending) {
    let Machine {
        io_loop,
        pump,
        platform,
        interrupts,
        virtio,
        guest,
        recipe,
        subject,
        origin,
        prepared_in,
        ..
    } = machine;
    let &Past { mut exits, resets } = past;
    let started = shared.gate.started();
    let duration = started.map(|started| started.elapsed()).unwrap_or_default();
    shared.gate.set_over();
    shared.requests.close();
    let vcpus = std::mem::take(&mut *shared.vcpus());
    let stopped = stop_vcpus(&shared.gate, vcpus);
    exits.add(&stopped.exits);
    // The agent hears of the panic before the devices close its connection, so that its callers get the
    // reason.
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
    if drained {
        // Only if the I/O threads have ended: a stuck one holds the buffer's lock.
        console.discard();
        virtio_output.iter().for_each(|output| output.discard());
    }

    let counts = ConsoleCounts::of(console, virtio_output.as_deref(), pump.as_ref());
    let dropped = |counts: NetCounts| counts.receive_dropped + counts.send_dropped;
    let frames_dropped = virtio.net_counts().into_iter().map(dropped).sum();
    let (failure, later_events) = shared.gate.later_endings();
    let ending = match stopped.stuck.or(device_stuck).or(io_stuck).or(failure) {
        Some(failure) => failure.into(),
        None => ending,
    };
    let StoppedVcpus { vcpus, leaked, .. } = stopped;
    let no_ram = GuestMemoryMmap::new();
    let Findings { phase, progress, diagnosis } = subject.examine(&Remains {
        ending: &ending,
        vcpus: &vcpus,
        ram: guest.as_ref().map_or(&no_ram, |guest| guest.ram.mmap()),
        console,
        virtio_console: virtio_output.as_deref(),
        started,
    });
    let times = times(prepared_in, &progress, duration);
    let mut outcome = Outcome {
        ending,
        phase,
        progress,
        diagnosis,
        duration,
        exits,
        console_bytes: counts.sent,
        console_bytes_dropped: counts.lost,
        console_lost_from: counts.lost_from,
        console_is_in_line: counts.is_in_line,
        disk_errors: shared.gate.disk_errors(),
        frames_dropped,
        later_events,
        resets,
        signal: shared.gate.signal(),
        command: None,
        origin,
        times,
    };
    // Files, sockets and taps must be free for the next machine before the outcome is available. Releasing
    // KVM's part takes longer, so it comes after.
    release((platform, virtio, recipe), &mut outcome);
    shared.journal.flush(LOG_LIMIT);
    shared.report(outcome);
    close(shared, vcpus, &interrupts, guest, leaked);
}

/// Closes KVM's file descriptors and releases the guest's memory, unless it becomes that of a template. The
/// handles' power button keeps the interrupts: KVM's virtual machine is closed here all the same, before the
/// memory that it maps is unmapped.
fn close(shared: &Shared, vcpus: Vec<Vcpu>, interrupts: &Interrupts, guest: Option<Guest>, leaked: bool) {
    interrupts.close();
    drop(vcpus);
    let freezing = shared.freezing.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (guest, freezing) {
        // A stuck thread may still be inside the guest: leak the guest's memory and virtual machine.
        (guest, _) if leaked => std::mem::forget(guest),
        (Some(guest), Some(freezing)) => freezing.finish(guest),
        (guest, _) => drop(guest),
    }
}

/// Computes the times of the steps that every guest has. The last known step lasts until the end.
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

/// How long the stop waits for the program's log back end, so that the machine's log lines precede its
/// outcome. A back end that is slower than this must not delay the outcome.
pub(super) const LOG_LIMIT: Duration = Duration::from_millis(100);
