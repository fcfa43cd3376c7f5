//! Network card (virtio 1.2, section 5.1).
//!
//! ```text
//! queue 0, receive:  the guest offers buffers <- receive.rs  <- NetBackend (a tap, or a stream socket)
//! queue 1, transmit: the guest sends frames   -> transmit.rs -> NetBackend
//! queue 2, control:  the guest sends commands -> control.rs
//! ```
//!
//! One handler on the I/O thread serves all three. While frames go either way it searches for more before the
//! thread sleeps, for at most a millisecond at a time, so that other devices get their turn.
//!
//! Neither side can make the thread wait. If the guest offers no buffers, the frames stay on the host, which
//! drops them when its own queue is full. If the host takes no frames, the guest's frames wait for
//! `handler::PATIENCE`; after that they are dropped and counted. When the host's end goes away, the link goes
//! down.

mod address;
mod control;
mod handler;
mod link;
mod receive;
mod state;
mod transmit;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use address::{MacAddress, MacSyntax};

use crate::backend::net::{NetBackend, Offloads};
use crate::journal;
use crate::lock;
use crate::virtio::state::SaveDevice;
use crate::virtio::{
    ActivateContext, ActivateError, DeviceKind, MAX_QUEUE_SIZE, QueueHandler, VirtioDevice, VirtioIrq,
};
use handler::{NetHandler, NetQueues};

/// A network card.
pub struct Net {
    settings: NetSettings,
    /// The offloads that the back end is capable of.
    possible: Offloads,
    /// Locked by one handler at a time, while it serves an event.
    backend: Arc<Mutex<Box<dyn NetBackend>>>,
    card: Arc<Card>,
}

/// The settings of a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSettings {
    /// The name in messages, such as `net tap=tap0`.
    pub name: String,
    /// The card's address, until the driver sets another one.
    pub mac: MacAddress,
    /// The longest packet that the driver is to send, in bytes without the Ethernet header. `None` leaves it
    /// to the driver.
    pub mtu: Option<u16>,
    /// How long the handler searches for more frames before the thread sleeps; usually
    /// [`Poll::DEFAULT`](crate::virtio::poll::Poll::DEFAULT), and zero for no search.
    pub poll: Duration,
}

/// The state that handlers and registers share.
#[derive(Debug)]
struct Card {
    name: String,
    mac: Mutex<MacAddress>,
    /// The offloads of received frames that the driver has left on, as feature bits; `None` for all that it
    /// has accepted.
    offloads: Mutex<Option<u64>>,
    is_up: AtomicBool,
    /// Whether the driver of a restored card may know the link or the address otherwise.
    config_is_new: AtomicBool,
    counters: Counters,
    poll: Duration,
}

/// The numbers of frames in each direction since the card was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetCounts {
    /// Frames that the guest received.
    pub received: u64,
    /// Frames that did not fit into the guest's buffers, and invalid frames from the host.
    pub receive_dropped: u64,
    /// Frames that the host took.
    pub sent: u64,
    /// Frames that the host did not take, and invalid frames from the guest.
    pub send_dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    receive_dropped: AtomicU64,
    sent: AtomicU64,
    send_dropped: AtomicU64,
}

impl Net {
    /// Makes a network card whose other end is `backend`.
    pub fn new(settings: NetSettings, backend: Box<dyn NetBackend>) -> Self {
        let card = Card {
            name: settings.name.clone(),
            mac: Mutex::new(settings.mac),
            offloads: Mutex::new(None),
            config_is_new: AtomicBool::new(false),
            is_up: AtomicBool::new(true),
            counters: Counters::default(),
            poll: settings.poll,
        };
        let possible = backend.possible_offloads();
        Self { settings, possible, backend: Arc::new(Mutex::new(backend)), card: Arc::new(card) }
    }

    /// Returns the address that the card had when it was made.
    pub fn mac(&self) -> MacAddress {
        self.settings.mac
    }

    /// Returns the address that the driver knows.
    pub fn present_mac(&self) -> MacAddress {
        *lock(&self.card.mac)
    }

    /// Gives a restored card, which does not run yet, the address that it was made with instead of the saved
    /// one. The driver hears of a change.
    pub fn renew_mac(&self) {
        let former = std::mem::replace(&mut *lock(&self.card.mac), self.settings.mac);
        if former != self.settings.mac {
            self.card.config_is_new.store(true, Ordering::Release);
        }
    }

    /// Returns the card's counters.
    pub fn counts(&self) -> NetCounts {
        let Counters { received, receive_dropped, sent, send_dropped } = &self.card.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetCounts {
            received: load(received),
            receive_dropped: load(receive_dropped),
            sent: load(sent),
            send_dropped: load(send_dropped),
        }
    }

    /// Returns false once the host's end is gone.
    pub fn is_up(&self) -> bool {
        self.card.is_up.load(Ordering::Acquire)
    }
}

impl Card {
    /// Records that the host's end is gone, and tells the driver and the log once.
    fn take_down(&self, irq: &VirtioIrq, reason: &dyn std::fmt::Display) {
        if self.is_up.swap(false, Ordering::AcqRel) {
            irq.config();
            journal!(Host Warn, "{}: {reason}; the guest's link is down", self.name);
        }
    }
}

/// Adds one to a counter. Only the handler that has locked the back end counts, and others read; so the
/// counter needs no atomic addition, which would cost more than other work on a short frame.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> String {
        self.settings.name.clone()
    }

    fn features(&self) -> u64 {
        let Offloads { checksum, tso4, tso6, ecn } = self.possible;
        let features = [
            (checksum, CSUM),
            (checksum, GUEST_CSUM),
            (checksum, CTRL_GUEST_OFFLOADS),
            (tso4, GUEST_TSO4),
            (tso4, HOST_TSO4),
            (tso6, GUEST_TSO6),
            (tso6, HOST_TSO6),
            (ecn, GUEST_ECN),
            (ecn, HOST_ECN),
            (self.settings.mtu.is_some(), MTU),
            (true, MAC),
            (true, MRG_RXBUF),
            (true, STATUS),
            (true, CTRL_VQ),
            (true, CTRL_RX),
            (true, CTRL_MAC_ADDR),
        ];
        features.iter().filter(|(offered, _)| *offered).fold(0, |bits, (_, bit)| bits | 1 << bit)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![MAX_QUEUE_SIZE, MAX_QUEUE_SIZE, CONTROL_SIZE]
    }

    /// The configuration space (virtio 1.2, section 5.1.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(lock(&self.card.mac).bytes());
        config.extend(if self.is_up() { LINK_UP } else { 0 }.to_le_bytes());
        config.extend(1_u16.to_le_bytes()); // max_virtqueue_pairs
        config.extend(self.settings.mtu.unwrap_or_default().to_le_bytes());
        config
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let queues = NetQueues {
            receive: context.queues.take(RECEIVE)?,
            send: context.queues.take(SEND)?,
            control: context.queues.take(CONTROL).ok(),
        };
        // After a pause, those that the driver has switched off stay so.
        let offloads = lock(&self.card.offloads).unwrap_or(context.features);
        lock(&self.backend).set_offloads(accepted_offloads(offloads));
        if self.card.config_is_new.swap(false, Ordering::AcqRel) {
            context.irq.config();
        }
        Ok(vec![Box::new(NetHandler::new(
            queues,
            self.backend.clone(),
            self.card.clone(),
            context.irq,
            context.features,
        ))])
    }

    fn reset(&self) {
        *lock(&self.card.mac) = self.settings.mac;
        *lock(&self.card.offloads) = None;
        self.card.config_is_new.store(false, Ordering::Release);
        lock(&self.backend).set_offloads(Offloads::default());
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

/// Returns the offloads of received frames that a driver with these features can handle.
fn accepted_offloads(features: u64) -> Offloads {
    let has = |bit: u32| features >> bit & 1 == 1;
    Offloads { checksum: has(GUEST_CSUM), tso4: has(GUEST_TSO4), tso6: has(GUEST_TSO6), ecn: has(GUEST_ECN) }
        .possible()
}

/// Feature bits (virtio 1.2, section 5.1.3).
const CSUM: u32 = 0;
const GUEST_CSUM: u32 = 1;
const CTRL_GUEST_OFFLOADS: u32 = 2;
const MTU: u32 = 3;
const MAC: u32 = 5;
const GUEST_TSO4: u32 = 7;
const GUEST_TSO6: u32 = 8;
const GUEST_ECN: u32 = 9;
const HOST_TSO4: u32 = 11;
const HOST_TSO6: u32 = 12;
const HOST_ECN: u32 = 13;
const MRG_RXBUF: u32 = 15;
const STATUS: u32 = 16;
const CTRL_VQ: u32 = 17;
const CTRL_RX: u32 = 18;
const CTRL_MAC_ADDR: u32 = 23;

/// Queue numbers (virtio 1.2, section 5.1.2).
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const CONTROL: u16 = 2;

/// The size of the control queue in descriptors: Linux sends one command at a time.
const CONTROL_SIZE: u16 = 64;
const CONFIG_LEN: usize = 12;
/// VIRTIO_NET_S_LINK_UP of the field `status` (virtio 1.2, section 5.1.4).
const LINK_UP: u16 = 1;

#[cfg(test)]
mod tests;
