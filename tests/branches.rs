//! Tests of machines that run on beside their children, with bare guests.

mod common;

use std::fs;
use std::io::BufRead;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use common::forks::{Counter, Every, Pages, Piped, builder};
use common::is_alone;
use coracle::config::{DiskConfig, MemorySize, ResetPolicy, VcpuCount};
use coracle::outcome::Ending;
use coracle::{Fork, GuestTime, SnapshotError, Vm, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

fn branch(vm: &Vm) -> Piped {
    Piped::of(vm.branch(Fork::console_piped).unwrap())
}

fn branch_pages(parent: &Pages) -> Pages {
    Pages(branch(&parent.0.vm))
}

#[test]
fn machine_and_child_go_on_each_by_itself() {
    needs_kvm!();
    let mut parent = Counter::start();
    let before = parent.count();
    let mut child = Counter(branch(&parent.0.vm));
    assert!(child.count() > before && parent.count() > before);
    let ahead = (0..20).map(|_| child.count()).last().unwrap();
    // A child of a child of a child, each of which goes on too.
    let mut second = Counter(branch(&child.0.vm));
    let mut third = Counter(branch(&second.0.vm));
    let template = third.0.vm.to_template().unwrap();
    let mut forks = Counter::forks(&template, 2);
    assert!(second.count() > ahead && third.count() > ahead);
    assert!(forks.iter_mut().all(|fork| fork.count() > ahead));
    assert!(child.count() > ahead);
    forks.into_iter().chain([parent, child, second, third]).for_each(Counter::end);
}

#[test]
fn memory_is_that_of_the_branch_with_every_second_page_written() {
    needs_kvm!();
    let mut parent = Pages::start();
    parent.write(16, Every::Page);
    let mut kept = vec![(parent.hash(32), branch_pages(&parent))];
    for every in [Every::Second, Every::Page, Every::Second] {
        parent.write(24, every);
        let hash = parent.hash(32);
        kept.push((hash.clone(), branch_pages(&parent)));
        assert_eq!(parent.hash(32), hash);
    }
    let mut grandchild = branch_pages(&kept[1].1);
    grandchild.write(32, Every::Second);
    assert_ne!(grandchild.hash(32), kept[1].0);
    grandchild.end();
    for (hash, mut child) in kept {
        assert_eq!(child.hash(32), hash);
        child.write(4, Every::Second);
        assert_ne!(child.hash(32), hash);
        child.end();
    }
    parent.end();
}

#[test]
fn chain_of_fifty_branches_has_the_memory_of_its_parent() {
    needs_kvm!();
    let mut parent = Pages::start();
    parent.write(8, Every::Page);
    let mut last = None;
    for round in 0..50_u8 {
        parent.write(1 + round % 7, Every::Second);
        last = Some((parent.hash(8), branch_pages(&parent)));
    }
    let (hash, mut child) = last.unwrap();
    assert_eq!(child.hash(8), hash);
    // Each the child of the last.
    for _ in 0..50 {
        child.write(1, Every::Second);
        let hash = child.hash(8);
        child = branch_pages(&child);
        assert_eq!(child.hash(8), hash);
    }
    child.end();
    parent.end();
}

#[test]
fn four_cpus_go_on_in_both() {
    needs_kvm!();
    let builder = builder("fork-cpus").configure(|config| config.vcpus = VcpuCount::new(4).unwrap());
    let parent = Piped::start_marked(builder);
    let children: Vec<Piped> = (0..3).map(|_| branch(&parent.vm)).collect();
    let grandchild = branch(&children[0].vm);
    for mut machine in children.into_iter().chain([parent, grandchild]) {
        machine.send(b"g");
        machine.exits(0);
    }
}

/// KVM cannot tell a timer that has fired from one that is about to.
#[test]
fn one_shot_timer_that_has_fired_does_not_fire_once_more() {
    needs_kvm!();
    let mut parent = Piped::start_marked(builder("branch-timer"));
    for count in [b'1', b'2', b'3'] {
        let child = branch(&parent.vm);
        let grandchild = branch(&child.vm);
        thread::sleep(Duration::from_millis(20));
        for mut machine in [child, grandchild] {
            machine.send(b"?");
            machine.expect(&[count]);
            machine.send(b"t");
            machine.expect(&[count]);
            // It fires, whenever it is saved meanwhile.
            let mut child = branch(&machine.vm);
            thread::sleep(Duration::from_millis(20));
            for machine in [&mut machine, &mut child] {
                machine.send(b"?");
                machine.expect(&[count + 1]);
                machine.send(b"q");
                machine.exits(0);
            }
        }
        parent.send(b"t");
        parent.expect(&[count]);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn time_between_passes_for_the_guest_only_on_request() {
    needs_kvm!();
    common::unless_spoilt(|| {
        // It waits a second for its timer.
        let machine = Piped::start_marked(builder("fork-timer"));
        let template = machine.vm.to_template().map_err(|error| error.to_string())?;
        thread::sleep(Duration::from_millis(1200));
        let forks = template.fork(2, |index, fork| {
            fork.time(if index == 0 { GuestTime::Stands } else { GuestTime::Elapsed })
        });
        let forks = forks.unwrap();
        let ended = forks[1].handle().wait_for(common::LIMIT).expect("the timer was due");
        assert_eq!(ended.ending, Ending::Exited { code: 0 });
        if forks[0].handle().wait_for(Duration::ZERO).is_some() {
            return Err("the fork whose time stood still was as fast".to_owned());
        }
        assert_eq!(forks[0].handle().wait_for(common::LIMIT).unwrap().ending, Ending::Exited { code: 0 });
        Ok(())
    });
}

#[test]
fn entropy_device_goes_on_in_both_under_load() {
    needs_kvm!();
    let start = builder("rng-counter").configure(|config| config.rng = true);
    let mut parent = Counter(Piped::start(start));
    let mut before = parent.count();
    for round in 0..20 {
        thread::sleep(Duration::from_micros(round * 97));
        let mut child = Counter(branch(&parent.0.vm));
        let (one, other) = (child.count(), parent.count());
        assert!(one > before && other > before, "{one} and {other} after {before}");
        before = other;
        child.end();
    }
    parent.end();
}

#[test]
fn disk_with_an_overlay_goes_on_in_both_with_requests_in_flight() {
    needs_kvm!();
    if common::is_nearly_full("/var/tmp") {
        return common::skip("overlays leave the last 5 % of a file system free, and /var/tmp has no more");
    }
    let path = common::scratch().join("branched.img");
    let pages = (1..=1024_u64).flat_map(|page| {
        let mut bytes = vec![0; 4096];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        bytes
    });
    fs::write(&path, pages.collect::<Vec<u8>>()).unwrap();
    for (kind, access) in [("read", "ro"), ("read", "cow"), ("write", "cow"), ("zeroes", "cow")] {
        let disk: DiskConfig = format!("path={},{access}", path.display()).parse().unwrap();
        let builder = builder(&format!("backlog-{kind}")).configure(|config| {
            config.memory = MemorySize::from_mib(128).unwrap().into();
            config.disks = vec![disk];
        });
        let mut parent = Piped::start(builder);
        parent.output.fill_buf().unwrap();
        parent.output.consume(1);
        let first = branch(&parent.vm);
        thread::sleep(Duration::from_millis(1));
        let second = branch(&parent.vm);
        for mut machine in [branch(&first.vm), first, second, parent] {
            machine.send(b"w");
            machine.exits(0);
        }
    }
}

#[test]
fn disk_of_each_has_its_own_writes_after_a_branch() {
    needs_kvm!();
    if common::is_nearly_full("/var/tmp") {
        return common::skip("overlays leave the last 5 % of a file system free, and /var/tmp has no more");
    }
    let path = common::scratch().join("branched-cell.img");
    fs::write(&path, (0..64 * 512).map(|at| (at / 512) as u8 + b'A').collect::<Vec<u8>>()).unwrap();
    let disk: DiskConfig = format!("path={},cow", path.display()).parse().unwrap();
    let builder = builder("disk-cell").configure(|config| config.disks = vec![disk]);
    let mut parent = Piped::start(builder);
    let sectors = |machine: &mut Piped, expected: &[u8; 2]| {
        machine.send(b"?");
        machine.expect(expected);
    };
    sectors(&mut parent, b"GH");
    // More often than there can be layers with writes.
    let mut children: Vec<(Piped, u8)> = Vec::new();
    for round in 0..100 {
        if round % 10 == 0 {
            let letter = b'a' + round / 10;
            parent.send(&[letter]);
            sectors(&mut parent, &[b'G', letter]);
            children.push((branch(&parent.vm), letter));
        } else {
            drop(parent.vm.to_template().unwrap());
        }
    }
    for (child, letter) in &mut children {
        sectors(child, &[b'G', *letter]);
        child.send(b"z");
        sectors(child, b"Gz");
    }
    sectors(&mut parent, b"Gj");
    for (mut machine, _) in children.into_iter().chain([(parent, 0)]) {
        machine.send(b"q");
        machine.exits(0);
    }
}

#[test]
fn machine_that_cannot_be_branched_says_why_and_runs_on() {
    needs_kvm!();
    let branched = |vm: &Vm| vm.branch(|fork| fork).map(drop);
    let vm = builder("counter").console_piped().build().unwrap();
    assert!(matches!(branched(&vm), Err(SnapshotError::NotStarted)));
    vm.handle().resume();
    assert!(vm.handle().pause());
    assert!(matches!(branched(&vm), Err(SnapshotError::Paused)));
    vm.handle().resume();
    let mut counter = Counter(Piped::of(vm));
    counter.count();
    counter.end();
    let vm = builder("halt").start().unwrap();
    assert_eq!(vm.handle().wait_for(Duration::from_millis(50)), None);
    vm.handle().stop();
    vm.wait();
    assert!(matches!(branched(&vm), Err(SnapshotError::Ended)));
}

/// The owner stops, pauses, or resets the machine at the same time.
#[test]
fn branch_at_any_moment_is_a_machine_or_a_typed_error() {
    needs_kvm!();
    for (step, act) in (0..90).map(|step| (step, step % 3)) {
        let reset = |config: &mut coracle::config::VmConfig| config.on_reset = ResetPolicy::Reboot;
        let vm: Vm = if act == 2 {
            VmBuilder::new(builder("reset-acpi").configure(reset).config().clone()).start().unwrap()
        } else {
            builder("spin").start().unwrap()
        };
        let start = Barrier::new(2);
        let branched = thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                thread::sleep(Duration::from_micros(step * 10));
                match act {
                    0 => vm.handle().stop(),
                    1 => drop(vm.handle().pause()),
                    _ => {}
                }
            });
            start.wait();
            vm.branch(|fork| fork)
        });
        match (branched, act) {
            (Ok(child), 2) => {
                child.handle().stop();
                assert_eq!(child.wait().ending, Ending::Stopped);
            }
            (Ok(child), _) => assert_eq!(child.handle().wait_for(Duration::from_millis(5)), None),
            (Err(SnapshotError::Ended), 0) | (Err(SnapshotError::Paused | SnapshotError::Busy), 1) => {}
            (Err(error), _) => panic!("{error}"),
        }
        vm.handle().stop();
        assert_eq!(vm.wait().ending, Ending::Stopped);
    }
}

#[test]
fn branches_by_many_threads_at_once_are_made_one_after_the_other() {
    needs_kvm!();
    let mut parent = Counter::start();
    parent.count();
    let children = thread::scope(|scope| {
        let branch = || (0..5).filter_map(|_| parent.0.vm.branch(Fork::console_piped).ok());
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(move || branch().collect::<Vec<Vm>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(children.len(), 15);
    for child in children {
        let mut child = Counter(Piped::of(child));
        child.count();
        child.end();
    }
    parent.count();
    parent.end();
}

#[test]
fn too_few_descriptors_make_no_child_and_the_machine_runs_on() {
    needs_kvm!();
    if !is_alone("too_few_descriptors_make_no_child_and_the_machine_runs_on") {
        return;
    }
    let mut parent = Counter::start();
    parent.count();
    // What the process needs once, and a layer that shows all that this guest writes.
    drop((branch(&parent.0.vm), branch(&parent.0.vm)));
    let held = || (common::count("/proc/self/fd"), common::count("/proc/self/task"));
    let mut refused = 0;
    for more in 0.. {
        let lowest = fs::File::open("/dev/null").unwrap();
        let lowest = std::os::fd::AsRawFd::as_raw_fd(&lowest) as u64;
        limit_descriptors(lowest + more);
        let child = parent.0.vm.branch(Fork::console_piped);
        limit_descriptors(1000);
        let Err(error) = child else { break };
        refused += 1;
        let text = error.to_string();
        assert!(text.contains("Too many open files") && !text.contains('\n'), "{text}");
        parent.count();
        let before = held();
        common::eventually("the threads end", || held().1 <= before.1);
        assert!(held().0 < 80, "{:?}", held());
    }
    assert!(refused > 10, "{refused}");
    parent.end();
}

fn limit_descriptors(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most.max(1000) };
    // SAFETY: the value is valid.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
