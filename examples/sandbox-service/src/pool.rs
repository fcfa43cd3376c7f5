//! The machines of snippets: forks of machines that have booted and have started an interpreter, or, to
//! compare, machines that boot for one snippet.

use std::time::Duration;

use coracle::agent::{ExecError, Process, ProcessInfo};
use coracle::{Fork, Grace, SnapshotError, Template, Vm, VmHandle};

use crate::plan::{BOOT_LIMIT, MachinePlan, NoMachine};
use crate::worker::{Language, OFFER_BRANCH_POINT, SNIPPET};

/// The origin of machines. Each of them is for one snippet.
pub enum Pool {
    /// Forks of a template for each language.
    Forks(Vec<Prepared>),
    /// A boot for each snippet.
    Boots(MachinePlan),
}

/// A template whose interpreter waits for a snippet.
pub struct Prepared {
    language: Language,
    template: Template,
    /// The interpreter, which has the same number in all forks.
    worker: ProcessInfo,
}

/// A machine for one snippet. Dropping it stops the machine without waiting.
pub(crate) struct Lease {
    handle: VmHandle,
    vm: Option<Vm>,
}

/// A snippet that runs in a machine of its own.
pub struct Running {
    /// The snippet.
    pub(crate) process: Process,
    /// Its machine, which goes with it.
    pub(crate) lease: Lease,
}

/// The reason why a snippet does not run.
#[derive(Debug)]
pub enum NotStarted {
    /// The root file system has no interpreter for it.
    NoInterpreter(Language),
    /// There is no machine.
    NoMachine(NoMachine),
    /// The machine refuses the snippet.
    Command(ExecError),
}

impl Pool {
    /// Prepares a template for each language that the machines have an interpreter for.
    ///
    /// # Errors
    /// A machine does not boot, or its interpreter does not get ready.
    pub async fn of_forks(plan: &MachinePlan) -> Result<Pool, NoMachine> {
        let first = Lease::new(plan.boot().await?);
        let has_python = has_interpreter(&first.handle, Language::Python).await?;
        let mut prepared = vec![Prepared::new(first, Language::Shell).await?];
        if has_python {
            let second = Lease::new(plan.boot().await?);
            prepared.push(Prepared::new(second, Language::Python).await?);
        }
        Ok(Pool::Forks(prepared))
    }

    /// Returns the languages for which there is an interpreter, as far as this is known.
    pub fn languages(&self) -> Vec<Language> {
        match self {
            Pool::Forks(prepared) => prepared.iter().map(|prepared| prepared.language).collect(),
            Pool::Boots(_) => Language::ALL.to_vec(),
        }
    }

    /// Starts a snippet in a machine of its own. The machine ends by itself after `limit`.
    ///
    /// # Errors
    /// See [`NotStarted`].
    pub async fn start(
        &self,
        language: Language,
        code: String,
        limit: Duration,
    ) -> Result<Running, NotStarted> {
        match self {
            Pool::Forks(all) => {
                let prepared = all.iter().find(|prepared| prepared.language == language);
                prepared.ok_or(NotStarted::NoInterpreter(language))?.start(code, limit).await
            }
            Pool::Boots(plan) => {
                let lease = Lease::new(plan.boot().await.map_err(NotStarted::NoMachine)?);
                let process = language.command(&lease.handle, &code).spawn_async().await;
                Ok(Running { process: process.map_err(NotStarted::Command)?, lease })
            }
        }
    }
}

async fn has_interpreter(guest: &VmHandle, language: Language) -> Result<bool, NoMachine> {
    match guest.exec([language.interpreter(), "-c", ""]).timeout(BOOT_LIMIT).status_async().await {
        Ok(_) => Ok(true),
        Err(ExecError::NotFound { .. }) => Ok(false),
        Err(error) => Err(NoMachine::Interpreter(error)),
    }
}

impl Prepared {
    /// Starts the interpreter, freezes the machine where it waits, and tries a fork.
    async fn new(first: Lease, language: Language) -> Result<Prepared, NoMachine> {
        let guest = &first.handle;
        let offer = guest.exec(["sh", "-c", OFFER_BRANCH_POINT]).timeout(BOOT_LIMIT).output_async();
        let offer = offer.await.map_err(NoMachine::Interpreter)?;
        if !offer.status.success() {
            return Err(NoMachine::Offer(String::from_utf8_lossy(&offer.stderr).into_owned()));
        }
        let worker = language.command(guest, language.worker()).timeout(BOOT_LIMIT).spawn_async().await;
        let worker = worker.map_err(NoMachine::Interpreter)?;
        let agent = guest.agent().map_err(NoMachine::Boot)?;
        // The interpreter is not root's. It runs nothing but its own code yet.
        let point = match agent.wait_branch_point_of_any_user_async(BOOT_LIMIT).await {
            Ok(point) => point,
            Err(error) => {
                let printed = worker.wait_with_output_async().await.map(|output| output.stderr);
                let printed = String::from_utf8_lossy(&printed.unwrap_or_default()).into_owned();
                return Err(NoMachine::BranchPoint(error, printed));
            }
        };
        let template = guest.freeze_async().await.map_err(NoMachine::Fork)?;
        drop((point, worker));
        let fork = fork(&template, String::new(), BOOT_LIMIT).await.map_err(NoMachine::Fork)?;
        let workers = fork.handle.processes_async().await.map_err(NoMachine::Boot)?;
        let worker = workers.into_iter().next().ok_or(NoMachine::Interpreter(ExecError::NoCommand))?;
        Ok(Prepared { language, template, worker })
    }

    async fn start(&self, code: String, limit: Duration) -> Result<Running, NotStarted> {
        let lease = fork(&self.template, code, limit.saturating_add(MARGIN)).await;
        let lease = lease.map_err(|error| NotStarted::NoMachine(NoMachine::Fork(error)))?;
        let process = lease.handle.attach_async(&self.worker).await.map_err(NotStarted::Command)?;
        Ok(Running { process, lease })
    }
}

/// Starts a fork with this snippet, which ends by itself after `limit`.
async fn fork(template: &Template, code: String, limit: Duration) -> Result<Lease, SnapshotError> {
    let adapt = move |_, fork: Fork| fork.env(SNIPPET, &code).timeout(limit);
    let mut forks = template.fork_async(1, adapt).await?;
    forks.pop().map(Lease::new).ok_or(SnapshotError::Ended)
}

impl Lease {
    fn new(vm: Vm) -> Lease {
        Lease { handle: vm.handle(), vm: Some(vm) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(vm) = self.vm.take() {
            // Its ending does not matter: everything that a snippet leaves is discarded with it.
            tokio::spawn(vm.stop_async(Grace::NONE));
        }
    }
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotStarted::NoInterpreter(language) => {
                write!(f, "the root file system has no {}", language.interpreter())
            }
            NotStarted::NoMachine(error) => write!(f, "no machine: {error}"),
            NotStarted::Command(error) => error.fmt(f),
        }
    }
}

/// The time that a machine has besides its snippet's: the service ends both before, unless it hangs.
const MARGIN: Duration = Duration::from_secs(10);
