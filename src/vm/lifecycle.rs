//! The life of a machine on its control thread, or on the thread that runs the machine: it waits for an
//! ending, restarts the guest after a reset that the machine survives, and stops the machine.

use super::builder::thread_error;
use super::events::Event;
use super::machine::{Machine, Past};
use super::outcome::{Ending, HostFailure, PanicEvidence};
use super::shared::Shared;
use super::stop::stop;
use super::vcpus::{start_vcpus, stop_vcpus};
use super::watch::Watch;
use super::{BuildError, Vm};
use crate::gate::Gate;
use crate::thread::ThreadKind;

impl Vm {
    /// Starts the control thread, which owns the machine until its end.
    ///
    /// # Errors
    /// The host cannot start another thread.
    pub(super) fn with_control(mut self, machine: Machine) -> Result<Vm, BuildError> {
        let shared = self.shared.clone();
        let control = ThreadKind::Control.spawn(move || live(&shared, machine));
        self.control = Some(control.map_err(thread_error("the control thread"))?);
        Ok(self)
    }
}

/// Runs the machine from the first start, through every reset that it survives, to its end.
pub(super) fn live(shared: &Shared, mut machine: Machine) {
    let mut past = Past::default();
    loop {
        let ending = Watch::new(shared, &machine).wait_end();
        let mut ending = machine.with_panic(ending, &shared.gate);
        if let (Ending::Reset { .. }, Some(_)) = (&ending, &machine.recipe) {
            match restart(shared, &mut machine, &mut past) {
                Ok(()) => continue,
                Err(instead) => {
                    // Closes the gate, so that vCPU threads that have already started end.
                    shared.gate.post(instead.clone());
                    ending = instead;
                }
            }
        }
        return stop(shared, machine, &past, ending);
    }
}

impl Machine {
    /// Turns a reset that follows a kernel panic into the ending of that panic: a kernel with `panic=` on its
    /// command line resets itself after one.
    fn with_panic(&self, ending: Ending, gate: &Gate) -> Ending {
        let has_panicked = || self.platform.console.panic_explains_reset() || gate.crash_kernel_runs();
        match ending {
            Ending::Reset { .. } if has_panicked() => Ending::Panicked { evidence: PanicEvidence::Reset },
            other => other,
        }
    }
}

/// Replaces the guest after a reset. Memory, KVM's virtual machine and the vCPUs are created again, and the
/// devices are reset. The host's side of the machine stays: files, sockets, taps and the console.
///
/// # Errors
/// The ending of the machine, if the guest cannot be replaced.
#[inline(never)]
fn restart(shared: &Shared, machine: &mut Machine, past: &mut Past) -> Result<(), Ending> {
    let Machine { platform, interrupts, virtio, guest, recipe: Some(recipe), .. } = machine else {
        return Ok(());
    };
    // The lock is held to the end, so that a pause waits for the new vCPUs.
    let mut vcpus = shared.vcpus();
    let stopped = stop_vcpus(&shared.gate, std::mem::take(&mut *vcpus));
    past.exits.add(&stopped.exits);
    if let Some(stuck) = stopped.stuck {
        // A stuck vCPU's thread may still be inside the guest, which needs its memory: leak it.
        std::mem::forget(guest.take());
        return Err(stuck.into());
    }
    shared.gate.restart()?;
    drop(stopped.vcpus);
    virtio.disconnect()?;
    interrupts.disconnect();
    platform.reset();
    // Frees the old memory before the new memory is touched, so that the host never needs both.
    drop(guest.take());
    let (fresh, new_vcpus) = recipe.make().map_err(|error| cannot_restart(&error))?;
    fresh.connect(interrupts, virtio).map_err(|error| cannot_restart(&error.into()))?;
    *guest = Some(fresh);
    let started = start_vcpus(new_vcpus, &platform.buses, &shared.gate, recipe.cpu_affinity());
    *vcpus = started.map_err(|error| cannot_restart(&error))?;
    past.resets = past.resets.saturating_add(1);
    shared.gate.hold(false);
    shared.events.send(Event::Restarted);
    Ok(())
}

fn cannot_restart(error: &BuildError) -> Ending {
    HostFailure::Restart { reason: error.to_string() }.into()
}
