//! Notifies callers that something has arrived: threads that wait, and tasks that are woken.

use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// Belongs to the state that a mutex guards. Waits and notifications happen while it is locked, so that
/// nothing is missed.
#[derive(Debug, Default)]
pub(super) struct Changed {
    threads: Condvar,
    #[cfg(feature = "tokio")]
    tasks: std::sync::Mutex<Vec<std::task::Waker>>,
    #[cfg(feature = "tokio")]
    wakers: Arc<Wakers>,
}

/// Tasks to wake. A waker is code of the program, which may block: the agent's thread calls it, and holds no
/// lock meanwhile.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    #[cfg(feature = "tokio")]
    tasks: std::sync::Mutex<Vec<std::task::Waker>>,
}

impl Wakers {
    /// Wakes the tasks.
    #[cfg(feature = "tokio")]
    pub(super) fn wake(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.into_iter().for_each(std::task::Waker::wake);
    }

    /// Does nothing: there are no tasks.
    #[cfg(not(feature = "tokio"))]
    pub(super) fn wake(&self) {}
}

impl Changed {
    /// Makes the state. Tasks are left to `wakers`.
    #[cfg(feature = "tokio")]
    pub(super) fn new(wakers: &Arc<Wakers>) -> Changed {
        Changed { wakers: wakers.clone(), ..Changed::default() }
    }

    /// Makes the state for threads only.
    #[cfg(not(feature = "tokio"))]
    pub(super) fn new(_: &Arc<Wakers>) -> Changed {
        Changed::default()
    }

    /// Notifies the waiting threads. The agent's thread wakes the tasks next.
    pub(super) fn notify(&self) {
        self.threads.notify_all();
        #[cfg(feature = "tokio")]
        self.wakers.tasks.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.tasks());
    }

    /// Makes this thread wait for a notification, or for `limit`. Returns whether it came in time.
    pub(super) fn wait<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Option<Duration>,
    ) -> (MutexGuard<'a, T>, bool) {
        match limit {
            None => (self.threads.wait(guard).unwrap_or_else(PoisonError::into_inner), true),
            Some(limit) => {
                let waited = self.threads.wait_timeout(guard, limit);
                let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                (guard, !timeout.timed_out())
            }
        }
    }

    /// Makes the next notification wake a task.
    #[cfg(feature = "tokio")]
    pub(super) fn wake_next(&self, task: &std::task::Waker) {
        let mut tasks = self.tasks();
        if !tasks.iter().any(|other| other.will_wake(task)) {
            tasks.push(task.clone());
        }
    }

    #[cfg(feature = "tokio")]
    fn tasks(&self) -> MutexGuard<'_, Vec<std::task::Waker>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
