//! The cost of a guest's requests on the host: doorbells, interrupts and system calls of the thread that
//! serves them. Counts are stable where times are not, so that a change that costs more fails here.
//!
//! The counts are those of a traced program (ptrace), whose thread is slow beside its guest: a guest that
//! keeps many requests in flight always has some for it.

mod common;

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Instant;

use common::{calls, fresh_path, kvm_or_skip, run_payload, unless_spoilt};

macro_rules! alone_on_kvm {
    ($test:literal) => {
        if !kvm_or_skip() || !common::is_alone($test) {
            return;
        }
    };
}

#[test]
fn read_that_wakes_the_disks_thread_takes_three_calls_of_it() {
    alone_on_kvm!("read_that_wakes_the_disks_thread_takes_three_calls_of_it");
    // The wait for the doorbell, the read, and the interrupt.
    let most = Counts { doorbells: 1005, interrupts: 1005, calls: 3030, by_ring: 1005 };
    for engine in ["sync", "io_uring"] {
        most.hold_for(ONE_AT_A_TIME, &format!("engine={engine},poll=off"));
    }
}

#[test]
fn reads_in_flight_together_share_doorbells_interrupts_and_calls() {
    alone_on_kvm!("reads_in_flight_together_share_doorbells_interrupts_and_calls");
    for poll in ["off", "32us"] {
        // The reads themselves, and calls that many of them share.
        let most = Counts { doorbells: 60, interrupts: 60, calls: 1120, by_ring: 0 };
        most.hold_for(MANY_AT_A_TIME, &format!("engine=sync,poll={poll}"));
        let most = Counts { doorbells: 60, interrupts: 60, calls: 180, by_ring: 60 };
        most.hold_for(MANY_AT_A_TIME, &format!("engine=io_uring,poll={poll}"));
    }
}

#[test]
fn write_to_the_page_cache_looks_at_the_length_and_writes_without_the_ring() {
    alone_on_kvm!("write_to_the_page_cache_looks_at_the_length_and_writes_without_the_ring");
    for engine in ["sync", "io_uring"] {
        let most = Counts { doorbells: 60, interrupts: 60, calls: 2120, by_ring: 30 };
        most.hold_for(MANY_WRITES_AT_A_TIME, &format!("engine={engine}"));
    }
}

/// Counts for a thousand requests, or limits of them.
#[derive(Debug)]
struct Counts {
    doorbells: u64,
    /// All writes of the disk's thread: those that are not interrupts are those by which it wakes itself.
    interrupts: u64,
    /// All calls of the disk's thread.
    calls: u64,
    /// The calls that pass requests to io_uring.
    by_ring: u64,
}

impl Counts {
    /// Runs a payload with a disk of these options, and checks that its counts are within these limits.
    #[track_caller]
    fn hold_for(&self, payload: (&str, u64), options: &str) {
        unless_spoilt(|| {
            let start = Instant::now();
            let counts = Counts::of(payload, options);
            // At the end of a turn of a millisecond, the thread shows its work and wakes itself.
            let turns = start.elapsed().as_millis() as u64 * 1000 / payload.1;
            assert!(counts.interrupts > 0, "these are not the counts of a disk: {counts:?}");
            let is_few = counts.doorbells <= self.doorbells
                && counts.interrupts <= self.interrupts + 2 * turns
                && counts.calls <= self.calls + 3 * turns
                && counts.by_ring <= self.by_ring + turns;
            let verdict = format!("{options}: {counts:?}, with {turns} turns, in place of at most {self:?}");
            println!("{verdict}");
            if is_few { Ok(()) } else { Err(verdict) }
        });
    }

    fn of((payload, requests): (&str, u64), options: &str) -> Counts {
        let (disk, printed) = (fresh_path("counts.img"), fresh_path("printed"));
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let mut command = run_payload(payload);
        command.arg("--disk").arg(format!("path={},{options}", disk.display()));
        command.stdin(Stdio::null()).stdout(File::create(&printed).unwrap()).stderr(Stdio::null());
        let (threads, code) = calls::by_thread(&mut command);
        assert_eq!(code, 0, "{payload} {options}");
        let disks: Vec<_> = threads.iter().filter(|(name, _)| name.starts_with("virtio-")).collect();
        let [(_, calls)] = disks.as_slice() else { panic!("not one thread of a disk: {threads:?}") };
        let count = |number: libc::c_long| {
            u64::from(calls.by_number.get(&(number as u64)).copied().unwrap_or_default())
        };
        let printed = fs::read_to_string(printed).unwrap();
        let doorbells = printed.split_whitespace().nth(DOORBELLS).unwrap();
        let in_a_thousand = |count: u64| count * 1000 / requests;
        Counts {
            doorbells: in_a_thousand(u64::from_str_radix(doorbells, 16).unwrap()),
            interrupts: in_a_thousand(count(libc::SYS_write)),
            calls: in_a_thousand(calls.by_number.values().sum::<u32>().into()),
            by_ring: in_a_thousand(count(libc::SYS_io_uring_enter)),
        }
    }
}

/// Payloads, and the number of requests that each makes.
const ONE_AT_A_TIME: (&str, u64) = ("block-count-1", 2000);
const MANY_AT_A_TIME: (&str, u64) = ("block-count-32", 8000);
const MANY_WRITES_AT_A_TIME: (&str, u64) = ("block-count-write-32", 8000);
/// The index of the number of doorbells among the numbers that these payloads print.
const DOORBELLS: usize = 1;
