//! Machines that go on from a template.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_arch::x86_64::acpi;
use coracle_devices::journal::Journal;
use coracle_devices::legacy::event::Event;

use super::identity::{self, ForkIdentity};
use super::{SnapshotError, Template, TemplateParts};
use crate::config::{AcpiMode, VmConfig};
use crate::console::ConsoleStreams;
use crate::kvm::{KvmError, Vcpu, restore_vcpus};
use crate::memory::GuestRam;
use crate::vcpu::SavedVcpu;
use crate::virtio;
use crate::vm::builder::{HostParts, Parts};
use crate::vm::machine::Guest;
use crate::vm::recipe::random_bits;
use crate::vm::stop::LOG_LIMIT;
use crate::vm::{BuildError, Vm, VmBuilder};

/// The settings in which a fork differs from its template. Whatever it does not set is as in the template.
#[derive(Debug, Clone)]
pub struct Fork {
    builder: VmBuilder,
    identity: ForkIdentity,
}

impl Fork {
    /// Connects the console to pipes: see [`VmBuilder::console_piped`].
    pub fn console_piped(self) -> Fork {
        Fork { builder: self.builder.console_piped(), ..self }
    }

    /// Calls `take` with the console's output: see [`VmBuilder::console_callback`].
    pub fn console_callback(self, take: impl FnMut(&[u8]) + Send + 'static) -> Fork {
        Fork { builder: self.builder.console_callback(take), ..self }
    }

    /// Sends the console's output to `writer`: see [`VmBuilder::console_writer`].
    pub fn console_writer(self, writer: impl Write + Send + 'static) -> Fork {
        Fork { builder: self.builder.console_writer(writer), ..self }
    }

    /// Connects the console to the caller's descriptors: see [`VmBuilder::console_streams`].
    pub fn console_streams(self, streams: ConsoleStreams) -> Fork {
        Fork { builder: self.builder.console_streams(streams), ..self }
    }

    /// Names the guest: its agent sets this host name before it does anything else. Without an agent, and
    /// without this call, the guest keeps its name.
    pub fn hostname(mut self, name: impl Into<OsString>) -> Fork {
        self.identity.hostname = Some(name.into());
        self
    }

    /// Sets a variable of the commands that the guest's agent runs from now on. Each fork has
    /// `CORACLE_FORK_ID` (128 random bits in hexadecimal digits) and `CORACLE_FORK_INDEX` (from 0) by
    /// itself.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Fork {
        self.identity.env.push((name.into(), value.into()));
        self
    }

    /// Limits the time of the fork, which counts from its start.
    pub fn timeout(self, limit: Duration) -> Fork {
        Fork { builder: self.builder.configure(|config| config.timeout = Some(limit)), ..self }
    }
}

impl Template {
    /// Starts `count` machines that go on from the template: all of them or none. `adapt` gets each fork's
    /// index, from 0, and its settings. What the guest's console had not printed yet stays with the machine
    /// that became the template.
    ///
    /// ```no_run
    /// # fn doc(vm: &coracle::Vm) -> Result<(), coracle::SnapshotError> {
    /// let template = vm.freeze()?;
    /// let forks = template.fork(16, |index, fork| {
    ///     fork.console_callback(move |bytes| println!("{index}: {}", String::from_utf8_lossy(bytes)))
    /// })?;
    /// for fork in forks {
    ///     println!("{}", fork.wait().reason());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// If the machine had an agent that was ready, this returns once the agents of all forks have taken over
    /// their identities (`docs/snapshots.md` has the list): no two forks get the same random numbers from
    /// their kernels after that.
    ///
    ///
    /// # Errors
    /// The first fork that cannot be made. None of them has run. Or the first one whose agent refuses its
    /// identity, or does not answer within 60 s: then all of them have ended.
    pub fn fork(
        &self,
        count: usize,
        mut adapt: impl FnMut(usize, Fork) -> Fork,
    ) -> Result<Vec<Vm>, SnapshotError> {
        let of_fork = |index| move |source| SnapshotError::Fork { index, source: Box::new(source) };
        // KVM looks at all mappings of the process for each virtual machine that it creates, and most of
        // those of a fork are the stacks of its threads: all virtual machines come before the first thread.
        let restore = |index| Restored::new(&self.parts).map_err(of_fork(index));
        let restored = (0..count).map(restore).collect::<Result<Vec<_>, _>>()?;
        let build = |(index, restored)| {
            let mut fork = Fork::new(self.parts.config.clone());
            fork.identity.index = index;
            let fork = adapt(index, fork);
            fork.build(&self.parts, restored).map_err(of_fork(index))
        };
        let forks = restored.into_iter().enumerate().map(build).collect::<Result<Vec<Vm>, _>>()?;
        forks.iter().for_each(|vm| vm.handle().resume());
        for (index, vm) in forks.iter().enumerate() {
            identity::wait(vm, &self.parts.state).map_err(of_fork(index))?;
        }
        Ok(forks)
    }
}

impl Fork {
    /// Begins with the settings of a machine of this configuration.
    pub(super) fn new(config: VmConfig) -> Fork {
        Fork { builder: VmBuilder::new(config), identity: ForkIdentity::default() }
    }

    /// Returns the same settings for a machine of another configuration, from which no time limit is taken.
    pub(super) fn over(self, config: &VmConfig) -> Fork {
        let config = VmConfig { timeout: self.builder.config().timeout, ..config.clone() };
        Fork { builder: self.builder.configure(|own| *own = config), ..self }
    }

    pub(super) fn build(self, template: &TemplateParts, restored: Restored) -> Result<Vm, SnapshotError> {
        let journal = Arc::new(Journal::default());
        let _journal = journal.enter();
        let vm = self.build_parts(template, restored);
        journal.flush(LOG_LIMIT);
        vm
    }

    fn build_parts(self, template: &TemplateParts, restored: Restored) -> Result<Vm, SnapshotError> {
        let Restored { vcpus, guest, took } = restored;
        let now = Instant::now();
        let Fork { builder, identity } = self;
        let past = identity.past(&template.state)?;
        let console = builder.console_ends()?;
        let host =
            HostParts::new(builder.config(), &virtio::specs_of_fork(builder.config(), &template.disks))?;
        let platform = builder.platform(&host)?;
        guest.connect(&host.interrupts, &host.virtio)?;
        // Now that there are local APICs to take the interrupts that the devices raise again.
        platform.restore(&template.state.legacy)?;
        if builder.config().acpi == AcpiMode::On {
            let id = random_bits()?;
            acpi::write_generation_id(guest.ram.mmap(), id).map_err(BuildError::from)?;
            platform.events.raise(Event::NewGeneration);
        }
        // And an I/O APIC, which has told KVM the routes of their interrupts.
        host.virtio.restore(&template.state.virtio)?;
        let subject = template.subject.with_signs(platform.signs.clone());
        let recipe = template.recipe.clone();
        let began = now.checked_sub(took).unwrap_or(now);
        let parts = Parts { began, host, recipe, subject, platform, vcpus, guest, past };
        let (vm, machine) = builder.assemble(console, parts)?;
        Ok(vm.with_control(machine)?)
    }
}

/// The guest of a fork, without a machine around it.
pub(super) struct Restored {
    // Fields drop in declaration order: the vCPUs before the virtual machine and its memory.
    vcpus: Vec<Vcpu>,
    guest: Guest,
    /// How long making it took.
    took: Duration,
}

impl Restored {
    pub(super) fn new(template: &TemplateParts) -> Result<Restored, SnapshotError> {
        let began = Instant::now();
        let kvm = template.kvm.create_vm()?;
        let ram = GuestRam::private_over(&template.ram)?;
        kvm.add_memory(&ram)?;
        kvm.create_local_apics()?;
        kvm.set_clock(&template.state.clock)?;
        let guest = Guest { kvm, ram };
        let saved = &template.state.vcpus;
        let make = |(index, saved): (u32, &SavedVcpu)| {
            let vcpu = guest.kvm.create_vcpu(index)?;
            vcpu.set_cpuid(&saved.cpuid)?;
            Ok(vcpu)
        };
        let vcpus: Vec<Vcpu> = (0..).zip(saved).map(make).collect::<Result<_, KvmError>>()?;
        restore_vcpus(&vcpus, saved, template.kvm.state_format()?)?;
        Ok(Restored { vcpus, guest, took: began.elapsed() })
    }
}

impl From<BuildError> for SnapshotError {
    fn from(error: BuildError) -> SnapshotError {
        SnapshotError::Build(Box::new(error))
    }
}
