//! The threads of all vCPUs of a guest: their start at the gate, and their end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::BuildError;
use super::outcome::HostFailure;
use crate::config::CpuAffinity;
use crate::gate::Gate;
use crate::kvm::Vcpu;
use crate::vcpu::{AffinityError, Buses, ExitCounts, VcpuHandle, VcpuThread};

/// Starts a thread for each vCPU, which waits at the gate.
///
/// # Errors
/// The host gives no thread, or refuses the CPUs that it is to run on.
pub(super) fn start_vcpus(
    vcpus: Vec<Vcpu>,
    buses: &Arc<Buses>,
    gate: &Arc<Gate>,
    affinity: Option<&CpuAffinity>,
) -> Result<Vec<VcpuHandle>, BuildError> {
    let start = |vcpu| VcpuThread { vcpu, buses: buses.clone(), gate: gate.clone() }.spawn();
    let threads: io::Result<Vec<VcpuHandle>> = vcpus.into_iter().map(start).collect();
    let threads = threads.map_err(|source| BuildError::Thread { what: "a vCPU's thread", source })?;
    for thread in &threads {
        if let Some(cpus) = affinity.and_then(|affinity| affinity.cpus_of(thread.index())) {
            thread.pin(&cpus).map_err(AffinityError::Call)?;
        }
    }
    Ok(threads)
}

/// What is left of the vCPUs after their threads were asked to end.
pub(super) struct StoppedVcpus {
    /// Those whose threads have ended.
    pub(super) vcpus: Vec<Vcpu>,
    /// The exits of all.
    pub(super) exits: ExitCounts,
    /// A thread that did not end in time.
    pub(super) stuck: Option<HostFailure>,
    /// A thread may still be inside the guest, whose memory and virtual machine have to stay.
    pub(super) leaked: bool,
}

/// Kicks the vCPUs until their threads have ended, and joins them. The gate is closed.
pub(super) fn stop_vcpus(gate: &Gate, vcpus: Vec<VcpuHandle>) -> StoppedVcpus {
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

/// A vCPU leaves the guest within microseconds of a kick. This is when to give up on it: a host with far more
/// to do than it has CPUs takes a second now and then.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);
const KICK_INTERVAL: Duration = Duration::from_millis(100);
