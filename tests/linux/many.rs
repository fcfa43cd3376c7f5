//! Runs twenty Linux guests at once in one process, each with its own work.

use std::thread;
use std::time::Duration;

use coracle::agent::{AgentError, ExecError, ExecStatus};
use coracle::config::{AgentConfig, MemorySize, VmConfig, default_cmdline_with};
use coracle::guest_data::{self, GuestData};
use coracle::outcome::{Ending, TimeLimit};
use coracle::{Grace, Vm, VmBuilder};

use super::common::{self, LIMIT};
use super::{data, no_linux};

#[test]
fn twenty_machines_at_once_do_mixed_work_and_leave_nothing_behind() {
    needs_linux!();
    if let Err(error) = guest_data::find(GuestData::TunedVmlinux) {
        return common::skip(&error.to_string());
    }
    if !common::is_alone("many::twenty_machines_at_once_do_mixed_work_and_leave_nothing_behind") {
        return;
    }
    let held = || (common::count("/proc/self/fd"), common::count("/proc/self/task"));
    let before = held();
    thread::scope(|scope| {
        for (number, work) in (0..MACHINES).zip(WORK.iter().cycle()) {
            scope.spawn(move || work(number));
        }
    });
    // A thread that has been joined, or one of KVM's, may still be exiting.
    common::eventually("as many threads and descriptors as before", || held() == before);
}

/// The work of the machines, in turn; each gets its number.
const WORK: [fn(u8); 7] = [
    commands_with_input,
    files_both_ways,
    command_over_its_time,
    stop_in_the_middle,
    pauses,
    panic_under_a_command,
    machine_over_its_time,
];

fn commands_with_input(number: u8) {
    let vm = start(&config());
    for code in [number, 255 - number] {
        let script = format!("cat; echo err >&2; exit {code}");
        let output =
            vm.exec(["sh", "-c", &script]).stdin(format!("in {number}").into_bytes()).output().unwrap();
        assert_eq!(output.status, ExecStatus::Code(code));
        assert_eq!((output.stdout, output.stderr), (format!("in {number}").into_bytes(), b"err\n".to_vec()));
    }
    power_off(&vm);
}

fn files_both_ways(number: u8) {
    let vm = start(&config());
    let content: Vec<u8> = (0..200_000_u32).map(|byte| (byte ^ (byte >> 8)) as u8 ^ number).collect();
    vm.write_file("/tmp/file", &content).unwrap();
    assert!(vm.exec(["cp", "/tmp/file", "/tmp/copy"]).status().unwrap().success());
    assert!(vm.read_file("/tmp/copy").unwrap() == content, "the bytes of {number} have changed");
    power_off(&vm);
}

fn command_over_its_time(_: u8) {
    let vm = start(&config());
    let error = vm.exec(["sleep", "600"]).timeout(Duration::from_secs(1)).output().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
    assert!(vm.exec(["true"]).status().unwrap().success());
    power_off(&vm);
}

fn stop_in_the_middle(_: u8) {
    let vm = start(&config());
    let mut process = vm.exec(["sleep", "600"]).spawn().unwrap();
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
    let error = process.wait().unwrap_err();
    assert!(matches!(error, ExecError::Agent { error: AgentError::MachineEnded { .. }, .. }), "{error}");
}

fn pauses(number: u8) {
    let vm = start(&config());
    let mut process = vm.exec(["sh", "-c", &format!("sleep 1; echo {number}")]).spawn().unwrap();
    for _ in 0..10 {
        assert!(vm.handle().pause());
        thread::sleep(Duration::from_millis(20));
        vm.handle().resume();
    }
    assert_eq!(process.wait().unwrap(), ExecStatus::Code(0));
    assert_eq!(process.wait_with_output().unwrap().stdout, format!("{number}\n").into_bytes());
    power_off(&vm);
}

fn panic_under_a_command(_: u8) {
    let vm = start(&config());
    let result = vm.exec(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 600"]).output();
    assert!(matches!(result, Err(ExecError::Agent { error: _, .. })), "{result:?}");
    let outcome = vm.wait();
    assert!(matches!(outcome.ending, Ending::Panicked { .. }), "{}", outcome.reason());
}

fn machine_over_its_time(_: u8) {
    let limit = Duration::from_secs(5);
    let outcome = start(&VmConfig { timeout: Some(limit), ..config() }).wait();
    assert_eq!(outcome.ending, Ending::TimedOut { kind: TimeLimit::Wall, limit });
}

fn config() -> VmConfig {
    VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet"]),
        agent: Some(AgentConfig { ready_limit: LIMIT, ..AgentConfig::default() }),
        memory: MemorySize::from_mib(GUEST_MIB).unwrap().into(),
        ..VmConfig::new(data(GuestData::TunedVmlinux))
    }
}

fn start(config: &VmConfig) -> Vm {
    VmBuilder::new(config.clone()).console_callback(|_| ()).start().unwrap()
}

fn power_off(vm: &Vm) {
    assert_eq!(vm.stop(Grace(LIMIT)).ending, Ending::PoweredOff);
}

const MACHINES: u8 = 20;
/// Slightly more than the kernel's minimum: the emulated host has 2 GiB.
const GUEST_MIB: u64 = 64;
