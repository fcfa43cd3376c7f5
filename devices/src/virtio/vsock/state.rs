//! The saved state of a socket device. Connections belong to the host of the machine that was saved, and so
//! do the ports that programs listen on. The driver of a restored device hears of that by an event.

use serde::{Deserialize, Serialize};

use super::Vsock;
use crate::lock;
use crate::state::{Restoration, SavedState, StateError};
use crate::virtio::state::{DriverState, SaveDevice};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct VsockState {
    /// The guest's address. A restored device may have another one: the driver reads it again after the
    /// event.
    guest_cid: u32,
}

impl SaveDevice for Vsock {
    fn save(&self) -> SavedState {
        let Self { guest_cid, mux: _, switchboard: _ } = self;
        SavedState::encode(VERSION, &VsockState { guest_cid: *guest_cid })
    }

    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError> {
        let VsockState { guest_cid } = state.decode(VERSION)?;
        if !(MIN_CID..u32::MAX).contains(&guest_cid) {
            return Err(StateError::field("guest_cid", guest_cid, "3 to 0xfffffffe"));
        }
        let is_active = driver.is_active;
        Ok(Restoration::new(move || lock(&self.mux).owes_transport_reset = is_active))
    }
}

const VERSION: u16 = 1;
/// The smallest address of a guest (virtio 1.2, section 5.10.4).
const MIN_CID: u32 = 3;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::super::tests::guest::{Guest, header};
    use super::super::tests::{LIMIT, device};
    use super::*;
    use crate::testing::saved;
    use crate::virtio::VirtioDevice;
    use crate::virtio::testing::{BUFFERS, Buffer, Machine};
    use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};
    use crate::virtio::vsock::packet::{Header, Op};

    const EVENT: u64 = BUFFERS + (2 << 20);

    fn make() -> Arc<dyn VirtioDevice> {
        device()
    }

    /// Puts `count` buffers of `len` bytes into the event queue.
    fn offer_events(guest: &mut Guest, count: u64, len: u32) {
        for index in 0..count {
            guest.machine.put(EVENT + index * 16, &[0xee; 16]);
            guest.rings[2].offer(&[Buffer::writable(EVENT + index * 16, len)]);
        }
        guest.machine.kick(2);
    }

    /// A machine whose guest has a connection with bytes on their way in both directions, paused.
    fn used() -> (Guest, std::os::unix::net::UnixStream) {
        let (mut guest, mut host) = Guest::connected(1000, 52);
        offer_events(&mut guest, 2, 8);
        guest.send_data(1000, 52, b"to the host");
        std::io::Write::write_all(&mut host, b"to the guest").unwrap();
        guest.machine.transport.pause().unwrap();
        // Takes what has arrived: the clone has the same ring.
        guest.settle();
        (guest, host)
    }

    fn fork(guest: &Guest, vsock: Arc<Vsock>) -> Guest {
        let machine = guest.machine.fork(vsock.clone()).unwrap();
        let rings = guest.rings.iter().map(|ring| ring.in_memory(machine.memory.clone())).collect();
        Guest::over(machine, vsock, rings)
    }

    #[test]
    fn clone_has_no_connection_and_its_driver_hears_of_that_first() {
        let (mut guest, mut host) = used();
        let vsock = Arc::new(Vsock::new(9, None).unwrap());
        let listener = vsock.switchboard().listen(52).unwrap();
        let mut clone = fork(&guest, vsock);
        clone.machine.resume();
        assert_eq!(clone.rings[2].completed().map(|(_, written)| written), Some(4));
        assert_eq!(clone.machine.bytes(EVENT, 8), [0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
        assert_eq!(clone.rings[2].completed(), None, "one event, although there is another buffer");
        assert_eq!(clone.machine.read(0x100), 9, "the address is that of the clone");
        // The former connection is unknown there, and so is the former address.
        clone.send(&Header { src_cid: 9, len: 1, ..header(Op::Data, 1000, 52) }, b"x");
        assert_eq!(clone.next_of(Op::Reset).0.dst_port, 1000);
        clone.send(&Header { src_cid: 9, ..header(Op::Request, 1001, 52) }, &[]);
        clone.next_of(Op::Response);
        listener.accept_within(LIMIT).unwrap().unwrap();
        // The first machine goes on with its connection.
        guest.machine.resume();
        let mut said = [0; 11];
        host.read_exact(&mut said).unwrap();
        assert_eq!((&said, guest.next_of(Op::Data).1), (b"to the host", b"to the guest".to_vec()));
        assert_eq!(guest.rings[2].completed(), None);
    }

    #[test]
    fn event_waits_for_a_buffer_that_it_fits_into() {
        let (guest, _host) = Guest::connected(1000, 52);
        guest.machine.transport.pause().unwrap();
        let mut clone = fork(&guest, device());
        clone.machine.resume();
        assert_eq!(clone.rings[2].completed(), None);
        offer_events(&mut clone, 1, 3);
        assert_eq!(clone.rings[2].completed().map(|(_, written)| written), Some(3));
        // A clone of the clone has one of its own.
        clone.machine.transport.pause().unwrap();
        let mut next = fork(&clone, device());
        for machine in [&mut clone, &mut next] {
            machine.machine.resume();
            offer_events(machine, 2, 4);
            assert_eq!(machine.rings[2].completed().map(|(_, written)| written), Some(4));
            assert_eq!(machine.rings[2].completed(), None);
        }
        // A driver that starts the device again needs none.
        clone.machine.transport.pause().unwrap();
        let mut last = fork(&clone, device());
        last.machine.resume();
        assert_eq!(last.rings[2].completed().map(|(_, written)| written), Some(4));
        last.machine.transport.pause().unwrap();
        let mut restarted = fork(&last, device());
        restarted.restart();
        offer_events(&mut restarted, 1, 4);
        assert_eq!(restarted.rings[2].completed(), None);
    }

    #[test]
    fn device_without_a_driver_owes_nothing() {
        let vsock = device();
        let idle = Machine::new(device());
        let fork = idle.fork(vsock.clone()).unwrap();
        fork.resume();
        assert!(!lock(&vsock.mux).owes_transport_reset);
    }

    #[test]
    fn version_1_keeps_its_layout_and_addresses_of_others_are_refused() {
        let (guest, _host) = used();
        let mut state = guest.machine.transport.save().unwrap();
        assert_eq!(state.device, saved(1, &[3]));
        for cid in [0, 2, u32::MAX] {
            state.device = SavedState::encode(1, &VsockState { guest_cid: cid });
            let error = Machine::new(make()).transport.prepare(&state).err().unwrap().to_string();
            assert_eq!(error, format!("field `guest_cid` is {cid:#x}: 3 to 0xfffffffe"));
        }
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        let (guest, _host) = used();
        let state = guest.machine.transport.save().unwrap();
        refuses_damaged_states(&make, &state);
        survives_any_state(&make, &state);
    }
}
