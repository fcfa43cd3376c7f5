//! Tests of snapshots that are damaged, that somebody else has made, or whose writing was interrupted.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use coracle::config::{MemorySize, VmConfig};
use coracle::{SnapshotError, Template, Vm, VmBuilder, snapshot};
use sha2::{Digest, Sha256};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

fn start(payload: &str) -> Vm {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    VmBuilder::new(config).console_piped().start().unwrap()
}

/// The files of a snapshot in memory, apart from its RAM, which is linked.
struct Sample {
    path: PathBuf,
    manifest: Vec<u8>,
    state: Vec<u8>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let path = common::fresh_path("sample");
    start("counter").snapshot_to(&path).unwrap();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    Sample { manifest: read("manifest.json"), state: read("state"), path }
});

/// A copy of the sample whose files can be replaced.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Copy {
        let path = common::fresh_path(name);
        fs::create_dir(&path).unwrap();
        for name in ["manifest.json", "state", "memory"] {
            fs::copy(SAMPLE.path.join(name), path.join(name)).unwrap();
        }
        Copy(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Replaces the content in place: file systems write a new file of an old name to the medium at once.
    fn put(&self, name: &str, content: &[u8]) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        file.write_all_at(content, 0).unwrap();
        file.set_len(content.len() as u64).unwrap();
    }

    /// Returns the error, which names the folder.
    #[track_caller]
    fn refusal(&self) -> String {
        let error = Template::load(&self.0).map(drop).unwrap_err();
        assert!(matches!(error, SnapshotError::Files(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("snapshot {}: ", self.0.display())), "{text}");
        text
    }
}

impl Copy {
    /// Edits the manifest and makes its checksum match, as somebody with bad intentions would.
    #[track_caller]
    fn edit_manifest(&self, edits: &[(&str, &str)]) {
        let mut text = String::from_utf8(fs::read(self.file("manifest.json")).unwrap()).unwrap();
        text.truncate(text.rfind(",\n  \"sha256\": \"").unwrap());
        for (from, to) in edits {
            assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
            text = text.replace(from, to);
        }
        let hash = hex(&Sha256::digest(&text));
        self.put("manifest.json", format!("{text},\n  \"sha256\": \"{hash}\"\n}}\n").as_bytes());
    }

    /// Replaces the state, and makes the manifest match.
    fn put_state(&self, state: &[u8]) {
        self.put("state", state);
        self.edit_manifest(&[
            (&format!("\"bytes\": {}", SAMPLE.state.len()), &format!("\"bytes\": {}", state.len())),
            (&hex(&Sha256::digest(&SAMPLE.state)), &hex(&Sha256::digest(state))),
        ]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the state of the sample with one more section.
fn state_with(name: &str, flags: u16, content: &[u8]) -> Vec<u8> {
    let mut state = SAMPLE.state.clone();
    state[14] += 1;
    let checksum = crc32fast::hash(&state[..36]).to_le_bytes();
    state[36..40].copy_from_slice(&checksum);
    let mut header = name.as_bytes().to_vec();
    header.resize(24, 0);
    header.extend(1_u16.to_le_bytes());
    header.extend(flags.to_le_bytes());
    header.extend((content.len() as u32).to_le_bytes());
    header.extend(crc32fast::hash(content).to_le_bytes());
    header.extend(crc32fast::hash(&header).to_le_bytes());
    [&state[..], &header, content].concat()
}

/// A generator of numbers that are the same in each run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) as usize % end
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error() {
    needs_kvm!();
    let (copy, mut numbers) = (Copy::new("damaged"), Numbers(1));
    for (name, content) in [("manifest.json", &SAMPLE.manifest), ("state", &SAMPLE.state)] {
        for _ in 0..500 {
            copy.put(name, &content[..numbers.below(content.len())]);
            copy.refusal();
        }
        for _ in 0..5000 {
            let mut flipped = content.clone();
            flipped[numbers.below(content.len())] ^= 1 << numbers.below(8);
            copy.put(name, &flipped);
            copy.refusal();
        }
        copy.put(name, content);
        Template::load(&copy.0).unwrap();
    }
}

#[test]
fn manifests_that_lie_are_refused_by_field() {
    needs_kvm!();
    let ram = 16 << 20;
    let (bytes, more) = (ram + 64 + 8 * 32, 2 * ram + 64 + 16 * 32);
    let is = |bytes: u64| format!("\"bytes\": {bytes}");
    for (edits, expected) in [
        (&[("\"vcpus\": 1", "\"vcpus\": 2")][..], "state: section `vcpus`: field `vcpus` has 1 entries"),
        (&[("\"vcpus\": 1", "\"vcpus\": 200")], "manifest.json: machine.vcpus: 200 vCPUs are not possible"),
        (
            &[("\"memory_mib\": 16", "\"memory_mib\": 32")],
            "memory: machine.memory_mib: 33554432 bytes of RAM",
        ),
        (
            &[("\"memory_mib\": 16", "\"memory_mib\": 32"), (&is(bytes), &is(more))],
            "memory: it has 16777536 bytes, and the manifest says 33555008; it was copied in part, or is damaged",
        ),
        (&[("\"format\": 1", "\"format\": 7")], "manifest.json: its format is 7, made by coracle"),
        (&[(&is(SAMPLE.state.len() as u64), &is(1))], "state has "),
    ] {
        let copy = Copy::new("lies");
        copy.edit_manifest(edits);
        let found = copy.refusal();
        assert!(found.contains(expected), "{found}");
    }
    let copy = Copy::new("kind");
    let kind = format!("\"kvm\": \"{}\"", snapshot::info(&SAMPLE.path).unwrap().host.kvm.unwrap());
    copy.edit_manifest(&[(&kind, "\"kvm\": \"kvm_other\"")]);
    let error = Template::load(&copy.0).map(drop).unwrap_err();
    assert!(matches!(&error, SnapshotError::KvmKind { saved, .. } if saved == "kvm_other"), "{error}");
    assert!(snapshot::check(&copy.0).is_ok(), "the files are whole");
}

#[test]
fn sections_that_are_not_known_are_skipped_if_they_may_be() {
    needs_kvm!();
    let copy = Copy::new("optional");
    copy.put_state(&state_with("weather", 0, b"sunny"));
    Template::load(&copy.0).unwrap();
    snapshot::check(&copy.0).unwrap();
    let copy = Copy::new("required");
    copy.put_state(&state_with("weather", 1, b"sunny"));
    let expected =
        "state: it needs the section `weather`, which this version does not know; use a newer Coracle";
    assert!(copy.refusal().ends_with(expected), "{}", copy.refusal());
}

#[test]
fn files_of_different_snapshots_do_not_mix() {
    needs_kvm!();
    let other = common::fresh_path("other");
    start("counter").snapshot_to(&other).unwrap();
    for (name, expected) in [
        ("state", "state has "),
        ("memory", "memory: it belongs to the snapshot "),
        ("manifest.json", "state has "),
    ] {
        let copy = Copy::new("mixed");
        fs::copy(other.join(name), copy.file(name)).unwrap();
        let found = copy.refusal();
        assert!(found.contains(expected), "{name}: {found}");
        fs::remove_file(copy.file(name)).unwrap();
        let found = copy.refusal();
        assert!(found.contains(&format!("it has no {name}; it was copied in part")), "{found}");
    }
    // Even if the manifest was made to match.
    let copy = Copy::new("forged");
    copy.put_state(&fs::read(other.join("state")).unwrap());
    assert!(copy.refusal().contains("state: it belongs to the snapshot "), "{}", copy.refusal());
}

#[test]
fn nothing_outside_of_the_folder_is_opened_and_nobody_is_waited_for() {
    needs_kvm!();
    for name in ["manifest.json", "state", "memory"] {
        let copy = Copy::new("link");
        let outside = common::fresh_path("outside");
        fs::rename(copy.file(name), &outside).unwrap();
        symlink(&outside, copy.file(name)).unwrap();
        let found = copy.refusal();
        assert!(
            found.contains(&format!("{name} cannot be read: Too many levels of symbolic links")),
            "{found}"
        );
        fs::remove_file(copy.file(name)).unwrap();
        let fifo = c_string(&copy.file(name));
        // SAFETY: the path is a string with an end.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(copy.refusal().contains(&format!("{name} cannot be read: it is not a regular file")));
        fs::remove_file(copy.file(name)).unwrap();
        fs::create_dir(copy.file(name)).unwrap();
        assert!(copy.refusal().contains(&format!("{name} cannot be read: it is not a regular file")));
    }
}

#[test]
fn endless_files_are_refused_by_their_length() {
    needs_kvm!();
    for (name, most) in [("manifest.json", 64 << 10), ("state", 16 << 20)] {
        let copy = Copy::new("endless");
        File::options().write(true).open(copy.file(name)).unwrap().set_len(1 << 40).unwrap();
        let found = copy.refusal();
        assert!(
            found.contains(&format!("{name} has 1099511627776 bytes, and at most {most} are")),
            "{found}"
        );
    }
}

#[test]
fn memory_of_another_length_is_refused_and_flips_are_found_by_check() {
    needs_kvm!();
    let copy = Copy::new("memory");
    let file = File::options().read(true).write(true).open(copy.file("memory")).unwrap();
    let len = file.metadata().unwrap().len();
    for cut in [0, 4096, len - 1, len + 1, 1 << 40] {
        file.set_len(cut).unwrap();
        assert!(copy.refusal().contains(&format!("memory: it has {cut} bytes, and the manifest says {len}")));
    }
    fs::copy(SAMPLE.path.join("memory"), copy.file("memory")).unwrap();
    let mut numbers = Numbers(2);
    for _ in 0..100 {
        let at = numbers.below(16 << 20) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << numbers.below(8)], at).unwrap();
        Template::load(&copy.0).unwrap();
        let error = snapshot::check(&copy.0).unwrap_err().to_string();
        let block = at >> 21 << 21;
        assert!(
            error.contains(&format!("memory: the 2097152 bytes from offset {block} do not match")),
            "{error}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
    snapshot::check(&copy.0).unwrap();
}

#[test]
fn memory_is_locked_while_it_is_used() {
    needs_kvm!();
    let copy = Copy::new("lock");
    let file = File::options().read(true).write(true).open(copy.file("memory")).unwrap();
    let lock = |kind: i32| {
        let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
        // SAFETY: the structure lives through the call, which only reads it.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
    };
    let vm = Vm::restore(&copy.0).start().unwrap();
    let second = Vm::restore(&copy.0).start().unwrap();
    assert!(!lock(libc::F_WRLCK), "two machines use it");
    drop((vm, second));
    assert!(lock(libc::F_WRLCK));
    assert!(copy.refusal().contains("another program has locked memory for writing"));
}

/// Writes snapshots of one template to `path`, one after the other, until it is killed.
fn write_for_ever(path: &Path) -> ! {
    let template = start("counter").freeze().unwrap();
    template.save_to(path).unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    loop {
        template.save_to(path).unwrap();
    }
}

/// Returns the names of folders with a snapshot that is not complete, or no longer wanted.
fn abandoned(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".coracle-snapshot-")).count()
}

#[test]
fn writer_that_is_killed_leaves_the_old_snapshot_or_the_new_one() {
    needs_kvm!();
    let test = "writer_that_is_killed_leaves_the_old_snapshot_or_the_new_one";
    if let Some(path) = std::env::var_os(WRITER) {
        write_for_ever(Path::new(&path));
    }
    let folder = common::fresh_path("killed");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("snapshot");
    let mut numbers = Numbers(3);
    let (mut ids, mut cut_short) = (std::collections::HashSet::new(), 0);
    for _ in 0..KILLS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(WRITER, &path);
        let mut writer = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        thread::sleep(Duration::from_micros(numbers.below(60_000) as u64));
        writer.kill().unwrap();
        writer.wait().unwrap();
        ids.insert(snapshot::check(&path).unwrap().id);
        cut_short += usize::from(abandoned(&folder) > 0);
        assert!(abandoned(&folder) <= 1, "each removes what the one before has left");
    }
    assert_eq!(ids.len(), KILLS);
    assert!(cut_short >= KILLS / 4, "{cut_short} writers of {KILLS} were killed while they wrote");
    Template::load(&path).unwrap().save_to(&path).unwrap();
    assert_eq!(abandoned(&folder), 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

const WRITER: &str = "CORACLE_TEST_WRITER";
const KILLS: usize = 200;

/// Mounts a file system in memory with these options on a new folder, in a namespace of this process.
fn mount(options: &str) -> Option<PathBuf> {
    static NAMESPACE: LazyLock<bool> = LazyLock::new(|| {
        let (root, none) = (c"/".as_ptr(), std::ptr::null());
        // SAFETY: the call changes only what this process sees of mounts.
        let is_unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the strings end with zero, and the call reads nothing else.
        is_unshared && unsafe { libc::mount(none, root, none, flags, none.cast()) } == 0
    });
    let path = common::fresh_path("mount");
    fs::create_dir(&path).unwrap();
    let (name, options) = (c_string(&path), std::ffi::CString::new(options).unwrap());
    let (kind, target) = (c"tmpfs".as_ptr(), name.as_ptr());
    // SAFETY: the arguments are strings with ends.
    let is_mounted =
        *NAMESPACE && unsafe { libc::mount(kind, target, kind, 0, options.as_ptr().cast()) } == 0;
    is_mounted.then_some(path)
}

fn c_string(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

/// Writes a snapshot where only `what` is missing to succeed. Returns whether it succeeds.
fn succeeds(vm: &Vm, folder: &Path, what: &str, errors: &mut Vec<String>) -> bool {
    match vm.snapshot_to(folder.join("snapshot")) {
        Ok(()) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(what) && text.contains(folder.to_str().unwrap()), "{text}");
            assert_eq!(text.lines().count(), 1);
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "nothing is left: {text}");
            assert_eq!(vm.handle().wait_for(Duration::ZERO), None, "the machine runs on");
            errors.push(text);
            false
        }
    }
}

#[test]
fn full_file_system_is_named_and_nothing_is_left_on_it() {
    needs_kvm!();
    // In a process of its own, which is about to get mounts of its own.
    if !common::is_alone("full_file_system_is_named_and_nothing_is_left_on_it") {
        return;
    }
    let vm = start("counter");
    let full = "No space left on device (os error 28)";
    let (mut errors, mut kib) = (Vec::new(), 4);
    loop {
        let Some(folder) = mount(&format!("size={kib}K")) else {
            return common::skip("this user may not mount a file system");
        };
        if succeeds(&vm, &folder, full, &mut errors) {
            snapshot::check(folder.join("snapshot")).unwrap();
            // There is no room for a second one, and the first one stays.
            let before = snapshot::info(folder.join("snapshot")).unwrap();
            let error = vm.snapshot_to(folder.join("snapshot")).unwrap_err().to_string();
            assert!(error.contains("free space there, or use another file system"), "{error}");
            assert_eq!(snapshot::check(folder.join("snapshot")).unwrap(), before);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
            break;
        }
        kib += 4;
    }
    // One inode is for the root; a snapshot has four.
    for inodes in 1..5 {
        let folder = mount(&format!("nr_inodes={inodes}")).unwrap();
        assert!(!succeeds(&vm, &folder, full, &mut errors), "{inodes} inodes");
    }
    for step in [
        "memory cannot be written",
        "state cannot be",
        "manifest.json cannot be",
        "the folder cannot be made",
    ] {
        assert!(errors.iter().any(|error| error.contains(step)), "{step}: {errors:#?}");
    }
    vm.handle().stop();
}

#[test]
fn limit_of_file_sizes_is_an_error_and_not_the_end_of_the_process() {
    needs_kvm!();
    if !common::is_alone("limit_of_file_sizes_is_an_error_and_not_the_end_of_the_process") {
        return;
    }
    let vm = start("counter");
    let folder = common::fresh_path("limit");
    fs::create_dir(&folder).unwrap();
    let mut errors = Vec::new();
    for bytes in [0, 4096, 16 << 20, (16 << 20) + 100] {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the value is valid, and no other test runs in this process.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        assert!(!succeeds(&vm, &folder, "raise the limit of this process (ulimit -f)", &mut errors));
    }
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    assert!(succeeds(&vm, &folder, "", &mut errors));
}
