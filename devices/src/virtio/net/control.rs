//! The control queue: what a driver asks of its card (virtio 1.2, 5.1.6.5).
//!
//! The card does not filter: it passes on what the host sends, so that a driver that asks for more frames, or
//! for fewer, is told that this is fine. A filter may let through more than was asked for.

use super::{CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, Card, MacAddress, accepted_offloads};
use crate::backend::net::Offloads;
use crate::lock;
use crate::memory::Buffers;
use crate::virtio::queue::{RingError, VirtQueue};

/// Serves the control queue.
pub(super) struct ControlQueue {
    queue: VirtQueue,
    /// The features that the driver has accepted.
    features: u64,
}

impl ControlQueue {
    pub(super) fn new(mut queue: VirtQueue, features: u64) -> Self {
        queue.limit_bytes(MOST_BYTES);
        Self { queue, features }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    pub(super) fn into_queue(self) -> VirtQueue {
        self.queue
    }

    /// Answers all that was asked.
    pub(super) fn serve(
        &mut self,
        card: &Card,
        mut set_offloads: impl FnMut(Offloads),
    ) -> Result<(), RingError> {
        self.queue.begin();
        while let Some(mut chain) = self.queue.pop()? {
            let done = obey(&mut chain.readable, self.features, card, &mut set_offloads);
            let answer = if done.is_some() { OK } else { ERROR };
            let written = chain.writable.write(&[answer]);
            self.queue.complete(chain, written as u32);
        }
        self.queue.finish()
    }
}

/// Does what the command says; none when it makes no sense, or was not negotiated.
fn obey(
    command: &mut Buffers,
    features: u64,
    card: &Card,
    set_offloads: &mut dyn FnMut(Offloads),
) -> Option<()> {
    let has = |feature: u32| (features >> feature & 1 == 1).then_some(());
    match command.read_array()? {
        [RX, PROMISCUOUS | ALL_MULTICAST] => {
            has(CTRL_RX)?;
            command.read_array().map(|[_]: [u8; 1]| ())
        }
        [MAC, TABLE_SET] => {
            has(CTRL_RX)?;
            skip_table(command)?;
            skip_table(command)
        }
        [MAC, ADDRESS_SET] => {
            has(CTRL_MAC_ADDR)?;
            *lock(&card.mac) = MacAddress::new(command.read_array()?)?;
            Some(())
        }
        [GUEST_OFFLOADS, OFFLOADS_SET] => {
            has(CTRL_GUEST_OFFLOADS)?;
            let wanted = u64::from_le_bytes(command.read_array()?);
            // A driver can only turn off and on what it has accepted.
            (wanted & !features == 0).then(|| set_offloads(accepted_offloads(wanted)))
        }
        _ => None,
    }
}

/// Leaves out a list of addresses behind its length.
fn skip_table(command: &mut Buffers) -> Option<()> {
    let count = u32::from_le_bytes(command.read_array()?);
    let len = u64::from(count).checked_mul(6).filter(|len| *len <= command.len())?;
    command.skip(len);
    Some(())
}

/// More than 8,000 addresses: no driver has so many, and each command is read through once at most.
const MOST_BYTES: u64 = 64 << 10;

/// Classes and commands (virtio 1.2, 5.1.6.5.1, 5.1.6.5.2 and 5.1.6.5.6.1).
const RX: u8 = 0;
const PROMISCUOUS: u8 = 0;
const ALL_MULTICAST: u8 = 1;
const MAC: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDRESS_SET: u8 = 1;
const GUEST_OFFLOADS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// Answers.
const OK: u8 = 0;
const ERROR: u8 = 1;
