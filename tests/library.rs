//! Tests of the library: virtual machines inside this process, driven through `Vm` and `VmHandle`.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle::config::{AcpiMode, AgentConfig, AgentPlace, MemorySize, ResetPolicy, VcpuCount, VmConfig};
use coracle::outcome::{Ending, Outcome, Phase, TimeLimit};
use coracle::vsock::VsockPortError;
use coracle::{BuildError, Disk, Event, Grace, Vm, VmBuilder};

const LIMIT: Duration = Duration::from_secs(250);

fn config(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config
}

fn end(vm: &Vm) -> Outcome {
    vm.handle().wait_for(LIMIT).expect("the virtual machine did not end")
}

#[test]
fn run_returns_the_outcome() {
    if !common::kvm_or_skip() {
        return;
    }
    let outcome = VmBuilder::new(config("exit-7")).run().unwrap();
    assert_eq!(outcome.ending, Ending::Exited { code: 7 });
    assert_eq!(outcome.exits.port_out, 1);
    assert_eq!(outcome.phase, Phase::Entered);
}

#[test]
fn built_machine_does_not_run_before_it_is_resumed() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = VmBuilder::new(config("exit-7")).build().unwrap();
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
        let vm = VmBuilder::new(config).start().unwrap();
        let handle = vm.handle();
        for _ in 0..20 {
            assert!(handle.pause(), "{payload}");
            handle.resume();
        }
        let start = Instant::now();
        let outcome = vm.stop(Grace::NONE);
        assert_eq!(outcome.ending, Ending::Stopped, "{payload}");
        assert!(start.elapsed() < LIMIT);
    }
}

/// A pause that waits for the vCPUs ends with the resume of another thread, not with its time limit of 5 s.
#[test]
fn pause_that_a_resume_overtakes_ends_with_it() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = VmBuilder::new(config("spin")).start().unwrap();
    let (handle, over) = (vm.handle(), AtomicBool::new(false));
    let mut longest = Duration::ZERO;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                handle.resume();
                thread::sleep(Duration::from_micros(50));
            }
        });
        for _ in 0..50 {
            let start = Instant::now();
            handle.pause();
            longest = longest.max(start.elapsed());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(longest < Duration::from_secs(5), "a pause waited for its time limit: {longest:?}");
}

#[test]
fn paused_guest_stands_still() {
    if !common::kvm_or_skip() {
        return;
    }
    let path = common::scratch().join("paused.log");
    let mut config = config("flood");
    config.serial = coracle::config::SerialConfig::File(path.clone().into());
    let vm = VmBuilder::new(config).start().unwrap();
    let size = || fs::metadata(&path).map_or(0, |file| file.len());
    common::eventually("the guest prints", || size() > 100);
    assert!(vm.handle().pause());
    // What the guest printed earlier may still be on its way to the file.
    let mut last = 0;
    common::eventually("the file stops growing", || {
        thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut last, size()) == last
    });
    let before = size();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(size(), before);
    vm.handle().resume();
    common::eventually("the guest prints on", || size() > before);
}

#[test]
fn file_of_the_serial_port_does_not_grow_without_end() {
    if !common::kvm_or_skip() {
        return;
    }
    const LIMIT: u64 = 64 << 10;
    let folder = common::scratch().join("rotated");
    fs::create_dir_all(&folder).unwrap();
    let (path, old) = (folder.join("serial"), folder.join("serial.1"));
    let mut config = config("flood");
    let serial = format!("file={},limit=64K", path.display());
    config.serial = serial.parse().unwrap();
    let vm = VmBuilder::new(config).start().unwrap();
    let is_full = || fs::metadata(&old).is_ok_and(|file| file.len() == LIMIT);
    common::eventually("the first file is full", is_full);
    common::eventually("there is a second", || fs::metadata(&path).is_ok_and(|file| file.len() > 0));
    vm.stop(Grace::NONE);
    assert_eq!(fs::metadata(&old).unwrap().len(), LIMIT);
    assert!(fs::metadata(&path).unwrap().len() <= LIMIT);
    assert_eq!(common::count(folder.to_str().unwrap()), 2);
}

#[test]
fn time_limit_counts_from_the_start_and_covers_a_pause() {
    if !common::kvm_or_skip() {
        return;
    }
    let mut config = config("spin");
    config.timeout = Some(Duration::from_millis(100));
    let vm = VmBuilder::new(config).start().unwrap();
    vm.handle().pause();
    assert_eq!(
        end(&vm).ending,
        Ending::TimedOut { kind: TimeLimit::Wall, limit: Duration::from_millis(100) }
    );
}

#[test]
fn calls_on_an_ended_machine_do_nothing() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = VmBuilder::new(config("poweroff")).start().unwrap();
    assert_eq!(end(&vm).ending, Ending::PoweredOff);
    let handle = vm.handle();
    handle.resume();
    assert!(!handle.pause());
    handle.stop();
    assert!(!handle.stop_by_signal(libc::SIGTERM) && !handle.power_off_by_signal(libc::SIGTERM));
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
        let vm = VmBuilder::new(config).start().unwrap();
        let handle = vm.handle();
        for _ in 0..5 {
            assert!(handle.pause());
            handle.resume();
        }
        if round % 2 == 0 {
            let outcome = vm.stop(Grace::NONE);
            assert_eq!(outcome.ending, Ending::Stopped);
        }
    }
}

#[test]
fn power_button_is_there_with_acpi_only() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = VmBuilder::new(config("button")).start().unwrap();
    assert!(vm.handle().press_power_button());
    let outcome = end(&vm);
    assert_eq!((&outcome.ending, outcome.signal, outcome.exit_code()), (&Ending::PoweredOff, None, 0));

    let mut config = config("button");
    config.acpi = AcpiMode::Off;
    let vm = VmBuilder::new(config).start().unwrap();
    assert!(!vm.handle().press_power_button());
    assert!(!vm.handle().power_off_by_signal(15));
    assert_eq!(vm.stop(Grace::NONE).signal, None);
}

#[test]
fn thousand_machines_leave_no_thread_no_descriptor_and_no_memory() {
    if !common::kvm_or_skip()
        || !common::is_alone("thousand_machines_leave_no_thread_no_descriptor_and_no_memory")
    {
        return;
    }
    let disk = common::file("lives.img", &[0; 4096]);
    let machine = |payload: &str| {
        let vm = VmBuilder::new(config(payload)).disk(Disk::new(&disk)).rng(true).console_piped();
        (vm.start().unwrap(), VmBuilder::new(config(payload)))
    };
    let four_lives = || {
        let (vm, other) = machine("spin");
        assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
        drop(other.build().unwrap());
        drop(machine("triple-fault"));
        assert_eq!(VmBuilder::new(config("hello-exit")).run().unwrap().exit_code(), 0);
        assert!(VmBuilder::new(VmConfig::new("/no/such/kernel")).build().is_err());
    };
    let held = || (common::count("/proc/self/fd"), common::count("/proc/self/task"));
    let signals = signal_state();
    (0..10).for_each(|_| four_lives());
    let (before, memory, mapped) = (held(), status_kib("VmRSS"), status_kib("VmSize"));
    (0..250).for_each(|_| four_lives());
    // A thread that has been joined, or one of KVM's, may still be exiting.
    common::eventually("as many threads and descriptors as before", || held() == before);
    let grown = status_kib("VmRSS").saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more after a thousand machines");
    // Each guest had 16 MiB.
    let grown = status_kib("VmSize").saturating_sub(mapped);
    assert!(grown < 256 << 10, "{grown} KiB more are mapped");
    assert_eq!(signal_state(), signals);
}

/// The signals that the process ignores and catches, and that this thread blocks.
fn signal_state() -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let lines = status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
    lines.map(str::to_owned).collect()
}

#[test]
fn files_of_a_machine_are_free_with_its_outcome_whoever_holds_a_handle() {
    if !common::kvm_or_skip() {
        return;
    }
    let disk = common::file("locked.img", &[0; 4096]);
    let builder = VmBuilder::new(config("spin")).disk(Disk::new(&disk));
    let vm = builder.start().unwrap();
    let handle = vm.handle();
    assert!(builder.build().is_err(), "two machines write one disk");
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
    builder.build().unwrap();
    assert!(matches!(handle.connect(1), Err(VsockPortError::Ended)));
}

#[test]
fn hundred_resets_take_no_thread_no_descriptor_and_no_memory() {
    if !common::kvm_or_skip()
        || !common::is_alone("hundred_resets_take_no_thread_no_descriptor_and_no_memory")
    {
        return;
    }
    let path = common::scratch().join("lives.log");
    let mut config = config("hello-reset");
    config.initrds = vec![common::file("mib.cpio", &vec![b'0'; 1 << 20])];
    config.on_reset = ResetPolicy::Reboot;
    config.serial = coracle::config::SerialConfig::File(path.clone().into());
    let lives = || fs::metadata(&path).map_or(0, |file| file.len());
    let vm = VmBuilder::new(config).start().unwrap();
    let held = |after: u64| {
        common::eventually("the guest resets", || lives() >= after);
        assert!(vm.handle().pause());
        let held = (common::count("/proc/self/fd"), common::count("/proc/self/task"), status_kib("VmRSS"));
        vm.handle().resume();
        held
    };
    let (descriptors, threads, memory) = held(5);
    // A thread that has been joined, or one of KVM's, may still be exiting.
    common::eventually("as many threads and descriptors as before", || {
        let (descriptors_after, threads_after, memory_after) = held(105);
        assert!(memory_after < memory + 4096, "{memory} KiB, then {memory_after} KiB");
        (descriptors_after, threads_after) == (descriptors, threads)
    });
    assert!(vm.stop(Grace::NONE).resets >= 104);
}

/// Returns a size of the process, by its name in the kernel's accounting.
fn status_kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn machines_run_side_by_side() {
    if !common::kvm_or_skip() {
        return;
    }
    let vms: Vec<Vm> = (0..8).map(|_| VmBuilder::new(config("exit-7")).start().unwrap()).collect();
    for vm in &vms {
        assert_eq!(end(vm).ending, Ending::Exited { code: 7 });
    }
}

#[test]
fn builder_s_words_make_the_machine_and_a_wrong_one_is_told_by_build() {
    if !common::kvm_or_skip() {
        return;
    }
    let builder = || Vm::builder().kernel(common::payload("exit-7")).memory_mib(16).cpus(2).append("a b");
    assert_eq!(builder().run().unwrap().ending, Ending::Exited { code: 7 });
    for (builder, words) in [
        (builder().cpus(0), "vcpus: 0 vCPUs are not possible"),
        (builder().memory_mib(1).cpus(200), "memory: 1M is not possible"),
        (builder().cpu_quota_percent(0), "cpu_quota: `0%` is not a share"),
    ] {
        let error = builder.build().err().unwrap();
        assert_eq!(error.exit_code(), 125);
        assert!(error.to_string().starts_with(words), "{error}");
    }
}

/// The environment names the data directory, so each run is a separate process. The guest prints which files
/// were loaded.
#[test]
fn initrd_comes_after_the_default_guest_s_in_command_and_library() {
    if !common::kvm_or_skip() {
        return;
    }
    if let Some(initrds) = std::env::var_os(INITRDS) {
        return run_default_guest(&initrds);
    }
    const TEST: &str = "initrd_comes_after_the_default_guest_s_in_command_and_library";
    let data = common::scratch().join("default-guest-data");
    let more = common::file("more.cpio", b"more");
    for folder in ["tuned", "guest"] {
        fs::create_dir_all(data.join(folder)).unwrap();
    }
    fs::copy(common::payload("print-initrd"), data.join("tuned/vmlinux")).unwrap();
    fs::write(data.join("guest/initramfs.cpio"), b"default one\n").unwrap();
    for (initrds, printed) in [
        (&[][..], "default one\n"),
        (&[&more], "default one\nmore"),
        (&[&more, &more], "default one\nmoremore"),
    ] {
        let mut run = common::coracle();
        run.args(["run", "--accel", "kvm", "--memory", "16M"]).env("CORACLE_DATA", &data);
        for initrd in initrds {
            run.arg("-i").arg(initrd);
        }
        let run = common::finish(&mut run);
        run.expect(0, "powered off");
        assert_eq!(run.text(), printed, "by the command");
        let mut library = std::process::Command::new(std::env::current_exe().unwrap());
        library.args(["--exact", TEST, "--nocapture"]);
        library.env("CORACLE_DATA", &data).env(INITRDS, std::env::join_paths(initrds).unwrap());
        let run = common::finish(&mut library);
        assert_eq!(run.code(), 0, "{run:?}");
        assert!(run.text().contains(&format!("<{printed}>")), "by the library: {run:?}");
    }
}

/// The directory of the initrds for a process that runs the library's machine.
const INITRDS: &str = "CORACLE_TEST_INITRDS";

/// Runs the default guest of this process's environment, and prints its output.
fn run_default_guest(initrds: &std::ffi::OsStr) {
    let builder = Vm::builder().memory_mib(16).console_piped();
    let paths = std::env::split_paths(initrds).filter(|path| !path.as_os_str().is_empty());
    let mut vm = paths.fold(builder, VmBuilder::initrd).build().unwrap();
    let mut console = vm.take_console().unwrap();
    vm.handle().resume();
    let mut printed = String::new();
    console.output.read_to_string(&mut printed).unwrap();
    println!("<{printed}>");
    assert_eq!(end(&vm).ending, Ending::PoweredOff);
}

#[test]
fn guest_that_heeds_the_button_powers_off_within_the_grace_and_another_is_stopped_after_it() {
    if !common::kvm_or_skip() {
        return;
    }
    let start =
        |payload: &str| Vm::builder().kernel(common::payload(payload)).memory_mib(16).start().unwrap();
    assert_eq!(start("button").stop(Grace(LIMIT)).ending, Ending::PoweredOff);
    let deaf = start("spin");
    let before = Instant::now();
    assert_eq!(deaf.stop(Grace(Duration::from_millis(100))).ending, Ending::Stopped);
    assert!(before.elapsed() >= Duration::from_millis(100));
}

#[test]
fn boot_limit_ends_a_guest_without_an_init_and_leaves_one_with_an_init_alone() {
    if !common::kvm_or_skip() {
        return;
    }
    let limit = Duration::from_millis(50);
    let start = |payload: &str| {
        let builder = Vm::builder().kernel(common::payload(payload)).memory_mib(16);
        builder.boot_timeout(limit).start().unwrap()
    };
    let outcome = end(&start("spin"));
    assert_eq!(outcome.ending, Ending::TimedOut { kind: TimeLimit::Boot, limit });
    assert_eq!(outcome.exit_code(), 124);
    assert_eq!(start("boot-mark-spin").handle().wait_for(6 * limit), None);
}

#[test]
fn what_ran_out_for_a_call_on_the_agent_is_named_with_its_setting() {
    if !common::kvm_or_skip() {
        return;
    }
    let agent = AgentConfig::new(AgentPlace::BesideInit);
    let build = |limit: &dyn Fn(&mut VmConfig)| {
        VmBuilder::new(config("spin")).agent(agent.clone()).configure(limit).start().unwrap()
    };
    let limit = Some(Duration::from_millis(300));
    let boot = build(&|config: &mut VmConfig| config.boot_timeout = limit);
    let error = boot.exec(["true"]).output().unwrap_err().to_string();
    assert!(error.contains("a longer `boot_timeout`"), "{error}");
    let wall = build(&|config: &mut VmConfig| config.timeout = limit);
    let error = wall.read_file("/f").unwrap_err().to_string();
    assert!(error.contains("a longer `timeout`"), "{error}");
    let alone = VmBuilder::new(config("spin")).agent(AgentConfig::default()).build().err().unwrap();
    assert!(matches!(alone, BuildError::AgentWithoutRoot), "{alone}");
    assert!(alone.to_string().contains("root_dir"), "{alone}");
}

#[test]
fn idle_limit_ends_a_guest_that_waits_and_not_one_that_works() {
    if !common::kvm_or_skip() {
        return;
    }
    let limit = Duration::from_millis(300);
    let start = |payload: &str| {
        let builder = Vm::builder().kernel(common::payload(payload)).memory_mib(16);
        builder.idle_timeout(limit).start().unwrap()
    };
    let working = start("spin-ring3");
    assert_eq!(end(&start("halt")).ending, Ending::TimedOut { kind: TimeLimit::Idle, limit });
    assert_eq!(working.handle().wait_for(2 * limit), None);
    assert!(working.handle().pause());
    assert_eq!(working.handle().wait_for(2 * limit), None, "who may not run is not idle");
}

#[test]
fn quota_keeps_a_busy_guest_to_its_share_of_a_cpu() {
    if !common::kvm_or_skip() || !common::is_alone("quota_keeps_a_busy_guest_to_its_share_of_a_cpu") {
        return;
    }
    let builder = Vm::builder().kernel(common::payload("spin-ring3")).memory_mib(16).cpus(2);
    // Less than a vCPU's fair share of a CPU on which ten others spin: only the quota can limit it to this.
    let share = 0.05;
    let started = Instant::now();
    let vm = builder.cpu_quota_percent(5).start().unwrap();
    // A vCPU that nothing holds back always runs or waits for a CPU. A share that was exceeded because the
    // control thread came late is a debt, which is paid.
    common::eventually("the guest gets its share, wants more, and is held", || {
        let [used, waited] = common::schedule::vcpu_times();
        let elapsed = started.elapsed().as_secs_f64();
        let wanted = (used + waited) / elapsed;
        elapsed > 2.0 && used / elapsed < 1.5 * share && (0.5 * share..1.5).contains(&wanted)
    });
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
}

#[test]
fn subscriber_hears_of_the_machine_s_life_in_order() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = Vm::builder().kernel(common::payload("spin")).memory_mib(16).build().unwrap();
    let handle = vm.handle();
    let events = handle.subscribe().unwrap();
    handle.resume();
    assert!(handle.pause());
    handle.resume();
    let outcome = vm.stop(Grace::NONE);
    let next = || events.recv_timeout(LIMIT).expect("an event");
    let ended = Event::Ended(Box::new(outcome));
    for expected in [Event::Resumed, Event::Paused, Event::Resumed, ended.clone()] {
        assert_eq!(next(), expected);
    }
    assert_eq!(events.recv_timeout(Duration::from_millis(10)), None);
    assert_eq!(handle.subscribe().unwrap().try_recv(), Some(ended), "who comes late hears of the end");
}

#[test]
fn subscriber_hears_of_restarts() {
    if !common::kvm_or_skip() {
        return;
    }
    let builder = Vm::builder().kernel(common::payload("hello-reset")).memory_mib(16);
    let vm = builder.on_reset(ResetPolicy::Reboot).build().unwrap();
    let events = vm.handle().subscribe().unwrap();
    vm.handle().resume();
    let mut restarts = 0;
    while restarts < 3 {
        restarts += u32::from(events.recv_timeout(LIMIT).expect("an event") == Event::Restarted);
    }
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn can_be_shared<T: Send + Sync + Clone>() {}
    can_be_shared::<coracle::VmHandle>();
}

#[test]
fn piped_console_carries_both_directions_and_ends_with_the_machine() {
    if !common::kvm_or_skip() {
        return;
    }
    let builder = Vm::builder().kernel(common::payload("echo")).memory_mib(16).console_piped();
    let mut vm = builder.start().unwrap();
    let mut console = vm.take_console().unwrap();
    assert!(vm.take_console().is_none());
    console.input.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    console.output.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");
    vm.stop(Grace::NONE);
    let mut rest = Vec::new();
    console.output.read_to_end(&mut rest).unwrap();
}

#[test]
fn callback_has_all_output_when_the_outcome_is_there() {
    if !common::kvm_or_skip() {
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let builder = Vm::builder().kernel(common::payload("hello-exit")).memory_mib(16);
    builder.console_callback(move |bytes| drop(sender.send(bytes.to_vec()))).run().unwrap();
    let output: Vec<u8> = receiver.try_iter().flatten().collect();
    assert!(!output.is_empty(), "nothing was printed");
}
