//! Memory balloon (virtio 1.2, section 5.5): memory that the guest does not need returns to the host.
//!
//! Memory returns in two ways. In free page reporting, the guest reports free pages by itself, and takes a
//! page back by touching it. In ballooning, the host sets a target in pages, and the guest gives up pages, or
//! takes some back, until it has given that many. In both cases the pages remain RAM of the guest. Until the
//! guest writes to them, they read as zero, or as the content of the file that its RAM maps privately. Both
//! are permitted: the device may change the content of given and of reported pages before it answers (virtio
//! 1.2, sections 5.5.6.2 and 5.5.6.7.2), unless `PAGE_POISON` is negotiated, which the device does not offer.
//!
//! A guest can harm only itself: it names the pages, and the device checks that they are its RAM.

mod handler;
mod release;
mod state;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock;
use crate::virtio::state::SaveDevice;
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice, VirtioIrq};
use handler::{BalloonHandler, Work};

/// A balloon by which the host can ask for memory.
#[derive(Debug)]
pub struct Balloon {
    /// The number of pages of RAM, which is the largest target.
    most_pages: u32,
    state: Mutex<State>,
    /// The bytes that have been returned to the host. A page that is returned again counts again.
    released: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of pages that the host asks for.
    target_pages: u32,
    /// The number of pages that the driver reports as given, as little-endian bytes.
    actual: [u8; 4],
    /// Tells the driver about a new target; `None` while there is no driver.
    irq: Option<VirtioIrq>,
}

/// The state of a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonStatus {
    /// The bytes that the host asks for.
    pub target_bytes: u64,
    /// The bytes that the guest reports as given.
    pub given_bytes: u64,
    /// The bytes that have been returned to the host in both ways. Memory that the guest takes back and gives
    /// again counts again.
    pub released_bytes: u64,
}

impl Balloon {
    /// Makes a balloon for a machine with `ram_bytes` of RAM. It asks for nothing yet.
    pub fn new(ram_bytes: u64) -> Self {
        let most_pages = u32::try_from(ram_bytes >> PAGE_SHIFT).unwrap_or(u32::MAX);
        Self { most_pages, state: Mutex::default(), released: Arc::default() }
    }

    /// Asks the guest for `bytes`, rounded down to whole pages and limited to its RAM. The guest gives them
    /// in its own time, as far as it can spare them.
    pub fn set_target(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.target_pages = u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX).min(self.most_pages);
        if let Some(irq) = &state.irq {
            irq.config();
        }
    }

    /// Returns the state of the balloon.
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

    /// The configuration space (virtio 1.2, section 5.5.4): `num_pages` and `actual`.
    fn config(&self) -> Vec<u8> {
        let state = lock(&self.state);
        [state.target_pages.to_le_bytes(), state.actual].concat()
    }

    /// Takes a write of `actual`. The driver can only read the rest.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let target = at.checked_sub(ACTUAL).and_then(|at| state.actual.get_mut(at));
            if let Some(target) = target {
                *target = *byte;
            }
        }
    }

    /// The host needs a while to take back much memory.
    fn blocks(&self) -> bool {
        true
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let inflate = context.queues.take(INFLATE)?;
        let deflate = context.queues.take(DEFLATE)?;
        // A driver that does not report free pages does not set up this queue.
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

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

/// Feature bits (virtio 1.2, section 5.5.3).
const DEFLATE_ON_OOM: u32 = 2;
const REPORTING: u32 = 5;

/// Queue numbers (virtio 1.2, section 5.5.2). The queues for statistics and free page hints do not exist,
/// because their features are not offered.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORT: u16 = 2;
const QUEUE_SIZE: u16 = 128;

/// Pages of a balloon have 4 KiB, whatever the guest's page size is (virtio 1.2, section 5.5.6).
const PAGE_SHIFT: u32 = 12;
/// The offset of `actual` in the configuration space.
const ACTUAL: usize = 4;

#[cfg(test)]
mod tests;
