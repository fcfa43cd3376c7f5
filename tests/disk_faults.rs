//! Tests of real faults of the host that disks meet: full file systems, limits, files that hang.
//!
//! Each test has its own mount namespace, for which it needs root.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Finished, collect, finish, finish_with_input, kvm_or_skip, run_payload, scratch, signal, skip};
use coracle_agent::protocol::emulated_host::environment::CALLER;

macro_rules! needs_kvm_and_root {
    () => {
        // SAFETY: the call only returns a number.
        if unsafe { libc::geteuid() } != 0 {
            return skip("mounting file systems takes root");
        }
        if !kvm_or_skip() {
            return;
        }
    };
}

/// Runs `test` on a thread whose mounts no other thread sees.
fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: the call only changes the thread's own mounts, working directory and umask, on which
        // nothing else depends.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
        mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "");
        test();
    });
    thread.join().unwrap();
}

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, options: &str) {
    let text = |text: &str| std::ffi::CString::new(text).unwrap();
    let (source, target, kind) = (text(source), text(target.to_str().unwrap()), text(kind));
    let options = text(options);
    // SAFETY: all strings are nul-terminated and outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
}

/// Creates a tmpfs of 64 KiB with a sparse disk of 32 KiB and no room for any of its blocks.
fn full_tmpfs(name: &str) -> (PathBuf, PathBuf) {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    mount("tmpfs", &folder, "tmpfs", 0, "size=64k");
    let (disk, filler) = (folder.join("disk.img"), folder.join("filler"));
    File::create(&disk).unwrap().set_len(64 * 512).unwrap();
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    (disk, filler)
}

/// The payload reads sector 5, which works, and writes it; if that fails, it exits with code 6.
fn write_a_sector(disk: &Path, words: &str) -> Command {
    let mut command = run_payload("virtio-block");
    command.args(["--timeout", "30s", "--disk", &format!("path={}{words}", disk.display())]);
    command
}

#[track_caller]
fn expect_write_error(run: &Finished, reason: &str) {
    run.expect(6, reason);
    run.expect(6, "1 requests to disks failed on the host");
}

#[test]
fn disk_without_room_gives_the_guest_an_error() {
    needs_kvm_and_root!();
    with_own_mounts(|| {
        let (disk, _) = full_tmpfs("full");
        for engine in ["", ",engine=io_uring"] {
            expect_write_error(&finish(&mut write_a_sector(&disk, engine)), "No space left on device");
        }
        assert_eq!(fs::metadata(&disk).unwrap().len(), 64 * 512);
    });
}

#[test]
fn disk_without_room_pauses_the_machine_until_there_is_some() {
    needs_kvm_and_root!();
    with_own_mounts(|| {
        let (disk, filler) = full_tmpfs("full-pause");
        let mut command = write_a_sector(&disk, ",on-error=pause");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = read_until(&mut child, "the virtual machine is paused");
        assert!(said.contains("No space left on device"), "{said}");
        assert!(child.try_wait().unwrap().is_none());
        fs::remove_file(&filler).unwrap();
        signal(&child, libc::SIGCONT);
        // The payload has continued: its first life ends with a reset.
        assert_eq!(collect(child).code(), 112);
        assert_eq!(fs::read(&disk).unwrap()[5 * 512], 1);
    });
}

#[test]
fn overlay_that_is_full_gives_the_guest_an_error() {
    needs_kvm_and_root!();
    let disk = scratch().join("below-full.img");
    File::create(&disk).unwrap().set_len(64 * 512).unwrap();
    with_own_mounts(move || {
        let (other, _) = full_tmpfs("full-overlay");
        let mut command = write_a_sector(&disk, ",cow,cow-size=32K");
        expect_write_error(
            &finish(command.env("TMPDIR", other.parent().unwrap())),
            "does not take the last 5 % of its file system",
        );
        let mut command = write_a_sector(&disk, ",cow");
        let run = finish(command.env("TMPDIR", other.parent().unwrap()));
        run.expect(125, "needs a limit there: give cow-size=; TMPDIR names another directory");
        // On an emulated host the directory is always /tmp.
        mount("tmpfs", Path::new("/tmp"), "tmpfs", 0, "size=1m");
        let mut command = write_a_sector(&disk, ",cow");
        let run = finish(command.env("TMPDIR", other.parent().unwrap()).env(CALLER, "0"));
        run.expect(125, "would be in /tmp, which is in memory, and needs a limit there: give cow-size=\n");
    });
}

/// There is room, but it is reserved for others.
#[test]
fn overlay_leaves_the_last_part_of_its_file_system_to_others() {
    needs_kvm_and_root!();
    let disk = scratch().join("below-reserve.img");
    File::create(&disk).unwrap().set_len(64 * 512).unwrap();
    with_own_mounts(move || {
        let folder = scratch().join("reserve");
        fs::create_dir_all(&folder).unwrap();
        mount("tmpfs", &folder, "tmpfs", 0, "size=1m");
        let mut filler = File::create(folder.join("filler")).unwrap();
        let mut run = |pages: usize| {
            filler.write_all(&vec![1; pages * 4096]).unwrap();
            let mut command = write_a_sector(&disk, ",cow,cow-size=32K");
            finish(command.env("TMPDIR", &folder).args(["--on-reset", "reboot"]))
        };
        // 5 % of 256 pages are 13: at first 20 are free, then 10.
        run(236).expect(0, "code 0");
        expect_write_error(&run(10), "does not take the last 5 % of its file system");
    });
}

#[test]
fn limit_on_the_size_of_files_is_an_error_and_no_signal() {
    needs_kvm_and_root!();
    let disk = scratch().join("limited.img");
    File::create(&disk).unwrap().set_len(64 * 512).unwrap();
    for engine in ["", ",engine=io_uring"] {
        let mut command = write_a_sector(&disk, engine);
        let limit = libc::rlimit { rlim_cur: 2048, rlim_max: 2048 };
        let set = move || {
            // SAFETY: the call only sets a limit of the new process.
            unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
            Ok(())
        };
        // SAFETY: the closure makes one system call.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, set) };
        expect_write_error(&finish(&mut command), "File too large");
    }
}

#[test]
fn loop_device_whose_file_has_no_room_gives_the_guest_an_error() {
    needs_kvm_and_root!();
    with_own_mounts(|| {
        let (file, _) = full_tmpfs("full-loop");
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let Some(device) = output.ok().filter(|output| output.status.success()) else {
            return skip("this machine has no loop devices");
        };
        let device = PathBuf::from(String::from_utf8_lossy(&device.stdout).trim());
        let run = finish(&mut write_a_sector(&device, ""));
        let _ = Command::new("losetup").arg("--detach").arg(&device).status();
        // The device accepts the write and reports its loss at the flush, for which the payload has code 7.
        run.expect(7, "1 requests to disks failed on the host");
    });
}

#[test]
fn disk_that_hangs_ends_the_machine_in_time_and_is_named() {
    needs_kvm_and_root!();
    ["sync", "io_uring"].into_iter().for_each(hang);
}

fn hang(engine: &'static str) {
    with_fuse(&format!("hanging-{engine}"), Slow::Reads, move |folder| {
        let mut command = run_payload("virtio-block");
        command.args(["--timeout", "500ms", "--disk"]);
        command.arg(format!("path={},ro,engine={engine}", folder.join("disk.img").display()));
        let start = Instant::now();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = read_until(&mut child, "disk.img) did not finish its requests within 4s");
        assert!(start.elapsed() < Duration::from_secs(100), "{said}: {:?}", start.elapsed());
        // Its process cannot end before the kernel returns from the read.
        abort_connection(folder);
        assert_eq!(collect(child).code(), 117);
    });
}

#[test]
fn disk_whose_file_does_not_close_ends_the_machine_in_time() {
    needs_kvm_and_root!();
    with_fuse("hanging-close", Slow::Closes, move |folder| {
        let mut command = run_payload("halt");
        command.args(["--timeout", "500ms", "--disk"]);
        command.arg(format!("path={},ro", folder.join("disk.img").display()));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        read_until(&mut child, "the files and sockets of the machine did not close within 4s");
        abort_connection(folder);
        assert_eq!(collect(child).code(), 117);
    });
}

/// Aborts the connection to a file system, whose users then get an error. No signal ends their calls.
fn abort_connection(folder: &Path) {
    let folder = std::ffi::CString::new(folder.to_str().unwrap()).unwrap();
    // SAFETY: the path is nul-terminated.
    unsafe { libc::umount2(folder.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
}

/// The flush in progress is waited for, and none of the 255 others is started.
#[test]
fn disk_with_slow_flushes_holds_up_the_end_for_one_of_them() {
    needs_kvm_and_root!();
    for engine in ["sync", "io_uring"] {
        with_fuse(&format!("slow-{engine}"), Slow::Flushes, move |folder| {
            let mut command = run_payload("backlog-flush");
            command.args(["--timeout", "30s", "--disk"]);
            command.arg(format!("path={},engine={engine}", folder.join("disk.img").display()));
            finish_with_input(&mut command, b"p").expect(0, "the guest powered off");
        });
    }
}

/// Of 256 reads, which the host serves one after the other, only those in progress are waited for.
#[test]
fn disk_with_slow_reads_holds_up_the_end_for_those_that_have_begun() {
    needs_kvm_and_root!();
    for engine in ["sync", "io_uring"] {
        with_fuse(&format!("slow-reads-{engine}"), Slow::EachRead, move |folder| {
            let mut command = run_payload("backlog-read");
            command.args(["--timeout", "30s", "--disk"]);
            command.arg(format!("path={},ro,engine={engine}", folder.join("disk.img").display()));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // By then the host is working on them.
            thread::sleep(Duration::from_millis(500));
            child.stdin.take().unwrap().write_all(b"p").unwrap();
            collect(child).expect(0, "the guest powered off");
        });
    }
}

/// Calls `test` with a directory that is a file system of this process.
fn with_fuse(name: &str, slow: Slow, test: impl FnOnce(&Path) + Send + 'static) {
    let folder = scratch().join(name);
    with_own_mounts(move || {
        fs::create_dir_all(&folder).unwrap();
        let Ok(fuse) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else {
            return skip("this machine has no FUSE");
        };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        mount("slow", &folder, "fuse", libc::MS_NOSUID | libc::MS_NODEV, &options);
        thread::spawn(move || serve_fuse(fuse, slow));
        test(&folder);
    });
}

/// Reads a command's stderr until `words` have come. A command that hangs fails the test.
#[track_caller]
fn read_until(child: &mut Child, words: &str) -> String {
    let mut said = String::new();
    let stderr = child.stderr.as_mut().unwrap();
    let deadline = Instant::now() + Duration::from_secs(100);
    while !said.contains(words) {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as libc::c_int;
        let mut wait = libc::pollfd { fd: stderr.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the call gets one structure.
        assert_eq!(unsafe { libc::poll(&raw mut wait, 1, left) }, 1, "it said no more than {said:?}");
        let mut bytes = [0; 256];
        let count = stderr.read(&mut bytes).unwrap();
        assert!(count > 0, "it ended: {said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    said
}

/// The operations that a file system delays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slow {
    /// Reads of the file never return.
    Reads,
    /// The file never closes.
    Closes,
    /// Each flush of the file takes 2 s.
    Flushes,
    /// Each read of the file takes 0.3 s and is not cached.
    EachRead,
}

/// A file system with a single file of 32 KiB. The numbers are those of `linux/fuse.h`, version 7.31.
fn serve_fuse(mut fuse: File, slow: Slow) {
    let mut request = vec![0; 1 << 17];
    while let Ok(count) = fuse.read(&mut request) {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        assert!(count >= 40);
        let (operation, node) = (number(4), number(16));
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let answer = match operation {
            // LOOKUP: node 2 for any name, for an hour.
            1 => Ok([words(&[2, 0, 0, 0, 3600, 0, 3600, 0, 0, 0]), attributes(2)].concat()),
            // GETATTR.
            3 => Ok([words(&[3600, 0, 0, 0]), attributes(node)].concat()),
            // OPEN, OPENDIR.
            14 | 27 => Ok(words(&[1, 0, u32::from(slow == Slow::EachRead), 0])),
            // READ.
            15 if slow == Slow::Reads => continue,
            15 => {
                thread::sleep(Duration::from_millis(300));
                Ok(vec![0; number(40 + 16) as usize])
            }
            // INTERRUPT, FORGET, BATCH_FORGET: there is no answer.
            36 | 2 | 42 => continue,
            // FSYNC.
            20 => {
                thread::sleep(Duration::from_secs(2));
                Ok(Vec::new())
            }
            // INIT.
            26 => Ok(words(&[7, 31, 0, 0, 0x10_0010, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            25 if slow == Slow::Closes => continue,
            // RELEASE, FLUSH.
            18 | 25 => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let len = u32::try_from(body.len() + 16).unwrap();
        let head = [&len.to_le_bytes()[..], &error.to_le_bytes(), &request[8..16]].concat();
        let _ = fuse.write(&[head, body].concat());
    }
}

/// Encodes `struct fuse_attr` of the directory (node 1) or of the file.
fn attributes(node: u32) -> Vec<u8> {
    let (mode, size) = if node == 1 { (0o40755, 0) } else { (0o100_644, 64 * 512_u32) };
    let words = [node, 0, size, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
