//! The cost of a machine that has no use for it: system calls, threads, descriptors and memory. Counts are
//! stable where times are not, so that a change that costs more fails here.
//!
//! `cargo xtask test` gives these tests the static program, which users get: its bounds are some 5 % above
//! what it needed, because the C library and the kernel decide a few. Other builds have bounds of their own,
//! or none where the compiler decides.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
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
        (calls.by_number.values().sum::<u32>(), calls)
    });
    let (count, calls) = lives.min_by_key(|(count, _)| *count).unwrap();
    assert!(
        calls.by_number[&(libc::SYS_ioctl as u64)] > 10,
        "these are not the calls of a machine: {calls:?}"
    );
    assert!(count <= limit, "{count} system calls in place of at most {limit}: {calls:?}");
}

#[test]
fn doorbells_of_a_disk_are_made_for_its_driver_only() {
    needs_kvm!();
    if !common::is_alone("doorbells_of_a_disk_are_made_for_its_driver_only") {
        return;
    }
    let doorbells = |payload: &str, disk: &Path| {
        let mut command = run_payload(payload);
        let (calls, code) = calls::of(quiet(command.arg("--disk").arg(disk).args(["--timeout", "60s"])));
        assert_eq!(code, 0, "{payload}");
        calls.ioctls.get(&KVM_IOEVENTFD).copied().unwrap_or(0)
    };
    let disk = disk("doorbells", 64 << 20);
    assert_eq!(doorbells("hello-exit", &disk), 0);
    assert!(doorbells("block-read-1", &disk) > 0);
}

#[test]
fn disk_that_is_started_and_reset_for_ever_takes_no_more_than_once() {
    needs_kvm!();
    for engine in ["sync", "io_uring"] {
        let disk = format!("path={},engine={engine}", disk("restarts", 64 << 10).display());
        let mut machine =
            Waiting::start(run_payload("restart-disk").args(["--memory", "64M", "--disk", &disk]));
        // A sample may lie within a start, which has a few more for a moment.
        let mut sample = || {
            machine.read(2);
            let descriptors = machine.descriptors().len();
            (descriptors, machine.threads().len(), machine.private_dirty_kib())
        };
        let first = sample();
        // What grows is more in each of them.
        let later: Vec<_> = (0..4).map(|_| sample()).collect();
        let has_grown = |count: fn(&(usize, usize, u64)) -> u64, most: u64| {
            later.iter().all(|sample| count(sample) > count(&first) + most)
        };
        let has_grown = has_grown(|sample| sample.0 as u64, 4)
            || has_grown(|sample| sample.1 as u64, 0)
            || has_grown(|sample| sample.2, 256);
        assert!(!has_grown, "{engine}: descriptors, threads and KiB grew from {first:?} to {later:?}");
        // Either of the two signals may be the one that it ends by.
        let ends = [128 + libc::SIGINT, 128 + libc::SIGTERM];
        let code = machine.terminate();
        assert!(code.is_some_and(|code| ends.contains(&code)), "{engine}: {code:?}");
    }
}

#[test]
fn thread_of_a_disk_starts_with_its_driver_and_not_on_the_vcpu_s_cpus() {
    needs_kvm!();
    let disk = disk("driver", 64 << 10);
    let command = &mut run_payload("restart-disk");
    let machine = Waiting::start(command.args(["--cpu-affinity", "0", "--disk"]).arg(disk));
    let threads = machine.threads();
    assert!(threads.iter().any(|name| name.starts_with("virtio-")), "{threads:?}");
    let (disk, main) = (machine.cpus_of("virtio-"), machine.cpus_of("signals"));
    assert_eq!(disk, main, "the vCPU has {}", machine.cpus_of("vcpu-0"));
}

#[test]
fn waiting_machine_has_four_threads_with_a_disk_too() {
    needs_kvm!();
    let main = program::program().file_name().unwrap().to_str().unwrap().to_owned();
    let mut expected = vec!["signals".to_owned(), main, "io-0".to_owned(), "vcpu-0".to_owned()];
    let bare = Waiting::start(&mut run_payload("hello-halt"));
    expected.sort();
    bare.reaches("threads", Waiting::threads, |threads| *threads == expected);
    let with_disk = Waiting::start(run_payload("hello-halt").arg("--disk").arg(disk("counts", 64 << 10)));
    with_disk.reaches("threads", Waiting::threads, |threads| *threads == expected);
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
    bare.reaches("KiB", Waiting::private_dirty_kib, |kib| *kib <= PRIVATE_DIRTY_KIB);
}

#[test]
fn ram_of_a_waiting_machine_is_what_its_guest_uses() {
    needs_kvm!();
    for backing in ["size=64M", "size=64M,memfd"] {
        let bare = Waiting::start(run_payload("hello-halt").args(["--memory", backing]));
        // What the guest and its boot tables take is there from the start, and does not shrink.
        let kib = bare.resident_ram_kib();
        assert!((1..=RAM_KIB).contains(&kib), "{kib} KiB of {backing} in place of at most {RAM_KIB}");
    }
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

    /// Reads bytes that the guest prints.
    fn read(&mut self, count: usize) {
        self.0.stdout.as_mut().unwrap().read_exact(&mut vec![0; count]).unwrap();
    }

    /// Ends the process in order, and returns its exit code: the first signal leaves the guest time, and
    /// another ends it.
    fn terminate(mut self) -> Option<i32> {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: the child has not been waited for, so that its number is its own.
            unsafe { libc::kill(self.0.id().cast_signed(), signal) };
        }
        self.0.wait().unwrap().code()
    }

    /// Returns the CPUs that the thread with a name of this beginning may run on.
    fn cpus_of(&self, name: &str) -> String {
        let threads = fs::read_dir(self.file("task")).unwrap().map(|thread| thread.unwrap().path());
        let status = threads.map(|thread| fs::read_to_string(thread.join("status")).unwrap());
        let status = status.filter(|status| status.starts_with(&format!("Name:\t{name}"))).last().unwrap();
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        line.to_owned()
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

    /// Returns the KiB of private dirty memory outside of the guest's RAM.
    fn private_dirty_kib(&self) -> u64 {
        let (mut parts, ram) = self.mappings();
        parts.drain(ram);
        let sum = parts.iter().map(|part| part.private_dirty_kib).sum();
        assert!(sum > 0, "nothing but RAM is dirty");
        sum
    }

    /// Returns the KiB of the guest's RAM that are in the host's memory.
    fn resident_ram_kib(&self) -> u64 {
        let (parts, ram) = self.mappings();
        parts[ram].iter().map(|part| part.resident_kib).sum()
    }

    /// Returns the parts of the address space, and which of them are the guest's RAM: those that follow one
    /// another for [`RAM`] bytes, for advice on a part of a mapping splits it.
    fn mappings(&self) -> (Vec<Part>, Range<usize>) {
        let parts = Part::all(&fs::read_to_string(self.file("smaps")).unwrap());
        let begins = |first: usize| {
            let end = parts[first].start + RAM;
            let last = parts.iter().position(|part| part.end == end)?;
            let follow = |pair: &[Part]| pair[0].end == pair[1].start;
            parts.get(first..=last)?.windows(2).all(follow).then_some(first..last + 1)
        };
        let ram = (0..parts.len()).find_map(begins).expect("no mappings have the size of the guest's RAM");
        (parts, ram)
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

/// A part of a process's address space whose pages have the same settings: an entry of `smaps` (proc(5)).
#[derive(Default)]
struct Part {
    start: u64,
    end: u64,
    is_file: bool,
    resident_kib: u64,
    private_dirty_kib: u64,
}

impl Part {
    fn all(smaps: &str) -> Vec<Part> {
        let address = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut parts: Vec<Part> = Vec::new();
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (key, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let range = key.split_once('-').and_then(|(start, end)| Some((address(start)?, address(end)?)));
            if let Some((start, end)) = range {
                let is_file = line.split_whitespace().nth(5).is_some_and(|name| name.starts_with('/'));
                parts.push(Part { start, end, is_file, ..Part::default() });
            }
            let (Ok(kib), Some(part)) = (value.parse(), parts.last_mut()) else { continue };
            match key {
                "Rss:" => part.resident_kib = kib,
                "Private_Dirty:" if !part.is_file => part.private_dirty_kib = kib,
                // The kernel counts pages of a program that was just built, and is not on the disk yet, as
                // dirty, and as private once no other process runs it.
                "Anonymous:" if part.is_file => part.private_dirty_kib = kib,
                _ => {}
            }
        }
        parts
    }
}

#[test]
fn program_that_is_not_on_the_disk_yet_does_not_count_as_memory_of_its_process() {
    let text = "1000-3000 r-xp 00000000 08:01 7 /bin/a b\nPrivate_Dirty: 8 kB\nAnonymous: 4 kB\n\
                3000-5000 rw-p 00000000 00:00 0\nPrivate_Dirty: 8 kB\nAnonymous: 8 kB\n\
                5000-7000 rw-s 00000000 00:0e 9 anon_inode:[io_uring]\nPrivate_Dirty: 8 kB\nAnonymous: 0 kB\n";
    let kib: Vec<u64> = Part::all(text).iter().map(|part| part.private_dirty_kib).collect();
    assert_eq!(kib, [4, 8, 8]);
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes an image of zeros.
fn disk(name: &str, len: u64) -> PathBuf {
    let path = scratch().join(format!("{name}-{:?}.img", std::thread::current().id()));
    File::create(&path).unwrap().set_len(len).unwrap();
    path
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
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)` of `linux/kvm.h`.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
/// The static program needs 203 to 208.
const CALLS: u32 = 216;
/// An unoptimized program checks each descriptor that it closes, and the dynamic linker has work.
const CALLS_OF_OTHER_BUILDS: u32 = 276;
/// Three streams, the console's two ends and its timer, an epoll and five event descriptors, the machine and
/// its vCPU, and the signals.
const DESCRIPTORS: usize = 16;
/// The static program needs 200.
const PRIVATE_DIRTY_KIB: u64 = 210;
/// The guest's RAM, in bytes, where a test looks for it.
const RAM: u64 = 64 << 20;
/// 18 pages of 4 KiB hold the boot tables and the payload, whatever the build.
const RAM_KIB: u64 = 76;
/// How long a machine may take until it has put away what it needed to start: far longer than it takes.
const PUT_AWAY: Duration = Duration::from_secs(30);
