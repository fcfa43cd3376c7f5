//! Tests of Linux guests with an agent that are forked or restored: identity, commands that run on, and
//! branch points.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::Duration;

use coracle::agent::{AgentError, ExecInput, ExecStatus, Process};
use coracle::config::{AgentConfig, AgentTransport, VmConfig, default_cmdline_with};
use coracle::guest_data::{self, GuestData};
use coracle::{Template, Vm, VmBuilder};

use super::{common, data, no_linux};

/// Far longer than anything takes on an emulated host.
pub(super) const LIMIT: Duration = Duration::from_secs(250);

fn guest(kernel: GuestData, transport: AgentTransport) -> VmBuilder {
    VmBuilder::new(VmConfig {
        initrds: vec![data(GuestData::GuestInitramfs)],
        cmdline: default_cmdline_with(["quiet"]),
        agent: Some(AgentConfig { transport, ..AgentConfig::default() }),
        timeout: Some(LIMIT),
        ..VmConfig::new(data(kernel))
    })
}

/// The kernel that boots fastest.
pub(super) fn quick_kernel() -> GuestData {
    let tuned = guest_data::find(GuestData::TunedVmlinux).is_ok();
    if tuned { GuestData::TunedVmlinux } else { GuestData::GuestVmlinux }
}

pub(super) fn sh(vm: &Vm, script: &str) -> String {
    let output = vm.exec(["sh", "-c", script]).timeout(LIMIT).output().unwrap();
    assert_eq!(output.status, ExecStatus::Code(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn named_forks(template: &Template, count: usize) -> Vec<Vm> {
    template.fork(count, |index, fork| fork.hostname(format!("w{index}")).env("OWN", "it's")).unwrap()
}

/// Draws just before the guest is frozen, so that its kernel takes no other random numbers for some seconds
/// by itself.
fn freeze(vm: &Vm) -> Template {
    sh(vm, "head -c 16 /dev/urandom >/dev/null");
    vm.freeze().unwrap()
}

/// Checks that the forks have names and ids of their own, and random numbers. A young kernel renews those by
/// itself within a second or two; `identity` tests them on older ones.
pub(super) fn each_is_another(forks: &[Vm]) {
    let draw = "head -c 16 /dev/urandom | hexdump; cat /proc/sys/kernel/random/uuid";
    let drawn: HashSet<String> = forks.iter().map(|fork| sh(fork, draw)).collect();
    assert_eq!(drawn.len(), forks.len(), "{drawn:?}");
    let mut ids = HashSet::new();
    for (index, fork) in forks.iter().enumerate() {
        let told = sh(fork, "hostname; echo $CORACLE_FORK_INDEX; echo $OWN; echo $CORACLE_FORK_ID");
        let mut lines = told.lines();
        let mut next = || lines.next().unwrap().to_owned();
        assert_eq!([next(), next(), next()], [format!("w{index}"), index.to_string(), "it's".to_owned()]);
        let id = next();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert!(ids.insert(id));
    }
}

/// Starts a command that answers each line with its number.
pub(super) fn counting(vm: &Vm) -> Process {
    let script = "i=0; while read line; do i=$((i+1)); echo $line $i; done; echo end";
    let mut process = vm.exec(["sh", "-c", script]).stdin(ExecInput::Piped).spawn().unwrap();
    say(&mut process, "one", "one 1\n");
    process
}

pub(super) fn say(process: &mut Process, line: &str, answer: &str) {
    let stdin = process.stdin.as_mut().unwrap();
    stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut read = vec![0; answer.len()];
    process.stdout.as_mut().unwrap().read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), answer);
}

fn forks_are_machines_of_their_own(kernel: GuestData, transport: AgentTransport) {
    let vm = guest(kernel, transport).start().unwrap();
    vm.wait_ready(LIMIT).unwrap();
    let _counting = counting(&vm);
    // More than is kept, so that it waits for its reader, unless that would take a serial line minutes.
    let last = if transport == AgentTransport::Serial { 3000 } else { 60_000 };
    let script = format!(
        "while [ ! -e /tmp/go ]; do sleep 0.1; done; i=0; while [ $i -lt {last} ]; do i=$((i+1)); echo $i; done; exit 7"
    );
    let _writing = vm.exec(["sh", "-c", &script]).spawn().unwrap();
    let template = freeze(&vm);
    let forks = named_forks(&template, 4);
    each_is_another(&forks);
    for fork in forks {
        let list = fork.processes().unwrap();
        let [counting, writing] = list.as_slice() else { panic!("{list:?}") };
        assert!(counting.has_stdin && !writing.has_stdin && !counting.has_ended, "{list:?}");
        let mut process = fork.attach(counting).unwrap();
        say(&mut process, "two", "two 2\n");
        assert_eq!(process.wait_with_output().unwrap().stdout, b"end\n");
        assert!(fork.attach(counting).is_err(), "once");
        sh(&fork, "touch /tmp/go; sleep 1");
        let output = fork.attach(writing).unwrap().wait_with_output().unwrap();
        assert_eq!(output.status, ExecStatus::Code(7));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(lines.iter().copied().eq(1..=last), "{} lines, the last is {:?}", lines.len(), lines.last());
        assert_eq!(fork.processes().unwrap(), []);
    }
}

#[test]
fn forks_with_an_agent_on_a_serial_line_are_machines_of_their_own() {
    needs_linux!();
    // The quick kernel has one serial port.
    forks_are_machines_of_their_own(GuestData::GuestVmlinux, AgentTransport::Serial);
}

#[test]
fn forks_with_an_agent_on_a_console_port_are_machines_of_their_own() {
    needs_linux!();
    forks_are_machines_of_their_own(quick_kernel(), AgentTransport::Console);
}

#[test]
fn stock_guest_goes_on_in_forks_of_forks_and_from_files() {
    needs_linux!();
    let vm = guest(GuestData::GuestVmlinux, AgentTransport::Serial).start().unwrap();
    vm.wait_ready(LIMIT).unwrap();
    let mut process = counting(&vm);
    let folder = common::fresh_path("stock");
    vm.snapshot_to(&folder).unwrap();
    say(&mut process, "two", "two 2\n");
    let restored = Vm::restore(&folder).hostname("again").timeout(LIMIT).start().unwrap();
    assert_eq!(sh(&restored, "hostname"), "again\n");
    let [command] = restored.processes().unwrap().try_into().unwrap();
    say(&mut restored.attach(&command).unwrap(), "two", "two 2\n");
    let first = named_forks(&freeze(&vm), 2);
    let second = named_forks(&freeze(&first[0]), 4);
    each_is_another(&second);
    let [command] = second[3].processes().unwrap().try_into().unwrap();
    drop(second[3].attach(&command).unwrap());
    // It is killed with its handle.
    sh(&second[3], &format!("while [ -d /proc/{} ]; do sleep 0.1; done", command.pid));
}

#[test]
fn processes_go_on_from_their_branch_point_in_each_fork() {
    needs_linux!();
    let vm = guest(quick_kernel(), AgentTransport::Console).start().unwrap();
    let output = vm.exec(["coracle-agent", "branch-here"]).timeout(LIMIT).output().unwrap();
    assert_eq!(output.status, ExecStatus::Code(125));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no host waits for a branch point"), "{text}");
    // One process for each wait: the second one is refused.
    let script = "coracle-agent branch-here -- sh -c 'echo $CORACLE_FORK_INDEX $OWN; hostname'; echo $?";
    let waiting = vm.exec(["sh", "-c", script]).spawn().unwrap();
    let point = vm.wait_branch_point(LIMIT).unwrap();
    assert!(point.pid() > waiting.pid());
    let other = vm.exec(["coracle-agent", "branch-here"]).timeout(LIMIT).output().unwrap();
    assert_eq!(other.status, ExecStatus::Code(125));
    let none = vm.wait_branch_point(Duration::from_millis(100)).err();
    assert!(matches!(none, Some(AgentError::NoBranchPoint { .. })), "{none:?}");
    let forks = named_forks(&freeze(&vm), 2);
    drop(point);
    for (index, fork) in forks.iter().enumerate() {
        let [command] = fork.processes().unwrap().try_into().unwrap();
        let output = fork.attach(&command).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{index} it's\nw{index}\n0\n"));
    }
}

#[test]
fn machine_that_runs_on_goes_on_from_its_branch_point() {
    needs_linux!();
    let vm = guest(GuestData::GuestVmlinux, AgentTransport::Serial).start().unwrap();
    vm.wait_ready(LIMIT).unwrap();
    let script = "eval \"$(coracle-agent branch-here)\"; echo fork $CORACLE_FORK_INDEX $OWN";
    let first = vm.exec(["sh", "-c", script]).spawn().unwrap();
    let point = vm.wait_branch_point(LIMIT).unwrap();
    let folder = common::fresh_path("branch-point");
    vm.snapshot_to(&folder).unwrap();
    drop(point);
    assert_eq!(first.wait_with_output().unwrap().stdout, b"fork\n");
    let restored = Vm::restore(&folder).env("OWN", "it's").timeout(LIMIT).start().unwrap();
    let [command] = restored.processes().unwrap().try_into().unwrap();
    let output = restored.attach(&command).unwrap().wait_with_output().unwrap();
    assert_eq!(output.stdout, b"fork 0 it's\n");
    // Another user than root needs the host's consent.
    let copy = "cp /proc/1/exe /tmp/agent; chmod 755 /tmp/agent";
    sh(&vm, copy);
    let ask = || vm.exec(["/tmp/agent", "branch-here"]).user("1000").spawn().unwrap();
    let agent = vm.agent().unwrap();
    let refused = std::thread::scope(|scope| {
        let wait = scope.spawn(|| vm.wait_branch_point(Duration::from_secs(20)).is_err());
        let output = ask().wait_with_output().unwrap();
        assert_eq!(output.status, ExecStatus::Code(125));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("of root only"), "{text}");
        wait.join().unwrap()
    });
    assert!(refused);
    let allowed = ask();
    drop(agent.wait_branch_point_of_any_user(LIMIT).unwrap());
    assert_eq!(allowed.wait_with_output().unwrap().status, ExecStatus::Code(0));
}
