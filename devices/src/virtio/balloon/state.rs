//! The saved state of a balloon: its configuration space. Pages that are given are holes in the guest's
//! memory, and the number of bytes that were returned to this host is the host's.

use serde::{Deserialize, Serialize};

use super::{Balloon, State};
use crate::lock;
use crate::state::{Restoration, SavedState, StateError, at_most};
use crate::virtio::state::{DriverState, SaveDevice};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BalloonState {
    /// The number of pages that the host asks for.
    target_pages: u32,
    /// The number of pages that the driver reports as given, which can be any.
    actual: u32,
}

impl SaveDevice for Balloon {
    fn save(&self) -> SavedState {
        let Self { most_pages: _, state, released: _ } = self;
        let State { target_pages, actual, irq: _ } = *lock(state);
        SavedState::encode(VERSION, &BalloonState { target_pages, actual: u32::from_le_bytes(actual) })
    }

    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError> {
        let BalloonState { target_pages, actual } = state.decode(VERSION)?;
        at_most("target_pages", target_pages, self.most_pages)?;
        // A new target interrupts a driver that has started the device, before it is activated here too.
        let irq = driver.is_active.then(|| driver.irq.clone());
        let state = State { target_pages, actual: actual.to_le_bytes(), irq };
        Ok(Restoration::new(move || *lock(&self.state) = state))
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::saved;
    use crate::virtio::VirtioDevice;
    use crate::virtio::testing::{BUFFERS, Buffer, HIGH_RAM_LEN, LOW_RAM_LEN, Machine};
    use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};

    const RAM: u64 = LOW_RAM_LEN + HIGH_RAM_LEN;

    fn balloon() -> Arc<Balloon> {
        Arc::new(Balloon::new(RAM))
    }

    fn make() -> Arc<dyn VirtioDevice> {
        balloon()
    }

    /// A balloon that asks for 2 MiB, of which its driver has given 300 pages.
    fn used() -> Machine {
        let balloon = balloon();
        let machine = Machine::new(balloon.clone());
        machine.start(0);
        balloon.set_target(2 << 20);
        machine.write(0x104, 300);
        machine.write(0x64, 3);
        machine.transport.pause().unwrap();
        machine
    }

    #[test]
    fn target_and_given_pages_go_along_and_returned_bytes_stay() {
        let machine = used();
        let copy = balloon();
        let fork = machine.fork(copy.clone()).unwrap();
        assert_eq!((fork.read(0x100), fork.read(0x104), fork.read(0xfc)), (512, 300, 1));
        let status = copy.status();
        assert_eq!((status.target_bytes, status.given_bytes), (2 << 20, 300 << 12));
        fork.resume();
        let mut ring = fork.start(0).swap_remove(0);
        fork.put(BUFFERS, &[0, 3, 0, 0]);
        ring.offer(&[Buffer::readable(BUFFERS, 4)]);
        fork.kick(0);
        let second = balloon();
        let _grandchild = fork.fork(second.clone()).unwrap();
        assert_eq!((copy.status().released_bytes, second.status().released_bytes), (4096, 0));
    }

    #[test]
    fn target_that_is_set_before_the_restored_device_goes_on_interrupts_its_driver() {
        let copy = balloon();
        let fork = used().fork(copy.clone()).unwrap();
        assert_eq!((fork.interrupts(), fork.read(0x60)), (0, 0));
        copy.set_target(0);
        assert_eq!((fork.interrupts(), fork.read(0x60), fork.read(0x100)), (1, 2, 0));
        let idle = Machine::new(balloon());
        let copy = balloon();
        let fork = idle.fork(copy.clone()).unwrap();
        copy.set_target(4096);
        assert_eq!((fork.interrupts(), fork.read(0x60), fork.read(0x100)), (0, 0, 1));
    }

    #[test]
    fn version_1_keeps_its_layout() {
        assert_eq!(used().transport.save().unwrap().device, saved(1, &[0x80, 4, 0xac, 2]));
    }

    #[test]
    fn target_above_the_ram_is_refused() {
        let mut state = used().transport.save().unwrap();
        state.device = SavedState::encode(1, &BalloonState { target_pages: 1281, actual: 0 });
        let error = Machine::new(make()).transport.prepare(&state).err().unwrap();
        assert_eq!(error.to_string(), "field `target_pages` is 0x501: at most 0x500");
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        let state = used().transport.save().unwrap();
        refuses_damaged_states(&make, &state);
        survives_any_state(&make, &state);
    }
}
