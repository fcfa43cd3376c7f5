//! A driver that sends requests of any kind, in any frame, to a disk.

use std::io;
use std::sync::{Arc, Mutex};

use coracle_devices::backend::disk::DiskBackend;
use coracle_devices::memory::Span;
use coracle_devices::virtio::blk::{Block, BlockSettings, Engine, FaultAction, FaultSink, Operation};
use coracle_devices::virtio::poll::Poll;
use coracle_devices::virtio::testing::{BUFFERS, Buffer, Machine};

/// The first byte chooses the disk; the rest is a list of requests of 16 bytes: type, frame, length of the
/// data (16 bits), flags of a range (32 bits), sector (64 bits).
pub fn virtio_block(data: &[u8]) {
    let Some((&choice, requests)) = data.split_first() else { return };
    let (disk, block) = make(choice & 1 == 1, choice & 2 == 2, 1);
    let machine = Machine::new(block);
    let mut rings = machine.start(0);
    for request in requests.chunks_exact(16).take(MAX_REQUESTS) {
        let (&[kind, frame, low, high, ref flags @ ..], sector) = request.split_at(8) else { return };
        let kind = TYPES[usize::from(kind) % TYPES.len()];
        let len = u32::from(u16::from_le_bytes([low, high]));
        let header = [&kind.to_le_bytes()[..], &[0; 4], sector].concat();
        let range = [sector, &len.to_le_bytes(), flags].concat();
        machine.put(BUFFERS, &header);
        machine.put(BUFFERS + 16, &range);
        let head = rings[0].offer(&buffers(frame, len));
        machine.kick(0);
        match rings[0].completed() {
            Some((id, _)) => assert_eq!(id, u32::from(head)),
            // Held, or in need of a reset.
            None => rings = machine.start(0),
        }
        assert_eq!(disk.blocks.lock().unwrap().len(), CAPACITY);
    }
    let is_zero = disk.blocks.lock().unwrap().iter().all(|byte| *byte == 0);
    assert!(is_zero || !disk.is_read_only, "a read-only disk was written");
}

/// A disk, and the device in front of it.
fn make(is_read_only: bool, holds: bool, queues: u16) -> (Arc<Disk>, Arc<Block>) {
    let disk = Arc::new(Disk { blocks: Mutex::new(vec![0; CAPACITY]), is_read_only });
    let settings = BlockSettings {
        poll: Poll::DEFAULT,
        name: "disk".into(),
        id: "fuzz".into(),
        queues,
        engine: Engine::Sync,
        backend: Box::new(Shared(disk.clone())),
        faults: Arc::new(Faults { holds }),
    };
    (disk, Arc::new(Block::new(settings)))
}

/// Returns a disk with two queues for other targets.
pub(crate) fn block(is_read_only: bool) -> Arc<Block> {
    make(is_read_only, false, 2).1
}

/// A request cut in one of several ways; the data of both directions follows the header in RAM.
fn buffers(frame: u8, len: u32) -> Vec<Buffer> {
    let data = BUFFERS + 0x1000;
    let status = Buffer::writable(BUFFERS + 0x800, 1);
    let header = Buffer::readable(BUFFERS, 16);
    match frame % 8 {
        0 => vec![header, Buffer::writable(data, len), status],
        1 => vec![header, Buffer::readable(data, len), status],
        2 => vec![header, Buffer::readable(BUFFERS + 16, 16), status],
        3 => vec![header, status],
        4 => vec![Buffer::readable(BUFFERS, len), Buffer::writable(data, len)],
        5 => (0..16).map(|at| Buffer { address: data + at, len: len / 16, writable: at > 8 }).collect(),
        6 => vec![Buffer::readable(BUFFERS, len % 20), status],
        _ => vec![header, Buffer::writable(data, len), Buffer::writable(data + 0x10000, len)],
    }
}

/// Blocks in memory that trust nobody: the device has to check every range before it asks.
struct Disk {
    blocks: Mutex<Vec<u8>>,
    is_read_only: bool,
}

struct Shared(Arc<Disk>);

impl Shared {
    fn range(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let end = offset.checked_add(len).expect("a range that does not wrap");
        assert!(end <= CAPACITY as u64, "{len} bytes at {offset} are outside the disk");
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
        offset as usize..end as usize
    }
}

impl DiskBackend for Shared {
    fn capacity(&self) -> u64 {
        CAPACITY as u64
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        let mut at = self.range(offset, spans.iter().map(|span| u64::from(span.len())).sum()).start;
        for span in spans {
            at += span.write(0, &self.0.blocks.lock().unwrap()[at..at + span.len() as usize]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        assert!(!self.is_read_only());
        let mut at = self.range(offset, spans.iter().map(|span| u64::from(span.len())).sum()).start;
        if offset == BAD_SECTOR * 512 {
            return Err(io::Error::from_raw_os_error(28));
        }
        for span in spans {
            at += span.read(0, &mut self.0.blocks.lock().unwrap()[at..at + span.len() as usize]);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<u64> {
        assert!(!self.is_read_only());
        self.0.blocks.lock().unwrap()[self.range(offset, len)].fill(0);
        Ok(len)
    }

    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()> {
        self.range(offset, len);
        Ok(())
    }
}

struct Faults {
    holds: bool,
}

impl FaultSink for Faults {
    fn failed(&self, _: Operation, _: &io::Error) -> FaultAction {
        if self.holds { FaultAction::Hold } else { FaultAction::Report }
    }
}

const CAPACITY: usize = 64 << 10;
/// A sector that cannot be written.
const BAD_SECTOR: u64 = 13;
const TYPES: [u32; 9] = [0, 1, 4, 8, 10, 11, 13, 14, 0x8000_0001];
const MAX_REQUESTS: usize = 500;
