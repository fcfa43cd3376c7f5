//! Returns the queues of a group from the thread of its loop to the thread that asked for them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::lock;
use crate::virtio::handler::Stuck;
use crate::virtio::queue::VirtQueue;

/// A request for the queues of a group. Dropping it gives them up.
#[derive(Debug)]
pub struct Asked {
    reply: Arc<Reply>,
    /// The time at which the caller gives up. Groups that are asked for at the same time share it.
    deadline: Instant,
}

#[derive(Debug, Default)]
struct Reply {
    state: Mutex<ReplyState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
enum ReplyState {
    #[default]
    Waiting,
    Done(Vec<VirtQueue>),
    /// Nobody waits any more, or nobody will answer.
    Over,
}

/// Makes the two ends of a request, whose time limit starts now.
pub(super) fn pair() -> (Asked, ReplySender) {
    let reply = Arc::new(Reply::default());
    let now = Instant::now();
    let deadline = now.checked_add(HAND_BACK_LIMIT).unwrap_or(now);
    (Asked { reply: reply.clone(), deadline }, ReplySender(reply))
}

impl Asked {
    /// Returns whether a wait would end at once.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_answered(&self) -> bool {
        !matches!(*lock(&self.reply.state), ReplyState::Waiting) || self.deadline <= Instant::now()
    }

    /// Waits for the queues until the deadline.
    ///
    /// # Errors
    /// The queues have not come back in time.
    pub fn wait(self) -> Result<Vec<VirtQueue>, Stuck> {
        let Reply { state, changed } = &*self.reply;
        let waits = |state: &mut ReplyState| matches!(state, ReplyState::Waiting);
        let left = self.deadline.saturating_duration_since(Instant::now());
        let wait = changed.wait_timeout_while(lock(state), left, waits);
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, ReplyState::Over) {
            ReplyState::Done(queues) => Ok(queues),
            ReplyState::Waiting | ReplyState::Over => Err(Stuck),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        *lock(&self.reply.state) = ReplyState::Over;
    }
}

/// The loop's end of a request. Dropping it without an answer ends the wait.
#[derive(Debug)]
pub(super) struct ReplySender(Arc<Reply>);

impl ReplySender {
    pub(super) fn is_abandoned(&self) -> bool {
        matches!(*lock(&self.0.state), ReplyState::Over)
    }

    pub(super) fn send(self, queues: Vec<VirtQueue>) {
        self.set(ReplyState::Done(queues));
    }

    fn set(&self, answer: ReplyState) {
        let mut state = lock(&self.0.state);
        if matches!(*state, ReplyState::Waiting) {
            *state = answer;
            self.0.changed.notify_all();
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        self.set(ReplyState::Over);
    }
}

/// The time that a reset, a pause or a stop waits for the queues of its devices, all of them together. A
/// handler returns its queues at once, except for a host call in flight: a transfer of at most 1 MiB, or a
/// flush. The limit is shorter than the time after which a vCPU inside its device counts as stuck.
pub const HAND_BACK_LIMIT: Duration = Duration::from_secs(4);
