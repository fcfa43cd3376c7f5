//! Forks of guests that were frozen in the middle of something: vCPUs that run, have halted or are not
//! started, registers of ring 3, a timer, an access to a device, a reset.

mod common;

use std::thread;
use std::time::Duration;

use common::forks::{Counter, Piped, builder};
use common::{is_alone, skip, unless_spoilt};
use coracle::config::{HaltPolicy, ResetPolicy, SerialConfig, VcpuCount};
use coracle::outcome::Ending;
use coracle::{SnapshotError, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

fn four_cpus(payload: &str) -> VmBuilder {
    builder(payload).configure(|config| config.vcpus = VcpuCount::new(4).unwrap())
}

fn rebooting(payload: &str) -> VmBuilder {
    builder(payload).configure(|config| config.on_reset = ResetPolicy::Reboot)
}

#[test]
fn cpus_that_run_have_halted_and_were_not_started_are_so_in_a_fork() {
    needs_kvm!();
    let template = Piped::start_marked(four_cpus("fork-cpus")).freeze();
    let mut forks = Piped::forks(&template, 2);
    // A fork of a fork, which the guest has not noticed either.
    let second = forks.remove(0).freeze();
    forks.extend(Piped::forks(&second, 1));
    for mut fork in forks {
        fork.send(b"g");
        fork.exits(0);
    }
}

#[test]
fn guest_frozen_while_it_starts_its_cpus_goes_on_starting_them() {
    needs_kvm!();
    let mut frozen = 0;
    for delay in (0..40).map(|step| Duration::from_micros(step * 100)) {
        let vm = four_cpus("smp").start().unwrap();
        thread::sleep(delay);
        match vm.freeze() {
            Ok(template) => {
                frozen += 1;
                let forks = template.fork(2, |_, fork| fork).unwrap();
                assert!(forks.iter().all(|fork| fork.wait().ending == Ending::Exited { code: 4 }));
            }
            // It was faster.
            Err(error) => {
                assert!(matches!(error, SnapshotError::Ended), "{error}");
                assert_eq!(vm.wait().ending, Ending::Exited { code: 4 });
            }
        }
    }
    assert!(frozen > 0, "no guest was frozen while it ran");
}

#[test]
fn floating_point_state_of_ring_3_goes_on() {
    needs_kvm!();
    // Software KVM runs ring 3 on the CPU itself, whatever its list of features says.
    if !is_x86_feature_detected!("avx") || coracle::host::hides_xsave() {
        return skip("guests of this host have no AVX");
    }
    let template = Piped::start_marked(builder("fork-fpu")).freeze();
    for mut fork in Piped::forks(&template, 3) {
        // Long enough for looks at all registers, whatever comes first.
        thread::sleep(Duration::from_millis(20));
        fork.send(b"q");
        fork.exits(0);
    }
}

#[test]
fn timer_of_a_local_apic_goes_on_in_each_fork() {
    needs_kvm!();
    unless_spoilt(|| {
        let machine = Piped::start_marked(builder("fork-timer"));
        // A machine that was kept from the CPU for a second has ended.
        let template = machine.vm.freeze().map_err(|error| error.to_string())?;
        let mut forks = Piped::forks(&template, 2);
        let second = forks.remove(0).vm.freeze().map_err(|error| error.to_string())?;
        forks.extend(Piped::forks(&second, 1));
        forks.iter().for_each(|fork| fork.exits(0));
        Ok(())
    });
}

#[test]
fn string_instruction_that_prints_goes_on_where_it_was() {
    needs_kvm!();
    let mut piped = Piped::start(builder("fork-print"));
    let mut printed = Vec::new();
    let mut frozen = 0;
    let outcome = loop {
        // Some bytes of each life come before it is frozen.
        let mut first = [0; 3000];
        let came = read_up_to(&mut piped, &mut first);
        printed.extend_from_slice(&first[..came]);
        let template = piped.vm.freeze();
        // What it printed meanwhile stays with it.
        printed.extend(piped.rest());
        match template {
            Ok(template) => {
                frozen += 1;
                piped = Piped::forks(&template, 1).remove(0);
            }
            Err(error) => {
                assert!(matches!(error, SnapshotError::Ended), "{error}");
                break piped.end();
            }
        }
    };
    assert_eq!(outcome.ending, Ending::Exited { code: 0 });
    assert!(frozen > 0, "it was never frozen");
    let expected: Vec<u8> = (0..32_000_u32).map(|number| (number % 251) as u8).collect();
    assert!(printed == expected, "{} bytes, of which the first differs at {:?}", printed.len(), {
        printed.iter().zip(&expected).position(|(one, other)| one != other)
    });
}

/// Reads until there is no more or `bytes` is full, and returns how many came.
fn read_up_to(piped: &mut Piped, bytes: &mut [u8]) -> usize {
    let mut came = 0;
    while came < bytes.len() {
        match piped.output.read(&mut bytes[came..]).unwrap() {
            0 => break,
            count => came += count,
        }
    }
    came
}

#[test]
fn input_that_the_serial_port_has_taken_reaches_the_fork() {
    needs_kvm!();
    let mut counter = Counter::start();
    counter.count();
    // They come in one read, and fit into the port's FIFO.
    counter.0.send(&[b'?'; 16]);
    let mut before = 1;
    counter.next();
    let template = counter.0.vm.freeze().unwrap();
    before += counter.0.rest().iter().filter(|byte| **byte == b'\n').count();
    assert!(before <= 16, "{before} answers");
    for mut fork in Counter::forks(&template, 2) {
        for _ in before..16 {
            fork.next();
        }
        // And no more than those.
        fork.0.send(b"q");
        assert_eq!(fork.0.rest(), b"");
        fork.0.exits(0);
    }
}

#[test]
fn guest_that_resets_is_frozen_between_two_lives_and_its_forks_reset_too() {
    needs_kvm!();
    let mut frozen = 0;
    for delay in (0..30).map(Duration::from_millis) {
        let vm = rebooting("hundred-lives").start().unwrap();
        thread::sleep(delay);
        let template = match vm.freeze() {
            Ok(template) => template,
            // Only its last life ends it.
            Err(error) => {
                assert!(matches!(error, SnapshotError::Ended), "{error}");
                assert_eq!(vm.wait().ending, Ending::Exited { code: 0 });
                continue;
            }
        };
        frozen += 1;
        let before = vm.wait().resets;
        // All at once: they load the same kernel again and again.
        let forks = template.fork(2, |_, fork| fork).unwrap();
        for fork in forks {
            let outcome = fork.wait();
            assert_eq!(outcome.ending, Ending::Exited { code: 0 }, "after {before} resets");
            assert_eq!(outcome.resets, 99 - before);
        }
    }
    assert!(frozen > 0, "no guest was frozen while it ran");
}

/// A reset that comes first does not keep the machine from being frozen: its next guest is.
#[test]
fn guest_that_resets_for_ever_is_frozen_each_time() {
    needs_kvm!();
    let mut vm =
        rebooting("hello-reset").configure(|config| config.serial = SerialConfig::Null).start().unwrap();
    for _ in 0..300 {
        let template = vm.freeze().unwrap();
        vm = template.fork(1, |_, fork| fork).unwrap().remove(0);
    }
    vm.handle().stop();
    assert_eq!(vm.wait().ending, Ending::Stopped);
}

#[test]
fn fork_that_has_reset_is_frozen_too() {
    needs_kvm!();
    let vm = rebooting("hundred-lives").build().unwrap();
    let events = vm.handle().subscribe().unwrap();
    vm.handle().resume();
    let restarted = |events: &coracle::Subscription| {
        while let Some(event) = events.recv_timeout(common::LIMIT) {
            if event == coracle::Event::Restarted {
                return;
            }
        }
        panic!("the guest does not reset");
    };
    restarted(&events);
    let first = vm.freeze().unwrap();
    let mut resets = vm.wait().resets;
    let mut fork = first.fork(1, |_, fork| fork).unwrap().remove(0);
    for _ in 0..2 {
        let events = fork.handle().subscribe().unwrap();
        restarted(&events);
        match fork.freeze() {
            Ok(template) => {
                resets += fork.wait().resets;
                fork = template.fork(1, |_, fork| fork).unwrap().remove(0);
            }
            Err(error) => assert!(matches!(error, SnapshotError::Ended), "{error}"),
        }
    }
    let outcome = fork.wait();
    assert_eq!((outcome.ending, resets + outcome.resets), (Ending::Exited { code: 0 }, 99));
}

#[test]
fn fork_that_halts_for_good_ends_by_its_template_s_policy() {
    needs_kvm!();
    for (policy, ends) in [(HaltPolicy::Exit, true), (HaltPolicy::Wait, false)] {
        let template = builder("hello-halt").configure(|config| config.on_halt = policy);
        let template = Piped::start_marked(template).freeze();
        let fork = template.fork(1, |_, fork| fork).unwrap().remove(0);
        if ends {
            assert_eq!(fork.wait().ending, Ending::Halted);
        } else {
            assert_eq!(fork.handle().wait_for(Duration::from_millis(1500)), None);
        }
    }
}

#[test]
fn memory_that_a_template_has_touched_is_not_touched_again_by_its_forks() {
    needs_kvm!();
    if !is_alone("memory_that_a_template_has_touched_is_not_touched_again_by_its_forks") {
        return;
    }
    let template = Piped::start_marked(builder("fork-mark")).freeze();
    let kib = || -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_template = smaps.split("VmFlags").filter(|one| one.contains("/memfd:coracle-template"));
        let own = of_template.flat_map(str::lines).filter_map(|line| line.strip_prefix("Anonymous:"));
        own.map(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap()).sum()
    };
    let mut forks = Piped::forks(&template, 8);
    forks.iter_mut().for_each(|fork| fork.expect(b"."));
    // Each has 8 MiB of the template's, and writes to some pages.
    let each = kib() / 8;
    assert!((1..=256).contains(&each), "{each} KiB of each");
}
