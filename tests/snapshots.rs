//! Tests of snapshots in files, with bare guests: what goes on from them, and what is refused.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use coracle::config::{MemorySize, VmConfig};
use coracle::outcome::Ending;
use coracle::{ConsolePipe, Restore, SnapshotError, Template, Vm, VmBuilder, snapshot};

const LIMIT: Duration = Duration::from_secs(100);

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

fn builder(payload: &str) -> VmBuilder {
    let mut config = VmConfig::new(common::payload(payload));
    config.memory = MemorySize::from_mib(16).unwrap().into();
    VmBuilder::new(config)
}

/// The payload `counter`, and the host's end of its console.
struct Counter {
    vm: Vm,
    input: Box<dyn Write>,
    output: Box<dyn BufRead>,
}

impl Counter {
    fn of(mut vm: Vm) -> Counter {
        let ConsolePipe { input, output, .. } = vm.take_console().unwrap();
        Counter { vm, input: Box::new(input), output: Box::new(BufReader::new(output)) }
    }

    fn start() -> Counter {
        Counter::of(builder("counter").console_piped().start().unwrap())
    }

    fn restore(path: &Path) -> Counter {
        Counter::of(Vm::restore(path).console_piped().start().unwrap())
    }

    fn count(&mut self) -> u32 {
        self.input.write_all(b"?").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        u32::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// Ends the guest, which checks that its register and its memory have the same count.
    fn end(mut self) {
        self.input.write_all(b"q").unwrap();
        let outcome = self.vm.handle().wait_for(LIMIT).expect("the guest does not end");
        assert_eq!(outcome.ending, Ending::Exited { code: 0 });
    }
}

/// Writes a snapshot of a machine that has counted. Returns its path and a count before it.
fn snapshot(name: &str) -> (PathBuf, u32) {
    let path = common::fresh_path(name);
    let mut counter = Counter::start();
    let count = counter.count();
    counter.vm.snapshot_to(&path).unwrap();
    counter.end();
    (path, count)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn machine_runs_on_and_others_go_on_from_its_snapshot_each_by_itself() {
    needs_kvm!();
    let path = common::fresh_path("two");
    let mut first = Counter::start();
    let before = first.count();
    first.vm.snapshot_to(&path).unwrap();
    let after = first.count();
    assert!(after > before);
    let mut machines = [Counter::restore(&path), Counter::restore(&path)];
    let counts = machines.each_mut().map(Counter::count);
    assert!(counts.iter().all(|count| *count > before), "{counts:?} from {before}");
    let ahead = (0..20).map(|_| machines[0].count()).last().unwrap();
    let mut late = Counter::restore(&path);
    assert!(late.count() < ahead);
    // A machine that goes on from a snapshot is one like any other.
    machines[0].vm.snapshot_to(&path).unwrap();
    let mut second = Counter::restore(&path);
    assert!(second.count() > ahead);
    let template = machines[0].vm.freeze().unwrap();
    let forks = template.fork(2, |_, fork| fork.console_piped()).unwrap();
    let mut forks: Vec<Counter> = forks.into_iter().map(Counter::of).collect();
    assert!(forks.iter_mut().all(|fork| fork.count() > ahead));
    let [_, other] = machines;
    forks.into_iter().chain([first, other, late, second]).for_each(Counter::end);
    snapshot::check(&path).unwrap();
}

#[test]
fn snapshot_is_replaced_while_others_read_it_and_machines_run_from_it() {
    needs_kvm!();
    let path = common::fresh_path("replaced");
    let vm = builder("counter").cpus(2).console_piped().start().unwrap();
    let mut counter = Counter::of(vm);
    counter.vm.snapshot_to(&path).unwrap();
    let after_first = counter.count();
    let mut early = Counter::restore(&path);
    let begun = early.count();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut ids = HashSet::new();
                    while !is_done.load(Ordering::Relaxed) {
                        Template::load(&path).unwrap();
                        ids.insert(snapshot::check(&path).unwrap().id);
                    }
                    ids.len()
                })
            })
            .collect();
        let writes = (0..50).map(|_| counter.vm.snapshot_to(&path));
        let failed: Vec<_> = writes.filter_map(Result::err).collect();
        is_done.store(true, Ordering::Relaxed);
        let seen: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(failed.is_empty() && seen > 10, "{failed:?}, {seen} snapshots seen");
    });
    // The memory of the first snapshot is still there for those who began with it.
    let mut late = Counter::restore(&path);
    assert!(early.count() > begun && late.count() > after_first);
    [counter, early, late].into_iter().for_each(Counter::end);
}

#[test]
fn template_is_saved_and_loaded_for_any_number_of_forks() {
    needs_kvm!();
    let path = common::fresh_path("template");
    let mut counter = Counter::start();
    let before = counter.count();
    let template = counter.vm.freeze().unwrap();
    template.save_to(&path).unwrap();
    drop((template, counter));
    let template = Template::load(&path).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let forks = template.fork(3, |_, fork| fork.console_piped()).unwrap();
    for mut fork in forks.into_iter().map(Counter::of) {
        assert!(fork.count() > before);
        fork.end();
    }
}

#[test]
fn snapshot_goes_on_in_another_process() {
    needs_kvm!();
    if let Some(path) = std::env::var_os("CORACLE_TEST_RESTORE") {
        let mut counter = Counter::restore(Path::new(&path));
        println!("counted to {}", counter.count());
        return counter.end();
    }
    let (path, before) = snapshot("process");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "snapshot_goes_on_in_another_process", "--nocapture"]);
    let run = common::finish(command.env("CORACLE_TEST_RESTORE", &path));
    let text = run.expect(0, "").text();
    let (_, count) = text.split_once("counted to ").unwrap_or_else(|| panic!("{text}"));
    let count: u32 = count.split_whitespace().next().unwrap().parse().unwrap();
    assert!(count > before, "{count} from {before}");
}

#[test]
fn files_are_the_owner_s_alone_whatever_the_umask_and_have_holes() {
    needs_kvm!();
    if !common::is_alone("files_are_the_owner_s_alone_whatever_the_umask_and_have_holes") {
        return;
    }
    for umask in [0, 0o777] {
        // SAFETY: the call only sets the mask of this process, in which no other test runs.
        let before = unsafe { libc::umask(umask) };
        let path = common::fresh_path("modes");
        let counter = Counter::start_with(before);
        // SAFETY: as above.
        unsafe { libc::umask(umask) };
        let result = counter.vm.snapshot_to(&path);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        result.unwrap();
        assert_eq!(mode(&path), 0o700, "umask {umask:o}");
        assert_eq!(names(&path), ["manifest.json", "memory", "state"]);
        assert!(names(&path).iter().all(|name| mode(&path.join(name)) == 0o600), "umask {umask:o}");
        let memory = fs::metadata(path.join("memory")).unwrap();
        assert!(memory.len() > 16 << 20);
        assert!(
            memory.blocks() * 512 < 1 << 20,
            "{} bytes for a guest of a few pages",
            memory.blocks() * 512
        );
        assert!(names(path.parent().unwrap()).iter().all(|name| !name.starts_with(".coracle")));
        counter.end();
    }
}

impl Counter {
    /// Starts one under this umask.
    fn start_with(umask: libc::mode_t) -> Counter {
        // SAFETY: the call only sets the mask of this process.
        unsafe { libc::umask(umask) };
        Counter::start()
    }
}

#[test]
fn manifest_says_what_the_snapshot_is_and_holds_no_more() {
    needs_kvm!();
    let (path, _) = snapshot("info");
    let info = snapshot::info(&path).unwrap();
    assert_eq!(info, snapshot::check(&path).unwrap());
    assert_eq!((info.format, info.machine.memory_mib, info.machine.vcpus), (1, 16, 1));
    assert_eq!(info.made_by, concat!("coracle ", env!("CARGO_PKG_VERSION")));
    assert_eq!(info.host.architecture, "x86_64");
    assert!(info.machine.kernel.unwrap().ends_with("counter.elf"));
    assert!(info.stored_bytes > 0 && info.stored_bytes < 1 << 20);
    // The kernel is not opened again, nor is anything else of the first machine.
    let kernel = common::payload("counter");
    fs::remove_file(&kernel).unwrap();
    Counter::restore(&path).end();
}

#[test]
fn settings_of_a_restored_machine_are_its_own() {
    needs_kvm!();
    let (path, _) = snapshot("settings");
    let unlimited = Vm::restore(&path).start().unwrap();
    assert_eq!(unlimited.handle().wait_for(Duration::from_millis(50)), None);
    unlimited.handle().stop();
    let limited: Restore = Vm::restore(&path).timeout(Duration::from_millis(20));
    let outcome = limited.start().unwrap().wait();
    assert!(matches!(outcome.ending, Ending::TimedOut { .. }), "{outcome:?}");
}

#[test]
fn machine_whose_snapshot_fails_says_why_and_runs_on() {
    needs_kvm!();
    let top = common::fresh_path("refused");
    fs::create_dir(&top).unwrap();
    fs::write(top.join("file"), "").unwrap();
    fs::create_dir_all(top.join("mine/notes")).unwrap();
    symlink(top.join("mine"), top.join("link")).unwrap();
    let built = builder("counter").console_piped().build().unwrap();
    assert!(matches!(built.snapshot_to(top.join("new")), Err(SnapshotError::NotStarted)));
    drop(built);
    let mut counter = Counter::start();
    for (name, expected) in [
        ("file", "something at this path that is not a snapshot (a file or a link); remove it"),
        ("link", "something at this path that is not a snapshot (a file or a link); remove it"),
        ("mine", "something at this path that is not a snapshot (it has notes); remove it"),
        ("none/new", "the folder cannot be made: No such file or directory (os error 2); make the folder"),
        ("mine/..", "this path does not end with the name of a folder"),
    ] {
        let before = counter.count();
        let error = counter.vm.snapshot_to(top.join(name)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(top.to_str().unwrap()), "{error}");
        assert!(counter.count() > before);
    }
    assert!(counter.vm.handle().pause());
    assert!(matches!(counter.vm.snapshot_to(top.join("new")), Err(SnapshotError::Paused)));
    counter.vm.handle().resume();
    let vm = builder("halt").start().unwrap();
    assert_eq!(names(&top), ["file", "link", "mine"]);
    // An empty folder is a place for a snapshot.
    fs::create_dir(top.join("empty")).unwrap();
    counter.vm.snapshot_to(top.join("empty")).unwrap();
    assert_eq!(mode(&top.join("empty")), 0o700);
    counter.end();
    vm.handle().stop();
    vm.wait();
    assert!(matches!(vm.snapshot_to(top.join("new")), Err(SnapshotError::Ended)));
}
