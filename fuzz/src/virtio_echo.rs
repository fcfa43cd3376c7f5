//! A device for the targets of rings and transports: reads what a driver says, and writes what there is room
//! for.

use std::sync::Arc;

use coracle_devices::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};
use coracle_devices::virtio::state::{DriverState, SaveDevice};
use coracle_devices::virtio::testing::Machine;
use coracle_devices::virtio::{
    ActivateContext, ActivateError, DeviceKind, QueueHandler, RingError, VirtQueue, VirtioDevice,
    watch_doorbell,
};
use event_manager::{EventOps, Events};

/// Two queues, of which the driver may leave out the second.
pub struct Echo;

/// A machine with it.
pub fn machine() -> Machine {
    Machine::new(Arc::new(Echo))
}

struct Handler(Vec<VirtQueue>);

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn name(&self) -> String {
        "echo".into()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 64]
    }

    fn config(&self) -> Vec<u8> {
        vec![7; 13]
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let first = context.queues.take(0)?;
        Ok(vec![Box::new(Handler(std::iter::once(first).chain(context.queues.into_rest()).collect()))])
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

impl SaveDevice for Echo {
    fn save(&self) -> SavedState {
        no_state()
    }

    fn prepare(&self, state: &SavedState, _: &DriverState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        self.0.iter().for_each(|queue| watch_doorbell(sources, queue, queue.index().into()));
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        let queue = self.0.iter_mut().find(|queue| u32::from(queue.index()) == event.data()).unwrap();
        queue.begin();
        let mut chains = 0;
        while let Some(mut chain) = queue.pop()? {
            chains += 1;
            assert!(chains <= queue.size(), "one drain takes what the queue holds at most");
            let (mut left, mut bytes) = (chain.readable.len(), [0; 256]);
            let sum: u64 = chain.readable.spans().iter().map(|span| u64::from(span.len())).sum();
            assert_eq!(sum, left);
            chain.readable.skip(left.saturating_sub(4096));
            while chain.readable.read(&mut bytes) > 0 {
                assert!(chain.readable.len() < left);
                left = chain.readable.len();
            }
            let written = chain.writable.write(&[0x5a; 300]);
            let rest = chain.writable.len();
            assert_eq!(chain.writable.split_last().is_some(), rest > 0);
            queue.complete(chain, written as u32);
        }
        queue.finish()?;
        assert_eq!(queue.in_flight(), 0);
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        self.0
    }
}
