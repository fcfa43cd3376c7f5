//! The part of a device that serves its queues, and the threads that it runs on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events};

use super::irq::VirtioIrq;
use super::queue::{RingError, VirtQueue};
use crate::event_loop::Asked;
use crate::journal;

/// Serves some queues of a device while the device is active.
///
/// The transport makes handlers by [`VirtioDevice::activate`](super::VirtioDevice::activate) and moves them
/// to an I/O thread, which calls all methods of this trait. Reset, pause and stop take the handlers back in
/// the same way: [`quiesce`](Self::quiesce), events as before until [`is_drained`](Self::is_drained), then
/// [`stop`](Self::stop). After a pause the device makes new handlers with the same queues. State that
/// outlives a handler (a tap, an open file, connections) belongs to the device, which shares it.
pub trait QueueHandler: Send {
    /// Adds the event sources: the doorbells of the queues by [`watch_doorbell`], and the handler's own file
    /// descriptors. A doorbell that was rung before this call gives an event at once.
    fn start(&mut self, sources: &mut EventOps<'_>);

    /// Serves one event, for at most a [turn](super::poll::TURN). The handler arranges another event for the
    /// work that is left.
    ///
    /// The handler never waits, unless its device [blocks](super::VirtioDevice::blocks). The handler of a
    /// device that does checks its [`StopFlag`] between any two calls to the host, and transfers at most 1
    /// MiB in each of them.
    ///
    /// # Errors
    /// A ring is damaged: the handler gets no more events, and the device needs a reset.
    fn process(&mut self, event: Events, sources: &mut EventOps<'_>) -> Result<(), RingError>;

    /// With `true`, takes nothing new from the queues, and finishes soon the requests that it has begun. With
    /// `false`, goes on as before.
    fn quiesce(&mut self, _quiet: bool) {}

    /// Returns whether the handler holds no chain of its queues. This is always so for a handler that
    /// completes each chain before `process` returns.
    fn is_drained(&self) -> bool {
        true
    }

    /// Returns the queues, without a chain in flight: a chain that is not done is [put
    /// back](VirtQueue::put_back). The state of a paused machine is then in guest memory and in registers,
    /// and the device keeps nothing of its requests. The loop has removed the event sources before.
    fn stop(self: Box<Self>) -> Vec<VirtQueue>;
}

/// The handlers of one device, while it is active.
pub struct HandlerGroup {
    /// The device's name, for messages.
    pub name: String,
    /// Reports that the device needs a reset when a handler fails.
    pub irq: VirtioIrq,
    /// The handlers, at most one for each queue.
    pub handlers: Vec<Box<dyn QueueHandler>>,
}

/// The number of a running group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub(crate) u64);

/// An I/O thread that handlers can join and leave. vCPU threads and the control thread call it.
pub trait HandlerHost: Send + Sync {
    /// Starts the handlers of a group, without waiting until they run.
    fn start(&self, group: HandlerGroup) -> GroupId;

    /// Asks for the queues of a group, without waiting for them: the caller asks all groups before it waits
    /// for any.
    fn ask(&self, group: GroupId, if_late: IfLate) -> Asked;

    /// Waits for the queues that were asked for, until
    /// [`HAND_BACK_LIMIT`](crate::event_loop::HAND_BACK_LIMIT) after the request.
    ///
    /// # Errors
    /// The group has not drained in time: something on the host keeps it from doing so.
    fn wait(&self, asked: Asked) -> Result<Vec<VirtQueue>, Stuck>;
}

/// The request to give the queues of a device back. It is raised before the handlers' thread is asked for
/// them, so that a handler sees it in the middle of long work.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Tells the handlers to begin no more work.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets the handlers begin work again.
    pub fn lower(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Returns whether the handlers must begin no more work.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The fate of handlers that drain after their caller has given up waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfLate {
    /// The handlers go on serving their queues.
    Continue,
    /// The handlers are dropped.
    Drop,
}

/// The error of a device whose handlers have not drained in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("requests are still in flight")]
pub struct Stuck;

/// Watches the doorbell of `queue`, with events that carry `data`. The watch is edge-triggered, so each ring
/// gives an event although nobody reads the counter.
pub fn watch_doorbell(sources: &mut EventOps<'_>, queue: &VirtQueue, data: u32) {
    let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
    if let Err(error) = sources.add(Events::with_data(&**queue.doorbell(), data, events)) {
        journal!(Host Error, "a virtio doorbell cannot be watched: {error}");
    }
}
