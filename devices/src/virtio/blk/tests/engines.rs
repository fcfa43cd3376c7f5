//! The engine with io_uring, compared with the one without, and with more requests than its ring holds.

use super::*;

/// Both engines get the same requests, valid and invalid, and have to give the same answers and the same
/// file.
#[test]
fn engines_agree() {
    let run = |engine| {
        let folder = folder();
        let backend = raw(&folder, FileLock::Exclusive);
        let mut bench = Bench::of(engine, folder, backend, Faults::default());
        let mut answers = Vec::new();
        let mut random = 0x2545_f491_u32;
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let kind = [READ, WRITE, FLUSHING, ID, DISCARDING, ZEROING, READ, WRITE][random as usize % 8];
            let sector = u64::from(random >> 3) % (SECTORS + 4);
            let len = [512, 1024, 4096, 100, 0][random as usize / 8 % 5];
            bench.machine.put(DATA, &vec![random as u8; 4096]);
            if [DISCARDING, ZEROING].contains(&kind) {
                bench.machine.put(DATA, &range(sector, len / 512, 0));
            }
            let data = match kind {
                READ | ID => {
                    vec![Buffer::writable(DATA, len / 2), Buffer::writable(DATA + 8192, len - len / 2)]
                }
                FLUSHING => vec![],
                WRITE => vec![Buffer::readable(DATA, len)],
                _ => vec![Buffer::readable(DATA, 16)],
            };
            bench.header(kind, sector);
            let frame =
                [&[Buffer::readable(BUFFERS, 16)], &data[..], &[Buffer::writable(STATUS_AT, 1)]].concat();
            let head = bench.rings[0].offer(&frame);
            bench.machine.kick(0);
            let completed = bench.completion(0);
            assert_eq!(completed.0, u32::from(head));
            // The content of a discarded range is undefined.
            let seen = if kind == DISCARDING { vec![] } else { bench.machine.bytes(DATA, 4096) };
            answers.push((kind, completed.1, bench.machine.bytes(STATUS_AT, 1), seen));
        }
        (answers, bench.file())
    };
    let (sync, ring) = (run(Engine::Sync), run(Engine::IoUring));
    for (one, other) in sync.0.iter().zip(&ring.0) {
        assert_eq!((one.0, one.1, &one.2), (other.0, other.1, &other.2));
        assert!(one.3 == other.3);
    }
    assert!(sync.1 == ring.1);
}

/// A driver that keeps one queue busy for long does not hold up another queue.
#[test]
fn one_event_serves_all_queues() {
    for engine in [Engine::Sync, Engine::IoUring] {
        let folder = folder();
        let backend = raw(&folder, FileLock::Shared);
        let mut bench = Bench::of(engine, folder, backend, Faults::default());
        bench.header(READ, 1);
        let frame =
            [Buffer::readable(BUFFERS, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS_AT, 1)];
        for ring in &mut bench.rings {
            ring.offer(&frame);
        }
        bench.machine.kick(0);
        assert_eq!(bench.completion(0).1, 513);
        assert_eq!(bench.completion(1).1, 513, "{engine:?}");
    }
}

#[test]
fn ring_takes_more_requests_than_it_has_room_for() {
    let folder = folder();
    let backend = raw(&folder, FileLock::Shared);
    let bench = Bench::of(Engine::IoUring, folder, backend, Faults::default());
    bench.machine.negotiate(bench.machine.offered());
    let mut rings: Vec<Ring> =
        (0..2).map(|index| Ring::new(bench.machine.memory.clone(), 0x1_0000 * (index + 1), 256)).collect();
    rings.iter().zip(0..).for_each(|(ring, index)| bench.machine.set_up_queue(index, ring));
    bench.machine.write(0x70, 15);
    bench.header(READ, 1);
    let table: Vec<u8> = [
        crate::virtio::testing::descriptor_bytes(BUFFERS, 16, 1, 1),
        crate::virtio::testing::descriptor_bytes(DATA, 512, 3, 2),
        crate::virtio::testing::descriptor_bytes(STATUS_AT, 1, 2, 0),
    ]
    .concat();
    bench.machine.put(BUFFERS + 0x100, &table);
    for ring in &mut rings {
        for head in 0..256 {
            ring.descriptor(head, BUFFERS + 0x100, 48, 4, 0);
            ring.offer_head(head);
        }
    }
    bench.machine.kick(0);
    bench.machine.kick(1);
    for ring in &mut rings {
        for _ in 0..256 {
            let completed = (0..1000).find_map(|_| {
                bench.machine.settle();
                ring.completed()
            });
            assert_eq!(completed.map(|(_, len)| len), Some(513));
        }
    }
}

#[test]
fn nothing_is_written_after_a_reset_amid_many_requests() {
    for engine in [Engine::Sync, Engine::IoUring] {
        let folder = folder();
        let backend = raw(&folder, FileLock::Exclusive);
        let mut bench = Bench::of(engine, folder, backend, Faults::default());
        bench.machine.negotiate(bench.machine.offered());
        let mut ring = Ring::new(bench.machine.memory.clone(), 0x1_0000, 256);
        bench.machine.set_up_queue(0, &ring);
        bench.machine.write(0x70, 15);
        bench.header(WRITE, 1);
        for _ in 0..85 {
            ring.offer(&[
                Buffer::readable(BUFFERS, 16),
                Buffer::readable(DATA, 512),
                Buffer::writable(STATUS_AT, 1),
            ]);
        }
        bench.machine.write(0x50, 0);
        bench.machine.write(0x70, 0);
        assert_eq!(bench.machine.status(), 0);
        let seen = bench.machine.bytes(0x1_0000, 0x6000);
        bench.machine.settle();
        assert!(bench.machine.bytes(0x1_0000, 0x6000) == seen, "nothing is written after the reset");
        bench.rings = bench.machine.start(0);
        bench.header(READ, 0);
        let frame =
            [Buffer::readable(BUFFERS, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS_AT, 1)];
        bench.rings[0].offer(&frame);
        bench.machine.kick(0);
        assert_eq!(bench.completion(0).1, 513);
    }
}

/// A disk whose first write takes long.
struct Sluggish {
    disk: RawDisk,
    writes: Arc<AtomicU32>,
}

impl DiskBackend for Sluggish {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.disk.read(offset, spans)
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        if self.writes.fetch_add(1, Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.disk.write(offset, spans)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<u64> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.disk.descriptor()
    }

    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.admit_write(offset, len)
    }
}

#[test]
fn writes_take_the_ring_while_the_file_system_is_slow() {
    if uring::is_allowed().is_err() {
        return eprintln!("skipped: this host does not allow io_uring");
    }
    let folder = folder();
    let disk = RawDisk::open(&folder.as_path().join("disk"), FileLock::Exclusive).unwrap();
    let writes = Arc::new(AtomicU32::new(0));
    let backend = Box::new(Sluggish { disk, writes: writes.clone() });
    let mut bench = Bench::of(Engine::IoUring, folder, backend, Faults::default());
    let mut write = |byte| {
        bench.machine.put(DATA, &[byte; 512]);
        assert_eq!(bench.ask(WRITE, u64::from(byte) % SECTORS, &[Buffer::readable(DATA, 512)]), OK);
        let at = usize::from(byte) % SECTORS as usize * 512;
        assert!(bench.file()[at..at + 512] == [byte; 512]);
        writes.load(Ordering::Relaxed)
    };
    assert_eq!(write(100), 1);
    let direct: Vec<u32> = (1..=64).map(&mut write).collect();
    assert_eq!(direct, [1; 64]);
    assert_eq!(write(101), 2);
}
