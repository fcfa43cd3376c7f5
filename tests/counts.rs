//! The cost of a machine that has no use for it: system calls, threads, descriptors and memory. Counts are
//! stable where times are not, so that a change that costs more fails here.
//!
//! `cargo xtask test` gives these tests the static program, which users get: its bounds are some 5 % above
//! what it needed, because the C library and the kernel decide a few. Other builds have bounds of their own,
//! or none where the compiler decides.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{calls, kvm_or_skip, program, run_payload, scratch, skip};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

#[test]
fn life_of_a_bare_guest_makes_few_system_calls() {
    needs_kvm!();
    if !common::is_alone("life_of_a_bare_guest_makes_few_system_calls") {
        return;
    }
    let limit = if is_static() { CALLS } else { CALLS_OF_OTHER_BUILDS };
    // Threads that meet at a lock make a few calls more: the least of several lives is stable.
    let lives = (0..5).map(|_| {
        let (calls, code) = calls::of(quiet(&mut run_payload("hello-exit")));
        assert_eq!(code, 0);
        (calls.values().sum::<u32>(), calls)
    });
    let (count, calls) = lives.min_by_key(|(count, _)| *count).unwrap();
    assert!(calls[&(libc::SYS_ioctl as u64)] > 10, "these are not the calls of a machine: {calls:?}");
    assert!(count <= limit, "{count} system calls in place of at most {limit}, by number: {calls:?}");
}

#[test]
fn waiting_machine_has_four_threads_and_one_more_for_a_disk() {
    needs_kvm!();
    let main = program::program().file_name().unwrap().to_str().unwrap().to_owned();
    let mut expected = vec!["control".to_owned(), main, "io-0".to_owned(), "vcpu-0".to_owned()];
    let bare = Waiting::start(&mut run_payload("hello-halt"));
    expected.sort();
    bare.reaches("threads", Waiting::threads, |threads| *threads == expected);
    let disk = scratch().join("counts.img");
    File::create(&disk).unwrap().set_len(64 << 10).unwrap();
    let with_disk = Waiting::start(run_payload("hello-halt").arg("--disk").arg(disk));
    with_disk.reaches("threads", Waiting::threads, |threads| threads.len() == expected.len() + 1);
}

#[test]
fn waiting_machine_has_few_descriptors() {
    needs_kvm!();
    let bare = Waiting::start(&mut run_payload("hello-halt"));
    bare.reaches("descriptors", Waiting::descriptors, |open| open.len() <= DESCRIPTORS);
}

#[test]
fn waiting_machine_has_little_memory_of_its_own() {
    needs_kvm!();
    if !is_static() {
        return skip("the memory that the static program dirties is counted: `cargo xtask test` runs it");
    }
    let bare = Waiting::start(run_payload("hello-halt").args(["--memory", "64M"]));
    bare.reaches("KiB", |waiting| waiting.private_dirty_kib(64 << 10), |kib| *kib <= PRIVATE_DIRTY_KIB);
}

/// A machine whose guest has printed a byte and halts. Dropping it kills it.
struct Waiting(Child);

impl Waiting {
    fn start(command: &mut Command) -> Waiting {
        let mut child = quiet(command).stdout(Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        Waiting(child)
    }

    /// Waits until `count` is as it should be: a machine that has just started has not put away everything.
    #[track_caller]
    fn reaches<T: std::fmt::Debug>(
        &self,
        what: &str,
        count: impl Fn(&Waiting) -> T,
        holds: impl Fn(&T) -> bool,
    ) {
        let start = Instant::now();
        loop {
            let now = count(self);
            if holds(&now) {
                return;
            }
            assert!(start.elapsed() < PUT_AWAY, "{what}: {now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the sorted names of the threads, without those that KVM runs in this process.
    fn threads(&self) -> Vec<String> {
        let threads = fs::read_dir(self.file("task")).unwrap();
        let names = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
        let names = names.map(|name| name.trim_end().to_owned());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("kvm-")).collect();
        names.sort();
        names
    }

    fn descriptors(&self) -> Vec<String> {
        let open = fs::read_dir(self.file("fd")).unwrap();
        open.filter_map(|entry| Some(fs::read_link(entry.unwrap().path()).ok()?.display().to_string()))
            .collect()
    }

    /// Returns the private dirty memory without the guest's RAM, which is the mapping of `ram` KiB.
    fn private_dirty_kib(&self, ram: u64) -> u64 {
        let (mut sum, mut is_ram, mut saw_ram) = (0, false, false);
        for line in fs::read_to_string(self.file("smaps")).unwrap().lines() {
            let mut words = line.split_whitespace();
            let (key, kib) = (words.next(), words.next().and_then(|kib| kib.parse::<u64>().ok()));
            match (key, kib) {
                (Some("Size:"), Some(kib)) => is_ram = kib == ram,
                (Some("Private_Dirty:"), Some(kib)) if !is_ram => sum += kib,
                _ => {}
            }
            saw_ram |= is_ram;
        }
        assert!(saw_ram && sum > 0, "no mapping is the guest's RAM, or none is dirty");
        sum
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives a command nothing to read or to write, no descriptor of the tests' caller, and none of cargo's
/// directories, in which a dynamic linker searches.
fn quiet(command: &mut Command) -> &mut Command {
    let close = || {
        // SAFETY: the call only marks descriptors of the new process.
        unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
        Ok(())
    };
    // SAFETY: the closure makes only a system call.
    unsafe { command.pre_exec(close) };
    command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Returns whether the program under test is the static one: it names no dynamic linker.
fn is_static() -> bool {
    let program = fs::read(program::program()).unwrap();
    !program.windows(LINKER.len()).any(|bytes| bytes == LINKER)
}

const LINKER: &[u8] = b"/lib64/ld-linux-x86-64.so.2\0";
/// The static program needs 244.
const CALLS: u32 = 256;
/// An unoptimized program checks each descriptor that it closes, and the dynamic linker has work.
const CALLS_OF_OTHER_BUILDS: u32 = 305;
/// Three streams, the console's two ends and its timer, an epoll and five event descriptors, the machine and
/// its vCPU, and the signals.
const DESCRIPTORS: usize = 16;
/// The static program needs 260.
const PRIVATE_DIRTY_KIB: u64 = 272;
/// How long a machine may take until it has put away what it needed to start: far longer than it takes.
const PUT_AWAY: Duration = Duration::from_secs(30);
