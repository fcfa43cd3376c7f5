//! Serves the queues of a socket device: packets from the guest, packets to the guest, and events on the
//! host.

use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventOps, EventSet, Events};

use super::mux::Mux;
use super::packet::Header;
use crate::event_loop::watch;
use crate::lock;
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, watch_doorbell};

/// The handler of all queues of a socket device.
pub(super) struct VsockHandler {
    queues: VsockQueues,
    mux: Arc<Mutex<Mux>>,
    /// The buffer that packets pass through, one at a time.
    scratch: Box<[u8]>,
    /// Whether the guest's packets wait until it has taken some of the device's.
    is_clogged: bool,
}

/// The queues (virtio 1.2, section 5.10.2).
pub(super) struct VsockQueues {
    /// Buffers for packets to the guest.
    pub receive: VirtQueue,
    /// Packets from the guest.
    pub transmit: VirtQueue,
    /// Buffers for events; `None` if the driver has not set the queue up.
    pub events: Option<VirtQueue>,
}

impl VsockHandler {
    pub(super) fn new(mut queues: VsockQueues, mux: Arc<Mutex<Mux>>) -> Self {
        queues.transmit.limit_bytes(MAX_PACKET_BYTES);
        Self { queues, mux, scratch: vec![0; SCRATCH].into(), is_clogged: false }
    }

    /// Takes packets from the guest, unless the guest does not take the answers.
    fn serve_transmit(&mut self) -> Result<(), RingError> {
        let queue = &mut self.queues.transmit;
        let mut mux = lock(&self.mux);
        queue.begin();
        while !mux.is_clogged() {
            let Some(mut chain) = queue.pop()? else { return queue.finish() };
            mux.take_packet(&mut chain.readable, &mut self.scratch);
            queue.complete(chain, 0);
        }
        // The doorbell stays quiet: the device rings it when the answers have gone.
        queue.announce();
        self.is_clogged = true;
        Ok(())
    }

    /// Gives packets to the guest, as far as there are buffers.
    fn serve_receive(&mut self) -> Result<(), RingError> {
        let mut mux = lock(&self.mux);
        fill_buffers(&mut self.queues.receive, &mut mux, &mut self.scratch)?;
        if self.is_clogged && !mux.is_clogged() {
            self.is_clogged = false;
            self.queues.transmit.ring();
        }
        Ok(())
    }
}

/// Writes the event by which the driver of a restored device hears that its connections are gone, and that it
/// has to read its address again (virtio 1.2, section 5.10.6.6). Without a buffer, the doorbell rings when
/// there is one.
fn serve_events(queue: &mut VirtQueue, mux: &mut Mux) -> Result<(), RingError> {
    queue.begin();
    while mux.owes_transport_reset {
        let Some(mut chain) = queue.pop()? else { break };
        let written = chain.writable.write(&TRANSPORT_RESET.to_le_bytes());
        // A buffer that is too short is of no use.
        mux.owes_transport_reset = written < size_of_val(&TRANSPORT_RESET);
        queue.complete(chain, written as u32);
    }
    queue.finish()
}

fn fill_buffers(
    queue: &mut VirtQueue,
    mux: &mut MutexGuard<'_, Mux>,
    scratch: &mut [u8],
) -> Result<(), RingError> {
    queue.begin();
    while mux.has_packets() {
        // Without a buffer, the doorbell rings when there is one.
        let Some(mut chain) = queue.pop()? else { return queue.finish() };
        let room = chain.writable.len().saturating_sub(Header::LEN as u64);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(scratch.len());
        let data = scratch.get_mut(..room).unwrap_or_default();
        if data.is_empty() {
            // No packet with bytes fits into this buffer.
            queue.complete(chain, 0);
            continue;
        }
        let Some(header) = mux.next_packet(data) else {
            queue.put_back(chain);
            break;
        };
        let mut written = chain.writable.write(&header.to_bytes());
        let bytes = data.get(..header.len as usize).unwrap_or_default();
        written = written.saturating_add(chain.writable.write(bytes));
        queue.complete(chain, written as u32);
    }
    // The doorbell stays quiet while there is nothing to deliver.
    queue.announce();
    Ok(())
}

impl QueueHandler for VsockHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, &self.queues.receive, RECEIVE);
        watch_doorbell(sources, &self.queues.transmit, TRANSMIT);
        if let Some(events) = &self.queues.events {
            watch_doorbell(sources, events, EVENTS);
        }
        watch(sources, lock(&self.mux).events(), HOST, EventSet::IN);
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        // Before all packets, which may belong to new connections.
        if let Some(events) = &mut self.queues.events
            && lock(&self.mux).owes_transport_reset
        {
            serve_events(events, &mut lock(&self.mux))?;
        }
        match event.data() {
            TRANSMIT => {
                self.serve_transmit()?;
                lock(&self.mux).accept_waiting();
            }
            HOST => lock(&self.mux).serve_host(),
            _ => {}
        }
        self.serve_receive()
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let VsockQueues { receive, transmit, events } = self.queues;
        [Some(receive), Some(transmit), events].into_iter().flatten().collect()
    }
}

/// The event data that tell the sources apart.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const HOST: u32 = 2;
const EVENTS: u32 = 3;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, section 5.10.6.6).
const TRANSPORT_RESET: u32 = 0;

/// The length of the largest packet that Linux makes, so that it passes in one piece.
const SCRATCH: usize = 64 << 10;
/// The longest chain in bytes: more than the window of any connection.
const MAX_PACKET_BYTES: u64 = 1 << 20;
