//! The cost of a fork in counts: system calls, which depend neither on the size of the guest's RAM nor on
//! what it has touched, and mappings.

mod common;

use std::process::Command;

use common::calls::{self, Calls};
use common::forks::{Piped, builder};
use common::is_alone;
use coracle::config::MemorySize;

#[test]
fn system_calls_of_a_fork_are_few_whatever_its_size() {
    if !common::kvm_or_skip() {
        return;
    }
    let test = "system_calls_of_a_fork_are_few_whatever_its_size";
    if let Ok(text) = std::env::var(FORKS) {
        let (mib, count) = text.split_once(' ').unwrap();
        return make_forks(mib.parse().unwrap(), count.parse().unwrap());
    }
    // The tracer has no other children.
    if !is_alone(test) {
        return;
    }
    let of_one = |mib: u64| {
        // The others pay for what the process needs once.
        let [few, many] = [2, 2 + STEP].map(|count| traced(test, mib, count));
        let difference = (many.0 - few.0) / STEP;
        assert!(difference > 30, "these are not the calls of forks: {:?} and {:?}", few.1, many.1);
        difference
    };
    let sizes = [128, 2048, 4096, 65536];
    let counts = sizes.map(of_one);
    // Forks that are stopped before their vCPU runs make a few calls less.
    assert!(counts.iter().all(|count| *count <= CALLS), "{counts:?} for {sizes:?} MiB, more than {CALLS}");
}

/// Returns the number of system calls of a process that makes `count` forks, and all calls.
fn traced(test: &str, mib: u64, count: u32) -> (u32, Calls) {
    let once = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(FORKS, format!("{mib} {count}"));
        command.stdout(std::process::Stdio::null());
        let (calls, code) = calls::of(&mut command);
        assert_eq!(code, 0);
        // Threads that meet at a lock make a few more, or wait once more.
        let waits = [libc::SYS_futex, libc::SYS_epoll_wait, libc::SYS_sched_yield].map(|call| call as u64);
        let counted = calls.by_number.iter().filter(|(call, _)| !waits.contains(call));
        (counted.map(|(_, count)| count).sum(), calls)
    };
    (0..3).map(|_| once()).min_by_key(|(count, _)| *count).unwrap()
}

fn make_forks(mib: u64, count: usize) {
    let size = MemorySize::from_mib(mib).unwrap();
    let template = builder("fork-mark").configure(|config| config.memory = size.into());
    let template = Piped::start_marked(template).freeze();
    let forks = template.fork(count, |_, fork| fork).unwrap();
    forks.iter().for_each(|fork| fork.handle().stop());
    assert_eq!(forks.iter().map(|fork| fork.wait().resets).sum::<u64>(), 0);
}

/// The variable by which a test asks its own program for forks: MiB of RAM, and their number.
const FORKS: &str = "CORACLE_TEST_FORKS";
/// The number of forks by which two runs differ.
const STEP: u32 = 8;
/// The most calls of a fork's life, waits apart, whatever its size.
const CALLS: u32 = 165;
