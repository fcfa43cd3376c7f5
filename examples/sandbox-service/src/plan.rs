//! The machines that snippets run in, and their boot.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::agent::{AgentError, ExecError};
use coracle::config::{AgentConfig, RootConfig, RootKind};
use coracle::rootfs::{self, RootError};
use coracle::{BuildError, Grace, SnapshotError, Vm, VmBuilder};
use tempfile::NamedTempFile;

/// The configuration of every machine of a service.
pub struct MachinePlan {
    memory_mib: u64,
    cpu_percent: Option<u32>,
    root: Option<Root>,
    adapt: fn(VmBuilder) -> VmBuilder,
}

/// The root file system, which all machines read, each with a writable layer of its own.
enum Root {
    /// The operator's image.
    Image(PathBuf),
    /// Made once from a directory or a tar; deleted with the plan.
    Made(NamedTempFile),
}

/// The reason why there is no machine.
#[derive(Debug)]
pub enum NoMachine {
    /// The machine could not be built.
    Build(BuildError),
    /// The machine was built, but its agent did not become ready.
    Boot(AgentError),
    /// The interpreter in a machine that has booted could not be started.
    Interpreter(ExecError),
    /// The guest's agent cannot be called for a branch point; with what the guest has printed.
    Offer(String),
    /// The interpreter did not reach its branch point; with what it has printed.
    BranchPoint(AgentError, String),
    /// The machine could not become a template, or its fork could not be made.
    Fork(SnapshotError),
}

impl MachinePlan {
    /// Creates a plan: with this root, or the default guest's; with this much memory; and with at most this
    /// share of one CPU.
    ///
    /// # Errors
    /// The root cannot be read, or its image cannot be created.
    pub fn new(
        root: Option<&Path>,
        memory_mib: u64,
        cpu_percent: Option<u32>,
    ) -> Result<MachinePlan, PlanError> {
        let root = root.map(Root::new).transpose()?;
        Ok(MachinePlan { memory_mib, cpu_percent, root, adapt: |builder| builder })
    }

    /// Sets whatever else the machines need, such as another kernel.
    #[must_use]
    pub fn adapted(self, adapt: fn(VmBuilder) -> VmBuilder) -> MachinePlan {
        MachinePlan { adapt, ..self }
    }

    /// Boots a machine and waits for its agent.
    pub(crate) async fn boot(&self) -> Result<Vm, NoMachine> {
        let mut builder = Vm::builder().append("quiet").memory_mib(self.memory_mib);
        builder = match &self.root {
            None => builder.agent(AgentConfig::default()),
            Some(root) => builder.root_image(root.path()),
        };
        if let Some(percent) = self.cpu_percent {
            builder = builder.cpu_quota_percent(percent);
        }
        let vm = (self.adapt)(builder).start_async().await.map_err(NoMachine::Build)?;
        match vm.handle().wait_ready_async(BOOT_LIMIT).await {
            Ok(_) => Ok(vm),
            Err(error) => {
                // If the machine has already ended, the error says why.
                let _ = vm.stop_async(Grace::NONE).await;
                Err(NoMachine::Boot(error))
            }
        }
    }
}

/// The defect of a plan.
#[derive(Debug)]
pub enum PlanError {
    /// The root file system cannot be used.
    Root(RootError),
    /// There is no room for the image of the root.
    Image(io::Error),
}

impl Root {
    fn new(path: &Path) -> Result<Root, PlanError> {
        if rootfs::kind_of(path).map_err(PlanError::Root)? == RootKind::Image {
            return Ok(Root::Image(path.to_owned()));
        }
        let image = NamedTempFile::new().map_err(PlanError::Image)?;
        rootfs::write_image(&RootConfig::new(path), image.as_file()).map_err(PlanError::Root)?;
        Ok(Root::Made(image))
    }

    fn path(&self) -> &Path {
        match self {
            Root::Image(path) => path,
            Root::Made(file) => file.path(),
        }
    }
}

impl std::fmt::Display for NoMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoMachine::Build(error) => error.fmt(f),
            NoMachine::Boot(error) => error.fmt(f),
            NoMachine::Interpreter(error) => write!(f, "the interpreter does not start: {error}"),
            NoMachine::Offer(printed) => write!(f, "the guest's agent offers no branch points: {printed:?}"),
            NoMachine::BranchPoint(error, printed) => {
                write!(f, "the interpreter did not get ready: {error}; it printed {printed:?}")
            }
            NoMachine::Fork(error) => error.fmt(f),
        }
    }
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PlanError::Root(error) => f.write_str(&coracle::error::whole(error)),
            PlanError::Image(error) => write!(f, "no place for the image of the root: {error}"),
        }
    }
}

impl std::error::Error for NoMachine {}

impl std::error::Error for PlanError {}

/// The longest time of a boot: a stock kernel on an emulated host takes half of it.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(30);
