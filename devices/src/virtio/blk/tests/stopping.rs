//! Stops while a long request is being carried out.

use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::virtio::handler::IfLate;
use crate::virtio::transport::Transport;

/// A disk of zeroes that records the calls that it gets, and asks for its queues back during one of them.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<(Operation, u64, u64)>>,
    /// The number of the call, from 1, during which it asks.
    wish_in: AtomicUsize,
    transport: OnceLock<Arc<dyn Transport>>,
}

struct Noting(Arc<Notes>);

impl Noting {
    fn note(&self, operation: Operation, offset: u64, len: u64) -> io::Result<u64> {
        let mut calls = self.0.calls.lock().unwrap();
        calls.push((operation, offset, len));
        if calls.len() == self.0.wish_in.load(Ordering::Relaxed) {
            self.0.transport.get().unwrap().ask_for_queues(IfLate::Continue);
        }
        Ok(len)
    }
}

fn len(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len())).sum()
}

impl DiskBackend for Noting {
    fn capacity(&self) -> u64 {
        64 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.note(Operation::Read, offset, len(spans)).map(drop)
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.note(Operation::Write, offset, len(spans)).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        self.note(Operation::Flush, 0, 0).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Operation::Write, offset, len).map(drop)
    }

    /// Clears less than it is asked to, like a host that has to write the zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<u64> {
        self.note(Operation::Write, offset, len.min(3 << 20))
    }

    fn admit_write(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Sends a request of `kind` with `data`, and the same again, which must not begin after the request to stop.
fn stopped(kind: u32, data: Buffer, wish_in: usize) -> (Vec<u64>, Vec<u64>, (u32, u32)) {
    let notes = Arc::new(Notes::default());
    notes.wish_in.store(wish_in, Ordering::Relaxed);
    let mut bench = Bench::with(folder(), Box::new(Noting(notes.clone())), Faults::default());
    assert!(notes.transport.set(bench.machine.transport.clone()).is_ok());
    bench.header(kind, 8);
    // The range that a discard and a write of zeroes have as their data.
    bench.machine.put(DATA, &range(8, CLEARED_SECTORS, 0));
    bench.machine.put(STATUS_AT, &[0xee]);
    let frame = [Buffer::readable(BUFFERS, 16), data, Buffer::writable(STATUS_AT, 1)];
    let frame = if kind == FLUSHING { vec![frame[0], frame[2]] } else { frame.to_vec() };
    bench.rings[0].offer(&frame);
    bench.rings[0].offer(&frame);
    bench.machine.write(0x50, 0);
    bench.machine.settle();
    let pieces = || notes.calls.lock().unwrap().iter().map(|(_, _, len)| *len).collect::<Vec<_>>();
    let before = pieces();
    bench.machine.transport.pause().unwrap();
    assert_eq!(pieces(), before, "nothing begins after the request to stop");
    bench.machine.transport.resume();
    let (first, second) = (bench.completion(0), bench.completion(0));
    assert_eq!(bench.rings[0].completed(), None);
    assert_eq!(bench.machine.bytes(STATUS_AT, 1), [OK]);
    let calls = notes.calls.lock().unwrap();
    let mut at = 4096;
    for (_, offset, len) in calls.iter().filter(|_| kind != FLUSHING) {
        // No byte is left out, and a request that was stopped begins again at its start.
        assert!(*offset == at || *offset == 4096, "{calls:?}");
        at = offset + len;
    }
    (before, calls.iter().map(|(_, _, len)| *len).collect(), (first.1, second.1))
}

const MIB: u64 = 1 << 20;
const CLEARED_SECTORS: u32 = 40 << 11;

#[test]
fn read_or_write_that_was_stopped_is_put_back_and_begins_again() {
    let half = 5 * MIB / 2;
    let pieces = [MIB, MIB, MIB / 2];
    for (kind, data, used) in [
        (READ, Buffer::writable(DATA, half as u32), half as u32 + 1),
        (WRITE, Buffer::readable(DATA, half as u32), 1),
    ] {
        let (before, all, lens) = stopped(kind, data, 2);
        assert_eq!(before, pieces[..2]);
        assert_eq!(all, [&pieces[..2], &pieces, &pieces].concat());
        assert_eq!(lens, (used, used));
        let (before, all, _) = stopped(kind, data, 3);
        assert_eq!(before, pieces, "a request that is done does not begin again");
        assert_eq!(all, [pieces, pieces].concat());
    }
}

#[test]
fn discard_or_write_of_zeroes_that_was_stopped_covers_all_of_its_range_when_it_begins_again() {
    // A discard in pieces of the largest size, a write of zeroes in pieces as its host clears them.
    let zeroes: Vec<u64> = (0..14).map(|piece| (40 * MIB - 3 * MIB * piece).min(3 * MIB)).collect();
    for (kind, pieces) in [(DISCARDING, vec![16 * MIB, 16 * MIB, 8 * MIB]), (ZEROING, zeroes)] {
        let (before, all, lens) = stopped(kind, Buffer::readable(DATA, 16), 2);
        assert_eq!(before, pieces[..2]);
        assert_eq!(all, [&pieces[..2], &pieces, &pieces].concat());
        assert_eq!(lens, (1, 1));
        let (before, all, _) = stopped(kind, Buffer::readable(DATA, 16), pieces.len());
        assert_eq!(before, pieces, "a request that is done does not begin again");
        assert_eq!(all, [&pieces[..], &pieces].concat());
    }
}

/// As many flushes as the ring holds, where one is in flight and the others wait for it.
#[test]
fn requests_held_at_a_pause_are_in_their_queues_and_each_is_answered_once() {
    for engine in [Engine::Sync, Engine::IoUring] {
        let folder = folder();
        let backend = raw(&folder, FileLock::Exclusive);
        let mut bench = Bench::of(engine, folder, backend, Faults::default());
        let mut offered = [Vec::new(), Vec::new()];
        for round in 0..20 {
            for (queue, heads) in offered.iter_mut().enumerate() {
                for at in 0..5_u64 {
                    let (kind, address) = ([WRITE, FLUSHING][(at & 1) as usize], BUFFERS + 64 * at);
                    bench.machine.put(address, &header(kind, 1 + at));
                    let frame = [
                        Buffer::readable(address, 16),
                        Buffer::readable(DATA, 512),
                        Buffer::writable(STATUS_AT, 1),
                    ];
                    let frame = if kind == FLUSHING { vec![frame[0], frame[2]] } else { frame.to_vec() };
                    heads.push(u32::from(bench.rings[queue].offer(&frame)));
                }
                bench.machine.write(0x50, queue as u32);
            }
            // Before the handlers have run at all, or in the middle of their work.
            if round % 2 == 1 {
                bench.machine.host.round();
            }
            // The machine's host checks here that no chain is in flight.
            bench.machine.transport.pause().unwrap();
            let done = |ring: &mut Ring| std::iter::from_fn(|| ring.completed()).collect::<Vec<_>>();
            let mut answered = [done(&mut bench.rings[0]), done(&mut bench.rings[1])];
            assert_eq!([done(&mut bench.rings[0]), done(&mut bench.rings[1])], [vec![], vec![]]);
            bench.machine.transport.resume();
            for queue in 0..2 {
                while answered[queue].len() < offered[queue].len() {
                    answered[queue].push(bench.completion(queue));
                }
                let mut heads: Vec<u32> = answered[queue].iter().map(|(head, _)| *head).collect();
                heads.sort_unstable();
                offered[queue].sort_unstable();
                assert_eq!(heads, offered[queue], "{engine:?}, round {round}");
                assert_eq!(bench.rings[queue].completed(), None);
                offered[queue].clear();
            }
            assert_eq!(bench.machine.bytes(STATUS_AT, 1), [OK]);
        }
    }
}

#[test]
fn long_ranges_are_cleared_in_steps() {
    let data = Buffer::readable(DATA, 16);
    for (kind, step) in [(DISCARDING, 16 * MIB), (ZEROING, 3 * MIB)] {
        let notes = Arc::new(Notes::default());
        let mut bench = Bench::with(folder(), Box::new(Noting(notes.clone())), Faults::default());
        bench.machine.put(DATA, &range(8, CLEARED_SECTORS, 0));
        assert_eq!(bench.ask(kind, 0, &[data]), OK);
        let calls = notes.calls.lock().unwrap();
        assert_eq!(calls.iter().map(|(_, _, len)| len).sum::<u64>(), 40 * MIB);
        assert!(calls.iter().all(|(_, _, len)| *len <= step), "{calls:?}");
    }
}

#[test]
fn of_many_flushes_only_the_one_that_has_begun_is_waited_for() {
    let (before, all, lens) = stopped(FLUSHING, Buffer::readable(DATA, 16), 1);
    assert_eq!((before.len(), all.len(), lens), (1, 2, (1, 1)));
}

/// The driver offers a request whenever another is answered, so that the disk finds one whenever it looks.
#[test]
fn driver_that_always_offers_another_request_holds_up_neither_the_loop_nor_a_pause() {
    for engine in [Engine::Sync, Engine::IoUring] {
        for (kind, data) in [(READ, Buffer::writable(DATA, 512)), (WRITE, Buffer::readable(DATA, 512))] {
            let folder = folder();
            let backend = raw(&folder, FileLock::Exclusive);
            let mut bench = Bench::of(engine, folder, backend, Faults::default());
            bench.header(kind, 1);
            let frame = [Buffer::readable(BUFFERS, 16), data, Buffer::writable(STATUS_AT, 1)];
            let (mut ring, start) = (bench.rings.remove(0), Instant::now());
            ring.offer(&frame);
            let answered = Arc::new(AtomicUsize::new(0));
            let count = answered.clone();
            bench.machine.on_interrupt(move || {
                while ring.completed().is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                ring.set_used_event(ring.used_index());
                if start.elapsed() < TOO_LONG {
                    ring.offer(&frame);
                }
            });
            bench.machine.write(0x50, 0);
            (0..10).for_each(|_| bench.machine.host.round());
            bench.machine.transport.pause().unwrap();
            assert!(start.elapsed() < TOO_LONG, "{engine:?}, {kind}");
            let before = answered.load(Ordering::Relaxed);
            assert!(before > 10, "a turn serves many requests: {before}");
            bench.machine.host.round();
            assert_eq!(answered.load(Ordering::Relaxed), before, "nothing is served during a pause");
        }
    }
}

/// Far longer than ten turns take.
const TOO_LONG: Duration = Duration::from_secs(10);
