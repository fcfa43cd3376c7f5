//! Saved states of devices that somebody else has written. A device refuses one, or is in a state that it
//! could have had, and works.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use coracle_devices::backend::net::Stream;
use coracle_devices::state::SavedState;
use coracle_devices::virtio::VirtioDevice;
use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::console::{Console, ConsolePort, StreamPort};
use coracle_devices::virtio::net::{MacAddress, Net, NetSettings};
use coracle_devices::virtio::poll::Poll;
use coracle_devices::virtio::rng::Rng;
use coracle_devices::virtio::state::SavedDevice;
use coracle_devices::virtio::testing::{HIGH_RAM_LEN, LOW_RAM_LEN, Machine};
use coracle_devices::virtio::vsock::Vsock;

use super::virtio_block;

/// `data` is the device, the number of bytes of its transport's state (16 bits), these bytes, and those of
/// the device itself.
pub fn virtio_state(data: &[u8]) {
    let &[which, low, high, ref rest @ ..] = data else { return };
    let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
    let (transport, device) = rest.split_at(len);
    let state = SavedDevice { transport: saved(transport), device: saved(device) };
    let machine = Machine::new(make(which));
    let before = machine.transport.save();
    let Ok(restoration) = machine.transport.prepare(&state) else {
        assert_eq!(machine.transport.save(), before);
        return;
    };
    restoration.apply();
    let state = machine.transport.save();
    assert!(state.is_some());
    assert_eq!(machine.fork(make(which)).unwrap().transport.save(), state);
    for queue in 0..machine.queue_count() {
        machine.resume();
        machine.kick(queue);
        assert!(machine.transport.pause().is_ok() && machine.transport.save().is_some());
    }
    machine.start(0);
    assert_eq!(machine.status(), 15);
}

fn make(which: u8) -> Arc<dyn VirtioDevice> {
    match which % 8 {
        0 => Arc::new(Rng),
        1 => Arc::new(Balloon::new(LOW_RAM_LEN + HIGH_RAM_LEN)),
        2 => Arc::new(Console::new(Arc::new(ConsolePort::new().unwrap()))),
        3 => Arc::new(Console::stream_only(Arc::new(StreamPort::new("port").unwrap())).unwrap()),
        4 => Arc::new(net()),
        5 => Arc::new(Vsock::new(3, None).unwrap()),
        writes => virtio_block::block(writes == 6),
    }
}

/// A card whose other end is gone at once.
fn net() -> Net {
    let (ours, _) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
    let settings = NetSettings { name: "net".into(), mac, mtu: None, poll: Poll::DEFAULT };
    Net::new(settings, Box::new(Stream::new(ours)))
}

fn saved(bytes: &[u8]) -> SavedState {
    serde_json::from_value(serde_json::json!({ "version": 1, "bytes": bytes })).unwrap()
}
