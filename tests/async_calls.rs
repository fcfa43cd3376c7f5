//! Tests of the calls for async tasks (feature `tokio`): machines in this process, and the agent's real
//! program on this machine.

mod common;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use common::LIMIT;
use common::agent::agent;
use coracle::agent::{AgentError, ExecError, ExecInput, ExecStatus, FileError, NetworkSettings};
use coracle::config::{AgentConfig, AgentPlace, MemorySize, VmConfig};
use coracle::outcome::Ending;
use coracle::{Event, Fork, Grace, SnapshotError, Vm, VmBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn config(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config
}

fn machine(payload: &str) -> VmBuilder {
    VmBuilder::new(config(payload))
}

#[tokio::test]
async fn tasks_on_one_thread_wait_for_many_machines() {
    if !common::kvm_or_skip() {
        return;
    }
    let config = config("exit-7");
    let ends = (0..8).map(|_| {
        let builder = VmBuilder::new(config.clone());
        tokio::spawn(async move {
            let vm = builder.start_async().await.unwrap();
            let handle = vm.handle();
            // Two tasks wait for the same machine.
            let (one, other) = tokio::join!(vm.wait_async(), handle.wait_async());
            assert_eq!(one.unwrap(), other.unwrap());
            vm.stop_async(Grace::NONE).await.unwrap().ending
        })
    });
    for end in ends.collect::<Vec<_>>() {
        assert_eq!(end.await.unwrap(), Ending::Exited { code: 7 });
    }
}

#[tokio::test]
async fn stop_reaches_a_guest_that_does_not_heed_its_button_after_the_grace() {
    if !common::kvm_or_skip() {
        return;
    }
    let grace = Duration::from_millis(100);
    let vm = machine("spin").start_async().await.unwrap();
    let events = vm.handle().subscribe().unwrap();
    let start = Instant::now();
    let outcome = vm.stop_async(Grace(grace)).await.unwrap();
    assert!(start.elapsed() >= grace);
    assert_eq!(outcome.ending, Ending::Stopped);
    assert_eq!(events.recv_async().await.unwrap(), Some(Event::Ended(Box::new(outcome))));
    assert_eq!(events.recv_async().await.unwrap(), None);
    assert_eq!(events.recv_timeout(Duration::MAX), None);
}

#[tokio::test]
async fn tasks_freeze_machines_and_fork_templates() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = machine("counter").start_async().await.unwrap();
    let (template, other) = tokio::join!(vm.freeze_async(), vm.wait_async());
    let template = template.unwrap();
    assert_eq!(other.unwrap().ending, Ending::Stopped);
    assert!(matches!(vm.handle().freeze_async().await, Err(SnapshotError::Ended)));
    let limit = Duration::from_millis(50);
    let make = |count: usize| {
        let template = template.clone();
        tokio::spawn(async move {
            let adapt = move |index, fork: Fork| if index == 0 { fork.timeout(limit) } else { fork };
            template.fork_async(count, adapt).await.unwrap()
        })
    };
    let (few, more) = tokio::join!(make(1), make(3));
    let forks: Vec<Vm> = few.unwrap().into_iter().chain(more.unwrap()).collect();
    let outcomes = [forks[0].wait_async().await.unwrap(), forks[1].wait_async().await.unwrap()];
    assert!(outcomes.iter().all(|outcome| outcome.ending.time_limit().is_some()), "{outcomes:?}");
    assert!(forks[2..].iter().all(|fork| fork.handle().wait_for(Duration::ZERO).is_none()));
    for fork in forks.into_iter().skip(2) {
        assert_eq!(fork.stop_async(Grace::NONE).await.unwrap().ending, Ending::Stopped);
    }
}

/// A waker is the program's code, and may wait for an event that never comes.
#[test]
fn machine_stops_while_a_waker_blocks() {
    if !common::kvm_or_skip() {
        return;
    }
    struct Blocking;
    impl Wake for Blocking {
        fn wake(self: Arc<Self>) {
            // The runtime's timer holds it, too.
            while std::thread::current().name() == Some("agent") {
                std::thread::park();
            }
        }
    }
    let mut config = config("spin");
    config.agent = Some(AgentConfig::new(AgentPlace::BesideInit));
    let vm = VmBuilder::new(config).start().unwrap();
    let (handle, waker) = (vm.handle(), Waker::from(Arc::new(Blocking)));
    let mut ready = Box::pin(async move { handle.wait_ready_async(LIMIT).await.map(drop) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _runtime = runtime.enter();
    assert!(ready.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let ending = vm.stop(Grace::NONE).ending;
        drop(vm);
        drop(sender.send(ending));
    });
    assert_eq!(receiver.recv_timeout(LIMIT), Ok(Ending::Stopped));
}

#[tokio::test]
async fn events_come_in_order_while_others_run() {
    if !common::kvm_or_skip() {
        return;
    }
    let vm = machine("spin").build().unwrap();
    let (events, handle) = (vm.handle().subscribe().unwrap(), vm.handle());
    let acts = async {
        for act in [VmAct::Resume, VmAct::Pause, VmAct::Resume, VmAct::Stop] {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match act {
                VmAct::Resume => handle.resume(),
                VmAct::Pause => assert!(handle.pause()),
                VmAct::Stop => handle.stop(),
            }
        }
    };
    let hears = async {
        let mut heard = Vec::new();
        loop {
            match events.recv_async().await.unwrap().unwrap() {
                Event::Ended(outcome) => return (heard, outcome.ending),
                event => heard.push(event),
            }
        }
    };
    let ((), (heard, ending)) = tokio::join!(acts, hears);
    assert_eq!(heard, [Event::Resumed, Event::Paused, Event::Resumed]);
    assert_eq!(ending, Ending::Stopped);
}

enum VmAct {
    Resume,
    Pause,
    Stop,
}

#[tokio::test]
async fn hundred_commands_of_one_thread_run_at_once() {
    let agent = agent!();
    let start = Instant::now();
    let tasks: Vec<_> = (0..100_u8)
        .map(|number| {
            let exec = agent.sh(&format!("cat; sleep 1; echo {number} >&2; exit {number}")).stdin("in");
            tokio::spawn(exec.output_async())
        })
        .collect();
    for (number, task) in (0..100_u8).zip(tasks) {
        let output = task.await.unwrap().unwrap();
        assert_eq!(output.status, ExecStatus::Code(number));
        assert_eq!(output.stdout, b"in");
        assert_eq!(output.stderr, format!("{number}\n").into_bytes());
    }
    assert!(start.elapsed() < Duration::from_secs(100), "one after the other");
}

#[tokio::test]
async fn limits_of_time_and_output_end_the_command() {
    let agent = agent!();
    let limit = Duration::from_millis(200);
    let error = agent.sh("sleep 1000").timeout(limit).output_async().await.unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { limit: named, .. } if named == limit), "{error}");
    let error = agent.sh("yes").output_limit(100_000).output_async().await.unwrap_err();
    assert!(matches!(error, ExecError::OutputLimit { limit: 100_000, .. }), "{error}");
    let mut process = agent.sh("sleep 1000").timeout(limit).spawn_async().await.unwrap();
    let error = process.wait_async().await.unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
    assert_eq!(agent.sh("yes | head -c 1000000").status_async().await.unwrap(), ExecStatus::Code(0));
}

#[tokio::test]
async fn wait_with_a_limit_leaves_the_command_and_its_input_as_they_are() {
    let agent = agent!();
    let mut process = agent.sh("read x; exit $x").stdin(ExecInput::Piped).spawn_async().await.unwrap();
    assert_eq!(process.wait_timeout_async(Duration::from_millis(50)).await.unwrap(), None);
    let mut stdin = process.stdin.take().unwrap().into_async();
    stdin.write_all(b"7\n").await.unwrap();
    assert_eq!(process.wait_timeout_async(LIMIT).await.unwrap(), Some(ExecStatus::Code(7)));
    let limit = Duration::from_millis(200);
    let mut process = agent.sh("sleep 1000").timeout(limit).spawn_async().await.unwrap();
    let error = process.wait_timeout_async(LIMIT).await.unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
}

/// The machine and its handle have the calls of the agent, which never becomes ready here.
#[tokio::test]
async fn calls_on_a_machine_wait_for_its_agent_as_long_as_they_may() {
    if !common::kvm_or_skip() {
        return;
    }
    let mut config = config("spin");
    let limit = Duration::from_millis(20);
    config.agent = Some(AgentConfig { ready_limit: limit, ..AgentConfig::new(AgentPlace::BesideInit) });
    let vm = VmBuilder::new(config).start().unwrap();
    let handle = vm.handle();
    let now = std::time::SystemTime::now();
    let agent_errors = [
        vm.set_clock_async(now).await,
        handle.set_clock_async(now).await,
        vm.network_up_async(NetworkSettings::default()).await.map(drop),
        handle.network_up_async(NetworkSettings::default()).await.map(drop),
        vm.wait_ready_async(limit).await.map(drop),
        vm.agent().unwrap().power_off_async().await,
        vm.agent().unwrap().restart_async().await,
    ];
    let file_errors = [
        vm.read_file_async("/f").await.map(drop),
        vm.write_file_async("/f", "x").await,
        vm.list_dir_async("/").await.map(drop),
        handle.read_file_async("/f").await.map(drop),
        handle.write_file_async("/f", "x").await,
        handle.list_dir_async("/").await.map(drop),
    ];
    for error in agent_errors {
        assert!(matches!(error, Err(AgentError::NotReady { .. })), "{error:?}");
    }
    for error in file_errors {
        assert!(matches!(error, Err(FileError::Agent(AgentError::NotReady { .. }))), "{error:?}");
    }
    // This guest ignores its power button, if it has one.
    assert_eq!(handle.shut_down_async(limit).await.unwrap(), None);
    vm.stop_async(Grace::NONE).await.unwrap();
    assert_eq!(handle.shut_down_async(limit).await.unwrap().unwrap().ending, Ending::Stopped);
}

/// Every call that waits for an agent on a thread has a twin for async tasks, on every type that has the
/// call: read from the source.
#[test]
fn every_call_on_an_agent_has_a_twin_for_tasks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_agent = std::fs::read_dir(root.join("src/agent")).unwrap().map(|file| file.unwrap().path());
    let of_machine = ["src/vm/agent_calls.rs", "src/vm/agent_async_calls.rs"].map(|file| root.join(file));
    let files = of_agent.filter(|path| path.is_file()).chain(of_machine);
    let (mut calls, mut twins) = (BTreeSet::new(), BTreeSet::new());
    for path in files {
        let mut on = "";
        for line in std::fs::read_to_string(&path).unwrap().lines().map(str::trim_start) {
            let name = |start: &str| line.strip_prefix(start)?.split(['<', '(']).next();
            if let Some(type_name) = line.strip_prefix("impl ") {
                on = *TYPES.iter().find(|known| type_name.trim_end_matches(" {") == **known).unwrap_or(&"");
            } else if let Some(name) = name("pub fn ") {
                calls.insert((on, name.to_owned()));
            } else if let Some(name) = name("pub async fn ") {
                // The macro defines the same calls for both types.
                let types =
                    if on == "$machine" { &["Vm", "VmHandle"][..] } else { std::slice::from_ref(&on) };
                twins.extend(types.iter().map(|on| (*on, name.trim_end_matches("_async").to_owned())));
            }
        }
    }
    calls.retain(|(on, _)| !on.is_empty());
    let alone: BTreeSet<&str> = calls.difference(&twins).map(|(_, name)| name.as_str()).collect();
    assert_eq!(alone, BTreeSet::from(AT_ONCE));
    assert!(twins.len() > 40, "{twins:?}");
}

const TYPES: [&str; 6] = ["AgentClient", "Exec", "Process", "Vm", "VmHandle", "$machine"];
/// Calls that wait for nothing.
const AT_ONCE: [&str; 22] = [
    "agent",
    "cpu_quota_percent",
    "cwd",
    "env",
    "env_clear",
    "envs",
    "exec",
    "kill",
    "kill_tree",
    "max_memory",
    "max_processes",
    "output_limit",
    "over",
    "over_within",
    "pid",
    "resize",
    "rlimit",
    "signal",
    "stdin",
    "timeout",
    "tty",
    "user",
];

#[tokio::test]
async fn dropped_task_kills_its_command() {
    let agent = agent!();
    let mark = common::scratch().join("dropped-task");
    let exec = agent.sh(&format!("sleep 2; touch {}", mark.display()));
    let task = tokio::time::timeout(Duration::from_millis(300), exec.output_async());
    assert!(task.await.is_err());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!mark.exists(), "the command ran on");
}

#[tokio::test]
async fn streams_are_read_and_written_by_tasks() {
    let agent = agent!();
    let mut process = agent.sh("cat").stdin(ExecInput::Piped).spawn_async().await.unwrap();
    let (mut stdin, mut stdout) =
        (process.stdin.take().unwrap().into_async(), process.stdout.take().unwrap().into_async());
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number ^ (number >> 8)) as u8).collect();
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let ((), read) = tokio::join!(write, stdout.read_to_end(&mut came));
    assert_eq!(read.unwrap(), sent.len());
    assert!(came == sent);
    assert_eq!(process.wait_async().await.unwrap(), ExecStatus::Code(0));
}

#[tokio::test]
async fn files_cross_and_refusals_are_told() {
    let agent = agent!();
    let path = common::scratch().join("async-file");
    for len in [0, 1, 3 << 20] {
        let content = vec![len as u8 ^ 0x5a; len];
        agent.client.write_file_async(&path, &content).await.unwrap();
        assert!(agent.client.read_file_async(&path).await.unwrap() == content, "{len}");
    }
    let error = agent.client.read_file_async("/no/such").await.unwrap_err();
    assert!(matches!(error, FileError::Guest { .. }), "{error}");
    let huge = common::scratch().join("async-huge");
    std::fs::File::create(&huge).unwrap().set_len(17 << 20).unwrap();
    let error = agent.client.read_file_async(&huge).await.unwrap_err();
    assert!(matches!(error, FileError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn agent_that_dies_fails_what_is_under_way() {
    let mut agent = agent!();
    assert!(agent.client.wait_ready_async(LIMIT).await.is_ok());
    let waits = tokio::spawn(agent.sh("sleep 1000").output_async());
    tokio::time::sleep(Duration::from_millis(200)).await;
    agent.process.kill().unwrap();
    let error = waits.await.unwrap().unwrap_err();
    assert!(matches!(error, ExecError::Agent { error: AgentError::Lost, .. }), "{error}");
    let error = agent.client.wait_ready_async(LIMIT).await.unwrap_err();
    assert!(matches!(error, AgentError::Lost), "{error}");
}
