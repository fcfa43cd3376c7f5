//! Building a virtual machine from a [`VmConfig`]. The builder first opens every host resource, then creates
//! the devices. The [`Recipe`] makes the first guest, and the threads start and wait at the gate.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use coracle_arch::field::Field;
use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::load;
use coracle_devices::event_loop::EventLoop;
use coracle_devices::journal::Journal;
use coracle_image::rootfs::Root;

use super::files::Files;
use super::inputs::Inputs;
use super::lifecycle::live;
use super::machine::{Guest, Machine};
use super::outcome::{Origin, Outcome};
use super::platform::Platform;
use super::recipe::Recipe;
use super::shared::Shared;
use super::stop::LOG_LIMIT;
use super::vcpus::start_vcpus;
use super::watch::Limits;
use super::{BuildError, Vm, inputs};
use crate::agent::{self, AgentAttachment, Past};
use crate::config::{AcpiMode, ConfigError, ResetPolicy, VmConfig};
use crate::console::{Console, ConsoleChoice, ConsoleStreams, Keys, MachineConsoles};
use crate::cpu::CpuFeatures;
use crate::diagnosis::Subject;
use crate::gate::Gate;
use crate::io_loop::IoLoop;
use crate::kvm::{Interrupts, Kvm, Vcpu};
use crate::thread::ThreadKind;
use crate::vcpu::affinity;
use crate::virtio::{self, AttachContext, Specs, VirtioDevices};

/// Builds a virtual machine.
#[derive(Debug, Clone, Default)]
pub struct VmBuilder {
    pub(super) config: VmConfig,
    /// The first setting that was not valid; `build` reports it.
    pub(super) invalid: Option<(Field, ConfigError)>,
    /// The files that [`VmBuilder::open_files`] has opened.
    files: Option<Arc<Files>>,
    console: ConsoleChoice,
    console_escape: bool,
}

impl VmBuilder {
    /// Creates a builder for a machine with this configuration.
    pub fn new(config: VmConfig) -> VmBuilder {
        VmBuilder { config, ..VmBuilder::default() }
    }

    /// Returns the configuration of the machine.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Interprets Ctrl-A commands in the console's input: for a person at a terminal.
    pub fn console_escape(mut self, yes: bool) -> VmBuilder {
        self.console_escape = yes;
        self
    }

    /// Connects the console to the caller's descriptors, overriding the configuration. All machines that this
    /// builder builds share them. Their blocking mode is left unchanged.
    pub fn console_streams(mut self, streams: ConsoleStreams) -> VmBuilder {
        self.console = ConsoleChoice::Streams(Arc::new(streams));
        self
    }

    /// Connects the console to pipes, overriding the configuration; [`Vm::take_console`] returns the other
    /// ends.
    pub fn console_piped(mut self) -> VmBuilder {
        self.console = ConsoleChoice::Piped;
        self
    }

    /// Calls `take` with the console's output, overriding the configuration: [`VmBuilder::console_writer`]
    /// for a closure.
    pub fn console_callback(self, take: impl FnMut(&[u8]) + Send + 'static) -> VmBuilder {
        self.console_writer(Callback(take))
    }

    /// Sends the console's output to `writer`, overriding the configuration; the console gets no input. A
    /// thread of its own calls the writer, which has received everything by the time the outcome is
    /// available. Output that comes faster than the writer takes it is dropped and counted. Only the first
    /// machine that is built uses the writer.
    pub fn console_writer(mut self, writer: impl Write + Send + 'static) -> VmBuilder {
        self.console = ConsoleChoice::Writer(Arc::new(Mutex::new(Some(Box::new(writer)))));
        self
    }

    /// Opens and checks the kernel, the initrds and the CPU template. Every build of this builder and of its
    /// clones then loads the files that were opened here, even if another file has taken the name of one. The
    /// build opens a file that is named only afterwards. The root is checked too, but each build reads it
    /// again.
    ///
    /// # Errors
    /// The first of them that cannot be used.
    pub fn open_files(mut self) -> Result<VmBuilder, BuildError> {
        self.check_values()?;
        inputs::check_root(&self.config)?;
        self.files = Some(Arc::new(self.files()?));
        Ok(self)
    }

    /// Returns the kernel, if [`VmBuilder::open_files`] has opened it.
    pub fn kernel_image(&self) -> Option<&KernelImage> {
        self.files.as_deref().map(|files| &files.kernel)
    }

    /// Checks the values of the configuration and that they fit together, without looking at the host. All
    /// checks and builds begin with it.
    ///
    /// # Errors
    /// The first value that no host can use.
    pub fn check_values(&self) -> Result<(), BuildError> {
        if let Some((field, source)) = self.invalid.clone() {
            return Err(BuildError::Config { field, source });
        }
        load::check_characters(&self.config.cmdline)?;
        if let Some(affinity) = &self.config.cpu_affinity {
            affinity::check_vcpus(affinity, self.config.vcpus.value().into())?;
        }
        Ok(virtio::check_values(&self.config)?)
    }

    /// Checks that the kernel, the initrds, the CPU template, the root and the modules can be used, and that
    /// the memory can hold the kernel and the initrds, without building anything.
    ///
    /// # Errors
    /// The first of them that cannot be used.
    pub fn check_files(&self) -> Result<(), BuildError> {
        self.check_values()?;
        inputs::check_root(&self.config)?;
        let (files, specs) = (self.files()?, virtio::specs(&self.config, None));
        load::check_memory(&files.kernel, &files.initrds, self.config.memory.bytes())?;
        inputs::module_loader(&self.config, (&files.kernel, None), &specs, false)?;
        Ok(())
    }

    fn files(&self) -> Result<Files, BuildError> {
        Files::open(&self.config, self.files.as_deref())
    }

    /// Lists the files and directories that the machine reads in addition to those that its configuration
    /// names: the default guest's kernel and initramfs, the directory of the kernel's modules, and the
    /// kernel's configuration.
    ///
    /// # Errors
    /// There is no kernel, or it cannot be read.
    pub fn found_files(&self) -> Result<Vec<PathBuf>, BuildError> {
        Ok(inputs::found_files(&self.config, &self.files()?))
    }

    /// Checks that the virtio devices fit together and that the disks can be opened, without building
    /// anything. It takes the locks of the disks for a moment, so it fails if another process uses a writable
    /// disk.
    ///
    /// # Errors
    /// The first device that cannot be used.
    pub fn check_devices(&self) -> Result<(), BuildError> {
        Ok(virtio::check(&self.config)?)
    }

    /// Builds the machine. Its vCPUs wait for [`VmHandle::resume`](super::VmHandle::resume).
    ///
    /// # Errors
    /// Something in the configuration cannot be used, or KVM refuses a request.
    pub fn build(&self) -> Result<Vm, BuildError> {
        let journal = Arc::new(Journal::default());
        let _journal = journal.enter();
        let vm = self.build_parts().and_then(|(vm, machine)| vm.with_control(machine));
        journal.flush(LOG_LIMIT);
        vm
    }

    /// Builds the parts of the machine, whose vCPUs wait. The calling thread's journal is the machine's.
    fn build_parts(&self) -> Result<(Vm, Machine), BuildError> {
        self.check_values()?;
        if !agent::has_system(&self.config) {
            return Err(BuildError::AgentWithoutRoot);
        }
        VmBuilder { config: agent::prepared(&self.config), ..self.clone() }.build_prepared()
    }

    fn build_prepared(&self) -> Result<(Vm, Machine), BuildError> {
        let began = Instant::now();
        if let Some(affinity) = &self.config.cpu_affinity {
            affinity::check(affinity, self.config.vcpus.value().into())?;
        }
        let config = &self.config;
        let root = inputs::prepare_root(config)?;
        let Files { kernel, mut initrds, cpu, .. } = self.files()?;
        let root = root.map(|root| root.placed(&mut initrds));
        let specs = virtio::specs(config, root.as_ref());
        initrds.extend(inputs::module_loader(config, (&kernel, root.as_ref()), &specs, true)?);
        let console = self.console_ends()?;
        let host = HostParts::new(config, &specs)?;
        drop(specs);
        let inputs = Inputs { kernel, initrds, root };
        let kvm = Kvm::open()?;
        let features = CpuFeatures::new(&config.cpu, cpu, &kvm)?;
        let recipe = Recipe { config: config.clone(), inputs, kvm, features, virtio: host.virtio.places() };
        let platform = self.platform(&host)?;
        let (guest, vcpus) = recipe.make()?;
        guest.connect(&host.interrupts, &host.virtio)?;
        let Inputs { kernel, initrds, root } = &recipe.inputs;
        let disks = config.disks.len() + usize::from(matches!(root, Some(Root::Disk(_))));
        let signs = platform.signs.clone();
        let subject = Subject::new(config, recipe.cmdline(), disks, kernel, initrds, signs);
        let recipe = (config.on_reset == ResetPolicy::Reboot).then(|| Arc::new(recipe));
        let past = Past::default();
        self.assemble(
            console,
            Parts { began, host, recipe, subject, origin: None, platform, vcpus, guest, past },
        )
    }

    /// Opens the host's ends of the consoles.
    pub(super) fn console_ends(&self) -> Result<MachineConsoles, BuildError> {
        Ok(self.console.open_all(&self.config)?)
    }

    /// Makes the legacy devices of a machine with these parts.
    pub(super) fn platform(&self, host: &HostParts) -> Result<Platform, BuildError> {
        let com2 = agent::serial_console(&self.config).map_err(thread_error("the second serial port"))?;
        Ok(Platform::new(
            host.interrupts.clone(),
            host.gate.clone(),
            host.virtio.windows(),
            host.virtio.places().iter().map(|place| place.gsi).max(),
            self.console.capacity(),
            com2.as_ref(),
        )?)
    }

    /// Builds the machine and starts its vCPUs.
    ///
    /// # Errors
    /// See [`VmBuilder::build`].
    pub fn start(&self) -> Result<Vm, BuildError> {
        let vm = self.build()?;
        vm.handle().resume();
        Ok(vm)
    }

    /// Builds the machine, starts it and waits for it to end. When this returns, the machine has released
    /// everything that it held.
    ///
    /// # Errors
    /// See [`VmBuilder::build`].
    pub fn run(&self) -> Result<Outcome, BuildError> {
        self.clone().run_with(|vm| vm.handle().resume())
    }

    /// Builds the machine, calls `begin`, and waits for the machine to end: [`VmBuilder::run`] for a program
    /// that needs the machine's handle, path or console meanwhile. `begin` has to start the vCPUs, or stop
    /// the machine. The calling thread does the work of the machine's control thread, which is not started.
    ///
    /// ```no_run
    /// # fn doc() -> Result<(), coracle::BuildError> {
    /// let outcome = coracle::Vm::builder().run_with(|vm| {
    ///     let handle = vm.handle();
    ///     handle.resume();
    ///     std::thread::spawn(move || {
    ///         std::thread::sleep(std::time::Duration::from_secs(60));
    ///         handle.press_power_button();
    ///     });
    /// })?;
    /// println!("{}", outcome.reason());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`VmBuilder::build`]; `begin` has not been called.
    pub fn run_with(self, begin: impl FnOnce(&mut Vm)) -> Result<Outcome, BuildError> {
        let journal = Arc::new(Journal::default());
        let _journal = journal.enter();
        let parts = self.build_parts();
        journal.flush(LOG_LIMIT);
        // Closes the files that only the build needs.
        drop(self);
        let (mut vm, machine) = parts?;
        begin(&mut vm);
        live(&vm.shared, machine);
        Ok(vm.wait())
    }

    /// Turns the parts into a machine, and starts all of its threads but the control thread.
    pub(super) fn assemble(
        &self,
        mut consoles: MachineConsoles,
        parts: Parts,
    ) -> Result<(Vm, Machine), BuildError> {
        let Parts { began, host, recipe, subject, origin, platform, vcpus, guest, past } = parts;
        let HostParts { gate, mut event_loop, interrupts, virtio } = host;
        let (pump, pipe) = consoles.take_program_ends();
        let console_path = consoles.serial.path().map(Path::to_owned);
        let mut keys = self.console_escape.then(|| Keys::new(gate.clone()));
        if let (Some(ends), Some(port)) = (consoles.virtio, virtio.console()) {
            // A person at a terminal types here, so the escape keys apply to this console.
            let console = Console::new(port.clone(), port.output().clone(), ends, keys.take());
            event_loop.add_resident(Box::new(console));
        }
        let (serial, output) = (platform.serial.clone(), platform.console.clone());
        event_loop.add_resident(Box::new(Console::new(serial, output, consoles.serial, keys)));
        let line = platform.com2.as_ref().map(|port| agent::connect_serial(port, &mut event_loop));
        let line = line.transpose().map_err(thread_error("the agent's serial line"))?;
        let io_loop = IoLoop::start(&ThreadKind::Io, event_loop, gate.clone(), None);
        let io_loop = io_loop.map_err(thread_error("the I/O thread"))?;

        let button = (self.config.acpi == AcpiMode::On).then(|| platform.events.clone());
        let agent = AgentAttachment::new(&self.config, &virtio, line, past)?;
        let shared = Shared::new(gate.clone(), console_path, button, &virtio, agent);
        let shared = Arc::new(shared.map_err(thread_error("the control thread"))?);
        // Dropping it ends the vCPU threads, should an error follow.
        let vm = Vm { shared, control: None, console: pipe };
        vm.shared.adopt(start_vcpus(vcpus, &platform.buses, &gate, self.config.cpu_affinity.as_ref())?);
        let machine = Machine {
            io_loop,
            pump,
            platform,
            interrupts,
            virtio,
            guest: Some(guest),
            recipe,
            config: self.config.clone(),
            limits: Limits::of(&self.config),
            on_halt: self.config.on_halt,
            subject,
            origin,
            prepared_in: began.elapsed(),
        };
        Ok((vm, machine))
    }
}

/// Adapts a closure to `Write`, as the console's writer.
struct Callback<F>(F);

impl<F: FnMut(&[u8])> Write for Callback<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The parts that exist before the first thread. They become a [`Machine`] and its [`Shared`]; if building
/// fails, they are dropped.
pub(super) struct Parts {
    /// The time at which building began.
    pub(super) began: Instant,
    pub(super) host: HostParts,
    /// The ingredients of the next guest, if the machine survives a reset.
    pub(super) recipe: Option<Arc<Recipe>>,
    pub(super) subject: Subject,
    /// The origin of the guest, if it was not booted here.
    pub(super) origin: Option<Origin>,
    pub(super) platform: Platform,
    // Fields drop in declaration order: the vCPUs before the virtual machine and its memory.
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) guest: Guest,
    /// The beginning of the agent's end.
    pub(super) past: Past,
}

/// The parts of a machine that know nothing of its guest.
pub(super) struct HostParts {
    pub(super) gate: Arc<Gate>,
    event_loop: EventLoop,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) virtio: Arc<VirtioDevices>,
}

impl HostParts {
    pub(super) fn new(config: &VmConfig, specs: &Specs<'_>) -> Result<HostParts, BuildError> {
        let gate = Arc::new(Gate::new());
        let interrupts = Arc::new(Interrupts::default());
        let event_loop = EventLoop::new().map_err(thread_error("the I/O thread"))?;
        let attach = AttachContext { interrupts: &interrupts, io: event_loop.handle(), gate: gate.clone() };
        let virtio = Arc::new(VirtioDevices::attach(config, specs, &attach)?);
        Ok(HostParts { gate, event_loop, interrupts, virtio })
    }
}

pub(super) fn thread_error(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Thread { what, source }
}
