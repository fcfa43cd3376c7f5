//! The library: virtual machines inside this process, driven through `Vm` and `VmHandle`.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use coracle::Vm;
use coracle::config::{AcpiMode, MemorySize, ResetPolicy, VcpuCount, VmConfig};
use coracle::outcome::{Ending, Outcome, Phase};

const LIMIT: Duration = Duration::from_secs(30);

fn config(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config
}

fn end(vm: &Vm) -> Outcome {
    vm.handle().wait_for(LIMIT).expect("the virtual machine did not end")
}

fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn run_returns_the_outcome() {
    if !common::kvm_or_skip() {
        return;
    }
    let outcome = Vm::builder(config("exit-7")).run().unwrap();
    assert_eq!(outcome.ending, Ending::Exited { code: 7 });
    assert_eq!(outcome.exits.port_out, 1);
    assert_eq!(outcome.phase, Phase::Entered);
}

#[test]
fn built_machine_does_not_run_before_it_is_resumed() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = Vm::builder(config("exit-7")).build().unwrap();
    assert_eq!(vm.handle().wait_for(Duration::from_millis(50)), None);
    vm.handle().resume();
    assert_eq!(end(&vm).ending, Ending::Exited { code: 7 });
}

#[test]
fn pause_and_stop_reach_a_guest_that_spins_on_all_vcpus() {
    if !common::kvm_or_skip() {
        return;
    }
    for payload in ["spin", "spin-ring3", "halt"] {
        let mut config = config(payload);
        config.vcpus = VcpuCount::new(4).unwrap();
        let vm = Vm::builder(config).start().unwrap();
        let handle = vm.handle();
        for _ in 0..20 {
            assert!(handle.pause(), "{payload}");
            handle.resume();
        }
        let start = Instant::now();
        let outcome = vm.stop();
        assert_eq!(outcome.ending, Ending::Stopped, "{payload}");
        assert!(start.elapsed() < LIMIT);
    }
}

#[test]
fn paused_guest_stands_still() {
    if !common::kvm_or_skip() {
        return;
    }
    let path = common::scratch().join("paused.log");
    let mut config = config("flood");
    config.serial = coracle::config::SerialConfig::File(path.clone());
    let vm = Vm::builder(config).start().unwrap();
    let size = || fs::metadata(&path).map_or(0, |file| file.len());
    common::eventually("the guest prints", || size() > 100);
    assert!(vm.handle().pause());
    // What the guest had printed before may still be on its way to the file.
    let mut last = 0;
    common::eventually("the file stops growing", || {
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut last, size()) == last
    });
    let before = size();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(size(), before);
    vm.handle().resume();
    common::eventually("the guest prints on", || size() > before);
}

#[test]
fn time_limit_counts_from_the_start_and_covers_a_pause() {
    if !common::kvm_or_skip() {
        return;
    }
    let mut config = config("spin");
    config.timeout = Some(Duration::from_millis(100));
    let vm = Vm::builder(config).start().unwrap();
    vm.handle().pause();
    assert_eq!(end(&vm).ending, Ending::TimedOut { limit: Duration::from_millis(100) });
}

#[test]
fn calls_on_an_ended_machine_do_nothing() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = Vm::builder(config("poweroff")).start().unwrap();
    assert_eq!(end(&vm).ending, Ending::PoweredOff);
    let handle = vm.handle();
    handle.resume();
    assert!(!handle.pause());
    handle.stop();
    assert_eq!(vm.wait().ending, Ending::PoweredOff);
    drop(vm);
    assert_eq!(handle.wait_for(Duration::ZERO).map(|outcome| outcome.ending), Some(Ending::PoweredOff));
}

#[test]
fn pause_resume_stop_and_drop_reach_a_guest_that_resets_all_the_time() {
    if !common::kvm_or_skip() {
        return;
    }
    for round in 0..20 {
        let mut config = config("hello-reset");
        config.on_reset = ResetPolicy::Reboot;
        config.vcpus = VcpuCount::new(2).unwrap();
        let vm = Vm::builder(config).start().unwrap();
        let handle = vm.handle();
        for _ in 0..5 {
            assert!(handle.pause());
            handle.resume();
        }
        if round % 2 == 0 {
            let outcome = vm.stop();
            assert_eq!(outcome.ending, Ending::Stopped);
        }
    }
}

#[test]
fn power_button_is_there_with_acpi_only() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = Vm::builder(config("button")).start().unwrap();
    assert!(vm.handle().press_power_button());
    let outcome = end(&vm);
    assert_eq!((&outcome.ending, outcome.signal, outcome.exit_code()), (&Ending::PoweredOff, None, 0));

    let mut config = config("button");
    config.acpi = AcpiMode::Off;
    let vm = Vm::builder(config).start().unwrap();
    assert!(!vm.handle().press_power_button());
    assert!(!vm.handle().power_off_by_signal(15));
    assert_eq!(vm.stop().signal, None);
}

#[test]
fn hundred_machines_leave_no_thread_and_no_descriptor() {
    if !common::kvm_or_skip() || !is_alone("hundred_machines_leave_no_thread_and_no_descriptor") {
        return;
    }
    let machine = |payload: &str| drop(Vm::builder(config(payload)).run().unwrap());
    machine("hello");
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..25 {
        machine("hello");
        machine("triple-fault");
        drop(Vm::builder(config("spin")).start().unwrap());
        drop(Vm::builder(config("spin")).build().unwrap());
    }
    assert!(Vm::builder(VmConfig::new("/no/such/kernel")).build().is_err());
    assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), before);
}

#[test]
fn hundred_resets_take_no_thread_no_descriptor_and_no_memory() {
    if !common::kvm_or_skip() || !is_alone("hundred_resets_take_no_thread_no_descriptor_and_no_memory") {
        return;
    }
    let path = common::scratch().join("lives.log");
    let mut config = config("hello-reset");
    config.initrds = vec![common::file("mib.cpio", &vec![b'0'; 1 << 20])];
    config.on_reset = ResetPolicy::Reboot;
    config.serial = coracle::config::SerialConfig::File(path.clone());
    let lives = || fs::metadata(&path).map_or(0, |file| file.len());
    let vm = Vm::builder(config).start().unwrap();
    let held = |after: u64| {
        common::eventually("the guest resets", || lives() >= after);
        assert!(vm.handle().pause());
        let held = (count("/proc/self/fd"), count("/proc/self/task"), resident_kib());
        vm.handle().resume();
        held
    };
    let (descriptors, threads, memory) = held(5);
    // A thread that has been joined, or one of KVM's own, may still be on its way out of the process.
    common::eventually("as many threads and descriptors as before", || {
        let (descriptors_after, threads_after, memory_after) = held(105);
        assert!(memory_after < memory + 4096, "{memory} KiB, then {memory_after} KiB");
        (descriptors_after, threads_after) == (descriptors, threads)
    });
    assert!(vm.stop().resets >= 104);
}

/// Threads, descriptors and memory are counted for the whole process: a test that does so runs in a process of its own.
/// False where it has been run there.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    common::finish(&mut command).expect(0, "");
    false
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn machines_run_side_by_side() {
    if !common::kvm_or_skip() {
        return;
    }
    let vms: Vec<Vm> = (0..8).map(|_| Vm::builder(config("exit-7")).start().unwrap()).collect();
    for vm in &vms {
        assert_eq!(end(vm).ending, Ending::Exited { code: 7 });
    }
}

const CHILD: &str = "CORACLE_TEST_ALONE";
