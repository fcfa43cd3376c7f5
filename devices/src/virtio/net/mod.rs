//! Network card (virtio 1.2, section 5.1).
//!
//! ```text
//! queue 0: the guest offers room   <- receive.rs  <- NetBackend (a tap, or a stream socket)
//! queue 1: the guest sends frames  -> transmit.rs -> NetBackend
//! queue 2: the guest asks          -> control.rs
//! ```
//!
//! One handler on the I/O thread serves all three. While frames go one way or the other it looks for more
//! before the thread sleeps, for a millisecond at a time at most, so that other devices have their turn.
//! Neither side can make it wait: a guest that offers no room leaves the frames to the host, which drops them
//! when its own queue is full; a host that takes nothing makes the guest wait for `handler::PATIENCE`, and
//! then its frames are dropped and counted. When the host's end goes away, the link goes down.

mod address;
mod control;
mod handler;
mod link;
mod receive;
mod transmit;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use address::{MacAddress, MacSyntax};

use crate::backend::net::{NetBackend, Offloads};
use crate::journal;
use crate::lock;
use crate::virtio::{
    ActivateContext, ActivateError, DeviceKind, MAX_QUEUE_SIZE, QueueHandler, VirtioDevice, VirtioIrq,
};
use handler::{NetHandler, NetQueues};

/// A network card.
pub struct Net {
    settings: NetSettings,
    /// What the driver may be offered because of the back end.
    possible: Offloads,
    /// One handler at a time uses it.
    backend: Arc<Mutex<Box<dyn NetBackend>>>,
    card: Arc<Card>,
}

/// What a network card is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSettings {
    /// For messages, as in `net tap=tap0`.
    pub name: String,
    /// Its address, until the driver gives it another.
    pub mac: MacAddress,
    /// The longest packet that the driver is to send, in bytes without the Ethernet header; none: the
    /// driver's default.
    pub mtu: Option<u16>,
    /// How long its handler looks for more frames before the thread sleeps;
    /// [`Poll::DEFAULT`](crate::virtio::poll::Poll::DEFAULT) for most, zero for never.
    pub poll: Duration,
}

/// The state that handlers and registers share.
#[derive(Debug)]
struct Card {
    name: String,
    mac: Mutex<MacAddress>,
    is_up: AtomicBool,
    counters: Counters,
    poll: Duration,
}

/// How many frames went which way since the card was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetCounts {
    /// Frames that the guest got.
    pub received: u64,
    /// Frames that did not fit into what the guest offered, and what was no frame.
    pub receive_dropped: u64,
    /// Frames that the host took.
    pub sent: u64,
    /// Frames that the host did not take, and what was no frame.
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
    /// A network card whose other end is `backend`.
    pub fn new(settings: NetSettings, backend: Box<dyn NetBackend>) -> Self {
        let card = Card {
            name: settings.name.clone(),
            mac: Mutex::new(settings.mac),
            is_up: AtomicBool::new(true),
            counters: Counters::default(),
            poll: settings.poll,
        };
        let possible = backend.possible_offloads();
        Self { settings, possible, backend: Arc::new(Mutex::new(backend)), card: Arc::new(card) }
    }

    /// What has gone through it.
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

    /// False once the host's end is gone.
    pub fn is_up(&self) -> bool {
        self.card.is_up.load(Ordering::Acquire)
    }
}

impl Card {
    /// The host's end is gone: tells the driver, once.
    fn take_down(&self, irq: &VirtioIrq, reason: &dyn std::fmt::Display) {
        if self.is_up.swap(false, Ordering::AcqRel) {
            irq.config();
            journal!(Host Warn, "{}: {reason}; the guest's link is down", self.name);
        }
    }
}

/// One more, or some more.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
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

    /// Virtio 1.2, 5.1.4.
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
        lock(&self.backend).set_offloads(accepted_offloads(context.features));
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
        lock(&self.backend).set_offloads(Offloads::default());
    }
}

/// What a driver with these features can do with the frames that it receives.
fn accepted_offloads(features: u64) -> Offloads {
    let has = |bit: u32| features >> bit & 1 == 1;
    Offloads { checksum: has(GUEST_CSUM), tso4: has(GUEST_TSO4), tso6: has(GUEST_TSO6), ecn: has(GUEST_ECN) }
        .possible()
}

/// Feature bits (virtio 1.2, 5.1.3).
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

/// Queues (virtio 1.2, 5.1.2).
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const CONTROL: u16 = 2;

/// Linux asks for one thing at a time.
const CONTROL_SIZE: u16 = 64;
const CONFIG_LEN: usize = 12;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

#[cfg(test)]
mod tests;
