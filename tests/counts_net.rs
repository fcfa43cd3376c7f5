//! The cost of a network card's frames on the host: doorbells, interrupts and system calls of the thread that
//! serves it. Counts are stable where times are not, so that a change that costs more fails here.
//!
//! The counts are those of a traced program (ptrace), whose thread is slow beside its guest and its host:
//! both always have frames for it.

mod common;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::network::{in_own_network, ip, tap};
use common::{calls, fresh_path, kvm_or_skip, run_payload, unless_spoilt};

macro_rules! alone_on_kvm {
    ($test:literal) => {
        if !kvm_or_skip() || !common::is_alone($test) {
            return;
        }
    };
}

#[test]
fn frames_to_a_tap_take_one_call_each_and_share_the_others() {
    alone_on_kvm!("frames_to_a_tap_take_one_call_each_and_share_the_others");
    for poll in ["off", "32us"] {
        in_own_network(move || {
            tap("tap0");
            MOST.hold_for("net-count-send", poll);
        });
    }
}

#[test]
fn frames_from_a_tap_take_one_call_each_and_share_the_others() {
    alone_on_kvm!("frames_from_a_tap_take_one_call_each_and_share_the_others");
    for poll in ["off", "32us"] {
        in_own_network(move || {
            tap("tap0");
            ip("addr add 10.9.0.1/24 dev tap0");
            ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev tap0");
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| flood(&socket, &is_over));
                let _over = SetAtEnd(&is_over);
                MOST.hold_for("net-count-receive", poll);
            });
        });
    }
}

/// Sends more frames than a traced program receives. The tap drops the others.
fn flood(socket: &UdpSocket, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..32 {
            // Until a program has opened the tap, or while its queue is full, there may be an error.
            let _ = socket.send_to(&[0; 1472], "10.9.0.2:9");
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// Ends the flood also if the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts for a thousand frames, or limits of them.
#[derive(Debug)]
struct Counts {
    doorbells: u64,
    /// All writes of the card's thread: those that are not interrupts are those by which it wakes itself.
    interrupts: u64,
    /// All calls of the card's thread but `readv` and `writev`.
    others: u64,
    /// The calls `readv` and `writev`, with those that found no frame.
    frames: u64,
}

/// A frame takes one call. A full ring of 256 frames, or a round of 64, has one interrupt.
const MOST: Counts = Counts { doorbells: 4, interrupts: 30, others: 60, frames: 1030 };

impl Counts {
    /// Runs a payload with a card on the tap, and checks that its counts are within these limits.
    #[track_caller]
    fn hold_for(&self, payload: &str, poll: &str) {
        unless_spoilt(|| {
            let start = Instant::now();
            let counts = Counts::of(payload, poll);
            // At the end of a turn of a millisecond, the thread shows its work and wakes itself.
            let turns = start.elapsed().as_millis() as u64 * 1000 / FRAMES;
            assert!(counts.interrupts > 0 && counts.frames >= 1000, "not the counts of a card: {counts:?}");
            let is_few = counts.doorbells <= self.doorbells
                && counts.interrupts <= self.interrupts + turns
                && counts.others <= self.others + 2 * turns
                && counts.frames <= self.frames + turns;
            let verdict = format!("{payload} {poll}: {counts:?}, with {turns} turns; at most {self:?}");
            println!("{verdict}");
            if is_few { Ok(()) } else { Err(verdict) }
        });
    }

    fn of(payload: &str, poll: &str) -> Counts {
        let printed = fresh_path("printed");
        let mut command = run_payload(payload);
        command.args(["--timeout", "60s", "--net", &format!("tap=tap0,poll={poll}")]);
        command.stdin(Stdio::null()).stdout(File::create(&printed).unwrap()).stderr(Stdio::null());
        let (threads, code) = calls::by_thread(&mut command);
        assert_eq!(code, 0, "{payload} {poll}");
        let calls = threads.get("io-0").unwrap_or_else(|| panic!("no thread of a card: {threads:?}"));
        let count = |number: libc::c_long| {
            u64::from(calls.by_number.get(&(number as u64)).copied().unwrap_or_default())
        };
        let printed = fs::read_to_string(printed).unwrap();
        // The first byte tells benchmarks that the frames begin.
        let doorbells = printed.get(1..).unwrap().trim();
        let in_a_thousand = |count: u64| count * 1000 / FRAMES;
        let frames = count(libc::SYS_readv) + count(libc::SYS_writev);
        Counts {
            doorbells: in_a_thousand(
                u64::from_str_radix(doorbells, 16).unwrap_or_else(|_| panic!("{printed:?}")),
            ),
            interrupts: in_a_thousand(count(libc::SYS_write)),
            others: in_a_thousand(u64::from(calls.by_number.values().sum::<u32>()) - frames),
            frames: in_a_thousand(frames),
        }
    }
}

/// The number of frames that each payload counts.
const FRAMES: u64 = 8000;
