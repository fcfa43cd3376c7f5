//! The threads of all vCPUs of a guest: starting them at the gate, and ending them.

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
/// The host cannot start a thread, or refuses the CPUs that it is to run on.
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

/// The remains of the vCPUs, after their threads were asked to end.
pub(super) struct StoppedVcpus {
    /// The vCPUs whose threads have ended.
    pub(super) vcpus: Vec<Vcpu>,
    /// The exits of all vCPUs.
    pub(super) exits: ExitCounts,
    /// Set if a thread did not end in time.
    pub(super) stuck: Option<HostFailure>,
    /// True if a thread may still be inside the guest: the guest's memory and virtual machine must then stay.
    pub(super) leaked: bool,
}

/// Kicks the vCPUs until their threads have ended, and joins them. The gate must be closed.
pub(super) fn stop_vcpus(gate: &Gate, vcpus: Vec<VcpuHandle>) -> StoppedVcpus {
    let deadline = Instant::now() + STOP_LIMIT;
    let count = vcpus.len() as u32;
    // Those that have seen the closed gate by themselves need no kick.
    while !gate.wait_vcpus_ended(count, Duration::ZERO) {
        vcpus.iter().filter(|vcpu| !vcpu.has_ended()).for_each(VcpuHandle::kick);
        // One kick is enough; repeating it helps on a host that delivers signals very slowly.
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
            // A thread that panicked returns no vCPU; it has already reported the panic.
            stopped.vcpus.extend(vcpu.join());
        } else {
            stopped.leaked = true;
            stopped.stuck = Some(HostFailure::VcpuStuck { vcpu: vcpu.index(), limit: STOP_LIMIT });
        }
    }
    stopped
}

/// How long to wait for a vCPU to leave the guest. It takes microseconds after a kick; a host with far more
/// work than CPUs occasionally takes a second.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);
const KICK_INTERVAL: Duration = Duration::from_millis(100);
