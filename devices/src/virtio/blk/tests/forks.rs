//! Disks whose machine becomes another one while they work.

use super::*;
use crate::backend::disk::FrozenDisk;
use crate::testing::saved;
use crate::virtio::transport::state_tests::{refuses_damaged_states, survives_any_state};

/// An overlay that can be told to fail writes.
struct Fickle {
    disk: Box<dyn DiskBackend>,
    fails: bool,
}

impl DiskBackend for Fickle {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.disk.read(offset, spans)
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        if self.fails {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        } else {
            self.disk.write(offset, spans)
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { self.disk.flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<u64> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.admit_write(offset, len)
    }

    fn freeze(&self) -> Option<FrozenDisk> {
        self.disk.freeze()
    }
}

fn layer(folder: &TempDir) -> OverlayLayer<'_> {
    OverlayLayer { file: nameless_file::create_in(folder.as_path()).unwrap(), folder: folder.as_path() }
}

fn overlay(folder: &TempDir) -> Box<dyn DiskBackend> {
    let path = folder.as_path().join("disk");
    Box::new(Overlay::open(&path, layer(folder), OverlaySize::Bytes(1 << 20)).unwrap())
}

fn block(engine: Engine, backend: Box<dyn DiskBackend>) -> Arc<Block> {
    Arc::new(Block::new(settings(engine, backend, Arc::default())))
}

/// A directory in memory, so that overlays have room however full the disk of the machine is.
fn in_memory() -> TempDir {
    let folder = TempDir::new_in("/dev/shm".as_ref()).unwrap();
    fs::write(folder.as_path().join("disk"), content()).unwrap();
    folder
}

impl Bench {
    /// Returns another machine that goes on from here, with this disk. This one is paused.
    fn fork(&self, block: Arc<Block>) -> Self {
        let machine = self.machine.fork(block).unwrap();
        machine.resume();
        let rings = self.rings.iter().map(|ring| ring.in_memory(machine.memory.clone())).collect();
        Self { folder: folder(), machine, rings, faults: Arc::default() }
    }

    fn read(&mut self, sector: u64) -> u8 {
        assert_eq!(self.ask(READ, sector, &[Buffer::writable(DATA, 512)]), OK);
        self.machine.bytes(DATA, 1)[0]
    }

    fn write(&mut self, sector: u64, byte: u8) -> u8 {
        self.machine.put(DATA, &[byte; 512]);
        self.ask(WRITE, sector, &[Buffer::readable(DATA, 512)])
    }
}

fn bench(folder: TempDir, block: Arc<Block>) -> Bench {
    let machine = Machine::new(block);
    let rings = machine.start(0);
    Bench { folder, machine, rings, faults: Arc::default() }
}

#[test]
fn machines_that_go_on_have_the_content_and_write_each_to_its_own() {
    let folder = in_memory();
    let first = block(Engine::Sync, overlay(&folder));
    let mut parent = bench(in_memory(), first.clone());
    assert_eq!((parent.write(3, 0xaa), parent.write(4, 0xbb)), (OK, OK));
    parent.machine.transport.pause().unwrap();
    let content = first.freeze().unwrap();
    let mut forks: Vec<Bench> = (0..2)
        .map(|_| {
            let backend = content.open(|| Ok(layer(&folder)), OverlaySize::Bytes(1 << 20)).unwrap();
            parent.fork(block(Engine::Sync, backend))
        })
        .collect();
    for (index, fork) in (1..).zip(&mut forks) {
        assert_eq!((fork.read(3), fork.read(4), fork.read(5)), (0xaa, 0xbb, 6));
        assert_eq!(fork.write(4, index), OK);
    }
    assert_eq!((forks[0].read(4), forks[1].read(4)), (1, 2));
    assert!(fs::read(folder.as_path().join("disk")).unwrap() == super::content());
}

#[test]
fn request_that_a_fault_holds_is_done_by_the_next_machine() {
    let folder = in_memory();
    let disk = Fickle { disk: overlay(&folder), fails: true };
    let faults = Arc::new(Faults { hold: true, ..Faults::default() });
    let parent = Arc::new(Block::new(settings(Engine::Sync, Box::new(disk), faults.clone())));
    let mut parent = bench(in_memory(), parent);
    parent.machine.put(DATA, &[0xab; 512]);
    parent.header(WRITE, 1);
    let frame = [Buffer::readable(BUFFERS, 16), Buffer::readable(DATA, 512), Buffer::writable(STATUS_AT, 1)];
    let held = parent.rings[0].offer(&frame);
    parent.machine.kick(0);
    assert_eq!(parent.rings[0].completed(), None);
    let disk = Fickle { disk: overlay(&folder), fails: false };
    let mut fork = parent.fork(block(Engine::Sync, Box::new(disk)));
    assert_eq!(fork.completion(0), (held.into(), 1));
    assert_eq!((fork.machine.bytes(STATUS_AT, 1)[0], fork.read(1)), (OK, 0xab));
    assert_eq!((parent.rings[0].completed(), faults.seen.lock().unwrap().len()), (None, 1));
}

#[test]
fn flush_that_failed_fails_later_ones_in_the_next_machine_too() {
    let folder = in_memory();
    let fickle = |fails| block(Engine::Sync, Box::new(Fickle { disk: overlay(&folder), fails }));
    let mut parent = bench(in_memory(), fickle(true));
    let mut fork = parent.fork(fickle(false));
    assert_eq!(fork.ask(FLUSHING, 0, &[]), OK);
    parent.machine.resume();
    assert_eq!(parent.ask(FLUSHING, 0, &[]), IOERR);
    let mut fork = parent.fork(fickle(false));
    assert_eq!(fork.ask(FLUSHING, 0, &[]), IOERR);
    fork.rings = fork.machine.start(0);
    assert_eq!(fork.ask(FLUSHING, 0, &[]), OK);
}

/// With io_uring, requests are done out of order. Those that were not are put back, wherever they are in the
/// ring.
#[test]
fn each_of_many_requests_is_done_once_before_or_after_the_fork() {
    for engine in [Engine::Sync, Engine::IoUring] {
        for rounds in 0..6 {
            let folder = folder();
            let disk = raw(&folder, FileLock::Shared);
            let mut parent = bench(folder, block(engine, disk));
            let mut heads = Vec::new();
            for (queue, request) in
                [0, 1].into_iter().flat_map(|queue| (0..5).map(move |request| (queue, request)))
            {
                let at = BUFFERS + (queue as u64 * 5 + request) * 0x1000;
                parent.machine.put(at, &header(READ, request));
                let frame = [
                    Buffer::readable(at, 16),
                    Buffer::writable(at + 0x200, 512),
                    Buffer::writable(at + 0x100, 1),
                ];
                heads.push((queue, u32::from(parent.rings[queue].offer(&frame)), at, request));
                parent.machine.write(0x50, queue as u32);
            }
            (0..rounds).for_each(|_| parent.machine.host.round());
            let disk = raw(&parent.folder, FileLock::Shared);
            let mut fork = parent.fork(block(engine, disk));
            for (queue, head, at, request) in &heads {
                let start = Instant::now();
                while fork.machine.bytes(*at + 0x200, 1)[0] != *request as u8 + 1 {
                    assert!(
                        start.elapsed() < Duration::from_secs(30),
                        "{engine:?}, queue {queue}, head {head}"
                    );
                    fork.machine.settle();
                }
            }
            for queue in [0, 1] {
                let mut done: Vec<u32> = (0..5).map(|_| fork.completion(queue).0).collect();
                done.sort_unstable();
                let offered = heads.iter().filter(|(of, ..)| *of == queue).map(|(_, head, ..)| *head);
                assert!(done.into_iter().eq(offered), "{engine:?}");
                assert_eq!(fork.rings[queue].completed(), None, "each of them once");
            }
        }
    }
}

#[test]
fn disk_that_its_driver_writes_to_has_a_state_for_another_such_disk() {
    let (first, second) = (Bench::new(FileLock::Exclusive), Bench::new(FileLock::Exclusive));
    first.machine.transport.pause().unwrap();
    second.machine.transport.pause().unwrap();
    assert!(first.machine.transport.can_be_saved());
    let state = first.machine.transport.save().unwrap();
    assert!(second.machine.transport.prepare(&state).is_ok());
    // Its driver counts on features that a read-only disk lacks.
    let readable = Bench::new(FileLock::Shared);
    let refused = readable.machine.transport.prepare(&state).err().unwrap().to_string();
    assert!(refused.starts_with("field `accepted` is "), "{refused}");
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let bench = Bench::new(FileLock::Shared);
    bench.machine.transport.pause().unwrap();
    let state = bench.machine.transport.save().unwrap();
    assert_eq!(state.device, saved(1, &[0x80, 0x80, 2, 0]));
    let folder = &bench.folder;
    let make = || block(Engine::Sync, raw(folder, FileLock::Shared)) as Arc<dyn VirtioDevice>;
    refuses_damaged_states(&make, &state);
    survives_any_state(&make, &state);
    let refused = |bytes: &[u8], is_started: bool| {
        let machine = Machine::new(make());
        let mut state = if is_started { state.clone() } else { machine.transport.save().unwrap() };
        state.device = saved(1, bytes);
        machine.transport.prepare(&state).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&[0x80, 0x80, 2, 1], true), None);
    let size = "field `capacity` is 0x8001: always 0x8000 here";
    assert_eq!(refused(&[0x81, 0x80, 2, 0], true).as_deref(), Some(size));
    let flush = "field `flush_failed` is 0x1: always 0x0 here";
    assert_eq!(refused(&[0x80, 0x80, 2, 1], false).as_deref(), Some(flush));
}
