//! Serves the queues of a network card, and waits for its end on the host.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::control::Control;
use super::link::Link;
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::{Card, count};
use crate::backend::net::{LinkLost, NetBackend, Received};
use crate::event_loop::watch;
use crate::lock;
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, VirtioIrq, watch_doorbell};

/// The handler of all queues of one card.
pub(super) struct NetHandler {
    receiver: Receiver,
    transmitter: Transmitter,
    control: Option<Control>,
    backend: Arc<Mutex<Box<dyn NetBackend>>>,
    card: Arc<Card>,
    irq: VirtioIrq,
    /// What the loop tells of the back end; none when it is not watched, because it is gone.
    watched: Option<EventSet>,
    /// Rings when something has waited for too long. A host without timers drops at once.
    timer: Option<TimerFd>,
    timer_runs: bool,
}

/// The queues of a card.
pub(super) struct NetQueues {
    pub(super) receive: VirtQueue,
    pub(super) send: VirtQueue,
    /// A driver may do without.
    pub(super) control: Option<VirtQueue>,
}

impl NetHandler {
    pub(super) fn new(
        queues: NetQueues,
        backend: Arc<Mutex<Box<dyn NetBackend>>>,
        card: Arc<Card>,
        irq: VirtioIrq,
        features: u64,
    ) -> Self {
        let NetQueues { receive, send, control } = queues;
        Self {
            receiver: Receiver::new(receive, features),
            transmitter: Transmitter::new(send),
            control: control.map(|queue| Control::new(queue, features)),
            backend,
            card,
            irq,
            watched: None,
            timer: TimerFd::new().ok(),
            timer_runs: false,
        }
    }

    fn serve(&mut self, event: Events, link: &mut Link<'_>) -> Result<(), RingError> {
        let Self { receiver, transmitter, control, timer_runs, .. } = self;
        match event.data() {
            RECEIVE_DOORBELL => receiver.serve(link),
            SEND_DOORBELL => transmitter.serve(link),
            CONTROL_DOORBELL => {
                let Some(control) = control else { return Ok(()) };
                control.serve(link.card, |offloads| link.backend.set_offloads(offloads))
            }
            TIMER => {
                *timer_runs = false;
                give_up(receiver, transmitter, link)
            }
            _ => serve_backend(receiver, transmitter, event.event_set(), link),
        }
    }

    /// Watches the back end for what can be served, and the time while something waits.
    fn wait_for_what_is_missing(
        &mut self,
        link: &mut Link<'_>,
        sources: &mut EventOps<'_>,
    ) -> Result<(), RingError> {
        if let Some(lost) = link.lost.take() {
            self.card.take_down(&self.irq, &lost);
        }
        let descriptor = link.backend.as_raw_fd();
        if !link.is_up() {
            if self.watched.take().is_some() {
                let _ = sources.remove(Events::empty_raw(descriptor));
            }
            // Frames that waited for the host are dropped, and all that follow.
            return if self.transmitter.waits_for_host() { self.transmitter.serve(link) } else { Ok(()) };
        }
        let wanted = wanted_events(self.transmitter.waits_for_host());
        if self.watched.is_some_and(|watched| watched != wanted) {
            let events = Events::with_data_raw(descriptor, BACKEND, wanted);
            if let Err(error) = sources.modify(events) {
                log::error!("{}: its back end cannot be watched: {error}", self.card.name);
            }
            self.watched = Some(wanted);
        }
        self.keep_time(link)
    }

    /// Starts the patience with what waits, and anew when that has moved on.
    fn keep_time(&mut self, link: &mut Link<'_>) -> Result<(), RingError> {
        let (frame, frames) = (self.receiver.holds_frame(), self.transmitter.holds_frames());
        if !frame && !frames {
            self.timer_runs = false;
            return Ok(());
        }
        let has_moved_on = (!frame || link.has_delivered) && (!frames || link.has_sent);
        if self.timer_runs && !has_moved_on {
            return Ok(());
        }
        self.timer_runs = self.timer.as_mut().is_some_and(|timer| timer.reset(PATIENCE, None).is_ok());
        if self.timer_runs { Ok(()) } else { give_up(&mut self.receiver, &mut self.transmitter, link) }
    }
}

impl QueueHandler for NetHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, self.receiver.queue(), RECEIVE_DOORBELL);
        watch_doorbell(sources, self.transmitter.queue(), SEND_DOORBELL);
        if let Some(control) = &self.control {
            watch_doorbell(sources, control.queue(), CONTROL_DOORBELL);
        }
        if let Some(timer) = &self.timer {
            // Told of once each time, without the need to read it: a read could wait for a patience that has begun anew.
            watch(sources, timer, TIMER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
        let backend = lock(&self.backend);
        if self.card.is_up.load(std::sync::atomic::Ordering::Acquire) {
            let events = Events::with_data_raw(backend.as_raw_fd(), BACKEND, wanted_events(false));
            match sources.add(events) {
                Ok(()) => self.watched = Some(wanted_events(false)),
                Err(error) => log::error!("{}: its back end cannot be watched: {error}", self.card.name),
            }
        }
    }

    fn process(&mut self, event: Events, sources: &mut EventOps<'_>) -> Result<(), RingError> {
        let (backend, card) = (self.backend.clone(), self.card.clone());
        let mut backend = lock(&backend);
        let mut link = Link::new(&card, &mut **backend);
        self.serve(event, &mut link)?;
        self.wait_for_what_is_missing(&mut link, sources)
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let Self { receiver, transmitter, control, .. } = *self;
        let queues = [receiver.into_queue(), transmitter.into_queue()];
        queues.into_iter().chain(control.map(Control::into_queue)).collect()
    }
}

/// The host's end can be read, can be written, or is gone.
fn serve_backend(
    receiver: &mut Receiver,
    transmitter: &mut Transmitter,
    events: EventSet,
    link: &mut Link<'_>,
) -> Result<(), RingError> {
    if events.contains(EventSet::OUT) {
        link.flush();
        transmitter.serve(link)?;
    }
    receiver.serve(link)?;
    if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
        if !receiver.wants_frames() {
            // Without room for what is left nobody gets it, and nobody will tell of the end again.
            receiver.give_up(link);
            let mut left = 0..MOST_LEFT;
            while left.next().is_some() && link.receive(&[]) != Received::Nothing {
                count(&link.card.counters.receive_dropped);
            }
        }
        if link.is_drained {
            link.lost.get_or_insert(LinkLost::HungUp);
        }
    }
    Ok(())
}

/// The back end tells once of each change. One that is asked about frames only while there is room for them would keep
/// its end to itself: a tap tells of it as if a frame had come.
fn wanted_events(waits_for_host: bool) -> EventSet {
    let sending = if waits_for_host { EventSet::OUT } else { EventSet::empty() };
    EventSet::IN | EventSet::EDGE_TRIGGERED | sending
}

/// Drops what has waited for too long.
fn give_up(
    receiver: &mut Receiver,
    transmitter: &mut Transmitter,
    link: &mut Link<'_>,
) -> Result<(), RingError> {
    receiver.give_up(link);
    receiver.serve(link)?;
    transmitter.give_up();
    transmitter.serve(link)
}

/// How long a frame waits for the other side. Long enough for a program on a busy host, and short enough for a guest whose
/// peer has stopped.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Frames that are looked at when the host's end is gone: more than a socket of the usual size holds.
const MOST_LEFT: u32 = 100_000;

/// What an event is about.
const RECEIVE_DOORBELL: u32 = 0;
const SEND_DOORBELL: u32 = 1;
const CONTROL_DOORBELL: u32 = 2;
const BACKEND: u32 = 3;
const TIMER: u32 = 4;
