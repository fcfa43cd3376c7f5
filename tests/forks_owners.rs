//! Templates and forks while their owner does something else as well: other calls at the same time, limits of
//! CPU and time, too few descriptors, events.

mod common;

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use common::forks::{Counter, Piped, builder};
use common::schedule::vcpu_times;
use common::{LIMIT, is_alone};
use coracle::config::VcpuCount;
use coracle::outcome::{Ending, TimeLimit};
use coracle::{Event, Fork, SnapshotError, Template};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn templates_and_forks_can_be_sent_to_other_threads() {
    fn is_sent<T: Send>() {}
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Template>();
    is_sent::<Fork>();
    is_sent::<SnapshotError>();
}

#[test]
fn machine_that_its_owner_pauses_and_resumes_is_frozen_or_says_that_it_is_paused() {
    needs_kvm!();
    for _ in 0..20 {
        let mut counter = Counter::start();
        counter.count();
        let handle = counter.0.vm.handle();
        let template = thread::scope(|scope| {
            let toggle = scope.spawn(move || {
                // A machine that has ended is not paused.
                while handle.wait_for(Duration::ZERO).is_none() {
                    handle.pause();
                    handle.resume();
                }
            });
            let template = loop {
                match counter.0.vm.freeze() {
                    Ok(template) => break template,
                    Err(error) => assert!(matches!(error, SnapshotError::Paused), "{error}"),
                }
            };
            toggle.join().unwrap();
            template
        });
        assert_eq!(counter.0.vm.wait().ending, Ending::Stopped);
        let mut fork = Counter::forks(&template, 1).remove(0);
        fork.count();
        fork.end();
    }
}

#[test]
fn machine_that_its_owner_stops_is_frozen_or_says_that_it_has_ended() {
    needs_kvm!();
    for delay in (0..60).map(|step| Duration::from_micros(step * 10)) {
        let vm = builder("spin").start().unwrap();
        let handle = vm.handle();
        let start = Barrier::new(2);
        let frozen = thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                thread::sleep(delay);
                handle.stop();
            });
            start.wait();
            vm.freeze()
        });
        assert_eq!(vm.wait().ending, Ending::Stopped);
        match frozen {
            Ok(template) => drop(template.fork(1, |_, fork| fork).unwrap()),
            Err(error) => assert!(matches!(error, SnapshotError::Ended), "{error}"),
        }
    }
}

#[test]
fn one_of_two_who_freeze_a_machine_gets_the_template() {
    needs_kvm!();
    for _ in 0..20 {
        let counter = Counter::start();
        let start = Barrier::new(2);
        let freeze = || {
            start.wait();
            counter.0.vm.freeze()
        };
        let results = thread::scope(|scope| {
            let other = scope.spawn(freeze);
            [freeze(), other.join().unwrap()]
        });
        let ended = results.iter().filter(|result| matches!(result, Err(SnapshotError::Ended))).count();
        let templates: Vec<Template> = results.into_iter().filter_map(Result::ok).collect();
        assert_eq!((templates.len(), ended), (1, 1));
        let mut fork = Counter::forks(&templates[0], 1).remove(0);
        fork.count();
        fork.end();
    }
}

#[test]
fn machine_on_the_thread_of_its_owner_is_frozen_from_another() {
    needs_kvm!();
    let mut freezer = None;
    let outcome = builder("spin").run_with(|vm| {
        let handle = vm.handle();
        handle.resume();
        freezer = Some(thread::spawn(move || handle.freeze().unwrap()));
    });
    assert_eq!(outcome.unwrap().ending, Ending::Stopped);
    let template = freezer.unwrap().join().unwrap();
    let fork = template.fork(1, |_, fork| fork).unwrap().remove(0);
    assert_eq!(fork.handle().wait_for(Duration::from_millis(20)), None);
}

#[test]
fn forks_are_made_and_frozen_by_many_threads_at_once() {
    needs_kvm!();
    let template = Counter::start().0.freeze();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut forks = Counter::forks(&template, 3);
                    let count = forks[0].count();
                    let second = forks.remove(0).0.freeze();
                    let mut grandchild = Counter::forks(&second, 1).remove(0);
                    drop(second);
                    assert!(grandchild.count() > count);
                    forks.into_iter().chain([grandchild]).for_each(Counter::end);
                }
            });
        }
    });
}

#[test]
fn forks_outlive_the_template_and_the_machine_that_became_it() {
    needs_kvm!();
    let machine = Piped::start_marked(builder("fork-mark"));
    let template = machine.vm.freeze().unwrap();
    let clone = template.clone();
    let mut first = Counter(Piped::forks(&template, 1).remove(0));
    drop(template);
    first.0.expect(b".");
    drop(machine);
    let mut last = Piped::forks(&clone, 1).remove(0);
    drop(first);
    drop(clone);
    last.expect(b".");
    // The memory that it has not written to is still that of the template.
    let second = last.freeze();
    let waits = second.fork(1, |_, fork| fork).unwrap().remove(0);
    assert_eq!(waits.handle().wait_for(Duration::from_millis(20)), None);
}

#[test]
fn machine_that_a_quota_keeps_out_is_frozen_and_its_forks_have_the_quota_too() {
    needs_kvm!();
    if !is_alone("machine_that_a_quota_keeps_out_is_frozen_and_its_forks_have_the_quota_too") {
        return;
    }
    // With this share the quota keeps it out of the guest most of the time.
    let share = 0.05;
    let mut vm = builder("spin-ring3").cpu_quota_percent(5).start().unwrap();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(250));
        let template = vm.freeze().unwrap();
        vm = template.fork(1, |_, fork| fork).unwrap().remove(0);
    }
    let start = Instant::now();
    // A share that was exceeded because the control thread came late is a debt, which is paid.
    common::eventually("the guest gets its share and is held", || {
        let [used, _] = vcpu_times();
        let elapsed = start.elapsed().as_secs_f64();
        elapsed > 2.0 && (0.1 * share..1.5 * share).contains(&(used / elapsed))
    });
    vm.handle().stop();
    assert_eq!(vm.wait().ending, Ending::Stopped);
}

#[test]
fn idle_limit_begins_again_in_each_fork() {
    needs_kvm!();
    let limit = Duration::from_millis(500);
    let template = |payload: &str| {
        let builder = builder(payload).configure(|config| config.idle_timeout = Some(limit));
        builder.start().unwrap().freeze().unwrap()
    };
    let (idle, busy) = (template("halt"), template("spin-ring3"));
    // Longer than the template might have been idle.
    thread::sleep(limit);
    let start = Instant::now();
    let works = busy.fork(1, |_, fork| fork).unwrap().remove(0);
    let waits = idle.fork(1, |_, fork| fork).unwrap().remove(0);
    assert_eq!(waits.wait().ending, Ending::TimedOut { kind: TimeLimit::Idle, limit });
    assert!(start.elapsed() >= limit);
    assert_eq!(works.handle().wait_for(Duration::ZERO), None);
}

#[test]
fn time_limit_of_a_fork_counts_from_its_start() {
    needs_kvm!();
    let template = builder("spin").start().unwrap().freeze().unwrap();
    let limit = Duration::from_millis(300);
    // By now it would be over.
    thread::sleep(limit);
    let start = Instant::now();
    let mut forks = template.fork(2, |index, fork| if index == 0 { fork.timeout(limit) } else { fork });
    let forks = forks.as_mut().unwrap();
    let outcome = forks[0].wait();
    assert_eq!(outcome.ending, Ending::TimedOut { kind: TimeLimit::Wall, limit });
    assert!(outcome.duration >= limit && start.elapsed() >= outcome.duration, "{:?}", outcome.duration);
    // The other has the limit of the template, which is long.
    assert_eq!(forks[1].handle().wait_for(Duration::ZERO), None);
}

#[test]
fn events_of_a_template_and_of_a_fork_come_in_order() {
    needs_kvm!();
    let counter = Counter::start();
    let events = counter.0.vm.handle().subscribe().unwrap();
    let template = counter.0.vm.freeze().unwrap();
    let ended = Event::Ended(Box::new(counter.0.vm.wait()));
    assert_eq!(events.recv_timeout(LIMIT), Some(ended), "a freeze does not count as a pause");
    assert_eq!(events.recv_timeout(LIMIT), None);
    let mut fork = Counter::forks(&template, 1).remove(0);
    let handle = fork.0.vm.handle();
    let events = handle.subscribe().unwrap();
    let count = fork.count();
    assert!(handle.pause());
    assert_eq!(handle.registers().unwrap().len(), 1);
    assert!(matches!(fork.0.vm.freeze(), Err(SnapshotError::Paused)));
    handle.resume();
    assert!(fork.count() > count);
    fork.end();
    let outcome = handle.wait_for(LIMIT).unwrap();
    let expected = [Event::Paused, Event::Resumed, Event::Ended(Box::new(outcome))];
    for event in expected {
        assert_eq!(events.recv_timeout(LIMIT), Some(event));
    }
    assert_eq!(events.recv_timeout(LIMIT), None);
}

#[test]
fn outcome_of_a_fork_counts_from_the_fork_on() {
    needs_kvm!();
    let mut counter = Counter::start();
    for _ in 0..20 {
        counter.count();
    }
    let template = counter.0.vm.freeze().unwrap();
    let before = counter.0.vm.wait();
    assert_eq!(before.console_bytes, 20 * 9);
    let start = Instant::now();
    let mut fork = Counter::forks(&template, 1).remove(0);
    fork.count();
    let handle = fork.0.vm.handle();
    fork.end();
    let outcome = handle.wait_for(LIMIT).unwrap();
    assert_eq!(outcome.console_bytes, 9);
    assert_eq!((outcome.resets, outcome.later_events, outcome.console_bytes_dropped), (0, 0, 0));
    // It printed 9 bytes and wrote its code.
    assert_eq!(outcome.exits.port_out, 10);
    assert!(outcome.duration <= start.elapsed());
}

#[test]
fn too_few_descriptors_make_no_fork_and_leave_nothing_behind() {
    needs_kvm!();
    if !is_alone("too_few_descriptors_make_no_fork_and_leave_nothing_behind") {
        return;
    }
    let vcpus = |config: &mut coracle::config::VmConfig| config.vcpus = VcpuCount::new(2).unwrap();
    let template = builder("halt").configure(vcpus).start().unwrap().freeze().unwrap();
    let mappings = || fs::read_to_string("/proc/self/maps").unwrap().matches("coracle-template").count();
    let held = || (common::count("/proc/self/fd"), common::count("/proc/self/task"), mappings());
    // What the process needs once.
    drop(template.fork(1, |_, fork| fork.console_piped()).unwrap());
    common::eventually("the threads end", || held().1 <= 2);
    let before = held();
    let mut refused = 0;
    for more in 0.. {
        limit_descriptors(lowest_free() + more);
        let forks = template.fork(3, |_, fork| fork.console_piped());
        limit_descriptors(1000);
        let Err(error) = forks else { break };
        refused += 1;
        let text = error.to_string();
        assert!(text.starts_with("fork ") && text.contains("Too many open files"), "{text}");
        assert!(!text.contains('\n') && std::error::Error::source(&error).is_none(), "{text}");
        drop(error);
        common::eventually("everything is given back", || held() == before);
    }
    assert!(refused > 30, "{refused}");
}

/// Returns the number that the next descriptor gets.
fn lowest_free() -> u64 {
    let file = fs::File::open("/dev/null").unwrap();
    std::os::fd::AsRawFd::as_raw_fd(&file) as u64
}

fn limit_descriptors(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most.max(1000) };
    // SAFETY: the value is valid.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
