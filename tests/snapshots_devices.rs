//! Tests of snapshots in files of machines with virtio devices, with bare guests: what goes on, what has to
//! be named again, and what is refused.

mod common;

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::forks::{Piped, builder};
use coracle::config::{ConsoleDevice, DiskConfig};
use coracle::{Restore, Template, Vm, VmBuilder, snapshot};
use sha2::{Digest, Sha256};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

macro_rules! needs_overlays {
    () => {
        needs_kvm!();
        if common::is_nearly_full("/var/tmp") {
            return common::skip(
                "overlays leave the last 5 % of a file system free, and /var/tmp has no more",
            );
        }
    };
}

/// A disk of 64 sectors, of which sector n has bytes with the value 65 + n.
fn disk(name: &str) -> PathBuf {
    let path = common::fresh_path(name);
    fs::write(&path, (0..64 * 512).map(|at| (at / 512) as u8 + b'A').collect::<Vec<u8>>()).unwrap();
    path
}

fn at(path: &Path, options: &str) -> DiskConfig {
    format!("path={}{options}", path.display()).parse().unwrap()
}

fn with_disk(disk: DiskConfig) -> VmBuilder {
    builder("disk-cell").configure(|config| config.disks.push(disk))
}

fn restore(path: &Path, change: impl FnOnce(Restore) -> Restore) -> Piped {
    Piped::of(change(Vm::restore(path).console_piped()).start().unwrap())
}

#[track_caller]
fn refusal(path: &Path, change: impl FnOnce(Restore) -> Restore) -> String {
    change(Vm::restore(path)).start().map(drop).unwrap_err().to_string()
}

/// Asks the payload `disk-cell` for its letters.
#[track_caller]
fn sectors(guest: &mut Piped) -> (char, char) {
    guest.send(b"?");
    let mut letters = [0; 2];
    std::io::Read::read_exact(&mut guest.output, &mut letters).unwrap();
    (letters[0].into(), letters[1].into())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn overlay_is_a_file_of_the_snapshot_below_those_of_machines_that_go_on() {
    needs_overlays!();
    let (image, path) = (disk("cow.img"), common::fresh_path("cow"));
    let mut guest = Piped::start(with_disk(at(&image, ",cow,id=data,serial=S1")));
    assert_eq!(sectors(&mut guest), ('G', 'H'));
    guest.send(b"x");
    assert_eq!(sectors(&mut guest), ('G', 'x'));
    guest.vm.snapshot_to(&path).unwrap();
    assert_eq!(names(&path), ["disk-data", "manifest.json", "memory", "state"]);
    let file = fs::metadata(path.join("disk-data")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.len()), (0o600, 64 * 512 + 64 + 32));
    // The machine runs on with its own overlay.
    guest.send(b"y");
    assert_eq!(sectors(&mut guest), ('G', 'y'));
    guest.send(b"q");
    guest.exits(0);
    let info = snapshot::check(&path).unwrap();
    let device = &info.devices[0];
    assert_eq!((device.id.as_str(), device.kind.as_str(), device.has_blocks), ("data", "disk", true));
    assert_eq!(device.recorded, Some(format!("path={},cow,serial=S1", image.display())));
    let said = refusal(&path, |restore| restore);
    let expected =
        format!("data: this device was connected to path={},cow,serial=S1, which", image.display());
    assert!(said.starts_with(&expected), "{said}");
    // Twice, each by itself; then over a copy of the image in another place.
    let copy = disk("cow-copy.img");
    let named = |restore: Restore| restore.disk("data", at(&copy, ",cow"));
    let mut both = [restore(&path, Restore::reopen_recorded), restore(&path, named)];
    for (guest, letter) in both.iter_mut().zip("vw".chars()) {
        assert_eq!(sectors(guest), ('G', 'x'));
        guest.send(&[letter as u8]);
        assert_eq!(sectors(guest), ('G', letter));
    }
    assert_eq!(sectors(&mut both[0]), ('G', 'v'));
    // A snapshot of one that has gone on has both layers.
    let second = common::fresh_path("cow-second");
    both[1].vm.snapshot_to(&second).unwrap();
    let mut third = restore(&second, Restore::reopen_recorded);
    assert_eq!(sectors(&mut third), ('G', 'w'));
    // The old snapshot's place can be taken, and the machine keeps its blocks.
    third.vm.snapshot_to(&path).unwrap();
    assert_eq!(sectors(&mut both[0]), ('G', 'v'));
    assert_eq!(names(&path), ["disk-data", "manifest.json", "memory", "state"]);
    // Without its overlay, the disk is the file that is named, which has to be allowed.
    let file = at(&disk("cow-whole.img"), "");
    let said = refusal(&path, |restore| restore.disk("data", file.clone()));
    assert!(said.contains("data: the guest's writes to this disk are in its overlay"), "{said}");
    let whole = restore(&path, |restore| restore.disk("data", file).disk_changed_ok("data"));
    let mut whole = whole;
    assert_eq!(sectors(&mut whole), ('G', 'H'));
    for mut guest in both.into_iter().chain([third, whole]) {
        guest.send(b"q");
        guest.exits(0);
    }
    assert_eq!(fs::read(&image).unwrap()[7 * 512], b'H', "nobody wrote to the image");
}

#[test]
fn disk_that_its_guest_writes_to_is_restored_as_long_as_nobody_writes_to_it() {
    needs_kvm!();
    let (image, path) = (disk("rw.img"), common::fresh_path("rw"));
    let mut guest = Piped::start(with_disk(at(&image, "")));
    guest.send(b"x");
    assert_eq!(sectors(&mut guest), ('G', 'x'));
    guest.vm.snapshot_to(&path).unwrap();
    assert_eq!(names(&path), ["manifest.json", "memory", "state"]);
    let copy = common::fresh_path("rw-copy.img");
    fs::copy(&image, &copy).unwrap();
    // The first machine has it open.
    let said = refusal(&path, Restore::reopen_recorded);
    assert!(said.contains("has it open"), "{said}");
    drop(guest);
    let mut again = restore(&path, Restore::reopen_recorded);
    assert_eq!(sectors(&mut again), ('G', 'x'));
    std::thread::sleep(Duration::from_millis(20));
    again.send(b"z");
    assert_eq!(sectors(&mut again), ('G', 'z'));
    again.send(b"q");
    again.exits(0);
    drop(again);
    let said = refusal(&path, Restore::reopen_recorded);
    let changed =
        format!("disk0: {} has changed since the machine's state was saved (it was", image.display());
    assert!(said.starts_with(&changed) && said.contains("disk_changed_ok(\"disk0\")"), "{said}");
    let mut named = restore(&path, |restore| restore.disk("disk0", at(&copy, "")));
    assert_eq!(sectors(&mut named), ('G', 'x'));
    named.send(b"q");
    named.exits(0);
    let mut allowed = restore(&path, |restore| restore.reopen_recorded().disk_changed_ok("disk0"));
    assert_eq!(sectors(&mut allowed), ('G', 'z'));
    allowed.send(b"q");
    allowed.exits(0);
}

#[test]
fn template_with_a_disk_of_its_own_has_forks_with_copies() {
    needs_kvm!();
    let image = disk("fork-rw.img");
    let mut guest = Piped::start(with_disk(at(&image, ",id=data")));
    guest.send(b"x");
    assert_eq!(sectors(&mut guest), ('G', 'x'));
    let template = guest.freeze();
    let error = template.fork(2, |_, fork| fork).map(drop).unwrap_err().to_string();
    let expected = format!("fork 0: data: this device was connected to path={}, which is", image.display());
    assert!(error.starts_with(&expected) && error.contains("disk(\"data\", ..)"), "{error}");
    let copies = ["fork-a.img", "fork-b.img"].map(|name| {
        let copy = common::fresh_path(name);
        fs::copy(&image, &copy).unwrap();
        copy
    });
    let named = |index: usize| at(&copies[index], "");
    // The second fork names the file of the first: none is made.
    let error = template.fork(2, |_, fork| fork.disk("data", named(0))).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("fork 1: ") && error.contains("has it open"), "{error}");
    let forks = template.fork(2, |index, fork| fork.console_piped().disk("data", named(index))).unwrap();
    for (mut fork, letter) in forks.into_iter().map(Piped::of).zip("yz".chars()) {
        assert_eq!(sectors(&mut fork), ('G', 'x'));
        fork.send(&[letter as u8]);
        assert_eq!(sectors(&mut fork), ('G', letter));
        fork.send(b"q");
        fork.exits(0);
    }
    assert_eq!(fs::read(&image).unwrap()[7 * 512], b'x');
    // The template is written to files and comes back, with the same devices.
    let path = common::fresh_path("fork-rw");
    template.save_to(&path).unwrap();
    let loaded = Template::load(&path).unwrap();
    assert_eq!(loaded.devices(), template.devices());
    let fork = loaded.fork(1, |_, fork| fork.console_piped().reopen_recorded()).unwrap().remove(0);
    let mut fork = Piped::of(fork);
    assert_eq!(sectors(&mut fork), ('G', 'x'));
    fork.send(b"q");
    fork.exits(0);
}

#[test]
fn devices_without_a_host_s_end_go_on_by_themselves() {
    needs_kvm!();
    let path = common::fresh_path("plain-devices");
    let mut guest = Piped::start(builder("rng-counter").rng(true));
    let count = |guest: &mut Piped| {
        guest.send(b"?");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut guest.output, &mut line).unwrap();
        u32::from_str_radix(line.trim_end(), 16).unwrap()
    };
    let mut before = count(&mut guest);
    // Wherever its device stands.
    for round in 0..8 {
        std::thread::sleep(Duration::from_micros(round * 97));
        guest.vm.snapshot_to(&path).unwrap();
        let mut again = restore(&path, |restore| restore);
        for guest in [&mut guest, &mut again] {
            assert!(count(guest) > before);
        }
        again.send(b"q");
        again.exits(0);
        before = count(&mut guest);
    }
    assert!(snapshot::check(&path).unwrap().devices[0].recorded.is_none());
    guest.send(b"q");
    guest.exits(0);

    let mut guest =
        Piped::start(builder("virtio-console").configure(|config| config.console = ConsoleDevice::Virtio));
    guest.send(b"a");
    guest.expect(b"a");
    guest.vm.snapshot_to(&path).unwrap();
    let mut again = restore(&path, |restore| restore);
    for (guest, letter) in [(&mut guest, b"b"), (&mut again, b"c")] {
        guest.send(letter);
        guest.expect(letter);
        guest.send(b"q");
        guest.exits(0);
    }
}

/// An owner that pauses and resumes the machine while it is copied does not let its devices write to the
/// memory.
#[test]
fn owner_may_pause_and_resume_while_the_memory_is_copied() {
    needs_kvm!();
    let path = common::fresh_path("paused-meanwhile");
    let mut guest = Piped::start(builder("rng-counter").rng(true));
    let handle = guest.vm.handle();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let owner = std::thread::spawn(move || {
        while wait.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Empty) {
            handle.pause();
            handle.resume();
        }
    });
    let mut saved = 0;
    while saved < 10 {
        match guest.vm.snapshot_to(&path) {
            Ok(()) => {
                saved += 1;
                let mut again = restore(&path, |restore| restore);
                again.send(b"q");
                again.exits(0);
            }
            Err(coracle::SnapshotError::Paused | coracle::SnapshotError::Busy) => {}
            Err(error) => panic!("{error}"),
        }
    }
    drop(done);
    owner.join().unwrap();
    guest.send(b"q");
    guest.exits(0);
}

/// Replaces parts of the manifest, and makes its checksum match.
#[track_caller]
fn edit(path: &Path, edits: &[(&str, &str)]) {
    let file = path.join("manifest.json");
    let mut text = fs::read_to_string(&file).unwrap();
    text.truncate(text.rfind(",\n  \"sha256\": \"").unwrap());
    for (from, to) in edits {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        text = text.replace(from, to);
    }
    let hash: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(&file, format!("{text},\n  \"sha256\": \"{hash}\"\n}}\n")).unwrap();
}

/// Counts how often a file is opened.
struct Opens(OwnedFd);

impl Opens {
    fn of(path: &Path) -> Opens {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the call takes numbers.
        let inotify = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(inotify >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let inotify = unsafe { OwnedFd::from_raw_fd(inotify) };
        // SAFETY: the descriptor is open and the path is a string with an end.
        let watch = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) };
        assert!(watch >= 0);
        Opens(inotify)
    }

    fn happened(&self) -> bool {
        let mut events = [0_u8; 4096];
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        unsafe { libc::read(self.0.as_raw_fd(), events.as_mut_ptr().cast(), events.len()) > 0 }
    }
}

#[test]
fn paths_of_a_manifest_are_opened_by_nobody_unless_somebody_asks_for_it() {
    needs_kvm!();
    let (image, path) = (disk("hostile.img"), common::fresh_path("hostile-paths"));
    let guest = Piped::start(with_disk(at(&image, "")));
    guest.vm.snapshot_to(&path).unwrap();
    drop(guest);
    let top = common::fresh_path("hostile-targets");
    fs::create_dir(&top).unwrap();
    let (secret, link, fifo) = (top.join("secret"), top.join("link"), top.join("fifo"));
    fs::copy(&image, &secret).unwrap();
    symlink(&secret, &link).unwrap();
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the path is a string with an end.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let opens = [&secret, &fifo].map(|path| Opens::of(path));
    let recorded = format!("path={}", image.display());
    let dotted = top.join("../hostile-targets/secret");
    let mut before = recorded.clone();
    for target in [&secret, &dotted, &link, &fifo, Path::new("/etc/shadow"), Path::new("/dev/tty")] {
        let now = format!("path={}", target.display());
        edit(&path, &[(&format!("\"{before}\""), &format!("\"{now}\""))]);
        before = now;
        let said = refusal(&path, |restore| restore);
        assert!(said.starts_with(&format!("disk0: this device was connected to {before}, which")), "{said}");
        assert_eq!(snapshot::check(&path).unwrap().devices[0].recorded.as_ref(), Some(&before));
        assert!(Template::load(&path).unwrap().fork(2, |_, fork| fork).is_err());
    }
    assert!(!opens.iter().any(Opens::happened));
    // Whoever takes it as recorded gets no other file than that of the first machine, and waits for nobody.
    for (target, words) in [
        (&*secret, "another file has its path"),
        (&*link, "another file has its path"),
        (&*fifo, "has to be a regular file or a block device"),
        (Path::new("/dev/tty"), "disks[0].path /dev/tty: "),
        (Path::new("/no/such/file"), "No such file"),
    ] {
        let now = format!("path={}", target.display());
        edit(&path, &[(&format!("\"{before}\""), &format!("\"{now}\""))]);
        before = now;
        let said = refusal(&path, Restore::reopen_recorded);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn devices_of_a_manifest_that_do_not_fit_are_refused() {
    needs_overlays!();
    let (image, path) = (disk("unfit.img"), common::fresh_path("unfit"));
    let mut guest = Piped::start(with_disk(at(&image, ",cow")));
    guest.send(b"x");
    sectors(&mut guest);
    guest.vm.snapshot_to(&path).unwrap();
    drop(guest);
    let original = fs::read(path.join("manifest.json")).unwrap();
    let recorded = format!("\"recorded\": \"path={},cow\"", image.display());
    let fit = "field `devices` is 0x0: those of the manifest, with their files; they do not fit each other";
    for (from, to, words) in [
        ("\"id\": \"disk0\"", "\"id\": \"../disk0\"", "devices.id: `../disk0` is not an id"),
        ("\"id\": \"disk0\"", "\"id\": \"a/b\"", "devices.id: `a/b` is not an id"),
        ("\"id\": \"disk0\"", "\"id\": \"other\"", "disk-other: No such file or directory"),
        ("\"kind\": \"disk\"", "\"kind\": \"net\"", fit),
        (
            "\"capacity\": 32768",
            "\"capacity\": 18446744073709551615",
            "at most 1099511627776 can be in a snapshot",
        ),
        ("\"capacity\": 32768", "\"capacity\": 1048576", "it has 32864 bytes, and the manifest says 1048672"),
        (&recorded, "\"recorded\": null", fit),
        (&recorded, "\"recorded\": \"path=a,what=1\"", "devices.recorded: `what=1` does not go with a disk"),
        (
            "\"devices\": [",
            "\"devices\": [{\"id\": \"x\", \"kind\": \"rng\", \"recorded\": null, \"file\": null, \
         \"stored\": null},",
            fit,
        ),
    ] {
        fs::write(path.join("manifest.json"), &original).unwrap();
        edit(&path, &[(from, to)]);
        let said = refusal(&path, Restore::reopen_recorded);
        assert!(said.starts_with("snapshot ") && said.contains(words), "{from} {to}: {said}");
        assert!(snapshot::check(&path).is_err());
    }
    fs::write(path.join("manifest.json"), &original).unwrap();
    // The blocks are checked as the memory is.
    let blocks = path.join("disk-disk0");
    let good = fs::read(&blocks).unwrap();
    let mut bad = good.clone();
    bad[7 * 512] ^= 1;
    fs::write(&blocks, &bad).unwrap();
    let said = snapshot::check(&path).unwrap_err().to_string();
    assert!(said.contains("disk-disk0: the 32768 bytes from offset 0 do not match their hash"), "{said}");
    for (content, words) in [
        (&good[..good.len() - 1], "disk-disk0: it has 32863 bytes"),
        (&[&good[..32768], &[0; 96]].concat()[..], "disk-disk0: the 64 bytes after"),
    ] {
        fs::write(&blocks, content).unwrap();
        let said = refusal(&path, Restore::reopen_recorded);
        assert!(said.contains(words), "{said}");
    }
    fs::remove_file(&blocks).unwrap();
    symlink(&image, &blocks).unwrap();
    let said = refusal(&path, Restore::reopen_recorded);
    assert!(said.contains("disk-disk0: Too many levels of symbolic links"), "{said}");
}

/// Returns the ranges of the contents of the sections of a state, with the names.
fn sections(state: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 40;
    while at < state.len() {
        let name = String::from_utf8(state[at..at + 24].to_vec()).unwrap();
        let len = u32::from_le_bytes(state[at + 28..at + 32].try_into().unwrap()) as usize;
        found.push((name.trim_end_matches('\0').to_owned(), at + 40..at + 40 + len));
        at += 40 + len;
    }
    found
}

/// Every byte of the devices' states is changed, with checksums that match. A machine refuses it or goes on.
#[test]
fn states_of_devices_that_somebody_has_changed_are_refused_or_harmless() {
    needs_overlays!();
    let (image, path) = (disk("changed.img"), common::fresh_path("changed"));
    let guest = Piped::start(
        with_disk(at(&image, ",cow"))
            .rng(true)
            .balloon(true)
            .vsock("cid=3".parse().unwrap())
            .configure(|config| config.console = ConsoleDevice::Virtio),
    );
    std::thread::sleep(Duration::from_millis(100));
    guest.vm.snapshot_to(&path).unwrap();
    drop(guest);
    let original = fs::read(path.join("state")).unwrap();
    let manifest = fs::read(path.join("manifest.json")).unwrap();
    let hash =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (mut refused, mut restored) = (0, 0);
    let (_, range) = sections(&original).into_iter().find(|(name, _)| name == "virtio").unwrap();
    for index in range.clone() {
        for change in [1, 0x80] {
            let mut state = original.clone();
            state[index] ^= change;
            let header = range.start - 40;
            let checksum = crc32fast::hash(&state[range.clone()]).to_le_bytes();
            state[header + 32..header + 36].copy_from_slice(&checksum);
            let checksum = crc32fast::hash(&state[header..header + 36]).to_le_bytes();
            state[header + 36..header + 40].copy_from_slice(&checksum);
            fs::write(path.join("state"), &state).unwrap();
            fs::write(path.join("manifest.json"), &manifest).unwrap();
            edit(&path, &[(&hash(&original), &hash(&state))]);
            match Vm::restore(&path).reopen_recorded().start() {
                Ok(vm) => {
                    restored += 1;
                    vm.handle().stop();
                    vm.wait();
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
    assert!(refused > 100 && restored > 10, "{refused} refused, {restored} restored");
}
