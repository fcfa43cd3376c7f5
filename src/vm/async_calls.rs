//! A machine's calls for async tasks. A call that only waits is woken by a file descriptor; a call that works
//! for some milliseconds, such as building a machine, runs on one of the runtime's blocking threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::outcome::Outcome;
use super::{BuildError, Event, Fork, Grace, SnapshotError, Subscription, Template, Vm, VmBuilder, VmHandle};
use crate::thread::on_a_thread;

/// Needs the feature `tokio`.
impl VmBuilder {
    /// [`VmBuilder::start`] for async tasks.
    ///
    /// ```no_run
    /// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use coracle::{Grace, Vm};
    ///
    /// let vm = Vm::builder().root_dir("rootfs").start_async().await?;
    /// let both = (vm.exec(["uname", "-r"]), vm.exec(["id", "-u"]));
    /// let (release, id) = tokio::join!(both.0.output_async(), both.1.output_async());
    /// println!("{:?} {:?}", release?.stdout, id?.stdout);
    /// vm.stop_async(Grace::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`VmBuilder::start`].
    pub async fn start_async(&self) -> Result<Vm, BuildError> {
        let builder = self.clone();
        on_a_thread(move || builder.start()).await
    }
}

/// Needs the feature `tokio` and a runtime with its timer and I/O enabled.
impl Vm {
    /// See [`VmHandle::wait_async`].
    ///
    /// # Errors
    /// See [`VmHandle::wait_async`].
    pub async fn wait_async(&self) -> io::Result<Outcome> {
        self.handle().wait_async().await
    }

    /// [`Vm::stop`] for async tasks. When it completes, the machine has released everything that it held.
    /// Dropping the future before that stops the machine at once.
    ///
    /// # Errors
    /// See [`VmHandle::wait_async`]; the machine is stopped all the same.
    pub async fn stop_async(self, grace: Grace) -> io::Result<Outcome> {
        let handle = self.handle();
        if !grace.0.is_zero() && handle.ask_to_power_off() {
            // A guest that takes longer than the grace period is not an error: it is stopped below.
            let _ = tokio::time::timeout(grace.0, handle.wait_async()).await;
        }
        handle.stop();
        on_a_thread(move || drop(self)).await;
        handle.wait_async().await
    }

    /// See [`VmHandle::freeze_async`].
    ///
    /// # Errors
    /// See [`VmHandle::freeze`].
    pub async fn freeze_async(&self) -> Result<Template, SnapshotError> {
        self.handle().freeze_async().await
    }

    /// See [`VmHandle::branch_async`].
    ///
    /// # Errors
    /// See [`VmHandle::branch`].
    pub async fn branch_async(
        &self,
        adapt: impl FnOnce(Fork) -> Fork + Send + 'static,
    ) -> Result<Vm, SnapshotError> {
        self.handle().branch_async(adapt).await
    }

    /// See [`VmHandle::to_template_async`].
    ///
    /// # Errors
    /// See [`VmHandle::to_template`].
    pub async fn to_template_async(&self) -> Result<Template, SnapshotError> {
        self.handle().to_template_async().await
    }
}

/// Needs the feature `tokio` and a runtime with its timer and I/O enabled.
impl VmHandle {
    /// [`Vm::wait`] for async tasks.
    ///
    /// # Errors
    /// The process has run out of file descriptors.
    pub async fn wait_async(&self) -> io::Result<Outcome> {
        let mut fd = None;
        loop {
            if let Some(outcome) = self.wait_for(Duration::ZERO) {
                return Ok(outcome);
            }
            readable(&mut fd, self.outcome_fd()).await?;
        }
    }

    /// [`VmHandle::freeze`] for async tasks. The machine becomes a template even if the future is dropped.
    ///
    /// # Errors
    /// See [`VmHandle::freeze`].
    pub async fn freeze_async(&self) -> Result<Template, SnapshotError> {
        let handle = self.clone();
        on_a_thread(move || handle.freeze()).await
    }

    /// [`VmHandle::branch`] for async tasks. If the future is dropped, the machine that it has made ends.
    ///
    /// # Errors
    /// See [`VmHandle::branch`].
    pub async fn branch_async(
        &self,
        adapt: impl FnOnce(Fork) -> Fork + Send + 'static,
    ) -> Result<Vm, SnapshotError> {
        let handle = self.clone();
        on_a_thread(move || handle.branch(adapt)).await
    }

    /// [`VmHandle::to_template`] for async tasks.
    ///
    /// # Errors
    /// See [`VmHandle::to_template`].
    pub async fn to_template_async(&self) -> Result<Template, SnapshotError> {
        let handle = self.clone();
        on_a_thread(move || handle.to_template()).await
    }
}

/// Needs the feature `tokio`.
impl Template {
    /// [`Template::fork`] for async tasks. If the future is dropped, the forks that it has made end.
    ///
    /// ```no_run
    /// # async fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// let template = vm.freeze_async().await?;
    /// for fork in template.fork_async(16, |_, fork| fork).await? {
    ///     println!("{}", fork.wait_async().await?.reason());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Template::fork`].
    pub async fn fork_async(
        &self,
        count: usize,
        adapt: impl FnMut(usize, Fork) -> Fork + Send + 'static,
    ) -> Result<Vec<Vm>, SnapshotError> {
        let template = self.clone();
        on_a_thread(move || template.fork(count, adapt)).await
    }
}

/// Needs the feature `tokio` and a runtime with its I/O enabled.
impl Subscription {
    /// Returns the next event; `None` after [`Event::Ended`].
    ///
    /// # Errors
    /// The process has run out of file descriptors.
    pub async fn recv_async(&self) -> io::Result<Option<Event>> {
        let mut fd = None;
        loop {
            if let Some(event) = self.try_recv() {
                return Ok(Some(event));
            }
            if self.is_over() {
                return Ok(None);
            }
            readable(&mut fd, self.as_fd()).await?;
        }
    }
}

/// Waits until `source` is readable, on a duplicate of its descriptor: a runtime can watch a descriptor only
/// once.
async fn readable(fd: &mut Option<AsyncFd<OwnedFd>>, source: BorrowedFd<'_>) -> io::Result<()> {
    let fd = match fd {
        Some(fd) => fd,
        None => {
            let own = source.try_clone_to_owned()?;
            // SAFETY: `AsRawFd` of this `OwnedFd` always returns the same descriptor, and only the `OwnedFd`
            // closes it, after the runtime has deregistered it.
            fd.insert(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?)
        }
    };
    // Clears the cached readiness, so that the next wait asks the kernel again.
    fd.readable().await?.clear_ready();
    Ok(())
}
