//! The ordered stop: from the ending to the outcome.
//!
//! The order is: vCPUs out of the guest and their threads joined; the virtio devices drained; the I/O threads
//! drained and joined; the devices and what they have open given back; the outcome reported; KVM's file
//! descriptors and memory given back. A vCPU that does not come out keeps what it uses.

use std::sync::Arc;
use std::time::Duration;

use coracle_devices::virtio::net::NetCounts;
use vm_memory::GuestMemoryMmap;

use super::machine::{Machine, Past};
use super::outcome::{Ending, HostFailure, Outcome, Times};
use super::shared::Shared;
use super::vcpus::{StoppedVcpus, stop_vcpus};
use crate::agent::AgentAttachment;
use crate::console::ConsoleCounts;
use crate::diagnosis::{self, Findings, Milestone, Remains, Sign};
use crate::{host, io_loop};

/// Stops what runs, in order, and reports the outcome.
pub(super) fn stop(shared: &Shared, machine: Machine, past: &Past, ending: Ending) {
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
        signal: shared.signal(),
        command: None,
        times,
    };
    // Files, sockets and taps are free for the next machine with the outcome; KVM's part takes its time.
    drop((platform, virtio, recipe));
    shared.journal.flush(LOG_LIMIT);
    shared.report(outcome);
    drop((vcpus, interrupts));
    if leaked {
        // A thread may still be inside the guest: its memory and its virtual machine stay for as long as we
        // do.
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

/// What the machine logged is there with its outcome, unless the program's back end takes longer than this.
pub(super) const LOG_LIMIT: Duration = Duration::from_millis(100);
