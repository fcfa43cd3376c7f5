//! Work that handles leave for the control thread, which alone has the machine.

use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::machine::Machine;
use super::shared::Shared;

/// Work with the machine. It runs between two waits of the control thread, so it has limits of its own.
type Work = Box<dyn FnOnce(&Shared, &Machine) + Send>;

/// The work that the control thread has not done yet: at most one piece for each caller that waits for it.
/// `None` once the machine has ended.
pub(super) struct Requests(Mutex<Option<Vec<Work>>>);

impl Default for Requests {
    fn default() -> Requests {
        Requests(Mutex::new(Some(Vec::new())))
    }
}

impl Requests {
    /// Does all work that was left so far.
    pub(super) fn serve(&self, shared: &Shared, machine: &Machine) {
        let work = self.lock().as_mut().map(std::mem::take).unwrap_or_default();
        work.into_iter().for_each(|work| work(shared, machine));
    }

    /// Refuses work from now on. The callers that wait get no answer.
    pub(super) fn close(&self) {
        drop(self.lock().take());
    }

    fn post(&self, work: Work) -> bool {
        match self.lock().as_mut() {
            Some(waiting) => {
                waiting.push(work);
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Work>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Lets the control thread do `work` with the machine, and returns its result; `None` if the machine has
    /// ended. Not for the control thread itself, which would wait for itself.
    pub(super) fn with_machine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &Machine) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, receiver) = mpsc::sync_channel(1);
        let work = move |shared: &Shared, machine: &Machine| drop(answer.try_send(work(shared, machine)));
        if !self.requests.post(Box::new(work)) {
            return None;
        }
        self.gate.request();
        receiver.recv().ok()
    }
}
