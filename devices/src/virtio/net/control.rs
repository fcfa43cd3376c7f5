//! The control queue of a network card (virtio 1.2, section 5.1.6.5).
//!
//! The card does not filter: it passes on all frames that the host sends. So each command that sets a filter
//! succeeds, because a filter may let through more than the driver asked for.

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
        queue.limit_bytes(MAX_BYTES);
        Self { queue, features }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    pub(super) fn into_queue(self) -> VirtQueue {
        self.queue
    }

    /// Answers all commands of the queue.
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

/// Executes a command. Returns `None` for one that is invalid or was not negotiated.
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
            // A driver can switch only the offloads that it has accepted.
            (wanted & !features == 0).then(|| {
                *lock(&card.offloads) = Some(wanted);
                set_offloads(accepted_offloads(wanted));
            })
        }
        _ => None,
    }
}

/// Skips a table of addresses and the number before it.
fn skip_table(command: &mut Buffers) -> Option<()> {
    let count = u32::from_le_bytes(command.read_array()?);
    let len = u64::from(count).checked_mul(6).filter(|len| *len <= command.len())?;
    command.skip(len);
    Some(())
}

/// The longest command in bytes: more than 10,000 addresses, and no driver has so many. Each command is read
/// at most once.
const MAX_BYTES: u64 = 64 << 10;

/// Classes and commands (virtio 1.2, sections 5.1.6.5.1, 5.1.6.5.2 and 5.1.6.5.6.1).
const RX: u8 = 0;
const PROMISCUOUS: u8 = 0;
const ALL_MULTICAST: u8 = 1;
const MAC: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDRESS_SET: u8 = 1;
const GUEST_OFFLOADS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// Answers (virtio 1.2, section 5.1.6.5).
const OK: u8 = 0;
const ERROR: u8 = 1;
