//! `coracle run -- COMMAND`: streams, exit codes, signals, time limits and terminals of a command in a guest.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use super::common::network::{in_own_network, passt, serve_page, socket_for_everyone, tap};
use super::common::{self, collect, coracle, eventually, finish, finish_with_input, scratch, signal};
use super::{no_linux, outcome};

fn run(options: &[&str], command: &[&str]) -> Command {
    let mut run = coracle();
    run.args(["run", "--accel", "kvm"]).args(options).arg("--").args(command);
    run
}

#[test]
fn command_has_our_streams_and_its_exit_code_is_ours() {
    needs_linux!();
    let script = "cat; echo to stderr >&2; exit 7";
    let run = finish_with_input(&mut run(&[], &["sh", "-c", script]), b"typed\n");
    run.expect(7, "to stderr");
    assert_eq!(run.text(), "typed\n");
    assert_eq!(run.stderr, "to stderr\n", "there is nothing to say of a code below 100");
}

#[test]
fn time_of_each_step_is_in_the_outcome() {
    needs_linux!();
    let path = scratch().join("times.json");
    let path = path.to_str().unwrap();
    let run = finish(&mut run(&["-v", "--outcome", path], &["sleep", "1"]));
    run.expect(0, "coracle: time: ");
    let outcome = outcome(&path.into());
    let step = |name: &str| outcome["times_ms"][name].as_f64().unwrap_or_else(|| panic!("{name}: {outcome}"));
    let (kernel, init, agent, command) = (step("kernel"), step("init"), step("agent"), step("command"));
    assert!(command >= 1000.0 && kernel > 0.0 && step("prepare") > 0.0, "{outcome}");
    let whole = outcome["duration_ms"].as_f64().unwrap();
    assert!(kernel + init + agent + command <= whole, "the steps are parts of the guest's time: {outcome}");
}

#[test]
fn large_codes_signals_and_commands_that_cannot_start_have_codes_of_their_own() {
    needs_linux!();
    let sh = |script| finish(&mut run(&[], &["sh", "-c", script]));
    sh("exit 200").expect(100, "workload ended with code 200");
    sh("kill -9 $$").expect(137, "killed by signal 9 (SIGKILL)");
    finish(&mut run(&[], &["/no/such"])).expect(127, "the guest has no program");
    finish(&mut run(&[], &["/etc"])).expect(126, "cannot execute");
    finish(&mut run(&["--user", "nosuch"], &["id"])).expect(125, "no user or group");
    sh("echo c > /proc/sysrq-trigger; sleep 60").expect(110, "kernel panicked: sysrq triggered crash");
    sh("poweroff; sleep 60").expect(111, "the guest powered off before the command had ended");
}

#[test]
fn output_that_cannot_be_written_is_a_failure_whatever_the_command_s_code() {
    needs_linux!();
    let path = scratch().join("lost.json");
    let run = |script: &str| {
        let mut command = coracle();
        command.args(["run", "--accel", "kvm", "--outcome"]).arg(&path).args(["--", "sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let lost = |finished: &common::Finished, stream: &str, why: &str, code: i32| {
        finished.expect(117, &format!("command output cannot be written to {stream}: {why}"));
        let outcome = outcome(&path);
        assert_eq!((&outcome["ending"], &outcome["code"]), (&"host-failed".into(), &117.into()), "{outcome}");
        assert_eq!(outcome["command_code"], code, "{outcome}");
    };
    let mut command = run("echo important; exit 3");
    lost(&collect(command.stdout(full()).spawn().unwrap()), "stdout", "No space left on device", 3);
    // The command continues to its end, far behind what its streams hold.
    let mut command = run("head -c 3000000 /dev/zero; echo end >&2");
    let finished = collect(command.stdout(full()).spawn().unwrap());
    lost(&finished, "stdout", "No space left on device", 0);
    assert!(finished.stderr.starts_with("end\n"), "{}", finished.stderr);
    // Nobody is there to report to, except through the exit code.
    let mut command = run("echo important >&2");
    assert_eq!(collect(command.stderr(full()).spawn().unwrap()).code(), 117);
    assert_eq!(outcome(&path)["command_code"], 0);
    let file = fs::File::create(scratch().join("limited")).unwrap();
    let mut command = run("head -c 3000000 /dev/zero");
    common::limit_files(&mut command, 100_000);
    lost(&collect(command.stdout(file).spawn().unwrap()), "stdout", "File too large", 0);
    // A reader that has gone has the usual effect on the program.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = run("yes");
    collect(command.stdout(writer).spawn().unwrap()).expect(141, "killed by signal 13 (SIGPIPE)");
    assert_eq!(outcome(&path)["command_signal"], 13);
}

#[test]
fn network_is_up_before_the_command_where_that_is_wanted() {
    needs_linux!();
    in_own_network(|| {
        let socket = socket_for_everyone("passt-command");
        let Some(_passt) = passt(&socket) else { return };
        let net = format!("socket={}", socket.display());
        let server = serve_page(8001);
        let wget = ["wget", "-q", "-O", "-", "http://10.9.0.1:8001/"];
        let page = finish(&mut run(&["--net", &net, "--ip", "dhcp"], &wget));
        page.expect(0, "");
        assert_eq!(page.text(), "page\n");
        server.join().unwrap();
        tap("tap0");
        let ip = "10.7.0.2/24,gateway=10.7.0.1,dns=10.7.0.3";
        let show = ["sh", "-c", "ip addr; ip route; cat /etc/resolv.conf"];
        let shown = finish(&mut run(&["--net", "tap=tap0", "--ip", ip], &show));
        shown.expect(0, "");
        for words in ["10.7.0.2/24", "default via 10.7.0.1", "nameserver 10.7.0.3"] {
            assert!(shown.text().contains(words), "{}", shown.text());
        }
        let unanswered = finish(&mut run(&["--net", "tap=tap0", "--ip", "dhcp,timeout=1s"], &["true"]));
        unanswered.expect(125, "no DHCP server answered within 1s");
        let _ = fs::remove_dir_all(socket.parent().unwrap());
    });
}

#[test]
fn time_limit_counts_from_the_command_s_start_and_names_it() {
    needs_linux!();
    let path = scratch().join("command.json");
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "1s", "--outcome"]).arg(&path);
    finish(command.args(["--", "sleep", "600"])).expect(124, "the command was killed after 1 s");
    let outcome = outcome(&path);
    assert_eq!((&outcome["phase"], &outcome["time_limit"]), (&"command".into(), &"command".into()));
}

#[test]
fn first_signal_is_the_command_s_and_the_second_ends_the_machine() {
    needs_linux!();
    let path = scratch().join("trapped.log");
    let script = "trap 'echo trapped' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = run(&[], &["sh", "-c", script]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&path).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let says = |words: &str| fs::read_to_string(&path).unwrap().contains(words);
    eventually("the command runs", || says("ready"));
    signal(&child, libc::SIGTERM);
    eventually("the command has the signal", || says("trapped"));
    signal(&child, libc::SIGINT);
    assert_eq!(common::wait(&mut child).code(), Some(130));
}

#[test]
fn signal_that_no_command_waits_for_ends_the_machine_before_and_while_it_runs() {
    needs_linux!();
    for number in [libc::SIGALRM, libc::SIGIO, 34, 64] {
        let mut command = run(&[], &["sh", "-c", "echo ready; sleep 600"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        signal(&child, number);
        collect(child).expect(128 + number, &format!("stopped by signal {number}"));
    }
    // The guest boots for longer than this.
    let console = scratch().join("early.log");
    let serial = format!("file={}", console.display());
    let mut command = run(&["--serial", &serial], &["true"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("the machine is made", || console.exists());
    signal(&child, libc::SIGPROF);
    collect(child).expect(128 + libc::SIGPROF, "stopped by signal 27");
}

#[test]
fn variables_user_and_folder_are_the_command_s() {
    needs_linux!();
    let options = ["-e", "A=b c", "--workdir", "/tmp", "--user", "1000:100"];
    let run = finish(&mut run(&options, &["sh", "-c", "echo $A; pwd; id -u; id -g"]));
    run.expect(0, "");
    assert_eq!(run.text(), "b c\n/tmp\n1000\n100\n");
}

/// Starts a script in a guest, on a terminal with 33 rows and 111 columns.
fn at_terminal(script: &str) -> (File, Child) {
    let (person, program) = common::pseudo_terminal();
    let size = libc::winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is a terminal's, and the size is valid.
    unsafe { libc::ioctl(program.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    let mut command = run(&[], &["sh", "-c", script]);
    command.stdin(program.try_clone().unwrap()).stdout(program).stderr(Stdio::null());
    (person, command.spawn().unwrap())
}

#[test]
fn command_at_a_terminal_has_one_with_its_size() {
    needs_linux!();
    let (mut person, mut child) = at_terminal("tty; stty size; read line; echo got $line");
    let shown = common::read_until(&mut person, "33 111");
    assert!(shown.contains("/dev/pts/"), "{shown}");
    person.write_all(b"words\r").unwrap();
    common::read_until(&mut person, "got words");
    assert_eq!(common::wait(&mut child).code(), Some(0));
}

#[test]
fn command_at_a_terminal_leaves_ctrl_a_commands_to_coracle() {
    needs_linux!();
    let script = "stty raw -echo; echo ready; head -c 2 | od -An -tx1; sleep 600";
    let (mut person, mut child) = at_terminal(script);
    common::read_until(&mut person, "ready");
    person.write_all(b"\x01h").unwrap();
    common::read_until(&mut person, "Ctrl-A x  end the virtual machine");
    // Two of the same signal count as one for the command.
    person.write_all(b"\x01\x01b").unwrap();
    common::read_until(&mut person, "01 62");
    person.write_all(b"\x01x").unwrap();
    assert_eq!(common::wait(&mut child).code(), Some(118));
}

#[test]
fn command_of_a_test_has_the_same_surroundings() {
    needs_linux!();
    let script = "echo $A; pwd; id -u; id -g";
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "-e", "A=b c", "--workdir", "/tmp", "--user", "1000:100"]);
    for line in ["^b c$", "^/tmp$", "^1000$", "^100$"] {
        command.args(["--expect", line]);
    }
    finish(command.args(["--", "sh", "-c", script])).expect(0, "passed");
    let suite = "[defaults]\nenv = [\"A=b c\"]\nworkdir = \"/tmp\"\nuser = \"1\"\n[[case]]\nname = \"all\"\n\
                 user = \"1000:100\"\n\
                 command = [\"sh\", \"-c\", \"echo $A; pwd; id -u; id -g\"]\n\
                 expect = [\"^b c$\", \"^/tmp$\", \"^1000$\", \"^100$\"]\n";
    let path = common::file("surroundings.toml", suite.as_bytes());
    finish(coracle().args(["test", "--accel", "kvm", "--suite"]).arg(path)).expect(0, "all: passed");
}

#[test]
fn test_with_a_command_has_its_verdict() {
    needs_linux!();
    let test = |options: &[&str], script: &str| {
        let mut command = coracle();
        command.args(["test", "--accel", "kvm"]).args(options).args(["--", "sh", "-c", script]);
        finish(&mut command)
    };
    let passed = test(&["--expect", "^done$"], "echo done");
    passed.expect(0, "passed");
    assert!(passed.text().contains("done"), "{}", passed.text());
    test(&[], "exit 3").expect(120, "ended with code 3");
    test(&["--expect", "never"], "true").expect(120, "matched `never`");
    // The output decides as it comes, long before these commands would have ended, and whatever their exit
    // codes would be.
    test(&["--expect", "^ready$"], "echo ready; sleep 3600; exit 3").expect(0, "passed");
    test(&["--reject", "BUG"], "echo BUG: bad >&2; sleep 3600")
        .expect(120, "the command's output has `BUG: bad`");
    test(&["--expect", "^done$"], "echo done > /dev/console; poweroff; sleep 60")
        .expect(120, "the command had not finished");
    test(&["--assert-boot", "1ms"], "true").expect(120, "--assert-boot 0.001 s");
    test(&["--timeout", "1s"], "sleep 600").expect(124, "was killed after 1 s");
}
