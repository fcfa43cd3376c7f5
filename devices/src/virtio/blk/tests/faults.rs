//! Hosts that cannot do what the driver requests.

use super::*;

#[test]
fn file_that_was_cut_is_an_error_for_the_driver_and_is_counted() {
    let mut bench = Bench::new(FileLock::Exclusive);
    let file = fs::OpenOptions::new().write(true).open(bench.folder.as_path().join("disk")).unwrap();
    file.set_len(4096).unwrap();
    assert_eq!(bench.ask(READ, 8, &[Buffer::writable(DATA, 512)]), IOERR);
    assert_eq!(bench.ask(WRITE, 8, &[Buffer::readable(DATA, 512)]), IOERR);
    assert_eq!(*bench.faults.seen.lock().unwrap(), [Operation::Read, Operation::Write]);
    assert_eq!(bench.ask(READ, 7, &[Buffer::writable(DATA, 512)]), OK);
    assert_eq!(bench.file().len(), 4096);
}

/// A disk whose host fails a given number of times.
struct Failing {
    disk: RawDisk,
    left: AtomicU32,
    error: i32,
}

impl Failing {
    fn count_down(&self) -> io::Result<()> {
        let failing =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        failing.map_or(Ok(()), |_| Err(io::Error::from_raw_os_error(self.error)))
    }
}

impl DiskBackend for Failing {
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
        self.count_down()?;
        self.disk.write(offset, spans)
    }

    fn flush(&self) -> io::Result<()> {
        self.count_down()
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
}

fn failing(times: u32, error: i32, hold: bool) -> Bench {
    let folder = folder();
    let disk = RawDisk::open(&folder.as_path().join("disk"), FileLock::Exclusive).unwrap();
    let backend = Box::new(Failing { disk, left: AtomicU32::new(times), error });
    Bench::with(folder, backend, Faults { hold, ..Faults::default() })
}

#[test]
fn failed_flush_fails_all_later_ones_until_a_reset() {
    let mut bench = failing(1, libc::EIO, false);
    assert_eq!((bench.ask(FLUSHING, 0, &[]), bench.ask(FLUSHING, 0, &[])), (IOERR, IOERR));
    assert_eq!(bench.ask(READ, 0, &[Buffer::writable(DATA, 512)]), OK);
    bench.rings = bench.machine.start(0);
    assert_eq!(bench.ask(FLUSHING, 0, &[]), OK);
}

#[test]
fn held_request_waits_for_a_pause_and_is_tried_again_after_it() {
    let mut bench = failing(2, libc::ENOSPC, true);
    bench.machine.put(DATA, &[0xab; 512]);
    bench.header(WRITE, 1);
    let frame = [Buffer::readable(BUFFERS, 16), Buffer::readable(DATA, 512), Buffer::writable(STATUS_AT, 1)];
    let held = bench.rings[0].offer(&frame);
    bench.machine.kick(0);
    bench.rings[0].offer(&frame);
    assert_eq!((bench.rings[0].completed(), bench.rings[1].completed()), (None, None));
    bench.machine.transport.pause().unwrap();
    bench.machine.transport.resume();
    bench.machine.settle();
    // The first resumption fails again. The rings of its doorbells try once more, and that succeeds.
    assert_eq!(bench.rings[0].completed(), Some((held.into(), 1)));
    assert!(bench.rings[0].completed().is_some());
    assert_eq!(bench.machine.bytes(STATUS_AT, 1), [OK]);
    assert!(bench.file()[512..1024] == [0xab; 512]);
}

#[test]
fn reset_forgets_a_held_request() {
    let mut bench = failing(1, libc::ENOSPC, true);
    bench.header(WRITE, 1);
    let frame = [Buffer::readable(BUFFERS, 16), Buffer::readable(DATA, 512), Buffer::writable(STATUS_AT, 1)];
    bench.rings[0].offer(&frame);
    bench.machine.kick(0);
    bench.rings = bench.machine.start(0);
    assert_eq!(bench.rings[0].completed(), None);
    assert_eq!(bench.ask(READ, 1, &[Buffer::writable(DATA, 512)]), OK);
    assert!(bench.file() == content());
}
