//! Tests of the agent's real program with the library's end of its protocol, over a socket pair on this
//! machine: the agent's use of Linux needs no guest.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::agent::{Agent, agent, runtime};
use common::{LIMIT, eventually, fresh_path as path};
use coracle::agent::{
    AgentClient, AgentError, ExecError, ExecInput, ExecStatus, FileError, FileKind, WindowSize,
};
use coracle::config::AgentConfig;

/// Returns whether the process exists and is not a zombie.
fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn exit_codes_and_signals_come_back() {
    let agent = agent!();
    for code in [0, 1, 99, 200, 255] {
        let status = agent.sh(&format!("exit {code}")).status().unwrap();
        assert_eq!(status, ExecStatus::Code(code));
    }
    assert_eq!(agent.sh("kill -9 $$").status().unwrap(), ExecStatus::Signal(9));
    assert_eq!(agent.sh("kill -TERM $$").status().unwrap(), ExecStatus::Signal(15));
}

#[test]
fn stdin_stdout_and_stderr_are_apart() {
    let agent = agent!();
    let output = agent.sh("cat; echo err >&2").stdin("in").output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"in"[..], &b"err\n"[..]));
    let output = agent.sh("cat; echo $(readlink /proc/self/fd/0)").output().unwrap();
    assert_eq!(output.stdout, b"/dev/null\n");
}

#[test]
fn variables_folder_and_user_are_as_told() {
    let agent = agent!();
    let run = |exec: coracle::agent::Exec| String::from_utf8(exec.output().unwrap().stdout).unwrap();
    let defaults = run(agent.sh("echo $HOME $USER $LOGNAME $PATH; pwd"));
    assert!(
        defaults.starts_with("/root root root /usr/local/sbin:")
            && defaults.ends_with(
                "/
"
            ),
        "{defaults}"
    );
    let names = run(agent.client.exec(["env"]));
    assert_eq!(names.lines().count(), 5, "{names}");
    let told = agent.client.exec(["/usr/bin/env"]).env_clear().env("A", "b=c").envs([("D", "")]);
    assert_eq!(run(told), "A=b=c\nD=\n");
    assert_eq!(run(agent.sh("pwd").cwd("/usr")), "/usr\n");
    let user = run(agent.sh("id -u; id -g; id -G; echo $USER").user("nobody"));
    assert_eq!(user, "65534\n65534\n65534\nnobody\n");
    assert_eq!(run(agent.sh("id -u; id -g").user("1234:56")), "1234\n56\n");
}

#[test]
fn failures_to_start_are_told_apart() {
    let agent = agent!();
    let plain = path("plain");
    fs::write(&plain, "no program").unwrap();
    let failure = |exec: coracle::agent::Exec| exec.output().unwrap_err();
    let missing = failure(agent.client.exec(["/no/such"]));
    assert!(matches!(&missing, ExecError::NotFound { program } if program == "/no/such"), "{missing}");
    assert_eq!(missing.shell_code(), Some(127));
    assert!(matches!(failure(agent.client.exec(["no-such-program"])), ExecError::NotFound { .. }));
    let refused = failure(agent.client.exec([&plain]));
    assert!(matches!(&refused, ExecError::NotExecutable { .. }), "{refused}");
    assert_eq!(refused.shell_code(), Some(126));
    assert!(matches!(failure(agent.client.exec(["/"])), ExecError::NotExecutable { .. }));
    let folder = failure(agent.sh("true").cwd("/no/such"));
    assert!(
        matches!(&folder, ExecError::Directory { path, .. } if path.to_str() == Some("/no/such")),
        "{folder}"
    );
    assert!(matches!(failure(agent.sh("true").user("nobody-here")), ExecError::UnknownUser { .. }));
    assert!(matches!(failure(agent.client.exec(Vec::<String>::new())), ExecError::NoCommand));
    let spawned = agent.client.exec(["/no/such"]).spawn().err().unwrap();
    assert!(matches!(spawned, ExecError::NotFound { .. }), "{spawned}");
}

#[test]
fn hundred_megabytes_wait_for_a_slow_reader_and_arrive_whole() {
    let agent = agent!();
    let mut process = agent.sh("head -c 100000000 /dev/zero; echo end").spawn().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    let mut first = [0; 10];
    stdout.read_exact(&mut first).unwrap();
    // Nobody reads this stream: its command waits, and others do not.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(process.wait_timeout(Duration::ZERO).unwrap(), None);
    assert_eq!(agent.sh("echo quick").output().unwrap().stdout, b"quick\n");
    let (mut buffer, mut count) = (vec![0; 1 << 20], first.len());
    let mut last = Vec::new();
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        count += read;
        last.extend_from_slice(&buffer[read.saturating_sub(4)..read]);
        last.drain(..last.len().saturating_sub(4));
    }
    assert_eq!((count, last.as_slice()), (100_000_004, &b"end\n"[..]));
    assert_eq!(process.wait().unwrap(), ExecStatus::Code(0));
}

#[test]
fn large_input_is_read_and_input_that_nobody_wants_is_refused() {
    let agent = agent!();
    let output = agent.sh("wc -c").stdin(vec![7; 20_000_000]).output().unwrap();
    assert_eq!(output.stdout, b"20000000\n");
    let reader = ExecInput::Reader(Box::new(std::io::repeat(1).take(5_000_000)));
    assert_eq!(agent.sh("wc -c").stdin(reader).output().unwrap().stdout, b"5000000\n");
    // The command ends without having read all of its input.
    let output = agent.sh("head -c 3; exit 5").stdin(vec![b'x'; 10_000_000]).output().unwrap();
    assert_eq!((output.status, output.stdout.as_slice()), (ExecStatus::Code(5), &b"xxx"[..]));
    // The command continues without reading.
    let mut process = agent.sh("exec <&-; sleep 60").stdin(ExecInput::Piped).spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let refused = loop {
        if let Err(error) = stdin.write_all(&[0; 100_000]) {
            break error;
        }
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
    process.kill();
}

#[test]
fn two_hundred_commands_run_at_once() {
    let agent = agent!();
    common::run_200_at_once(|number| {
        agent.sh(&format!("cat; sleep 0.2; echo {number}; exit {number}")).stdin("in ")
    });
}

#[test]
fn output_beyond_its_limit_is_an_error_and_kills() {
    let agent = agent!();
    let error = agent.sh("yes").output_limit(100_000).output().unwrap_err();
    assert!(matches!(error, ExecError::OutputLimit { limit: 100_000, .. }), "{error}");
    assert_eq!(error.written().unwrap().stdout, b"y\n".repeat(50_000), "it has what the limit allows");
    let both = agent.sh("printf 123; exec >&2; yes").output_limit(5).output().unwrap_err();
    assert_eq!(both.written().unwrap().stdout.len() + both.written().unwrap().stderr.len(), 5);
    let process = agent.sh("yes").output_limit(100).spawn().unwrap();
    assert_eq!(process.wait_with_output().unwrap_err().written().unwrap().stdout.len(), 100);
    assert_eq!(agent.sh("printf 12345").output_limit(5).output().unwrap().stdout, b"12345");
}

#[test]
fn time_out_gives_what_was_written_until_then() {
    let agent = agent!();
    let exec = || {
        let script = "echo out; echo err >&2; sleep 600; echo late";
        agent.client.exec(["sh", "-c", script]).timeout(Duration::from_secs(1))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ends = [
        exec().output(),
        exec().spawn().unwrap().wait_with_output(),
        runtime.block_on(exec().output_async()),
        runtime.block_on(async { exec().spawn_async().await?.wait_with_output_async().await }),
    ];
    for end in ends {
        let error = end.unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
        let written = error.written().unwrap();
        assert_eq!((&written.stdout[..], &written.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    }
}

#[test]
fn time_out_kills_children_also_those_that_left_the_group() {
    let agent = agent!();
    let pids = path("pids");
    let leaves_group = if agent.client.wait_ready(LIMIT).unwrap().kills_groups { "setsid" } else { "" };
    let script = format!(
        "(trap '' TERM; {leaves_group} sleep 600 & echo $! > {0}; sleep 601 & echo $! >> {0}; wait)",
        pids.display()
    );
    let error =
        agent.client.exec(["sh", "-c", &script]).timeout(Duration::from_secs(1)).output().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
    let pids = fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        eventually("the child is dead", || !is_alive(pid.parse().unwrap()));
    }
}

#[test]
fn command_whose_time_is_over_is_told_so_whoever_sees_it_first() {
    let agent = agent!();
    let limit = Duration::from_millis(300);
    let mut process = agent.sh("sleep 600; true").timeout(limit).spawn().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    // The reader notices the limit and kills the command before its status is requested.
    let error = stdout.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let error = process.wait().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { limit: over, .. } if over == limit), "{error:?}");
    // A command that its owner killed earlier is not reported as such.
    let mut process = agent.sh("sleep 600; true").timeout(limit).spawn().unwrap();
    process.kill();
    thread::sleep(limit * 2);
    assert_eq!(process.wait().unwrap(), ExecStatus::Signal(9));
}

#[test]
fn dropped_and_killed_commands_are_dead_and_lost_agents_take_theirs_along() {
    let mut agent = agent!();
    let spawn = |agent: &Agent| agent.sh("sleep 600; true").spawn().unwrap();
    let dropped = spawn(&agent);
    let pid = dropped.pid();
    assert!(is_alive(pid));
    drop(dropped);
    eventually("a dropped command is dead", || !is_alive(pid));
    let mut killed = spawn(&agent);
    let pid = killed.pid();
    killed.kill();
    assert_eq!(killed.wait().unwrap(), ExecStatus::Signal(9));
    eventually("a killed command is dead", || !is_alive(pid));
    let mut running = spawn(&agent);
    agent.process.kill().unwrap();
    let error = running.wait().unwrap_err();
    assert!(matches!(error, ExecError::Agent { error: AgentError::Lost, .. }), "{error}");
    let error = agent.sh("true").status().unwrap_err();
    assert!(matches!(error, ExecError::Agent { error: AgentError::Lost, .. }), "{error}");
    // Its agent can no longer end it.
    let pid = i32::try_from(running.pid()).unwrap();
    // SAFETY: kill takes numbers; the group is one of this test's.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

#[test]
fn command_that_is_lost_gives_what_it_wrote_until_then() {
    for by_task in [false, true] {
        let mut agent = agent!();
        let exec = agent.sh("echo out; echo err >&2; sleep 2; kill -9 $PPID; exec sleep 1000");
        let error =
            if by_task { runtime().block_on(exec.output_async()) } else { exec.output() }.unwrap_err();
        assert!(matches!(error, ExecError::Agent { error: AgentError::Lost, .. }), "{error}");
        let written = error.written().unwrap();
        assert_eq!((written.stdout.as_slice(), written.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        agent.process.wait().unwrap();
    }
}

#[test]
fn limit_that_the_command_itself_is_beyond_is_refused() {
    let agent = agent!();
    let processes = agent.sh("true").max_processes(0).status().unwrap_err();
    assert!(matches!(processes, ExecError::LimitOfNothing { limit: "max_processes" }), "{processes}");
    assert!(processes.to_string().contains("max_processes(0)"), "{processes}");
    let memory = agent.sh("true").max_memory(0).spawn().err().unwrap();
    assert!(matches!(memory, ExecError::LimitOfNothing { limit: "max_memory" }), "{memory}");
}

#[test]
fn host_that_goes_takes_its_commands_and_an_agent_on_a_descriptor_along() {
    let mut agent = agent!();
    let (other, _) = UnixStream::pair().unwrap();
    let process = agent.sh("sleep 600; true").spawn().unwrap();
    let pid = process.pid();
    agent.client = AgentClient::over(other).unwrap();
    drop(process);
    eventually("the command is dead", || !is_alive(pid));
    eventually("the agent has ended", || agent.process.try_wait().unwrap().is_some());
}

#[test]
fn processes_left_behind_hold_nobody_up() {
    let agent = agent!();
    let start = Instant::now();
    let output = agent.sh("echo out; sleep 400 & echo $!").output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(200));
    let text = String::from_utf8(output.stdout).unwrap();
    let pid: u32 = text.strip_prefix("out\n").unwrap().trim().parse().unwrap();
    assert!(is_alive(pid), "what a command leaves behind lives on");
    assert_eq!(agent.sh(&format!("kill {pid}")).status().unwrap(), ExecStatus::Code(0));
}

#[test]
fn signals_reach_the_whole_group() {
    let agent = agent!();
    let mut process =
        agent.sh("trap 'echo got; exit 3' INT; echo up; while :; do sleep 0.05; done").spawn().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    let mut up = [0; 3];
    stdout.read_exact(&mut up).unwrap();
    process.signal(2);
    assert_eq!(process.wait().unwrap(), ExecStatus::Code(3));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
}

#[test]
fn terminal_has_its_size_takes_another_and_ends_its_input() {
    let agent = agent!();
    let size = WindowSize { rows: 30, columns: 100 };
    let mut process = agent
        .sh("test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 4' WINCH; echo up; while :; do sleep 0.05; done")
        .tty(size)
        .spawn()
        .unwrap();
    assert!(process.stderr.is_none());
    let mut stdout = process.stdout.take().unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"up\r\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    assert_eq!(text, b"30 100\r\nup\r\n");
    process.resize(WindowSize { rows: 40, columns: 120 });
    assert_eq!(process.wait().unwrap(), ExecStatus::Code(4));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "40 120\r\n");
    let output = agent.sh("stty -echo; cat").tty(size).stdin("typed\n").output().unwrap();
    assert!(output.stdout.ends_with(b"typed\r\n"), "{output:?}");
    assert_eq!(output.status, ExecStatus::Code(0));
}

#[test]
fn files_keep_content_and_permissions() {
    let agent = agent!();
    let file = path("file");
    agent.client.write_file(&file, "one").unwrap();
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"one".to_vec(), 0o644));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
    agent.client.write_file(&file, "two").unwrap();
    assert_eq!((agent.client.read_file(&file).unwrap(), mode(&file)), (b"two".to_vec(), 0o750));
    agent.client.write_file_from(&file, Some(0o4711), &mut &b""[..]).unwrap();
    assert_eq!((agent.client.read_file(&file).unwrap(), mode(&file)), (Vec::new(), 0o4711));
    let link = path("link");
    symlink(&file, &link).unwrap();
    agent.client.write_file(&link, "by link").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"by link");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    agent.client.write_file("/dev/null", "nothing").unwrap();
    assert!(!agent.client.read_file("/proc/self/status").unwrap().is_empty());
}

#[test]
fn file_failures_are_the_guest_s_own_words() {
    let agent = agent!();
    let kind = |error: FileError| error.guest_error().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(kind(agent.client.read_file("/no/such").unwrap_err()), std::io::ErrorKind::NotFound);
    assert_eq!(kind(agent.client.read_file("/usr").unwrap_err()), std::io::ErrorKind::IsADirectory);
    assert_eq!(kind(agent.client.read_file("/dev/zero").unwrap_err()), std::io::ErrorKind::InvalidInput);
    assert_eq!(
        kind(agent.client.write_file("/no/such/file", "x").unwrap_err()),
        std::io::ErrorKind::NotFound
    );
    assert_eq!(kind(agent.client.list_dir("/etc/passwd").unwrap_err()), std::io::ErrorKind::NotADirectory);
    let file = path("large");
    File::create(&file).unwrap().set_len(1001).unwrap();
    let error = agent.client.read_file_limited(&file, 1000).unwrap_err();
    assert!(matches!(error, FileError::TooLarge { limit: 1000, .. }), "{error}");
    assert_eq!(agent.client.read_file_limited(&file, 1001).unwrap().len(), 1001);
    // If the reader fails, the file is left as it was, with nothing beside it.
    let folder = path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("kept"), "old").unwrap();
    let mut failing = (&b"new"[..]).chain(Failing);
    let error = agent.client.write_file_from(folder.join("kept"), None, &mut failing).unwrap_err();
    assert!(matches!(error, FileError::Local { .. }), "{error}");
    eventually("the unfinished file is gone", || fs::read_dir(&folder).unwrap().count() == 1);
    assert_eq!(fs::read(folder.join("kept")).unwrap(), b"old");
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("on purpose"))
    }
}

#[test]
fn gigabyte_with_holes_crosses_both_ways_unchanged() {
    let agent = agent!();
    let (source, copy) = (path("source"), path("copy"));
    let mut file = File::create(&source).unwrap();
    file.set_len(1 << 30).unwrap();
    for at in [0, 123_456_789, (1 << 30) - 10] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(b"0123456789").unwrap();
    }
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut writer = sum.stdin.take().unwrap();
    let info = agent.client.read_file_to(&source, 1 << 30, &mut writer).unwrap();
    drop(writer);
    assert_eq!(info.size, 1 << 30);
    let hash = |output: Output| String::from_utf8(output.stdout).unwrap()[..64].to_owned();
    let of_file = |path: &Path| hash(Command::new("sha256sum").arg(path).output().unwrap());
    assert_eq!(hash(sum.wait_with_output().unwrap()), of_file(&source));
    agent.client.write_file_from(&copy, None, &mut File::open(&source).unwrap()).unwrap();
    assert_eq!(of_file(&copy), of_file(&source));
    fs::remove_file(&source).unwrap();
    fs::remove_file(&copy).unwrap();
}

#[test]
fn folders_are_listed_with_what_is_in_them() {
    let agent = agent!();
    let folder = path("list");
    fs::create_dir(&folder).unwrap();
    assert_eq!(agent.client.list_dir(&folder).unwrap(), []);
    fs::write(folder.join("file"), "12345").unwrap();
    fs::set_permissions(folder.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    symlink("/nowhere", folder.join("link")).unwrap();
    for number in 0..5000 {
        fs::write(folder.join(format!("many-{number}-{}", "x".repeat(100))), "").unwrap();
    }
    let entries = agent.client.list_dir(&folder).unwrap();
    assert_eq!(entries.len(), 5003);
    let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
    let file = find("file");
    assert_eq!((file.kind, file.mode, file.size), (FileKind::File, 0o600, 5));
    assert_eq!((find("folder").kind, find("link").kind), (FileKind::Folder, FileKind::Link));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn agent_that_says_nothing_fails_calls_that_wait_for_its_answer() {
    let limit = Duration::from_millis(500);
    let config = AgentConfig { answer_limit: limit, ..AgentConfig::default() };
    let Some(agent) = Agent::start_with(&config) else { return };
    let path = path("unanswered");
    agent.client.write_file(&path, "content").unwrap();
    let silent = |error: AgentError| matches!(error, AgentError::NoAnswer { limit: named } if named == limit);
    common::signal(&agent.process, libc::SIGSTOP);
    let Err(FileError::Agent(error)) = agent.client.read_file(&path) else { panic!("it has answered") };
    assert!(silent(error));
    let Err(FileError::Agent(error)) = agent.client.write_file(&path, vec![0; 10 << 20]) else { panic!() };
    assert!(silent(error));
    let Err(ExecError::Agent { error, .. }) = agent.client.exec(["true"]).spawn() else { panic!() };
    assert!(silent(error));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = Instant::now();
    let read = agent.client.read_file_async(&path);
    // Whatever else wakes the task is not a message of the agent.
    let ticks = async {
        for _ in 0..100 {
            tokio::time::sleep(limit / 10).await;
        }
    };
    let first = runtime.block_on(async {
        tokio::select! {
            read = read => Some(read),
            () = ticks => None,
        }
    });
    let Some(Err(FileError::Agent(error))) = first else { panic!("it waits on") };
    assert!(silent(error) && start.elapsed() >= limit);
    common::signal(&agent.process, libc::SIGCONT);
    assert_eq!(agent.client.read_file(&path).unwrap(), b"content");
}
