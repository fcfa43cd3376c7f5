//! `coracle host-emulate` for real: what crosses to a command on the emulated machine and back.
//!
//! Each start of the machine takes some seconds, so one start carries many checks where their failures can
//! still be told apart. Without QEMU every test says that it is skipped.

mod common;

use common::program::program;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

/// Says that a test is skipped, and why.
macro_rules! needs_qemu {
    () => {
        if !has_qemu() {
            common::skip("no qemu-system-x86_64");
            return;
        }
    };
}

#[path = "emulated_host/clock.rs"]
mod clock;
#[path = "emulated_host/limits.rs"]
mod limits;
#[path = "emulated_host/modules.rs"]
mod modules;
#[path = "emulated_host/run.rs"]
mod run;
#[path = "emulated_host/snapshots.rs"]
mod snapshots;

use run::{Lines, Run, Scratch};

#[test]
fn streams_cross_byte_exact_in_both_directions_and_apart() {
    needs_qemu!();
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut run = Run::start(emulate("cat; head -c 300000 /dev/zero | tr '\\0' e >&2"));
    let mut stdin = run.child.stdin.take().unwrap();
    let input = sent.clone();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = run.finish();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == sent, "stdout differs: {} bytes of {}", output.stdout.len(), sent.len());
    assert!(output.stderr == vec![b'e'; 300_000], "stderr differs: {} bytes", output.stderr.len());
}

#[test]
fn arguments_environment_directory_and_umask_cross() {
    needs_qemu!();
    let scratch = Scratch::new("surroundings");
    let odd = OsString::from_vec(b"a  b'\"\n$x\\\xff\xfe".to_vec());
    let script = r#"printf '%s\0' "$0" "$@" "$ODD" "$(pwd)" "$(umask)" "$(ulimit -n)"; exit 7"#;
    let mut command =
        emulate_command(["sh".as_ref(), "-c".as_ref(), script.as_ref(), &*odd, "".as_ref(), "z".as_ref()]);
    command.env("ODD", &odd).current_dir(&scratch.0);
    with_umask_and_open_files(&mut command, 0o031, 123);
    let output = Run::start(command).finish();
    let mut expected: Vec<u8> = Vec::new();
    for word in
        [&odd, OsStr::new(""), "z".as_ref(), &odd, scratch.0.as_os_str(), "0031".as_ref(), "123".as_ref()]
    {
        expected.extend(word.as_encoded_bytes());
        expected.push(0);
    }
    assert_eq!(output.stdout, expected, "{}", shown(&output));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn the_largest_exit_code_and_a_fatal_signal_cross() {
    needs_qemu!();
    for (script, code) in [("exit 255", 255), ("kill -SEGV $$", 128 + libc::SIGSEGV)] {
        let output = Run::start(emulate(script)).finish();
        assert_eq!(output.status.code(), Some(code), "{script}: {}", shown(&output));
        assert_eq!(output.stdout, b"");
        assert_eq!(output.stderr, b"");
    }
}

#[test]
fn a_command_that_is_missing_or_not_executable_gives_127_or_126() {
    needs_qemu!();
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let output = Run::start(emulate_command([OsStr::new(program)])).finish();
        assert_eq!(output.status.code(), Some(code), "{}", shown(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(program), "{}", shown(&output));
    }
}

#[test]
fn a_closed_stdout_ends_the_writer_inside() {
    needs_qemu!();
    let mut run = Run::start(emulate("yes; echo yes gave $? >&2"));
    let mut start = [0; 6];
    run.child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let output = run.finish();
    assert_eq!(&start, b"y\ny\ny\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "yes gave 141\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_the_command_goes_on() {
    needs_qemu!();
    let mut command = emulate("head -c 300000 /dev/zero; echo end >&2; exit 3");
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("end\n"), "{stderr}");
    assert!(
        stderr.contains("command output cannot be written to stdout: No space left on device"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(117));
}

#[test]
fn a_background_process_does_not_hold_the_end_and_its_output_is_not_lost() {
    needs_qemu!();
    let output = Run::start(emulate("(echo first; sleep 1000) & sleep 0.2; echo last; exit 4")).finish();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "first\nlast\n");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn signals_cross_and_the_command_decides() {
    needs_qemu!();
    let script = "trap 'echo hup' HUP; trap 'echo usr1' USR1; trap 'echo cont' CONT; trap 'echo alrm' ALRM; trap 'echo last' 64; trap 'echo term; exit 3' TERM; echo ready
        while :; do sleep 0.05; done";
    let mut run = Run::start(emulate(script));
    let mut stdout = Lines::of(run.child.stdout.take().unwrap());
    stdout.expect("ready");
    for (signal, answer) in [
        (libc::SIGHUP, "hup"),
        (libc::SIGUSR1, "usr1"),
        (libc::SIGCONT, "cont"),
        (libc::SIGALRM, "alrm"),
        (64, "last"),
        (libc::SIGTERM, "term"),
    ] {
        run.signal(signal);
        stdout.expect(answer);
    }
    assert_eq!(run.finish().status.code(), Some(3));
}

#[test]
fn an_interrupt_during_boot_ends_the_machine_at_once() {
    needs_qemu!();
    let mut run = Run::start(emulate("sleep 1000"));
    thread::sleep(Duration::from_millis(700));
    run.signal(libc::SIGINT);
    let output = run.finish();
    assert_eq!(output.status.code(), Some(128 + libc::SIGINT));
    let words = "stopped by signal 2 (SIGINT) before the emulated host was up";
    assert!(shown(&output).contains(words), "{}", shown(&output));
}

#[test]
fn the_machine_has_kvm_namespaces_and_network_devices() {
    needs_qemu!();
    let script = r#"
        check() { if ! eval "$1" >/dev/null 2>/tmp/error; then echo "failed: $1: $(cat /tmp/error)"; fi; }
        check 'test -c /dev/kvm && exec 3<>/dev/kvm'
        check 'unshare -U true'
        check 'unshare -Urm true'
        check 'exec 3<>/dev/net/tun'
        check 'test -c /dev/loop-control'
        check 'test -d /sys/module/bridge -a -d /sys/module/veth -a -d /sys/module/dummy'
        check 'test -d /sys/module/kvm_amd'
        check 'test -c /dev/pts/ptmx'
        check 'test -e /dev/fd/0'
        check 'grep -q "^tmp /tmp tmpfs" /proc/mounts'
        check 'grep -q "^run /run tmpfs" /proc/mounts'
        check 'grep -q "^shm /dev/shm tmpfs" /proc/mounts'
        check 'test $(stat -c %a /tmp) = 1777'
        check 'test $(nproc) -ge 1'
        check 'head -c 1 /dev/urandom'
        echo done"#;
    let output = Run::start(emulate(script)).finish();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{}", shown(&output));
}

#[test]
fn tmp_is_private_and_what_is_shared_is_the_callers() {
    needs_qemu!();
    let scratch = Scratch::new("shares");
    let (hidden, shown_folder) = (scratch.0.join("hidden"), scratch.0.join("shown"));
    fs::create_dir(&shown_folder).unwrap();
    fs::write(shown_folder.join("file"), "from outside").unwrap();
    fs::write(&hidden, "").unwrap();
    let one_file = scratch.0.join("one file");
    fs::write(&one_file, "alone").unwrap();
    let link = scratch.0.join("link");
    symlink(&shown_folder, &link).unwrap();
    let script = r#"test ! -e "$1/hidden" && echo hidden
        cat "$1/shown/file" "$1/one file" "$1/link/file"
        printf 'from inside' > "$1/shown/made"; echo scratch > /tmp/scratch"#;
    let words = ["sh", "-c", script, "sh"].map(OsStr::new).into_iter().chain([scratch.0.as_os_str()]);
    let command = emulate_with_shares(&[&shown_folder, &one_file, &link], words);
    let output = Run::start(command).finish();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hidden\nfrom outsidealonefrom outside",
        "{}",
        shown(&output)
    );
    assert_eq!(fs::read_to_string(shown_folder.join("made")).unwrap(), "from inside");
    assert!(!Path::new("/tmp/scratch").exists());
}

/// This machine's shell is a program with libraries, as those that cargo builds are; the package is in a
/// private folder.
#[test]
fn a_program_its_folder_and_its_files_cross_into_a_guest_there() {
    needs_qemu!();
    let scratch = Scratch::new("runner");
    fs::create_dir(scratch.0.join("data")).unwrap();
    fs::write(scratch.0.join("data/words"), "some words\n").unwrap();
    let program = scratch.0.join("program");
    fs::copy("/bin/sh", &program).unwrap();
    let mut command = Command::new(coracle());
    command.args(["cargo-runner", "--accel", "emulate", "--copy", "data"]).arg(&program);
    command.args(["-c", "pwd; read line < data/words; echo $line $CARGO_X; exit 101"]);
    command.current_dir(&scratch.0).env("CARGO_X", "x").stdin(Stdio::piped()).stdout(Stdio::piped());
    let output = Run::start(command).finish();
    assert_eq!(output.status.code(), Some(101), "{}", shown(&output));
    let expected = format!("{}\nsome words x\n", scratch.0.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn paths_that_cannot_cross_are_refused_before_the_boot() {
    needs_qemu!();
    let scratch = Scratch::new("refused");
    let socket = scratch.0.join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [socket.as_path(), &scratch.0.join("absent"), Path::new("/tmp"), Path::new("/dev/fd/0")] {
        let command = emulate_with_shares(&[path], [OsStr::new("true")]);
        let output = Run::start(command).finish();
        assert_eq!(output.status.code(), Some(125), "{}", shown(&output));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(path.to_str().unwrap()),
            "{}",
            shown(&output)
        );
    }
}

#[test]
fn a_running_program_inside_the_shared_working_directory_is_seen() {
    needs_qemu!();
    let scratch = Scratch::new("program");
    let program = scratch.0.join("sleeper");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut running = Command::new(&program).arg("100").spawn().unwrap();
    let mut command = emulate_command([program.as_os_str(), OsStr::new("0")]);
    command.current_dir(&scratch.0);
    let output = Run::start(command).finish();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}

#[test]
fn missing_data_gives_115_and_names_the_command_that_makes_it() {
    if Path::new("/usr/share/coracle/host").exists() {
        common::skip("this system has the data installed");
        return;
    }
    let scratch = Scratch::new("no-data");
    let mut command = emulate("true");
    command.env("CORACLE_DATA", &scratch.0).env("XDG_CACHE_HOME", &scratch.0);
    let output = Run::start(command).finish();
    assert_eq!(output.status.code(), Some(115), "{}", shown(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo xtask guest"), "{}", shown(&output));
}

#[test]
fn host_that_is_lost_while_it_runs_a_guest_gives_117() {
    needs_qemu!();
    let outcome = common::scratch().join("lost.json");
    let (child, machine) = with_guest(&outcome, &[]);
    send(machine, libc::SIGKILL);
    let run = common::collect(child);
    run.expect(117, "the emulated host ended before the command did");
    common::exit_codes::expect_outcome(&outcome, common::exit_codes::OF_EMULATED_HOST, 117);
}

/// A machine that is stopped from outside answers as little as one whose CPUs spin.
#[test]
fn host_that_does_not_answer_is_ended_by_the_first_signal_and_by_the_time_limit() {
    needs_qemu!();
    let outcome = common::scratch().join("silent.json");
    let (child, machine) = with_guest(&outcome, &[]);
    send(machine, libc::SIGSTOP);
    common::signal(&child, libc::SIGHUP);
    let words = "stopped by signal 1 (SIGHUP): the emulated host does not answer any more";
    common::collect(child).expect(129, words);

    let (child, machine) = with_guest(&outcome, &["--timeout", "10s"]);
    send(machine, libc::SIGSTOP);
    let words = "timed out after 10 s: the emulated host does not answer any more";
    common::collect(child).expect(124, words);
}

/// A write to a terminal that nobody reads waits although poll has said that there is room.
#[test]
fn signals_are_heard_while_nobody_reads_the_terminal() {
    needs_qemu!();
    let (person, program) = common::pseudo_terminal();
    let mut command = emulate("yes");
    command.stdin(Stdio::null()).stdout(program).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    let shown = || {
        let mut count: libc::c_int = 0;
        // SAFETY: FIONREAD stores one int at the given address, which is `count`.
        assert!(unsafe { libc::ioctl(person.as_raw_fd(), libc::FIONREAD, &raw mut count) } >= 0);
        count
    };
    common::eventually("the terminal is full", || {
        let before = shown();
        thread::sleep(Duration::from_millis(500));
        before > 0 && shown() == before
    });
    // The first is for the command, whose output then still waits.
    common::eventually("it ends", || {
        common::signal(&child, libc::SIGTERM);
        thread::sleep(Duration::from_millis(500));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(common::wait(&mut child).code(), Some(143));
}

/// A guest on an emulated host that has printed a byte and halted; and that host's QEMU.
fn with_guest(outcome: &Path, args: &[&str]) -> (Child, libc::pid_t) {
    let mut command = common::coracle();
    command.args(["run", "--accel", "emulate", "--outcome"]).arg(outcome).arg(common::payload("hello-halt"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.env_remove(coracle_agent::protocol::emulated_host::environment::MARK).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let machine = child_of(child.id());
    (child, machine)
}

fn send(process: libc::pid_t, signal: libc::c_int) {
    // SAFETY: sends a signal; the process is the child of a child of ours, which has not waited for it.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

/// The first process that this one has started.
fn child_of(parent: u32) -> libc::pid_t {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |process: &libc::pid_t| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // Behind the name, which may have anything in it: state, parent.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        rest.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    processes.into_iter().find(is_child).expect("it has no child")
}

#[test]
fn a_missing_qemu_gives_115_and_names_the_package() {
    needs_qemu!();
    let mut command = emulate_command([OsStr::new("/bin/true")]);
    command.env("PATH", "/nonexistent");
    let output = Run::start(command).finish();
    assert_eq!(output.status.code(), Some(115), "{}", shown(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("qemu-system-x86"), "{}", shown(&output));
}

#[test]
fn a_terminal_crosses_with_size_echo_interrupts_and_resize() {
    needs_qemu!();
    let (mut master, slave) = pty(24, 81);
    let before = modes(&slave);
    let script = "trap 'echo caught; n=x$n; test $n = xx && exit 5' INT; trap 'echo size $(stty size)' WINCH
        test -t 0 && test -t 1 && test -t 2 && echo size $(stty size)
        read line; echo \"read <$line>\"; while :; do sleep 0.05; done";
    let mut command = emulate(script);
    command
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave.try_clone().unwrap());
    control_terminal(&mut command);
    let run = Run::start(command);
    let mut screen = Lines::of(master.try_clone().unwrap());
    screen.expect("size 24 81");
    assert_ne!(modes(&slave), before, "the terminal is raw while the command runs");
    master.write_all(b"hello\r").unwrap();
    screen.expect("hello");
    screen.expect("read <hello>");
    master.write_all(b"\x03").unwrap();
    screen.expect("caught");
    set_size(&master, 40, 100);
    screen.expect("size 40 100");
    master.write_all(b"\x03").unwrap();
    screen.expect("caught");
    assert_eq!(run.finish().status.code(), Some(5));
    assert_eq!(modes(&slave), before, "the terminal is as it was");
}

#[test]
fn a_terminal_on_stdin_alone_echoes_and_stdout_stays_clean() {
    needs_qemu!();
    let (mut master, slave) = pty(24, 80);
    let mut command = emulate("read line; echo \"<$line>\"");
    command.stdin(slave.try_clone().unwrap());
    control_terminal(&mut command);
    let run = Run::start(command);
    // Typed during the boot: echoed here by the caller's terminal, which is not raw yet, and read inside.
    master.write_all(b"early\n").unwrap();
    let output = run.finish();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "<early>\n", "{}", shown(&output));
    assert_eq!(output.stderr, b"");
    assert_eq!(output.status.code(), Some(0));
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
    !matches!(found, Err(error) if error.kind() == ErrorKind::NotFound)
}

fn coracle() -> OsString {
    program().into()
}

/// A shell script on the emulated machine, all streams piped, the working directory outside the private ones.
fn emulate(script: &str) -> Command {
    emulate_command(["sh", "-c", script].map(OsStr::new))
}

fn emulate_command<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Command {
    emulate_with_shares(&[], words)
}

fn emulate_with_shares<'a>(shares: &[&Path], words: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let words: Vec<&OsStr> = words.into_iter().collect();
    emulate_with_options(shares.iter().flat_map(|share| [OsStr::new("--share"), share.as_os_str()]), words)
}

fn emulate_with_options<'a, 'b>(
    options: impl IntoIterator<Item = &'a OsStr>,
    words: impl IntoIterator<Item = &'b OsStr>,
) -> Command {
    let mut command = Command::new(coracle());
    command.arg("host-emulate").args(options).arg("--").args(words).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_umask_and_open_files(command: &mut Command, umask: libc::mode_t, open_files: u64) {
    use std::os::unix::process::CommandExt;
    let change = move || {
        // SAFETY: sets a number of the new process.
        unsafe { libc::umask(umask) };
        let limit = libc::rlimit { rlim_cur: open_files, rlim_max: 4096 };
        // SAFETY: reads the structure it is given.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
    };
    // SAFETY: the closure makes only system calls.
    unsafe { command.pre_exec(change) };
}

/// Makes the terminal on stdin the new process's own, as a login does.
fn control_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let change = || {
        // SAFETY: makes the new process a session leader.
        checked(unsafe { libc::setsid() })?;
        // SAFETY: the argument is a number.
        checked(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
    };
    // SAFETY: the closure makes only system calls.
    unsafe { command.pre_exec(change) };
}

fn pty(rows: u16, columns: u16) -> (File, OwnedFd) {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: opens a descriptor.
    let master = unsafe { libc::posix_openpt(flags) };
    checked(master).unwrap();
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: unlocks the other end.
    checked(unsafe { libc::unlockpt(master.as_raw_fd()) }).unwrap();
    // SAFETY: opens the other end; the argument is a number.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    checked(slave).unwrap();
    set_size(&master, rows, columns);
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    (master, unsafe { OwnedFd::from_raw_fd(slave) })
}

fn set_size(terminal: &impl AsRawFd, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads the structure it is given.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).unwrap();
}

/// The modes that raw mode changes.
fn modes(terminal: &impl AsRawFd) -> [u32; 4] {
    // SAFETY: an all-zero termios is valid: it is plain data.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure it is given.
    checked(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut termios) }).unwrap();
    [termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag]
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn shown(output: &Output) -> String {
    format!(
        "{}; stdout: {}; stderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
