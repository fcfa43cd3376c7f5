//! What a vCPU's thread does for others while it is parked at the gate. The vCPU belongs to its thread from
//! the start to the end of a guest, so whoever wants to know its state leaves a command here.

use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

use crate::kvm::{Vcpu, VcpuRegisters};

/// A command to a parked vCPU, with the way for its answer. The channel has room for the answer, so that the
/// thread never waits for whoever asked.
pub(super) enum VcpuCommand {
    /// Reads the registers.
    Registers(SyncSender<Option<VcpuRegisters>>),
}

/// The commands that the thread has not taken yet: one for each caller that waits for an answer.
#[derive(Default)]
pub(super) struct Mailbox(Mutex<Vec<VcpuCommand>>);

impl Mailbox {
    /// Leaves a command. It is answered if the thread is parked: call this within [`Gate::ask_parked`].
    ///
    /// [`Gate::ask_parked`]: crate::gate::Gate::ask_parked
    pub(super) fn leave(&self, command: VcpuCommand) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }

    /// Answers the commands that were left.
    pub(super) fn serve(&self, vcpu: &Vcpu) {
        let commands = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for command in commands {
            match command {
                // An error says that whoever asked does not wait any more.
                VcpuCommand::Registers(answer) => drop(answer.try_send(vcpu.registers())),
            }
        }
    }
}
