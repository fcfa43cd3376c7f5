//! The saved state of a network card: its address, and what its driver has switched. Frames stay where they
//! are: the guest's in its memory, and the host's at the end of the first card.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{CTRL_GUEST_OFFLOADS, Card, MacAddress, Net};
use crate::lock;
use crate::state::{Restoration, SavedState, StateError, only_bits};
use crate::virtio::state::{DriverState, SaveDevice};

/// Version 1 of the state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NetState {
    /// The present address.
    mac: [u8; 6],
    /// The offloads that the driver has left on, as feature bits; `None` if it has switched none.
    offloads: Option<u64>,
    /// Whether the link was up, as the driver may know.
    is_up: bool,
}

impl SaveDevice for Net {
    fn save(&self) -> SavedState {
        let Self { settings: _, possible: _, backend: _, card } = self;
        let Card { name: _, mac, offloads, is_up, config_is_new: _, counters: _, poll: _ } = &**card;
        let (mac, offloads) = (lock(mac).bytes(), *lock(offloads));
        SavedState::encode(VERSION, &NetState { mac, offloads, is_up: is_up.load(Ordering::Acquire) })
    }

    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError> {
        let NetState { mac, offloads, is_up } = state.decode(VERSION)?;
        let number = mac.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let mac = MacAddress::new(mac);
        let mac = mac.ok_or_else(|| StateError::field("mac", number, "the address of one card"))?;
        if let Some(offloads) = offloads {
            let allowed = if driver.uses(CTRL_GUEST_OFFLOADS) { driver.features } else { 0 };
            only_bits("offloads", offloads, allowed)?;
        }
        let is_active = driver.is_active;
        Ok(Restoration::new(move || {
            *lock(&self.card.mac) = mac;
            *lock(&self.card.offloads) = offloads.filter(|_| is_active);
            // The link of this card is that of its own end.
            let changed = self.card.is_up.load(Ordering::Acquire) != is_up;
            self.card.config_is_new.store(changed && is_active, Ordering::Release);
        }))
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;
    use crate::backend::net::Stream;
    use crate::testing::saved;
    use crate::virtio::VirtioDevice;
    use crate::virtio::net::NetSettings;
    use crate::virtio::poll::Poll;
    use crate::virtio::testing::{BUFFERS, Buffer, Machine};
    use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};

    /// A card, and the program at its other end.
    fn card() -> (Arc<Net>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let settings = NetSettings { name: "net".into(), mac, mtu: None, poll: Poll::DEFAULT };
        (Arc::new(Net::new(settings, Box::new(Stream::new(ours)))), theirs)
    }

    fn make() -> Arc<dyn VirtioDevice> {
        card().0
    }

    /// Sets the address to 02:00:00:00:00:07.
    fn set_address(machine: &Machine, rings: &mut [crate::virtio::testing::Ring]) {
        machine.put(BUFFERS, &[1, 1, 2, 0, 0, 0, 0, 7]);
        rings[2].offer(&[Buffer::readable(BUFFERS, 8), Buffer::writable(BUFFERS + 16, 1)]);
        machine.kick(2);
        assert_eq!(machine.bytes(BUFFERS + 16, 1), [0]);
    }

    fn used() -> (Machine, UnixStream) {
        let (net, peer) = card();
        let machine = Machine::new(net);
        let mut rings = machine.start(0);
        set_address(&machine, &mut rings);
        machine.transport.pause().unwrap();
        (machine, peer)
    }

    #[test]
    fn address_goes_along_and_a_driver_that_resets_the_card_gets_the_first_one() {
        let (machine, _peer) = used();
        let (net, _other) = card();
        let fork = machine.fork(net).unwrap();
        assert_eq!(fork.read(0x104) & 0xffff, 0x0700);
        fork.resume();
        fork.start(0);
        assert_eq!(fork.read(0x104) & 0xffff, 0x0100);
    }

    #[test]
    fn card_with_an_address_of_its_own_shows_it_and_tells_the_driver() {
        let (machine, _peer) = used();
        let (net, _other) = card();
        let fork = machine.fork(net.clone()).unwrap();
        assert_eq!(net.present_mac().to_string(), "02:00:00:00:00:07");
        net.renew_mac();
        assert_eq!(net.present_mac(), net.mac());
        assert_eq!(fork.read(0x104) & 0xffff, 0x0100);
        let (_, generation) = (fork.interrupts(), fork.read(0xfc));
        fork.resume();
        assert!(fork.interrupts() > 0 && fork.read(0x60) & 2 == 2);
        assert_ne!(fork.read(0xfc), generation, "a driver in the middle of the address reads it again");
        // The same address is not news.
        fork.write(0x64, 3);
        fork.transport.pause().unwrap();
        let (net, _third) = card();
        let fork = fork.fork(net.clone()).unwrap();
        net.renew_mac();
        fork.resume();
        assert_eq!(fork.read(0x60) & 2, 0);
    }

    #[test]
    fn link_that_is_up_again_is_news_for_the_driver() {
        let (machine, peer) = used();
        machine.resume();
        drop(peer);
        machine.settle();
        assert_eq!(machine.read(0x104) >> 16, 0, "it is down");
        machine.write(0x64, 3);
        machine.transport.pause().unwrap();
        let (net, _other) = card();
        let fork = machine.fork(net).unwrap();
        let before = fork.interrupts();
        fork.resume();
        assert!(fork.interrupts() > before && fork.read(0x60) & 2 == 2);
        assert_eq!(fork.read(0x104) >> 16, 1);
        // A link that was up is not news.
        fork.write(0x64, 3);
        fork.transport.pause().unwrap();
        let (net, _third) = card();
        let fork = fork.fork(net).unwrap();
        fork.resume();
        assert_eq!(fork.read(0x60) & 2, 0);
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let (machine, _peer) = used();
        let mut state = machine.transport.save().unwrap();
        assert_eq!(state.device, saved(1, &[2, 0, 0, 0, 0, 7, 0, 1]));
        let mut refused = |state_of: NetState| {
            state.device = SavedState::encode(1, &state_of);
            Machine::new(make()).transport.prepare(&state).err().unwrap().to_string()
        };
        let error = refused(NetState { mac: [1, 0, 0, 0, 0, 7], offloads: None, is_up: true });
        assert_eq!(error, "field `mac` is 0x10000000007: the address of one card");
        let error = refused(NetState { mac: [2, 0, 0, 0, 0, 7], offloads: Some(2), is_up: true });
        assert_eq!(error, "field `offloads` is 0x2: only the bits of 0x0 can be set");
    }

    #[test]
    fn hostile_states_are_refused_or_harmless() {
        let (machine, _peer) = used();
        let state = machine.transport.save().unwrap();
        refuses_damaged_states(&make, &state);
        survives_any_state(&make, &state);
    }
}
