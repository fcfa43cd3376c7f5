//! Events of a virtual machine for its subscribers. The control thread and the handles send them; a
//! subscriber that does not take its events delays nobody.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::outcome::Outcome;

/// Something that happened to a virtual machine.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Its vCPUs were started, or continued after a pause.
    Resumed,
    /// Its owner paused it.
    Paused,
    /// A disk could not carry out a request, and the machine waits for its owner to resume it: see
    /// [`DiskErrorPolicy::Pause`](crate::config::DiskErrorPolicy::Pause).
    PausedByFault {
        /// The disk and the error, as text.
        reason: String,
    },
    /// The guest reset its machine and was restarted: see
    /// [`ResetPolicy::Reboot`](crate::config::ResetPolicy::Reboot).
    Restarted,
    /// The machine ended. This is the last event.
    Ended(Box<Outcome>),
}

/// Receives every event of a machine after the subscription, in order. Up to [`Subscription::MAX`] events
/// are queued; beyond that the oldest are dropped and counted.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
}

/// The subscribers of one machine.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queues: Vec<Weak<Queue>>,
    /// The ending, kept for subscribers that come after it.
    end: Option<Event>,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    readable: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    missed: u64,
    /// True once the last event has been taken.
    is_over: bool,
}

impl Subscription {
    /// The number of events that are queued for a subscriber: far more than a machine sends while its owner
    /// is away from the queue for a moment, and some kilobytes at most.
    pub const MAX: usize = 256;

    /// Waits up to `limit` for the next event. Returns `None` if none came, and at once after
    /// [`Event::Ended`].
    pub fn recv_timeout(&self, limit: Duration) -> Option<Event> {
        let deadline = Instant::now().checked_add(limit);
        let mut waiting = self.queue.lock();
        loop {
            if let Some(event) = self.queue.take(&mut waiting) {
                return Some(event);
            }
            if waiting.is_over {
                return None;
            }
            let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            waiting = match deadline {
                None => self.queue.came.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(_) => {
                    let wait = self.queue.came.wait_timeout(waiting, left);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Returns the next event if one is queued.
    pub fn try_recv(&self) -> Option<Event> {
        self.recv_timeout(Duration::ZERO)
    }

    /// Returns whether the last event has been taken.
    #[cfg(feature = "tokio")]
    pub(super) fn is_over(&self) -> bool {
        self.queue.lock().is_over
    }

    /// Returns how many events were dropped because they were not taken in time.
    pub fn missed(&self) -> u64 {
        self.queue.lock().missed
    }
}

/// Readable while an event is queued: for programs that wait for several things at once.
impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrowed(&self.queue.readable)
    }
}

impl Subscribers {
    /// Adds a subscriber, which receives every event from here on. After the end it receives only
    /// [`Event::Ended`].
    pub(super) fn subscribe(&self) -> io::Result<Subscription> {
        let readable = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let queue = Arc::new(Queue { waiting: Mutex::default(), came: Condvar::new(), readable });
        let mut state = self.lock();
        match &state.end {
            Some(end) => queue.push(end.clone()),
            None => state.queues.push(Arc::downgrade(&queue)),
        }
        Ok(Subscription { queue })
    }

    pub(super) fn send(&self, event: Event) {
        let mut state = self.lock();
        let is_end = matches!(event, Event::Ended(_));
        state.queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            queue.push(event.clone());
            !is_end
        });
        if is_end {
            state.end = Some(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&self, event: Event) {
        let mut waiting = self.lock();
        if waiting.events.len() >= Subscription::MAX {
            waiting.events.pop_front();
            waiting.missed += 1;
        }
        waiting.events.push_back(event);
        // A write fails only if the counter is at its maximum, and then the descriptor is readable anyway.
        let _ = self.readable.write(1);
        self.came.notify_all();
    }

    /// Takes the oldest event. The descriptor stays readable if there are more.
    fn take(&self, waiting: &mut Waiting) -> Option<Event> {
        let event = waiting.events.pop_front()?;
        waiting.is_over |= matches!(event, Event::Ended(_));
        if waiting.events.is_empty() {
            let _ = self.readable.read();
        }
        Some(event)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Borrows the descriptor of an event.
pub(super) fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the `EventFd` keeps the descriptor open, and the result cannot outlive the borrow of it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(subscription: &Subscription) -> bool {
        let mut entry =
            libc::pollfd { fd: subscription.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one valid `pollfd`, which outlives the call.
        unsafe { libc::poll(&mut entry, 1, 0) == 1 }
    }

    #[test]
    fn each_subscriber_hears_everything_in_order() {
        let subscribers = Subscribers::default();
        let (first, second) = (subscribers.subscribe().unwrap(), subscribers.subscribe().unwrap());
        assert!(!is_readable(&first));
        subscribers.send(Event::Resumed);
        subscribers.send(Event::Paused);
        for subscription in [first, second] {
            assert!(is_readable(&subscription));
            assert_eq!(subscription.try_recv(), Some(Event::Resumed));
            assert!(is_readable(&subscription));
            assert_eq!(subscription.try_recv(), Some(Event::Paused));
            assert!(!is_readable(&subscription));
            assert_eq!(subscription.try_recv(), None);
        }
    }

    #[test]
    fn oldest_events_are_lost_and_counted() {
        let subscribers = Subscribers::default();
        let subscription = subscribers.subscribe().unwrap();
        subscribers.send(Event::Restarted);
        for _ in 0..Subscription::MAX {
            subscribers.send(Event::Paused);
        }
        assert_eq!(subscription.missed(), 1);
        assert_eq!(subscription.try_recv(), Some(Event::Paused));
    }

    #[test]
    fn waiting_ends_with_an_event_or_with_its_limit() {
        let subscribers = Subscribers::default();
        let subscription = subscribers.subscribe().unwrap();
        assert_eq!(subscription.recv_timeout(Duration::from_millis(1)), None);
        let waiter = std::thread::spawn(move || subscription.recv_timeout(Duration::MAX));
        subscribers.send(Event::Paused);
        assert_eq!(waiter.join().unwrap(), Some(Event::Paused));
        subscribers.send(Event::Paused);
        assert!(subscribers.lock().queues.is_empty(), "a dropped subscriber is forgotten");
    }
}
