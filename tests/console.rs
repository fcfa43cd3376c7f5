//! Tests of the other ends of a console, serial or virtio: pseudo-terminals, sockets, a program's own
//! streams, and a person's terminal.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{
    collect, eventually, finish, finish_with_input, kvm_or_skip, pseudo_terminal, read_until, run_payload,
    scratch, signal, wait,
};
use coracle::command::terminal_mode;
use coracle::config::{ConsoleDevice, MemorySize, SerialConfig, VmConfig};
use coracle::outcome::Ending;
use coracle::{ConsoleStreams, Grace, TerminalSize, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

fn config(payload: &str) -> VmConfig {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    config.timeout = Some(Duration::from_secs(30));
    config
}

/// A thread that is woken for each byte costs more than the byte: some 10,000 switches here.
#[test]
fn output_byte_by_byte_is_written_in_pieces() {
    needs_kvm!();
    let mut command = run_payload("serial-20000");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let start = Instant::now();
    #[expect(clippy::zombie_processes, reason = "wait_usage waits for it")]
    let mut child = command.spawn().unwrap();
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    let (status, usage) = wait_usage(&child);
    assert!(output.starts_with(b"!..") && output.len() == 20_000, "{} bytes", output.len());
    assert_eq!(status, 0);
    // One switch for each interval of 250 us, and what a life without output takes.
    let most = 500 + start.elapsed().as_micros() / 250;
    assert!(usage.ru_nvcsw as u128 <= most, "{} switches, not {most}", usage.ru_nvcsw);
}

/// Returns the wait status of a child and what it has used.
fn wait_usage(child: &Child) -> (i32, libc::rusage) {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the child is ours and has not been waited for; both results have room.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child.id() as i32);
    // SAFETY: zero is a valid value, and the call has filled it.
    (status, unsafe { usage.assume_init() })
}

#[test]
fn socket_serves_one_client_after_the_other_and_goes_with_the_guest() {
    needs_kvm!();
    let path = scratch().join("console.sock");
    let mut command = run_payload("echo");
    command.arg("--serial").arg(format!("socket={}", path.display()));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for words in ["first", "second"] {
        let mut client = None;
        eventually("the socket accepts", || {
            client = UnixStream::connect(&path).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.write_all(words.as_bytes()).unwrap();
        let mut answer = vec![0; words.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, words.as_bytes());
    }
    UnixStream::connect(&path).unwrap().write_all(b"q").unwrap();
    let run = collect(child);
    run.expect(0, "powered off");
    assert!(run.stdout.is_empty());
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn socket_at_a_path_that_is_taken_is_refused_and_the_file_stays() {
    let path = common::file("taken", b"precious");
    let run = finish(run_payload("hello").arg("--serial").arg(format!("socket={}", path.display())));
    run.expect(125, "the path must be free");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn client_that_comes_late_finds_the_first_output() {
    needs_kvm!();
    let path = scratch().join("late.sock");
    let mut config = config("hello-halt");
    config.serial = SerialConfig::Socket(path.clone());
    let vm = VmBuilder::new(config).start().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut byte = [0];
    UnixStream::connect(&path).unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
}

#[test]
fn pseudo_terminal_carries_both_directions() {
    needs_kvm!();
    let mut config = config("echo");
    config.serial = SerialConfig::Pty;
    let vm = VmBuilder::new(config).start().unwrap();
    let path = vm.console_path().unwrap().to_owned();
    // Programs can come and go.
    for _ in 0..2 {
        let mut terminal = File::options().read(true).write(true).open(&path).unwrap();
        terminal.write_all(b"abc\r\x03").unwrap();
        let mut answer = [0; 5];
        terminal.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"abc\r\x03");
    }
    assert_eq!(vm.stop(Grace::NONE).ending, Ending::Stopped);
}

#[test]
fn writer_of_the_program_has_everything_when_the_outcome_is_there() {
    needs_kvm!();
    struct Sender(mpsc::Sender<u8>);
    impl Write for Sender {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(Duration::from_millis(50));
            bytes.iter().for_each(|byte| self.0.send(*byte).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, receiver) = mpsc::channel();
    let builder = VmBuilder::new(config("rep-io")).console_writer(Sender(sender));
    let outcome = builder.run().unwrap();
    assert_eq!(outcome.ending, Ending::Exited { code: 0 });
    assert_eq!(receiver.iter().collect::<Vec<u8>>(), b"repeated output keeps every byte\r\n");
    assert!(builder.build().is_err(), "a second machine has no writer");
}

/// A writer that takes some bytes and then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 { Err(std::io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(taken) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_byte_that_nobody_has_taken_is_counted_as_lost() {
    needs_kvm!();
    // A writer that fails, wherever its bytes are then.
    let outcome = VmBuilder::new(config("bug-at-last")).console_writer(Full(5000)).run().unwrap();
    assert_eq!(outcome.console_bytes_dropped, outcome.console_bytes - 5000);
    assert_eq!(outcome.console_lost_from, Some(5000));
    // A stream that fails at once.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let streams = ConsoleStreams { input: None, output: Some(full.into()) };
    let outcome = VmBuilder::new(config("bug-at-last")).console_streams(streams).run().unwrap();
    assert_eq!((outcome.console_bytes_dropped, outcome.console_lost_from), (outcome.console_bytes, Some(0)));
    // A reader that stands still.
    let vm = VmBuilder::new(config("bug-at-last")).console_piped().build();
    let mut vm = vm.unwrap();
    let mut pipe = vm.take_console().unwrap();
    vm.handle().resume();
    let outcome = vm.wait();
    let mut read = Vec::new();
    pipe.output.read_to_end(&mut read).unwrap();
    assert_eq!(outcome.console_bytes - outcome.console_bytes_dropped, read.len() as u64, "{outcome:?}");
    assert_eq!(outcome.console_lost_from, Some(read.len() as u64));
    // Nobody ever wanted these bytes.
    let outcome = VmBuilder::new(config("hello")).console_streams(ConsoleStreams::default()).run().unwrap();
    assert_eq!((outcome.console_bytes_dropped, outcome.console_lost_from), (0, None));
}

#[test]
fn streams_of_the_program_are_used_and_left_as_they_were() {
    needs_kvm!();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let streams = ConsoleStreams {
        input: Some(theirs.try_clone().unwrap().into()),
        output: Some(theirs.try_clone().unwrap().into()),
    };
    let vm = VmBuilder::new(config("echo")).console_streams(streams).start().unwrap();
    ours.write_all(b"hi q").unwrap();
    assert_eq!(vm.wait().ending, Ending::PoweredOff);
    drop(vm);
    drop(theirs);
    let mut answer = Vec::new();
    ours.set_nonblocking(true).unwrap();
    let _ = ours.read_to_end(&mut answer);
    assert_eq!(answer, b"hi q");
}

/// A driver loses input from before it has opened its port, and this one opens it late.
#[test]
fn virtio_console_gives_early_and_late_input_once_the_port_is_open() {
    needs_kvm!();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let streams =
        ConsoleStreams { input: Some(theirs.try_clone().unwrap().into()), output: Some(theirs.into()) };
    ours.write_all(b"early").unwrap();
    let mut config = config("virtio-console");
    (config.console, config.serial) = (ConsoleDevice::Virtio, SerialConfig::Null);
    let vm = VmBuilder::new(config).console_streams(streams).start().unwrap();
    let mut answer = [0; 5];
    ours.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"early");
    for pause in [0, 1, 20, 200] {
        std::thread::sleep(Duration::from_millis(pause));
        ours.write_all(b"later").unwrap();
        ours.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"later", "after {pause} ms");
    }
    assert!(vm.handle().resize_console(TerminalSize { columns: 100, rows: 50 }));
    ours.write_all(b"q").unwrap();
    assert_eq!(vm.wait().ending, Ending::Exited { code: 0 });
}

#[test]
fn serial_port_and_virtio_console_print_to_one_place_and_input_is_the_virtio_console_s() {
    needs_kvm!();
    let both = ["--console", "virtio", "--serial", "stdio"];
    let run = finish(run_payload("hello").args(both));
    assert_eq!(run.text(), "hello\r\n");
    let run = finish_with_input(run_payload("virtio-console").args(both), b"typed-q");
    run.expect(0, "code 0");
    assert_eq!(run.text(), "typed-q");
}

/// A virtio console has output only once its driver runs.
#[test]
fn kernel_that_dies_before_it_has_a_virtio_console_is_heard_by_its_serial_port() {
    needs_kvm!();
    let run = finish(run_payload("panic").args(["--console", "virtio"]));
    run.expect(110, "| [    0.000000] Kernel panic - not syncing: a payload that panics");
}

#[test]
fn pasting_100_kb_at_a_terminal_loses_nothing() {
    needs_kvm!();
    paste_100_kb("echo", &[]);
    paste_100_kb("virtio-console", &["--console", "virtio"]);
}

fn paste_100_kb(payload: &str, args: &[&str]) {
    let (mut person, program) = pseudo_terminal();
    let mut child = at_terminal(payload, args, &program);
    eventually("the terminal is raw", || !is_cooked(&program));
    let text: Vec<u8> = (0..100_000u32).map(|n| b'A' + (n % 26) as u8).collect();
    let mut sent = 0;
    let mut seen = Vec::new();
    eventually("every byte has come back", || {
        // The terminal takes and gives what it can; neither side waits for the other.
        while let Ok(count) = person.write(&text[sent..]) {
            sent += count;
            if sent == text.len() {
                break;
            }
        }
        let mut bytes = [0; 4096];
        while let Ok(count) = person.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..count]);
        }
        seen.len() >= text.len()
    });
    assert!(seen == text, "what came back is not what was pasted");
    person.write_all(b"q").unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn terminal_is_restored_after_every_ending() {
    needs_kvm!();
    // The exit, the request, and the signals.
    let (mut person, program) = pseudo_terminal();
    let mut child = at_terminal("echo", &[], &program);
    eventually("the terminal is raw", || !is_cooked(&program));
    person.write_all(b"q").unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(is_cooked(&program), "after a power-off");

    for args in [&[][..], &["--console", "virtio"]] {
        let mut child = at_terminal("spin", args, &program);
        eventually("the terminal is raw", || !is_cooked(&program));
        person.write_all(b"\x01x").unwrap();
        assert_eq!(wait(&mut child).code(), Some(118));
        assert!(is_cooked(&program), "after Ctrl-A x");
    }

    // A signal for which the command waits, and one that comes instead.
    for number in [libc::SIGALRM, libc::SIGSEGV] {
        let mut child = at_terminal("spin", &["--acpi", "off"], &program);
        eventually("the terminal is raw", || !is_cooked(&program));
        signal(&child, number);
        let status = wait(&mut child);
        assert_eq!(status.code().or(status.signal().map(|signal| 128 + signal)), Some(128 + number));
        assert!(is_cooked(&program), "after signal {number}");
    }
}

/// A shell whose job was stopped sets its own mode, and does not set the job's again.
#[test]
fn terminal_is_raw_again_after_a_stop() {
    needs_kvm!();
    let (mut person, program) = pseudo_terminal();
    let cooked = terminal_mode(program.as_fd()).unwrap();
    let stream = || Stdio::from(program.try_clone().unwrap());
    let mut command = run_payload("spin");
    command.stdin(stream()).stdout(stream()).stderr(stream());
    let own_terminal = || {
        // SAFETY: the calls only make a session of the new process, whose terminal stdin is.
        let result = unsafe { libc::setsid() }.min(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) });
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes only system calls.
    let mut child = unsafe { command.pre_exec(own_terminal) }.spawn().unwrap();
    eventually("the terminal is raw", || !is_cooked(&program));
    signal(&child, libc::SIGSTOP);
    // SAFETY: the descriptor is open and the mode is valid.
    assert_eq!(unsafe { libc::tcsetattr(program.as_raw_fd(), libc::TCSANOW, &raw const cooked) }, 0);
    assert!(is_cooked(&program));
    signal(&child, libc::SIGCONT);
    eventually("the terminal is raw again", || !is_cooked(&program));
    person.write_all(b"\x01x").unwrap();
    assert_eq!(wait(&mut child).code(), Some(118));
    assert!(is_cooked(&program), "after Ctrl-A x");
}

#[test]
fn ending_begins_on_a_new_line_of_the_terminal() {
    needs_kvm!();
    let (mut person, program) = pseudo_terminal();
    // The first guest leaves a prompt and is stopped there; the second leaves a whole line.
    let mut child = at_terminal("panic-words", &[], &program);
    let prompt = read_until(&mut person, "\r\n# ");
    person.write_all(b"\x01x").unwrap();
    let seen = prompt + &read_until(&mut person, "coracle: ");
    assert!(seen.contains("\r\n# \r\ncoracle: "), "{seen:?}");
    assert_eq!(wait(&mut child).code(), Some(118));
    let mut child = at_terminal("hello", &[], &program);
    let seen = read_until(&mut person, "powered off");
    assert!(seen.contains("hello\r\ncoracle: "), "{seen:?}");
    assert_eq!(wait(&mut child).code(), Some(0));
}

/// Runs a payload with a terminal on all three streams.
fn at_terminal(payload: &str, args: &[&str], terminal: &OwnedFd) -> Child {
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    run_payload(payload).args(args).stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap()
}

fn is_cooked(terminal: &OwnedFd) -> bool {
    terminal_mode(terminal.as_fd()).unwrap().c_lflag & libc::ICANON != 0
}
