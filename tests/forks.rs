//! Tests of templates and their forks, with bare guests.

mod common;

use std::fs;
use std::time::Duration;

use common::forks::{Counter, Piped, builder};
use coracle::SnapshotError;
use coracle::outcome::Ending;

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn forks_go_on_from_where_the_template_stood_each_by_itself() {
    needs_kvm!();
    let mut first = Counter::start();
    let (before, then) = (first.count(), first.count());
    assert!(then > before);
    let template = first.0.freeze();
    let mut forks = Counter::forks(&template, 3);
    let counts: Vec<u32> = forks.iter_mut().map(Counter::count).collect();
    assert!(counts.iter().all(|count| *count > then), "{counts:?} from {then}");
    // The counts of one do not show in another.
    let ahead = (0..20).map(|_| forks[0].count()).last().unwrap();
    let mut late = Counter::forks(&template, 1);
    assert!(late[0].count() < ahead);
    // A fork is a machine like any other, and becomes a template too.
    let second = forks[0].0.vm.freeze().unwrap();
    drop(template);
    let mut grandchildren = Counter::forks(&second, 2);
    assert!(grandchildren.iter_mut().all(|fork| fork.count() > ahead));
    forks.remove(0);
    forks.into_iter().chain(late).chain(grandchildren).for_each(Counter::end);
}

#[test]
fn machine_that_cannot_be_frozen_says_why_and_runs_on() {
    needs_kvm!();
    let vm = builder("counter").console_piped().build().unwrap();
    assert!(matches!(vm.freeze(), Err(SnapshotError::NotStarted)));
    vm.handle().resume();
    assert!(vm.handle().pause());
    assert!(matches!(vm.freeze(), Err(SnapshotError::Paused)));
    vm.handle().resume();
    let mut counter = Counter(Piped::of(vm));
    counter.count();
    counter.end();
    let vm = builder("halt").start().unwrap();
    assert_eq!(vm.handle().wait_for(Duration::from_millis(50)), None);
    vm.handle().stop();
    vm.wait();
    assert!(matches!(vm.freeze(), Err(SnapshotError::Ended)));
}

/// Forks that spin, as many as a process has descriptors for; each is a machine by itself.
#[test]
fn thousand_forks_at_once_take_few_descriptors_and_threads_each() {
    needs_kvm!();
    if !common::is_alone("thousand_forks_at_once_take_few_descriptors_and_threads_each") {
        return;
    }
    let vm = builder("halt").start().unwrap();
    let template = vm.freeze().unwrap();
    drop(vm);
    let counts = || (common::count("/proc/self/fd"), threads());
    let before = counts();
    let forks = template.fork(FORKS, |_, fork| fork).unwrap();
    let (descriptors, threads) = counts();
    let each = |after: usize, before: usize| (after - before).div_ceil(FORKS);
    assert!(each(descriptors, before.0) <= 12, "{descriptors} descriptors from {}", before.0);
    assert!(each(threads, before.1) <= 3, "{threads} threads from {}", before.1);
    for fork in &forks {
        fork.handle().stop();
    }
    assert!(forks.iter().all(|fork| fork.wait().ending == Ending::Stopped));
    drop(forks);
    assert_eq!(counts(), before);
}

/// Counts this process's threads. KVM has one of its own for each virtual machine.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // A thread may end meanwhile.
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| !name.starts_with("kvm-")).count()
}

const FORKS: usize = 1000;
