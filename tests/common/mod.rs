//! The harness of the integration tests: the command under test, payload files, a run with a time limit.
//!
//! Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, unused_imports, unused_macros)]

pub mod agent;
pub mod calls;
pub mod exit_codes;
pub mod forks;
pub mod network;
pub mod program;
pub mod schedule;

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coracle::agent::{Exec, ExecStatus};
use coracle_payload::Payload;

/// The time limit of a run, far longer than any takes: a hang fails its test, and not the whole suite.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The command under test.
pub fn coracle() -> Command {
    let mut command = Command::new(program::program());
    default_signals(&mut command);
    command
}

/// Gives a command the signal dispositions of a terminal session, even if the tests run under `nohup` or in
/// the background of a script.
pub fn default_signals(command: &mut Command) {
    let reset = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: the call only sets a disposition of the new process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure makes only system calls.
    unsafe { command.pre_exec(reset) };
}

/// Limits the size of the files that a command writes, in bytes.
pub fn limit_files(command: &mut Command, bytes: u64) {
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        // SAFETY: the call only sets a limit of the new process; the value is valid.
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
        Ok(())
    };
    // SAFETY: the closure makes only a system call.
    unsafe { command.pre_exec(limit) };
}

/// Returns `coracle run --accel kvm` for a payload, without further arguments.
pub fn run_payload(name: &str) -> Command {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm"]).arg(payload(name));
    command
}

/// Writes a payload to a file.
pub fn payload(name: &str) -> PathBuf {
    let payload = Payload::named(name).unwrap_or_else(|| panic!("there is no payload {name}"));
    file(&format!("{name}.elf"), &payload.elf())
}

/// Creates a file with this content, for tests of this process.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = scratch().join(format!("{:?}-{name}", thread::current().id()));
    fs::write(&path, content).unwrap();
    path
}

/// Returns a path in the directory of the tests' files.
pub fn scratch() -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        // Process IDs alone repeat: each emulated host has its own, and shares this directory.
        let name = format!("{}-{:08x}", std::process::id(), RandomState::new().hash_one(0) as u32);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    });
    FOLDER.clone()
}

/// Returns a path that no other test uses.
pub fn fresh_path(name: &str) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    scratch().join(format!("{}-{name}", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// Returns `false`, after printing why, if there is no KVM that can run a payload.
pub fn kvm_or_skip() -> bool {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            skip(&format!("/dev/kvm cannot be opened: {error}"));
            false
        }
    }
}

/// Runs a test in a process of its own, because it counts threads, descriptors or memory of the whole
/// process. Returns `false` if the test has run there.
pub fn is_alone(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    let run = finish(&mut command);
    // The harness ends with 0 also if the name matches no test.
    assert!(run.expect(0, "").text().contains("1 passed"), "{run:?}");
    false
}

/// Counts the entries of a directory.
pub fn count(folder: &str) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Returns `true` if an overlay in this directory would have no room, or the host does not answer.
pub fn is_nearly_full(directory: &str) -> bool {
    let directory = std::ffi::CString::new(directory).unwrap();
    // SAFETY: the structure has only numbers, for which zero is a valid value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is nul-terminated, and the structure has room for the answer.
    let result = unsafe { libc::statvfs(directory.as_ptr(), &raw mut stat) };
    result != 0 || stat.f_bavail <= (stat.f_blocks * 5).div_ceil(100) + 16
}

/// Reports that a test has not run, in a way that the test harness does not capture.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Finished {
    /// Returns the exit code; an end by a signal fails the test.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// Fails unless the run ended with `code` and printed `words` on stderr.
    #[track_caller]
    pub fn expect(&self, code: i32, words: &str) -> &Finished {
        assert_eq!(self.code(), code, "{self:?}");
        assert!(self.stderr.contains(words), "{words:?} is not in {:?}", self.stderr);
        self
    }

    /// Returns stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs `command` to its end without input.
pub fn finish(command: &mut Command) -> Finished {
    finish_with_input(command, b"")
}

/// Runs `command` to its end with `input`.
pub fn finish_with_input(command: &mut Command, input: &[u8]) -> Finished {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = thread::spawn(move || {
        // A command that ends early leaves some input behind.
        let _ = stdin.write_all(&input);
    });
    let finished = collect(child);
    feed.join().unwrap();
    finished
}

/// Collects the output of a running command, and kills it after [`LIMIT`].
pub fn collect(mut child: Child) -> Finished {
    let start = Instant::now();
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let status = wait(&mut child);
    let elapsed = start.elapsed();
    let read = |thread: Option<thread::JoinHandle<Vec<u8>>>| thread.map_or(Vec::new(), |t| t.join().unwrap());
    Finished {
        status,
        stdout: read(stdout),
        stderr: String::from_utf8_lossy(&read(stderr)).into_owned(),
        elapsed,
    }
}

/// Waits for the end of `child`, and kills it after [`LIMIT`].
#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the command did not end within {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a running command.
pub fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Waits until `condition` is true.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to this: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Repeats an experiment that a busy machine can spoil, up to three times. A defect of the product shows each
/// time; a CPU that was taken away for some seconds does not.
#[track_caller]
pub fn unless_spoilt(mut experiment: impl FnMut() -> Result<(), String>) {
    let spoilt: Vec<String> =
        std::iter::repeat_with(&mut experiment).take(3).map_while(Result::err).collect();
    assert!(spoilt.len() < 3, "three times: {spoilt:#?}");
}

/// Runs 200 commands of an agent at once. Each has to print `in` and its number, and to exit with that
/// number.
#[track_caller]
pub fn run_200_at_once(command: impl Fn(u8) -> Exec) {
    thread::scope(|scope| {
        let start = |number| {
            let exec = command(number);
            (number, scope.spawn(move || exec.output().unwrap()))
        };
        for (number, run) in (0..200).map(start).collect::<Vec<_>>() {
            let output = run.join().unwrap();
            assert_eq!(output.status, ExecStatus::Code(number));
            assert_eq!(output.stdout, format!("in {number}\n").into_bytes());
        }
    });
}

/// Sends `len` bytes on a stream and expects them back, both at once, and then the end.
pub fn echo(mut stream: UnixStream, len: usize) {
    // A piece of odd length is repeated: it is quickly generated, even by an emulated CPU, and no two packets
    // are alike.
    let piece: Vec<u8> = (0..25_000_u32).flat_map(u32::to_le_bytes).skip(1).collect();
    let mut data = piece.repeat(len.div_ceil(piece.len()));
    data.truncate(len);
    let sent = data.clone();
    let mut to_guest = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        to_guest.write_all(&sent).unwrap();
        to_guest.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert_eq!(back.len(), data.len());
    assert!(back == data, "the bytes have changed on their way");
}

/// Opens a terminal: the person's side, which does not block, and the program's.
pub fn pseudo_terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both results have room, and null asks for nothing else.
    let result = unsafe { libc::openpty(&mut person, &mut program, none, none.cast(), none.cast()) };
    assert_eq!(result, 0);
    // SAFETY: the descriptor is new and nobody else's.
    let person = unsafe { File::from_raw_fd(person) };
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(person.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    // SAFETY: the descriptor is new and nobody else's.
    (person, unsafe { OwnedFd::from_raw_fd(program) })
}

/// Reads what a person at a terminal sees until it contains `words`, and returns all of it.
pub fn read_until(person: &mut File, words: &str) -> String {
    let mut shown = Vec::new();
    eventually(&format!("the terminal shows {words:?}"), || {
        let mut bytes = [0; 4096];
        let count = person.read(&mut bytes).unwrap_or(0);
        shown.extend_from_slice(&bytes[..count]);
        String::from_utf8_lossy(&shown).contains(words)
    });
    String::from_utf8_lossy(&shown).into_owned()
}

const CHILD: &str = "CORACLE_TEST_ALONE";

fn read_all(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}
