//! The cost of a guest's requests on the host: doorbells, interrupts and system calls of the thread that
//! serves them. Counts are stable where times are not, so that a change that costs more fails here.
//!
//! The counts are those of a traced program (ptrace), whose thread is slow beside its guest: a guest that
//! keeps many requests in flight always has some for it.

mod common;

use std::fs::{self, File};
use std::process::Stdio;

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
    let most = Counts { doorbells: 1005, interrupts: 1050, calls: 3150 };
    for engine in ["sync", "io_uring"] {
        most.hold_for(ONE_AT_A_TIME, &format!("engine={engine},poll=off"));
    }
}

#[test]
fn reads_in_flight_together_share_doorbells_interrupts_and_calls() {
    alone_on_kvm!("reads_in_flight_together_share_doorbells_interrupts_and_calls");
    for poll in ["off", "32us"] {
        // The reads themselves, and calls that many of them share.
        let most = Counts { doorbells: 60, interrupts: 120, calls: 1200 };
        most.hold_for(MANY_AT_A_TIME, &format!("engine=sync,poll={poll}"));
        let most = Counts { doorbells: 60, interrupts: 120, calls: 240 };
        most.hold_for(MANY_AT_A_TIME, &format!("engine=io_uring,poll={poll}"));
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
}

impl Counts {
    /// Runs a payload with a disk of these options, and checks that its counts are within these limits.
    #[track_caller]
    fn hold_for(&self, payload: (&str, u64), options: &str) {
        unless_spoilt(|| {
            let counts = Counts::of(payload, options);
            let Counts { doorbells, interrupts, calls } = counts;
            assert!(interrupts > 0 && calls > interrupts, "these are not the counts of a disk: {counts:?}");
            let is_few = doorbells <= self.doorbells && interrupts <= self.interrupts && calls <= self.calls;
            let verdict = format!("{options}: {counts:?} for a thousand requests, at most {self:?}");
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
        let writes = calls.get(&(libc::SYS_write as u64)).copied().unwrap_or_default();
        let printed = fs::read_to_string(printed).unwrap();
        let doorbells = printed.split_whitespace().nth(DOORBELLS).unwrap();
        let in_a_thousand = |count: u64| count * 1000 / requests;
        Counts {
            doorbells: in_a_thousand(u64::from_str_radix(doorbells, 16).unwrap()),
            interrupts: in_a_thousand(writes.into()),
            calls: in_a_thousand(calls.values().sum::<u32>().into()),
        }
    }
}

/// Payloads, and the number of requests that each makes.
const ONE_AT_A_TIME: (&str, u64) = ("block-count-1", 2000);
const MANY_AT_A_TIME: (&str, u64) = ("block-count-32", 8000);
/// The index of the number of doorbells among the numbers that these payloads print.
const DOORBELLS: usize = 1;
