//! Machines that have booted before they are needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle::agent::AgentError;
use coracle::config::{AgentConfig, RootConfig, RootKind};
use coracle::rootfs::{self, RootError};
use coracle::{BuildError, Grace, Vm};
use tempfile::NamedTempFile;
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;

/// The configuration of every machine in a pool.
pub struct MachinePlan {
    memory_mib: u64,
    cpu_percent: Option<u32>,
    root: Option<Root>,
}

/// The root file system, which all machines read, each with a writable layer of its own.
enum Root {
    /// The operator's image.
    Image(PathBuf),
    /// Made once from a directory or a tar; deleted with the pool.
    Made(NamedTempFile),
}

/// Why there is no machine.
#[derive(Debug)]
pub enum NoMachine {
    /// The machine could not be built.
    Build(BuildError),
    /// The machine was built, but its agent did not become ready.
    Boot(AgentError),
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
        Ok(MachinePlan { memory_mib, cpu_percent, root })
    }

    /// Boots a machine and waits for its agent.
    async fn boot(&self) -> Result<Vm, NoMachine> {
        let mut builder = Vm::builder().append("quiet").memory_mib(self.memory_mib);
        builder = match &self.root {
            None => builder.agent(AgentConfig::default()),
            Some(root) => builder.root_image(root.path()),
        };
        if let Some(percent) = self.cpu_percent {
            builder = builder.cpu_quota_percent(percent);
        }
        let vm = builder.boot_timeout(BOOT_LIMIT).start_async().await.map_err(NoMachine::Build)?;
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

/// Machines that are ready. When one is taken, another boots.
pub struct Pool {
    ready: Mutex<mpsc::Receiver<Vm>>,
    waiting: Arc<AtomicUsize>,
}

/// A machine for one snippet. Dropping it stops the machine without waiting.
pub struct Lease(Option<Vm>);

impl Pool {
    /// Keeps up to `warm` machines ready, and at least one.
    pub fn start(plan: MachinePlan, warm: usize) -> Pool {
        let (sender, ready) = mpsc::channel(warm.max(1));
        let (plan, waiting) = (Arc::new(plan), Arc::new(AtomicUsize::new(0)));
        for _ in 0..AT_ONCE {
            tokio::spawn(fill(plan.clone(), sender.clone(), waiting.clone()));
        }
        Pool { ready: Mutex::new(ready), waiting }
    }

    /// Takes a machine, as soon as one is ready.
    pub async fn take(&self) -> Option<Lease> {
        loop {
            let vm = self.ready.lock().await.recv().await?;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            // A machine that ended while it waited is useless.
            let is_running = vm.handle().wait_for(Duration::ZERO).is_none();
            let lease = Lease(Some(vm));
            if is_running {
                return Some(lease);
            }
        }
    }

    /// Returns the number of machines that are ready.
    pub fn warm(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Boots machines for as long as the pool exists.
async fn fill(plan: Arc<MachinePlan>, pool: mpsc::Sender<Vm>, waiting: Arc<AtomicUsize>) {
    // Reserve the slot first: a machine that waits outside the pool would be one more than requested.
    while let Ok(place) = pool.reserve().await {
        match plan.boot().await {
            Ok(vm) => {
                waiting.fetch_add(1, Ordering::Relaxed);
                place.send(vm);
            }
            Err(error) => {
                eprintln!("sandbox-service: no machine: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

impl Lease {
    /// Returns the machine.
    pub fn vm(&self) -> Option<&Vm> {
        self.0.as_ref()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(vm) = self.0.take() {
            // Its ending does not matter: everything that a snippet leaves is discarded with it.
            tokio::spawn(vm.stop_async(Grace::NONE));
        }
    }
}

impl std::fmt::Display for NoMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoMachine::Build(error) => error.fmt(f),
            NoMachine::Boot(error) => error.fmt(f),
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

impl std::error::Error for PlanError {}

/// How long a machine may take to boot: a stock kernel on an emulated host takes half of it.
const BOOT_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait after a failure, which is likely to persist.
const PAUSE: Duration = Duration::from_secs(1);
/// The number of machines that boot at the same time.
const AT_ONCE: usize = 2;
