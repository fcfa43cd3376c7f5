//! The block device through its ring: valid and invalid requests of a driver. The modules below have hosts
//! that fail, stops, and a comparison of the two engines.

mod engines;
mod faults;
mod forks;
mod stopping;

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::backend::disk::{FileLock, Overlay, OverlayLayer, OverlaySize, RawDisk};
use crate::memory::Span;
use crate::virtio::poll::Poll;
use crate::virtio::testing::{BUFFERS, Buffer, HIGH_RAM, LOW_RAM_LEN, Machine, Ring, Usual, conform};
use coracle_arch::nameless_file;
use vmm_sys_util::tempdir::TempDir;

const SECTORS: u64 = 64;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS_AT: u64 = BUFFERS + 0x800;

/// Records faults, and answers as configured.
#[derive(Default)]
struct Faults {
    hold: bool,
    seen: Mutex<Vec<Operation>>,
}

impl FaultSink for Faults {
    fn failed(&self, operation: Operation, _: &io::Error) -> FaultAction {
        self.seen.lock().unwrap().push(operation);
        if self.hold { FaultAction::Hold } else { FaultAction::Report }
    }
}

struct Bench {
    folder: TempDir,
    machine: Machine,
    rings: Vec<Ring>,
    faults: Arc<Faults>,
}

fn settings(engine: Engine, backend: Box<dyn DiskBackend>, faults: Arc<Faults>) -> BlockSettings {
    let poll = Poll::DEFAULT;
    BlockSettings {
        name: "disk test".into(),
        id: "serial-1".into(),
        queues: 2,
        engine,
        poll,
        backend,
        faults,
    }
}

fn content() -> Vec<u8> {
    (0..SECTORS * 512).map(|at| (at / 512 + 1) as u8).collect()
}

fn folder() -> TempDir {
    let folder = TempDir::new_in("/var/tmp".as_ref()).unwrap();
    fs::write(folder.as_path().join("disk"), content()).unwrap();
    folder
}

fn raw(folder: &TempDir, lock: FileLock) -> Box<dyn DiskBackend> {
    Box::new(RawDisk::open(&folder.as_path().join("disk"), lock).unwrap())
}

impl Bench {
    fn new(lock: FileLock) -> Self {
        let folder = folder();
        let backend = raw(&folder, lock);
        Self::with(folder, backend, Faults::default())
    }

    fn with(folder: TempDir, backend: Box<dyn DiskBackend>, faults: Faults) -> Self {
        Self::of(Engine::Sync, folder, backend, faults)
    }

    fn of(engine: Engine, folder: TempDir, backend: Box<dyn DiskBackend>, faults: Faults) -> Self {
        let faults = Arc::new(faults);
        let machine = Machine::new(Arc::new(Block::new(settings(engine, backend, faults.clone()))));
        let rings = machine.start(0);
        Self { folder, machine, rings, faults }
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.folder.as_path().join("disk")).unwrap()
    }

    /// Sends `buffers` as they are. Returns the used length and the byte at [`STATUS_AT`].
    #[track_caller]
    fn send(&mut self, buffers: &[Buffer]) -> (u32, u8) {
        self.machine.put(STATUS_AT, &[0xee]);
        let head = self.rings[0].offer(buffers);
        self.machine.kick(0);
        let (id, len) = self.completion(0);
        assert_eq!(id, u32::from(head));
        (len, self.machine.bytes(STATUS_AT, 1)[0])
    }

    /// Returns the next completion of a queue. The host may take its time for it.
    #[track_caller]
    fn completion(&mut self, queue: usize) -> (u32, u32) {
        let start = Instant::now();
        loop {
            self.machine.settle();
            if let Some(completed) = self.rings[queue].completed() {
                return completed;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no completion");
        }
    }

    /// Sends a whole request in the usual framing, and returns its status.
    #[track_caller]
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        self.header(kind, sector);
        let frame = [&[Buffer::readable(BUFFERS, 16)], data, &[Buffer::writable(STATUS_AT, 1)]].concat();
        self.send(&frame).1
    }

    fn header(&self, kind: u32, sector: u64) {
        self.machine.put(BUFFERS, &header(kind, sector));
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSHING: u32 = 4;
const ID: u32 = 8;
const DISCARDING: u32 = 11;
const ZEROING: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A request of the usual kind.
fn reading() -> Usual {
    Usual {
        queue: 1,
        prepare: |machine| machine.put(BUFFERS, &header(READ, 3)),
        buffers: vec![
            Buffer::readable(BUFFERS, 16),
            Buffer::writable(DATA, 512),
            Buffer::writable(STATUS_AT, 1),
        ],
    }
}

#[test]
fn conforms() {
    let folder = folder();
    let make = || {
        let file = nameless_file::create_in(folder.as_path()).unwrap();
        let layer = OverlayLayer { file, folder: folder.as_path() };
        let overlay = Overlay::open(&folder.as_path().join("disk"), layer, OverlaySize::Unlimited);
        let backend: Box<dyn DiskBackend> = Box::new(overlay.unwrap());
        Arc::new(Block::new(settings(Engine::Sync, backend, Arc::default()))) as Arc<dyn VirtioDevice>
    };
    conform(&make, &reading());
}

/// Conformance with io_uring. Where io_uring is not allowed, the device does without it, and has to conform
/// as well.
#[test]
fn conforms_with_a_ring() {
    let folder = folder();
    let make = || {
        // Without a lock, so that two devices can open it: the requests of the suite only read.
        let backend = raw(&folder, FileLock::Shared);
        Arc::new(Block::new(settings(Engine::IoUring, backend, Arc::default()))) as Arc<dyn VirtioDevice>
    };
    conform(&make, &reading());
}

#[test]
fn configuration_has_size_limits_and_queues() {
    let bench = Bench::new(FileLock::Exclusive);
    let config: Vec<u8> =
        (0..60).step_by(4).flat_map(|at| bench.machine.read(0x100 + at).to_le_bytes()).collect();
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4)), (SECTORS as u32, 0));
    assert_eq!((word(12), word(20), config[34]), (254, 512, 2));
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 1, 8));
    assert_eq!((word(48), word(52), config[56]), (1 << 21, 1, 1));
    let offered = bench.machine.offered() & 0xff_ffff;
    assert_eq!(offered, 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14);
    let offered = Bench::new(FileLock::Shared).machine.offered() & 0xff_ffff;
    assert_eq!(offered, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 12);
}

#[test]
fn sectors_are_read_and_written() {
    let mut bench = Bench::new(FileLock::Exclusive);
    assert_eq!(bench.ask(READ, 5, &[Buffer::writable(DATA, 1024)]), OK);
    assert_eq!(bench.machine.bytes(DATA, 1024), content()[5 * 512..7 * 512]);
    bench.machine.put(DATA, &[0xab; 512]);
    assert_eq!(bench.ask(WRITE, SECTORS - 1, &[Buffer::readable(DATA, 512)]), OK);
    assert_eq!(bench.ask(FLUSHING, 0, &[]), OK);
    let mut expected = content();
    expected[63 * 512..].fill(0xab);
    assert!(bench.file() == expected);
}

#[test]
fn any_framing_is_understood() {
    let mut bench = Bench::new(FileLock::Exclusive);
    // Buffers that contain a part of the header, parts of header and data, or data and status.
    let pieces: Vec<Buffer> = (0..16).map(|at| Buffer::readable(BUFFERS + at, 1)).collect();
    bench.header(READ, 2);
    let frame = [&pieces[..13], &[Buffer::readable(BUFFERS + 13, 3), Buffer::writable(STATUS_AT - 512, 513)]]
        .concat();
    assert_eq!(bench.send(&frame), (513, OK));
    assert_eq!(bench.machine.bytes(STATUS_AT - 512, 512), content()[1024..1536]);

    let sector = [7_u8; 512];
    bench.machine.put(BUFFERS, &[header(WRITE, 9), sector.to_vec()].concat());
    let frame = [
        Buffer::readable(BUFFERS, 1),
        Buffer::readable(BUFFERS + 1, 20),
        Buffer::readable(0, 0),
        Buffer::readable(BUFFERS + 21, 507),
        Buffer::writable(STATUS_AT, 1),
    ];
    assert_eq!(bench.send(&frame), (1, OK));
    assert!(bench.file()[9 * 512..10 * 512] == sector);
}

#[test]
fn ranges_outside_the_disk_are_errors() {
    let mut bench = Bench::new(FileLock::Exclusive);
    let before = bench.file();
    let sectors = [
        SECTORS - 1,
        SECTORS,
        SECTORS + 1,
        1 << 55,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    for sector in sectors {
        assert_eq!(bench.ask(READ, sector, &[Buffer::writable(DATA, 1024)]), IOERR, "{sector}");
        assert_eq!(bench.ask(WRITE, sector, &[Buffer::readable(DATA, 1024)]), IOERR, "{sector}");
        for kind in [DISCARDING, ZEROING] {
            bench.machine.put(DATA, &range(sector, 2, 0));
            assert_eq!(bench.ask(kind, 0, &[Buffer::readable(DATA, 16)]), IOERR, "{sector}");
        }
    }
    assert!(bench.file() == before);
    assert!(bench.faults.seen.lock().unwrap().is_empty(), "no call went to the host");
}

#[test]
fn data_of_odd_length_is_an_error_and_no_data_is_not() {
    let mut bench = Bench::new(FileLock::Exclusive);
    for len in [1, 511, 513, 1023] {
        assert_eq!(bench.ask(READ, 0, &[Buffer::writable(DATA, len)]), IOERR);
        assert_eq!(bench.ask(WRITE, 0, &[Buffer::readable(DATA, len)]), IOERR);
    }
    assert_eq!(bench.ask(READ, 0, &[]), OK);
    assert_eq!(bench.ask(WRITE, SECTORS, &[]), OK);
    let whole: Vec<Buffer> = (0..12).map(|_| Buffer::writable(0, LOW_RAM_LEN as u32)).collect();
    assert_eq!(bench.ask(READ, 0, &whole), IOERR, "48 MiB are too much for one request");
    assert!(bench.file() == content());
}

#[test]
fn missing_header_or_status_is_survived() {
    let mut bench = Bench::new(FileLock::Exclusive);
    bench.header(WRITE, 0);
    let status = Buffer::writable(STATUS_AT, 1);
    assert_eq!(bench.send(&[status]), (1, IOERR), "no header");
    assert_eq!(bench.send(&[Buffer::readable(BUFFERS, 15), status]), (1, IOERR), "a short one");
    assert_eq!(bench.send(&[Buffer::readable(BUFFERS, 16)]), (0, 0xee), "no status");
    assert_eq!(
        bench.send(&[Buffer::readable(BUFFERS, 528)]),
        (0, 0xee),
        "data, and a status that is not writable"
    );
    assert_eq!(bench.send(&[Buffer::readable(BUFFERS, 16), Buffer::writable(STATUS_AT, 0)]), (0, 0xee));
    bench.header(READ, 0);
    assert_eq!(bench.send(&[Buffer::readable(BUFFERS, 16), Buffer::writable(STATUS_AT, 1)]), (1, OK));
    assert!(bench.file() == content());
}

#[test]
fn unknown_requests_and_flags_are_not_supported() {
    let mut bench = Bench::new(FileLock::Exclusive);
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.ask(kind, 0, &[Buffer::writable(DATA, 512)]), UNSUPP, "{kind}");
    }
    for (kind, flags) in [(DISCARDING, 1), (DISCARDING, 2), (ZEROING, 2), (ZEROING, 3), (ZEROING, u32::MAX)] {
        bench.machine.put(DATA, &range(0, 1, flags));
        assert_eq!(bench.ask(kind, 0, &[Buffer::readable(DATA, 16)]), UNSUPP, "{kind} {flags}");
    }
    assert!(bench.file() == content());
}

#[test]
fn requests_that_were_not_negotiated_are_unsupported() {
    let mut bench = Bench::new(FileLock::Exclusive);
    bench.rings = bench.machine.start(1 << DISCARD | 1 << WRITE_ZEROES);
    for kind in [DISCARDING, ZEROING] {
        bench.machine.put(DATA, &range(0, 1, 0));
        assert_eq!(bench.ask(kind, 0, &[Buffer::readable(DATA, 16)]), UNSUPP);
    }
    assert!(bench.file() == content());
}

#[test]
fn zeroes_are_written_and_ranges_have_one_segment() {
    let mut bench = Bench::new(FileLock::Exclusive);
    for (sector, sectors, flags) in [(1, 2, 0), (8, 16, 1), (64, 0, 0)] {
        bench.machine.put(DATA, &range(sector, sectors, flags));
        assert_eq!(bench.ask(ZEROING, 0, &[Buffer::readable(DATA, 16)]), OK);
    }
    bench.machine.put(DATA, &range(40, 8, 0));
    assert_eq!(bench.ask(DISCARDING, 0, &[Buffer::readable(DATA, 16)]), OK);
    let mut expected = content();
    expected[512..1536].fill(0);
    expected[4096..12288].fill(0);
    assert!(
        bench.file()[..40 * 512] == expected[..40 * 512] && bench.file()[48 * 512..] == expected[48 * 512..]
    );
    for len in [0, 8, 15, 17, 32] {
        assert_eq!(bench.ask(ZEROING, 0, &[Buffer::readable(DATA, len)]), IOERR, "{len} bytes");
    }
    bench.machine.put(DATA, &range(0, (1 << 21) + 1, 0));
    assert_eq!(bench.ask(ZEROING, 0, &[Buffer::readable(DATA, 16)]), IOERR);
}

#[test]
fn read_only_disk_takes_no_write_whatever_was_negotiated() {
    let mut bench = Bench::new(FileLock::Shared);
    assert_eq!(bench.ask(WRITE, 0, &[Buffer::readable(DATA, 512)]), IOERR);
    bench.machine.put(DATA, &range(0, 1, 0));
    assert_eq!(bench.ask(DISCARDING, 0, &[Buffer::readable(DATA, 16)]), UNSUPP);
    assert_eq!(bench.ask(FLUSHING, 0, &[]), OK);
    assert_eq!(bench.ask(READ, 0, &[Buffer::writable(DATA, 512)]), OK);
    assert!(bench.file() == content());
}

#[test]
fn serial_number_is_20_bytes_at_most() {
    let mut bench = Bench::new(FileLock::Shared);
    for len in [20, 8, 64] {
        bench.machine.put(DATA, &[0xee; 64]);
        assert_eq!(bench.ask(ID, 0, &[Buffer::writable(DATA, len)]), OK);
        let bytes = bench.machine.bytes(DATA, 64);
        let shown = len.min(20) as usize;
        assert_eq!(&bytes[..8], b"serial-1");
        assert!(
            bytes[8..shown].iter().all(|byte| *byte == 0) && bytes[shown..].iter().all(|byte| *byte == 0xee)
        );
    }
    assert_eq!(bench.ask(ID, 0, &[]), OK);
}

#[test]
fn image_of_another_format_is_still_a_raw_disk() {
    let mut bench = Bench::new(FileLock::Exclusive);
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(512, 0);
    bench.machine.put(DATA, &qcow2);
    assert_eq!(bench.ask(WRITE, 0, &[Buffer::readable(DATA, 512)]), OK);
    let path = bench.folder.as_path().join("disk");
    let file = bench.file();
    drop(bench.machine);
    let disk = RawDisk::open(&path, FileLock::Exclusive).unwrap();
    assert_eq!(disk.capacity(), SECTORS * 512);
    assert!(file[..512] == qcow2);
}

#[test]
fn data_may_lie_on_both_sides_of_the_hole_in_ram() {
    let mut bench = Bench::new(FileLock::Exclusive);
    let data = [Buffer::writable(LOW_RAM_LEN - 300, 300), Buffer::writable(HIGH_RAM, 212)];
    assert_eq!(bench.ask(READ, 4, &data), OK);
    let seen = [bench.machine.bytes(LOW_RAM_LEN - 300, 300), bench.machine.bytes(HIGH_RAM, 212)].concat();
    assert_eq!(seen, content()[2048..2560]);
}
