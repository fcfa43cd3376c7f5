//! Machines that go on from a template.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_arch::x86_64::acpi;
use coracle_devices::journal::Journal;
use coracle_devices::legacy::event::Event;

use super::identity::{self, ForkIdentity};
use super::{GuestTime, SnapshotError, Template, TemplateParts};
use crate::agent::NetworkSettings;
use crate::config::{AcpiMode, CpuAffinity, CpuQuota, SerialConfig, VmConfig};
use crate::console::ConsoleStreams;
use crate::kvm::{KvmError, Vcpu, restore_vcpus};
use crate::memory::GuestRam;
use crate::vcpu::SavedVcpu;
use crate::virtio::{Repointed, TemplateDevice};
use crate::vm::builder::{HostParts, Parts};
use crate::vm::machine::{Guest, Machine};
use crate::vm::outcome::Origin;
use crate::vm::recipe::random_bits;
use crate::vm::stop::LOG_LIMIT;
use crate::vm::{BuildError, Vm, VmBuilder};

/// The settings in which a fork differs from its template. Whatever it does not set is as in the template.
#[derive(Debug, Clone)]
pub struct Fork {
    builder: VmBuilder,
    time: GuestTime,
    pub(super) repointed: Repointed,
    identity: ForkIdentity,
}

impl Fork {
    /// Connects the console to pipes: see [`VmBuilder::console_piped`].
    pub fn console_piped(self) -> Fork {
        self.with(VmBuilder::console_piped)
    }

    /// Calls `take` with the console's output: see [`VmBuilder::console_callback`].
    pub fn console_callback(self, take: impl FnMut(&[u8]) + Send + 'static) -> Fork {
        self.with(|builder| builder.console_callback(take))
    }

    /// Sends the console's output to `writer`: see [`VmBuilder::console_writer`].
    pub fn console_writer(self, writer: impl Write + Send + 'static) -> Fork {
        self.with(|builder| builder.console_writer(writer))
    }

    /// Connects the console to the caller's descriptors: see [`VmBuilder::console_streams`].
    pub fn console_streams(self, streams: ConsoleStreams) -> Fork {
        self.with(|builder| builder.console_streams(streams))
    }

    /// Decides whether the time since the machine was saved passes for the guest. Without this, it does not.
    pub fn time(self, time: GuestTime) -> Fork {
        Fork { time, ..self }
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

    /// Gives the network card with this id an address, as [`network_up`](crate::VmHandle::network_up) does,
    /// instead of those that its interface has: the guest's agent sets it before it does anything else. The
    /// card is the interface, so `settings` name none. If they ask a DHCP server, its time is added to the 60
    /// s that the agent has. A machine without an agent is refused.
    pub fn address(mut self, id: impl Into<String>, settings: NetworkSettings) -> Fork {
        self.identity.addresses.push((id.into(), settings));
        self
    }

    /// Limits the time of the fork, which counts from its start.
    pub fn timeout(self, limit: Duration) -> Fork {
        self.configure(|config| config.timeout = Some(limit))
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
    /// Disks that the guest only reads, and copy-on-write disks, are shared. A disk that it writes to, a
    /// network card, and a vsock device with a socket need an end on the host for each fork: [`Fork::disk`],
    /// [`Fork::net`], [`Fork::vsock`].
    ///
    /// If the machine had an agent that was ready, this returns once the agents of all forks have taken over
    /// their identities (`docs/snapshots.md` has the list): no two forks get the same random numbers from
    /// their kernels after that.
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
        let forks: Vec<Fork> =
            (0..count).map(|index| adapt(index, Fork::new(self.parts.config.clone()))).collect();
        for (index, fork) in forks.iter().enumerate() {
            fork.check(&self.parts.devices, self.parts.config.agent.is_some()).map_err(of_fork(index))?;
        }
        let limits: Vec<Duration> = forks.iter().map(Fork::identity_limit).collect();
        // KVM looks at all mappings of the process for each virtual machine that it creates, and most of
        // those of a fork are the stacks of its threads: all virtual machines come before the first thread.
        let restore = |(index, fork)| Restored::new(&self.parts, fork).map_err(of_fork(index));
        let restored = forks.iter().enumerate().map(restore).collect::<Result<Vec<_>, _>>()?;
        let build = |(index, (fork, restored)): (usize, (Fork, Restored))| {
            fork.build(&self.parts, restored, Some(index)).map_err(of_fork(index))
        };
        let forks = forks.into_iter().zip(restored).enumerate();
        let forks = forks.map(build).collect::<Result<Vec<Vm>, _>>()?;
        let began = Instant::now();
        forks.iter().for_each(|vm| vm.handle().resume());
        for (index, (vm, limit)) in forks.iter().zip(limits).enumerate() {
            identity::wait(vm, &self.parts.state, (limit, began)).map_err(of_fork(index))?;
        }
        Ok(forks)
    }
}

impl Fork {
    /// Connects the serial port, unless the console is connected by another call here.
    pub fn serial(self, serial: SerialConfig) -> Fork {
        self.configure(|config| config.serial = serial)
    }

    /// Limits the time for which the fork may be idle: see [`VmConfig::idle_timeout`].
    pub fn idle_timeout(self, limit: Duration) -> Fork {
        self.configure(|config| config.idle_timeout = Some(limit))
    }

    /// Chooses the CPUs of the host for the vCPUs: see [`VmConfig::cpu_affinity`].
    pub fn cpu_affinity(self, affinity: CpuAffinity) -> Fork {
        self.configure(|config| config.cpu_affinity = Some(affinity))
    }

    /// Limits the CPU time of the vCPUs: see [`VmConfig::cpu_quota`].
    pub fn cpu_quota(self, quota: CpuQuota) -> Fork {
        self.configure(|config| config.cpu_quota = Some(quota))
    }

    /// Begins with the settings of a machine of this configuration.
    pub(super) fn new(config: VmConfig) -> Fork {
        let (repointed, identity) = (Repointed::default(), ForkIdentity::default());
        Fork { builder: VmBuilder::new(config), time: GuestTime::default(), repointed, identity }
    }

    /// Returns the same settings for a machine of another configuration, from which no connection to the host
    /// and no limit is taken.
    pub(super) fn over(self, config: &VmConfig) -> Fork {
        let own = self.builder.config();
        let config = VmConfig {
            cpu_affinity: own.cpu_affinity.clone(),
            cpu_quota: own.cpu_quota,
            timeout: own.timeout,
            idle_timeout: own.idle_timeout,
            serial: own.serial.clone(),
            ..config.clone()
        };
        self.configure(|own| *own = config)
    }

    fn with(self, change: impl FnOnce(VmBuilder) -> VmBuilder) -> Fork {
        Fork { builder: change(self.builder), ..self }
    }

    /// Checks that all devices of a machine can be connected, as far as this is known without the host.
    pub(super) fn check(&self, devices: &[TemplateDevice], has_agent: bool) -> Result<(), SnapshotError> {
        self.identity.check(devices, has_agent)?;
        self.repointed.specs(devices, 0).map(drop).map_err(SnapshotError::from)
    }

    /// Returns the longest time for the guest to take over its identity.
    pub(super) fn identity_limit(&self) -> Duration {
        self.identity.limit()
    }

    fn configure(self, change: impl FnOnce(&mut VmConfig)) -> Fork {
        self.with(|builder| builder.configure(change))
    }

    pub(super) fn console_escape(self, yes: bool) -> Fork {
        self.with(|builder| builder.console_escape(yes))
    }

    /// Builds the fork with this index, with a thread that takes care of it.
    pub(super) fn build(
        self,
        template: &TemplateParts,
        restored: Restored,
        index: Option<usize>,
    ) -> Result<Vm, SnapshotError> {
        let journal = Arc::new(Journal::default());
        let _journal = journal.enter();
        let parts = self.build_parts(template, restored, index);
        journal.flush(LOG_LIMIT);
        let (vm, machine) = parts?;
        Ok(vm.with_control(machine)?)
    }

    /// Builds the fork with this index. The caller takes care of the machine.
    pub(super) fn build_parts(
        self,
        template: &TemplateParts,
        restored: Restored,
        index: Option<usize>,
    ) -> Result<(Vm, Machine), SnapshotError> {
        let Restored { vcpus, guest, took } = restored;
        let now = Instant::now();
        let Fork { builder, time: _, repointed, identity } = self;
        let console = builder.console_ends()?;
        let ram_bytes = template.config.memory.bytes();
        let host = HostParts::new(builder.config(), &repointed.specs(&template.devices, ram_bytes)?)?;
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
        let past = identity.past(&template.state, index, &host.virtio.renew_cards(&repointed))?;
        let subject = template.subject.of_fork(platform.signs.clone());
        let fork = index.map(|index| u32::try_from(index).unwrap_or(u32::MAX));
        let origin = Some(Origin { snapshot: template.origin.clone(), fork });
        let recipe = template.recipe.clone();
        let began = now.checked_sub(took).unwrap_or(now);
        let parts = Parts { began, host, recipe, subject, origin, platform, vcpus, guest, past };
        Ok(builder.assemble(console, parts)?)
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
    pub(super) fn new(template: &TemplateParts, fork: &Fork) -> Result<Restored, SnapshotError> {
        let began = Instant::now();
        let kvm = template.kvm.create_vm()?;
        let ram = GuestRam::private_over(&template.ram)?;
        kvm.add_memory(&ram)?;
        kvm.create_local_apics()?;
        let (clock, elapsed) = fork.time.clock(&template.state.clock);
        kvm.set_clock(&clock)?;
        let guest = Guest { kvm, ram };
        let saved = &template.state.vcpus;
        let make = |(index, saved): (u32, &SavedVcpu)| {
            let vcpu = guest.kvm.create_vcpu(index)?;
            vcpu.set_cpuid(&saved.cpuid)?;
            Ok(vcpu)
        };
        let vcpus: Vec<Vcpu> = (0..).zip(saved).map(make).collect::<Result<_, KvmError>>()?;
        restore_vcpus(&vcpus, saved, template.kvm.state_format()?, elapsed)?;
        Ok(Restored { vcpus, guest, took: began.elapsed() })
    }
}

impl From<BuildError> for SnapshotError {
    fn from(error: BuildError) -> SnapshotError {
        SnapshotError::Build(Box::new(error))
    }
}
