//! Reading the registers of a paused machine: each vCPU reads them on its own thread.

use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::kvm::VcpuRegisters;

/// Why the registers of a machine cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistersError {
    /// The machine is running, or a vCPU does not leave the guest.
    #[error("registers: the machine is not paused; pause it first")]
    NotPaused,
    /// The machine has ended. The outcome has the registers of a vCPU that could not continue.
    #[error("registers: the machine has ended; read the registers before its end, or those of its outcome")]
    Ended,
    /// A vCPU did not answer: the host is too busy, or the vCPU's thread has failed, in which case the
    /// machine ends with that failure.
    #[error("registers: vCPU {vcpu} has not answered within {} s; try again", ANSWER_LIMIT.as_secs())]
    NoAnswer {
        /// The index of the vCPU.
        vcpu: u32,
    },
}

impl Shared {
    pub(super) fn registers(&self) -> Result<Vec<Option<VcpuRegisters>>, RegistersError> {
        // Wait without the lock: a pause needs it to kick the vCPUs out of the guest.
        let count = self.vcpus().len() as u32;
        if !self.gate.wait_paused(count, ANSWER_LIMIT) {
            return Err(self.not_paused());
        }
        let mut answers = Vec::new();
        let vcpus = self.vcpus();
        let post = || answers.extend(vcpus.iter().map(|vcpu| (vcpu.index(), vcpu.ask_registers())));
        let is_asked = !vcpus.is_empty() && self.gate.ask_parked(vcpus.len() as u32, post);
        // Release the lock, so that a stop or a reset does not wait for the answers.
        drop(vcpus);
        if !is_asked {
            return Err(self.not_paused());
        }
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answers = answers.into_iter().map(|(vcpu, answer)| {
            let left = deadline.saturating_duration_since(Instant::now());
            answer.recv_timeout(left).map_err(|_| RegistersError::NoAnswer { vcpu })
        });
        answers.collect()
    }

    /// Why the machine is not paused.
    fn not_paused(&self) -> RegistersError {
        if self.gate.is_over(ANSWER_LIMIT) { RegistersError::Ended } else { RegistersError::NotPaused }
    }
}

/// How long to wait for the answers. A parked vCPU answers within microseconds; only a host with far more
/// work than CPUs takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
