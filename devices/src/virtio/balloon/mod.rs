//! Memory balloon (virtio 1.2, section 5.5): memory that the guest does not need returns to the host.
//!
//! It does so in two ways. The guest reports free pages by itself, and takes them back by touching them. And
//! the host may ask for a number of pages: the guest then gives up memory until it has given so much, or
//! takes some back. Either way the page stays RAM of the guest's: what it reads there afterwards is zero, or
//! what it writes.
//!
//! A guest can hurt itself only: pages are named by it and checked to be its RAM.

mod handler;
mod release;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock;
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice, VirtioIrq};
use handler::{BalloonHandler, Work};

/// A balloon that the host can ask for memory.
#[derive(Debug)]
pub struct Balloon {
    /// Pages of RAM: more cannot be asked for.
    most_pages: u32,
    state: Mutex<State>,
    /// Bytes that have gone back to the host so far, however often.
    released: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// What the host asks for.
    target_pages: u32,
    /// What the driver says that it has given.
    actual: [u8; 4],
    /// Tells the driver of a new target; none while there is no driver.
    irq: Option<VirtioIrq>,
}

/// What has become of a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonStatus {
    /// Bytes that the guest is asked to give.
    pub target_bytes: u64,
    /// Bytes that it says it has given.
    pub given_bytes: u64,
    /// Bytes that have gone back to the host so far, in both ways; what the guest took again and gave again
    /// counts again.
    pub released_bytes: u64,
}

impl Balloon {
    /// A balloon for a machine with so much RAM. It asks for nothing yet.
    pub fn new(ram_bytes: u64) -> Self {
        let most_pages = u32::try_from(ram_bytes >> PAGE_SHIFT).unwrap_or(u32::MAX);
        Self { most_pages, state: Mutex::default(), released: Arc::default() }
    }

    /// Asks the guest for so many bytes, in whole pages and no more than it has. It gives them in its own
    /// time, as far as it can do without.
    pub fn set_target(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.target_pages = u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX).min(self.most_pages);
        if let Some(irq) = &state.irq {
            irq.config();
        }
    }

    /// What has become of it.
    pub fn status(&self) -> BalloonStatus {
        let state = lock(&self.state);
        let bytes = |pages: u32| u64::from(pages) << PAGE_SHIFT;
        BalloonStatus {
            target_bytes: bytes(state.target_pages),
            given_bytes: bytes(u32::from_le_bytes(state.actual)),
            released_bytes: self.released.load(Ordering::Relaxed),
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn name(&self) -> String {
        "balloon".into()
    }

    fn features(&self) -> u64 {
        1 << DEFLATE_ON_OOM | 1 << REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    /// Virtio 1.2, 5.5.4: `num_pages` and `actual`.
    fn config(&self) -> Vec<u8> {
        let state = lock(&self.state);
        [state.target_pages.to_le_bytes(), state.actual].concat()
    }

    /// The driver writes `actual`; the rest is for it to read.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let place = at.checked_sub(ACTUAL).and_then(|at| state.actual.get_mut(at));
            if let Some(place) = place {
                *place = *byte;
            }
        }
    }

    /// Giving back much memory takes the host a while.
    fn blocks(&self) -> bool {
        true
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let inflate = context.queues.take(INFLATE)?;
        let deflate = context.queues.take(DEFLATE)?;
        // A driver that does not report has no queue for it.
        let report = context.queues.take(REPORT).ok();
        lock(&self.state).irq = Some(context.irq);
        let queues = [
            Some((Work::Inflate, inflate)),
            Some((Work::Deflate, deflate)),
            report.map(|queue| (Work::Report, queue)),
        ];
        let queues = queues.into_iter().flatten().collect();
        Ok(vec![Box::new(BalloonHandler::new(queues, self.released.clone(), context.stop))])
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        let State { target_pages: _, actual, irq } = &mut *state;
        (*actual, *irq) = ([0; 4], None);
    }
}

/// Feature bits (virtio 1.2, 5.5.3).
const DEFLATE_ON_OOM: u32 = 2;
const REPORTING: u32 = 5;

/// Queues (virtio 1.2, 5.5.2): the ones between, for statistics and hints, are left out with their features.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORT: u16 = 2;
const QUEUE_SIZE: u16 = 128;

/// Pages of a balloon are of 4 KiB, whatever the guest's are (virtio 1.2, 5.5.6).
const PAGE_SHIFT: u32 = 12;
/// Where `actual` is in the configuration space.
const ACTUAL: usize = 4;

#[cfg(test)]
mod tests;
