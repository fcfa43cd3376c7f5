//! The bytes that come out of the buffer, those that it drops, and the events that it fires.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::guest_request::GuestRequest;
use crate::testing::RequestLog;

fn buffer(capacity: usize) -> ConsoleBuffer {
    ConsoleBuffer::new(capacity).unwrap()
}

fn drained(buffer: &ConsoleBuffer) -> Vec<u8> {
    let mut bytes = Vec::new();
    while buffer.drain(|piece| {
        bytes.extend_from_slice(piece);
        piece.len()
    }) == Drained::Pending
    {}
    bytes
}

fn woken(buffer: &ConsoleBuffer) -> bool {
    buffer.wake_event().read().is_ok()
}

#[test]
fn bytes_come_out_in_order_across_the_end_of_the_ring() {
    let buffer = buffer(10);
    let mut all = Vec::new();
    for round in 0..50_u8 {
        buffer.push(&[round; 7]);
        let mut first = true;
        buffer.drain(|piece| {
            let done = if first { piece.len().min(3) } else { 0 };
            first = false;
            all.extend_from_slice(&piece[..done]);
            done
        });
        all.extend(drained(&buffer));
    }
    let expected: Vec<u8> = (0..50_u8).flat_map(|round| [round; 7]).collect();
    assert_eq!(all, expected);
    assert_eq!(buffer.dropped_bytes(), 0);
}

#[test]
fn full_buffer_keeps_the_oldest_bytes_and_counts_the_rest() {
    let buffer = buffer(4);
    buffer.push(b"abc");
    buffer.push(b"defg");
    buffer.push(b"h");
    assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (8, 4));
    assert_eq!(buffer.untaken(), (8, Some(0)));
    assert_eq!(drained(&buffer), b"abcd");
    assert_eq!(buffer.untaken(), (4, Some(4)));
    assert!(buffer.is_empty());
}

#[test]
fn memory_grows_with_what_waits_to_at_most_the_capacity() {
    let buffer = buffer(1000);
    let room = || lock(&buffer.state).ring.bytes.capacity();
    assert_eq!(room(), 0);
    for _ in 0..10_000 {
        buffer.push(b"x");
        assert_eq!(drained(&buffer), b"x");
    }
    assert!((1..=LEAST_ROOM).contains(&room()), "a reader that keeps up needs no more: {}", room());
    for _ in 0..5000 {
        buffer.push(b"y");
        assert!(room() <= 1000, "{}", room());
    }
    assert_eq!(drained(&buffer).len(), 1000);
}

#[test]
fn only_the_step_from_empty_wakes_the_drainer() {
    let buffer = buffer(100);
    assert!(!woken(&buffer));
    buffer.push(b"");
    assert!(!woken(&buffer));
    buffer.push(b"a");
    assert!(woken(&buffer));
    buffer.push(b"b");
    assert!(!woken(&buffer));
    assert_eq!(drained(&buffer), b"ab");
    buffer.push(b"c");
    assert!(woken(&buffer));
}

#[test]
fn drainer_that_comes_by_itself_is_woken_for_a_half_full_buffer_only() {
    let buffer = buffer(100);
    assert!(!buffer.set_paced(true));
    buffer.push(&[b'a'; 50]);
    assert!(!woken(&buffer));
    buffer.push(b"b");
    assert!(woken(&buffer));
    buffer.push(&[b'c'; 49]);
    assert!(!woken(&buffer));
    assert!(buffer.set_paced(false), "these bytes have no wake-up");
    assert_eq!(drained(&buffer).len(), 100);
    buffer.push(b"d");
    assert!(woken(&buffer));
}

#[test]
fn buffer_without_capacity_drops_everything_and_wakes_nobody() {
    let buffer = buffer(0);
    buffer.push(b"Kernel panic - not syncing");
    assert!(!woken(&buffer));
    assert_eq!(buffer.dropped_bytes(), 26);
    assert!(buffer.panic_explains_reset());
    assert_eq!(drained(&buffer), b"");
}

#[test]
fn writer_that_takes_less_keeps_the_rest() {
    let buffer = buffer(100);
    buffer.push(b"abcdef");
    assert_eq!(buffer.drain(|_| 2), Drained::Blocked);
    assert_eq!(buffer.drain(|_| 0), Drained::Blocked);
    assert_eq!(drained(&buffer), b"cdef");
    assert_eq!(buffer.drain(|_| unreachable!()), Drained::Empty);
}

#[test]
fn writer_that_claims_too_much_does_no_harm() {
    let buffer = buffer(100);
    buffer.push(b"abc");
    assert_eq!(buffer.drain(|_| usize::MAX), Drained::Empty);
    assert!(buffer.is_empty());
}

#[test]
fn endless_printer_does_not_hold_the_drainer() {
    let buffer = buffer(64);
    buffer.push(b"start");
    assert!(woken(&buffer));
    let mut calls = 0;
    let ending = buffer.drain(|piece| {
        calls += 1;
        buffer.push(b"more and more");
        piece.len()
    });
    assert_eq!(ending, Drained::Pending);
    assert!(calls <= 64);
    assert!(woken(&buffer), "a pending drain wakes itself");
}

#[test]
fn push_works_while_a_writer_is_stuck() {
    let buffer = buffer(8);
    buffer.push(b"old");
    std::thread::scope(|scope| {
        let (inside, entered) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let drainer = scope.spawn(|| {
            buffer.drain(move |piece| {
                inside.send(()).unwrap();
                let _ = left.recv();
                piece.len()
            })
        });
        entered.recv().unwrap();
        buffer.push(b"new bytes");
        drop(leave);
        let _ = entered.recv();
        drainer.join().unwrap();
    });
    assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (12, 4));
}

#[test]
fn no_wake_is_lost_between_printers_and_a_slow_writer() {
    let buffer = buffer(256);
    let printers_left = std::sync::atomic::AtomicUsize::new(2);
    let mut received = 0_u64;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    buffer.push(b"abc");
                }
                printers_left.fetch_sub(1, Ordering::AcqRel);
            });
        }
        loop {
            let finished = printers_left.load(Ordering::Acquire) == 0;
            // Bytes in the buffer at this point must have been announced.
            if buffer.wake_event().read().is_ok() {
                buffer.drain(|piece| {
                    received += piece.len() as u64;
                    piece.len()
                });
            } else if finished {
                break;
            }
        }
    });
    assert!(buffer.is_empty());
    assert_eq!(received + buffer.dropped_bytes(), 300_000);
    assert_eq!(buffer.pushed_bytes(), 300_000);
}

#[test]
fn discarded_bytes_count_as_dropped() {
    let buffer = buffer(100);
    buffer.push(b"abc");
    buffer.discard();
    assert!(buffer.is_empty());
    assert_eq!((buffer.pushed_bytes(), buffer.dropped_bytes()), (3, 3));
    assert_eq!(buffer.untaken(), (3, Some(0)));
    buffer.push(b"d");
    assert_eq!(drained(&buffer), b"d");
}

#[test]
fn tail_holds_what_the_buffer_dropped() {
    let buffer = buffer(2);
    buffer.push(b"first\n");
    buffer.push(b"last");
    assert_eq!(buffer.tail(), b"first\nlast");
}

#[test]
fn panic_text_is_reported_once_each_time() {
    let log = Arc::new(RequestLog::default());
    let buffer = buffer(4).telling(log.clone());
    buffer.push(b"Kernel panic");
    assert!(log.take().is_empty() && !buffer.stops_in_panic());
    buffer.push(b" - not syncing: VFS\r\n");
    assert_eq!(log.take(), [GuestRequest::PanicText]);
    assert!(buffer.stops_in_panic() && buffer.panic_explains_reset());
    buffer.push(b"# ");
    assert!(!buffer.stops_in_panic() && buffer.panic_explains_reset());
    assert!(log.take().is_empty());
}
