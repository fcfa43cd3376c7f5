//! The calls on a machine for tasks. What only waits is woken by a descriptor; what works for some
//! milliseconds, as building a machine does, takes a thread of the runtime's that is meant for that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::outcome::Outcome;
use super::{BuildError, Event, Grace, Subscription, Vm, VmBuilder, VmHandle};
use crate::thread::on_a_thread;

/// Needs the feature `tokio`.
impl VmBuilder {
    /// As [`VmBuilder::start`], for a task.
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
    /// As there.
    pub async fn start_async(&self) -> Result<Vm, BuildError> {
        let builder = self.clone();
        on_a_thread(move || builder.start()).await
    }
}

/// Needs the feature `tokio`, and a runtime with its timer and its I/O.
impl Vm {
    /// As [`VmHandle::wait_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait_async(&self) -> io::Result<Outcome> {
        self.handle().wait_async().await
    }

    /// As [`Vm::stop`], for a task; the machine has given everything back when this is done. A task that is
    /// dropped meanwhile stops the machine at once.
    ///
    /// # Errors
    /// As [`VmHandle::wait_async`]; the machine is stopped all the same.
    pub async fn stop_async(self, grace: Grace) -> io::Result<Outcome> {
        let handle = self.handle();
        if !grace.0.is_zero() && handle.ask_to_power_off() {
            // Over time is no error: it is stopped then.
            let _ = tokio::time::timeout(grace.0, handle.wait_async()).await;
        }
        handle.stop();
        on_a_thread(move || drop(self)).await;
        handle.wait_async().await
    }
}

/// Needs the feature `tokio`, and a runtime with its timer and its I/O.
impl VmHandle {
    /// As [`Vm::wait`], for a task.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub async fn wait_async(&self) -> io::Result<Outcome> {
        let mut fd = None;
        loop {
            if let Some(outcome) = self.wait_for(Duration::ZERO) {
                return Ok(outcome);
            }
            readable(&mut fd, self.outcome_fd()).await?;
        }
    }
}

/// Needs the feature `tokio`, and a runtime with its I/O.
impl Subscription {
    /// The next event; none after [`Event::Ended`].
    ///
    /// # Errors
    /// The process has no more file descriptors.
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

/// Waits until `source` is readable, by a descriptor of this wait's own: a runtime watches each but once.
async fn readable(fd: &mut Option<AsyncFd<OwnedFd>>, source: BorrowedFd<'_>) -> io::Result<()> {
    let fd = match fd {
        Some(fd) => fd,
        None => {
            let own = source.try_clone_to_owned()?;
            // SAFETY: it always gives the same descriptor, which it alone closes, after it has been taken
            // from the runtime.
            fd.insert(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?)
        }
    };
    // What is known of it is old once it has been looked at.
    fd.readable().await?.clear_ready();
    Ok(())
}
