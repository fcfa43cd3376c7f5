//! The registers of a paused machine, which each vCPU reads on its own thread.

use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::kvm::VcpuRegisters;

/// Why the registers of a machine cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistersError {
    /// The machine runs, has ended, or has a vCPU that does not come out of the guest.
    #[error("registers: the machine is not paused; pause it first")]
    NotPaused,
    /// The host is too busy, or the vCPU's thread has failed: the machine ends with its failure then.
    #[error("registers: vCPU {vcpu} has not answered within {} s; try again", ANSWER_LIMIT.as_secs())]
    NoAnswer {
        /// The vCPU, by index.
        vcpu: u32,
    },
}

impl Shared {
    pub(super) fn registers(&self) -> Result<Vec<Option<VcpuRegisters>>, RegistersError> {
        // Without the lock, which a pause needs to get the vCPUs out of the guest.
        let count = self.vcpus().len() as u32;
        if !self.gate.wait_paused(count, ANSWER_LIMIT) {
            return Err(RegistersError::NotPaused);
        }
        let mut answers = Vec::new();
        let vcpus = self.vcpus();
        let leave = || answers.extend(vcpus.iter().map(|vcpu| (vcpu.index(), vcpu.ask_registers())));
        let is_asked = !vcpus.is_empty() && self.gate.ask_parked(vcpus.len() as u32, leave);
        // A stop or a reset that comes now does not wait for the answers.
        drop(vcpus);
        if !is_asked {
            return Err(RegistersError::NotPaused);
        }
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answers = answers.into_iter().map(|(vcpu, answer)| {
            let left = deadline.saturating_duration_since(Instant::now());
            answer.recv_timeout(left).map_err(|_| RegistersError::NoAnswer { vcpu })
        });
        answers.collect()
    }
}

/// A parked vCPU answers within microseconds. This is when to give up on a host that has far more to do than
/// it has CPUs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
