//! Commands that a vCPU's thread carries out on behalf of others while it is parked at the gate. The vCPU
//! belongs to its thread for the whole life of a guest, so whoever wants to know its state leaves a command
//! here.

use std::borrow::Borrow;
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

use coracle_arch::x86_64::cpuid::CpuidEntry;
use coracle_arch::x86_64::vcpu_state::VcpuState;
use serde::{Deserialize, Serialize};

use crate::kvm::{StateError, StateFormat, Vcpu, VcpuRegisters};

/// A command to a parked vCPU, with the channel for its answer. The channel is buffered, so that the vCPU's
/// thread never waits for the receiver.
pub(super) enum VcpuCommand {
    /// Reads the registers.
    Registers(SyncSender<Option<VcpuRegisters>>),
    /// Saves the whole state.
    State(&'static StateFormat, SyncSender<Result<SavedVcpu, StateError>>),
}

/// Saves the vCPU. A state takes kilobytes of the stack, which a thread that saves none is not to touch.
#[cold]
#[inline(never)]
fn save(vcpu: &Vcpu, format: &StateFormat, answer: &SyncSender<Result<SavedVcpu, StateError>>) {
    let _ = answer.try_send(SavedVcpu::of(vcpu, format));
}

/// A vCPU as plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedVcpu {
    /// The CPUID leaves that the guest sees.
    pub(crate) cpuid: Vec<CpuidEntry>,
    /// Everything that the guest can change.
    pub(crate) state: VcpuState,
}

impl Borrow<VcpuState> for SavedVcpu {
    fn borrow(&self) -> &VcpuState {
        &self.state
    }
}

impl SavedVcpu {
    fn of(vcpu: &Vcpu, format: &StateFormat) -> Result<SavedVcpu, StateError> {
        Ok(SavedVcpu { cpuid: vcpu.cpuid()?, state: vcpu.save(format)? })
    }
}

/// The commands that the thread has not taken yet: at most one for each caller that waits for an answer.
#[derive(Default)]
pub(super) struct Mailbox(Mutex<Vec<VcpuCommand>>);

impl Mailbox {
    /// Leaves a command. The thread answers only while it is parked, so call this within
    /// [`Gate::ask_parked`].
    ///
    /// [`Gate::ask_parked`]: crate::gate::Gate::ask_parked
    pub(super) fn post(&self, command: VcpuCommand) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }

    /// Answers all commands in the mailbox.
    pub(super) fn serve(&self, vcpu: &Vcpu) {
        let commands = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for command in commands {
            match command {
                // Sending fails if the caller no longer waits; that is fine.
                VcpuCommand::Registers(answer) => drop(answer.try_send(vcpu.registers())),
                VcpuCommand::State(format, answer) => save(vcpu, format, &answer),
            }
        }
    }
}
