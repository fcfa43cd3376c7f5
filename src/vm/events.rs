//! What happens to a virtual machine, told to whoever subscribes. Sent by the control thread and the handles;
//! a subscriber that does not listen delays nobody.

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
    /// Its vCPUs were let run: for the first time, or after a pause.
    Resumed,
    /// Its owner paused it.
    Paused,
    /// A disk could not carry out a request, and the machine waits for its owner to resume it
    /// ([`DiskErrorPolicy::Pause`](crate::config::DiskErrorPolicy::Pause)).
    PausedByFault {
        /// The disk and its fault.
        reason: String,
    },
    /// The guest reset its machine and was started anew
    /// ([`ResetPolicy::Reboot`](crate::config::ResetPolicy::Reboot)).
    Restarted,
    /// It ended. The last event.
    Ended(Box<Outcome>),
}

/// Everything that happens to a machine from the subscription on, in order. Up to [`Subscription::MOST`]
/// events wait to be taken; then the oldest are lost and counted.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
}

/// Those who listen.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queues: Vec<Weak<Queue>>,
    /// For those who come late.
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
    /// The last event has been taken.
    is_over: bool,
}

impl Subscription {
    /// Events that wait to be taken at most.
    pub const MOST: usize = 256;

    /// The next event; none when there is none within `limit`, and at once after [`Event::Ended`].
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

    /// The next event, if there is one already.
    pub fn try_recv(&self) -> Option<Event> {
        self.recv_timeout(Duration::ZERO)
    }

    /// Whether the last event has been taken.
    #[cfg(feature = "tokio")]
    pub(super) fn is_over(&self) -> bool {
        self.queue.lock().is_over
    }

    /// Events that were lost because nobody took them.
    pub fn missed(&self) -> u64 {
        self.queue.lock().missed
    }
}

/// Readable while an event waits: for programs that wait for several things at once.
impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrowed(&self.queue.readable)
    }
}

impl Subscribers {
    /// Sends everything from here on to a new subscriber; one that comes after the end hears of that.
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
        if waiting.events.len() >= Subscription::MOST {
            waiting.events.pop_front();
            waiting.missed += 1;
        }
        waiting.events.push_back(event);
        // The only failure is a counter at its maximum: the event is readable all the same.
        let _ = self.readable.write(1);
        self.came.notify_all();
    }

    /// The oldest event. The descriptor is readable afterwards if there are more.
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

/// The descriptor of an event, for as long as the event is borrowed.
pub(super) fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(subscription: &Subscription) -> bool {
        let mut entry =
            libc::pollfd { fd: subscription.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
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
        for _ in 0..Subscription::MOST {
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
        assert!(subscribers.lock().queues.is_empty(), "one that is gone is forgotten");
    }
}
