//! A driver that says anything on the control queues of a console with two ports, while the program of the
//! host accepts, reads, writes and closes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use coracle_devices::backend::console_input::ConsoleInput;
use coracle_devices::virtio::console::{Console, ConsolePort, StreamPort, TerminalSize};
use coracle_devices::virtio::testing::{BUFFERS, Buffer, Machine, Ring};

/// `data` is a list of steps of 8 bytes: action, port, event, value, two lengths of 16 bits.
pub fn virtio_console(data: &[u8]) {
    let (port, stream) = (Arc::new(ConsolePort::new().unwrap()), Arc::new(StreamPort::new("port").unwrap()));
    let listener = stream.listen().unwrap();
    let mut guest = Guest::new(Console::with_stream(port.clone(), stream));
    let mut host: Vec<UnixStream> = Vec::new();
    for step in data.chunks_exact(8).take(MAX_STEPS) {
        let &[action, number, event, value, low, high, low1, high1] = step else { return };
        let lens = [[low, high], [low1, high1]].map(u16::from_le_bytes).map(u32::from);
        match action % 16 {
            0 => {
                let stream = listener.accept_within(Duration::ZERO).unwrap();
                host.extend(stream.inspect(|stream| stream.set_nonblocking(true).unwrap()));
            }
            1 => drop(host.pop()),
            2 => host.iter_mut().for_each(|stream| drop(stream.read(&mut [0; 8192]))),
            3 => host.iter_mut().for_each(|stream| drop(stream.write(&vec![7; lens[0] as usize]))),
            4 => drop(port.enqueue_input(&vec![7; lens[0] as usize])),
            5 => port.resize(TerminalSize { columns: number.into(), rows: event.into() }),
            6 => drop(port.output().drain(<[u8]>::len)),
            7 => {
                assert!(guest.machine.transport.pause().is_ok());
                guest.machine.transport.resume();
            }
            8 if number == 0xff => guest.start(),
            // Buffers for what the device gives, and what it takes.
            9..=11 => guest.offer(usize::from(number % 3) * 2, &lens.map(|len| Buffer::writable(ROOM, len))),
            12 | 13 => {
                guest.offer(usize::from(number % 2) * 4 + 1, &lens.map(|len| Buffer::readable(BUFFERS, len)));
            }
            _ => {
                guest.machine.put(MESSAGE, &[number % 4, 0, 0, 0, event % 9, 0, value, 0]);
                guest.offer(3, &[Buffer::readable(MESSAGE, 8)]);
            }
        }
        guest.collect();
        assert!(!guest.machine.needs_reset());
    }
}

struct Guest {
    machine: Machine,
    rings: Vec<Ring>,
    /// Chains that the device has, of each ring.
    in_flight: [u16; 6],
}

impl Guest {
    fn new(console: Console) -> Self {
        let machine = Machine::new(Arc::new(console));
        let rings = machine.start(0);
        Self { machine, rings, in_flight: [0; 6] }
    }

    fn start(&mut self) {
        self.rings = self.machine.start(0);
        self.in_flight = [0; 6];
    }

    /// Offers a chain where there are descriptors for it.
    fn offer(&mut self, queue: usize, buffers: &[Buffer]) {
        if self.in_flight[queue] < self.rings[queue].size() / 2 {
            self.in_flight[queue] += 1;
            self.rings[queue].offer(buffers);
            self.machine.kick(queue as u16);
        }
    }

    /// Takes what comes back: a control message is never cut.
    fn collect(&mut self) {
        self.machine.settle();
        for (index, (ring, in_flight)) in self.rings.iter_mut().zip(&mut self.in_flight).enumerate() {
            while let Some((_, len)) = ring.completed() {
                *in_flight -= 1;
                assert!(index != 2 || len == 0 || (8..=12).contains(&len), "{len} bytes are not a message");
                assert!(index % 2 == 0 || len == 0, "the device has written to what it reads");
            }
        }
    }
}

const ROOM: u64 = BUFFERS + (1 << 20);
const MESSAGE: u64 = BUFFERS + (2 << 20);
const MAX_STEPS: usize = 400;
