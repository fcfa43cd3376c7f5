//! Tests of templates and forks of machines with virtio devices, with bare guests.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::config::{ConsoleDevice, DiskConfig, MemorySize, ResetPolicy, VmConfig};
use coracle::outcome::{Ending, Outcome};
use coracle::{ConsolePipe, Event, SnapshotError, Template, Vm, VmBuilder};

/// The time that a guest has. One whose device has lost something waits forever.
const LIMIT: Duration = Duration::from_secs(100);

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

/// A guest with the host's end of its console.
struct Guest {
    vm: Vm,
    input: Box<dyn Write>,
    output: Box<dyn BufRead>,
}

impl Guest {
    fn of(mut vm: Vm) -> Guest {
        let ConsolePipe { input, output, .. } = vm.take_console().unwrap();
        Guest { vm, input: Box::new(input), output: Box::new(BufReader::new(output)) }
    }

    fn start(payload: &str, change: impl FnOnce(&mut VmConfig)) -> Guest {
        let mut config = VmConfig::new(common::payload(payload));
        config.memory = MemorySize::from_mib(16).unwrap().into();
        config.timeout = Some(LIMIT);
        change(&mut config);
        Guest::of(VmBuilder::new(config).console_piped().start().unwrap())
    }

    fn forks(template: &Template, count: usize) -> Vec<Guest> {
        let forks = template.fork(count, |_, fork| fork.console_piped()).unwrap();
        forks.into_iter().map(Guest::of).collect()
    }

    fn fork(&self) -> Guest {
        Guest::forks(&self.vm.freeze().unwrap(), 1).swap_remove(0)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    /// Returns the payload's count.
    #[track_caller]
    fn count(&mut self) -> u32 {
        self.write(b"?");
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        u32::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}, {:?}", self.vm.wait()))
    }

    /// Returns the next byte that the guest prints.
    #[track_caller]
    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.output.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}, {:?}", self.vm.wait()));
        byte[0]
    }

    #[track_caller]
    fn ends(self) -> Outcome {
        let outcome = self.vm.handle().wait_for(LIMIT).expect("the guest does not end");
        assert_eq!(outcome.ending, Ending::Exited { code: 0 });
        outcome
    }
}

fn rng_counter() -> Guest {
    Guest::start("rng-counter", |config| config.rng = true)
}

/// Each machine is frozen wherever its guest and its device are: with a request offered, the doorbell rung,
/// the request done, or the interrupt on its way.
#[test]
fn device_goes_on_in_forks_of_forks_from_wherever_it_stood() {
    needs_kvm!();
    let mut guest = rng_counter();
    let mut before = guest.count();
    for generation in 0..30 {
        std::thread::sleep(Duration::from_micros(generation * 97));
        guest = guest.fork();
        let now = guest.count();
        assert!(now > before, "{now} after {before}");
        before = now;
    }
    let template = guest.vm.freeze().unwrap();
    assert_eq!(guest.vm.wait().ending, Ending::Stopped);
    for mut fork in Guest::forks(&template, 3) {
        assert!(fork.count() > before);
        let requests = loop {
            let requests = fork.count() - before;
            if requests > 2_000 {
                break requests;
            }
        };
        fork.write(b"q");
        let exits = fork.ends().exits;
        // An interrupt costs one write, and a doorbell none (ioeventfd).
        assert!(exits.mmio_write < u64::from(requests) * 3 / 2, "{exits:?}, {requests} requests");
    }
}

#[test]
fn driver_of_a_fork_starts_its_device_again_and_so_does_the_guest_after_a_reset() {
    needs_kvm!();
    let mut guest = Guest::start("rng-counter", |config| {
        config.rng = true;
        config.on_reset = ResetPolicy::Reboot;
    });
    guest.count();
    let mut fork = guest.fork();
    for _ in 0..3 {
        let before = fork.count();
        fork.write(b"d");
        assert!(fork.count() > before);
        fork = fork.fork();
    }
    let events = fork.vm.handle().subscribe().unwrap();
    fork.write(b"m");
    while events.recv_timeout(LIMIT).expect("an event") != Event::Restarted {}
    fork.count();
    let mut fork = fork.fork();
    fork.count();
    fork.write(b"q");
    fork.ends();
}

/// An owner that pauses and resumes the machine meanwhile neither stops the devices of a machine that runs
/// on, nor lets those of a template go on.
#[test]
fn owner_who_pauses_and_resumes_at_the_same_time_changes_nothing() {
    needs_kvm!();
    let mut guest = rng_counter();
    for _ in 0..10 {
        let before = guest.count();
        let handle = guest.vm.handle();
        let owner = std::thread::spawn(move || {
            while handle.wait_for(Duration::ZERO).is_none() {
                handle.pause();
                handle.resume();
            }
        });
        let template = loop {
            match guest.vm.freeze() {
                Ok(template) => break template,
                Err(SnapshotError::Paused | SnapshotError::Busy) => {}
                Err(error) => panic!("{error}"),
            }
        };
        owner.join().unwrap();
        guest = Guest::forks(&template, 1).swap_remove(0);
        assert!(guest.count() > before);
    }
    guest.write(b"q");
    guest.ends();
}

#[test]
fn freeze_of_a_paused_machine_leaves_its_devices_paused() {
    needs_kvm!();
    let mut guest = rng_counter();
    guest.count();
    assert!(guest.vm.handle().pause());
    assert!(matches!(guest.vm.freeze(), Err(SnapshotError::Paused)));
    guest.vm.handle().resume();
    guest.count();
    guest.write(b"q");
    guest.ends();
}

#[test]
fn balloon_keeps_its_target_and_takes_memory_of_the_fork() {
    needs_kvm!();
    let mut guest = Guest::start("virtio-balloon", |config| {
        config.balloon = true;
        config.memory = MemorySize::from_mib(128).unwrap().into();
    });
    assert!(guest.vm.handle().set_balloon(32 << 20));
    assert_eq!(guest.byte(), b't');
    guest.write(b"x");
    assert_eq!(guest.byte(), b'r');
    let released = guest.vm.handle().balloon().unwrap().released_bytes;
    assert_eq!(released, 64 << 20);
    let template = guest.vm.freeze().unwrap();
    let mut forks = Guest::forks(&template, 2);
    for fork in &mut forks {
        let status = fork.vm.handle().balloon().unwrap();
        assert_eq!((status.target_bytes, status.released_bytes), (32 << 20, 0));
        fork.write(b"x");
        assert_eq!(fork.byte(), b't');
        fork.write(b"x");
        assert_eq!(fork.byte(), b'i');
        assert_eq!(fork.vm.handle().balloon().unwrap().released_bytes, 64 << 20);
        assert!(fork.vm.handle().set_balloon(1 << 20));
    }
    // A page that is given in one fork stays in the other, and in the next.
    let mut next = forks[0].fork();
    assert_eq!(next.vm.handle().balloon().unwrap().target_bytes, 1 << 20);
    next.write(b"x");
    next.ends();
    let mut other = forks.swap_remove(1);
    other.write(b"x");
    other.ends();
}

#[test]
fn console_stays_open_in_forks_and_each_has_its_own_host() {
    needs_kvm!();
    let mut guest = Guest::start("virtio-console", |config| config.console = ConsoleDevice::Virtio);
    guest.write(b"a");
    assert_eq!(guest.byte(), b'a');
    let template = guest.vm.freeze().unwrap();
    let mut forks = Guest::forks(&template, 3);
    for (fork, letter) in forks.iter_mut().zip(b'k'..) {
        fork.write(&[letter]);
    }
    for (fork, letter) in forks.iter_mut().zip(b'k'..) {
        assert_eq!(fork.byte(), letter);
    }
    let mut next = forks[0].fork();
    forks.remove(0);
    for mut fork in forks {
        fork.write(b"q");
        fork.ends();
    }
    next.write(b"z");
    assert_eq!(next.byte(), b'z');
    next.write(b"q");
    next.ends();
}

/// The driver of this guest is still setting the device up, or waits before it opens the port.
#[test]
fn console_is_frozen_while_its_driver_starts_it() {
    needs_kvm!();
    for step in 0..8 {
        let guest = Guest::start("virtio-console", |config| config.console = ConsoleDevice::Virtio);
        std::thread::sleep(Duration::from_micros(step * 150));
        let mut fork = guest.fork();
        fork.write(b"f");
        assert_eq!(fork.byte(), b'f', "{step}");
        fork.write(b"q");
        fork.ends();
    }
}

/// A disk of 64 sectors, of which sector n has bytes with the value 65 + n.
fn disk(name: &str) -> PathBuf {
    let path = common::scratch().join(name);
    fs::write(&path, (0..64 * 512).map(|at| (at / 512) as u8 + b'A').collect::<Vec<u8>>()).unwrap();
    path
}

fn with_access(path: &Path, access: &str) -> DiskConfig {
    format!("path={},{access}", path.display()).parse().unwrap()
}

impl Guest {
    #[track_caller]
    fn sectors(&mut self) -> (char, char) {
        self.write(b"?");
        (self.byte().into(), self.byte().into())
    }
}

#[test]
fn forks_have_what_was_written_to_an_overlay_and_write_each_to_its_own() {
    needs_kvm!();
    if common::is_nearly_full("/var/tmp") {
        return common::skip("overlays leave the last 5 % of a file system free, and /var/tmp has no more");
    }
    let path = disk("forked-overlay.img");
    let mut guest = Guest::start("disk-cell", |config| config.disks.push(with_access(&path, "cow")));
    assert_eq!(guest.sectors(), ('G', 'H'));
    guest.write(b"x");
    assert_eq!(guest.sectors(), ('G', 'x'));
    let template = guest.vm.freeze().unwrap();
    guest.vm.wait();
    // The template has the file, not its name.
    fs::remove_file(&path).unwrap();
    let mut forks = Guest::forks(&template, 2);
    for (fork, letter) in forks.iter_mut().zip("yz".chars()) {
        assert_eq!(fork.sectors(), ('G', 'x'));
        fork.write(&[letter as u8]);
        assert_eq!(fork.sectors(), ('G', letter));
    }
    let mut late = Guest::forks(&template, 1).swap_remove(0);
    assert_eq!(late.sectors(), ('G', 'x'));
    let mut grandchild = forks[1].fork();
    drop((template, late));
    assert_eq!((forks[0].sectors(), grandchild.sectors()), (('G', 'y'), ('G', 'z')));
    grandchild.write(b"w");
    assert_eq!(grandchild.sectors(), ('G', 'w'));
    grandchild.write(b"q");
    grandchild.ends();
}

#[test]
fn forks_share_a_read_only_disk_which_stays_locked_as_long_as_any() {
    needs_kvm!();
    let path = disk("forked-readonly.img");
    let mut guest = Guest::start("disk-cell", |config| config.disks.push(with_access(&path, "ro")));
    assert_eq!(guest.sectors(), ('G', 'H'));
    let template = guest.vm.freeze().unwrap();
    drop(guest);
    let writer = || {
        let mut config = VmConfig::new(common::payload("poweroff"));
        config.disks.push(DiskConfig::new(&path));
        VmBuilder::new(config).check_devices()
    };
    let mut forks = Guest::forks(&template, 2);
    drop(template);
    for fork in &mut forks {
        assert_eq!(fork.sectors(), ('G', 'H'));
        assert!(writer().unwrap_err().to_string().contains("has it open"));
    }
    for mut fork in forks {
        fork.write(b"q");
        fork.ends();
    }
    writer().unwrap();
}

/// A disk is frozen while it works on 256 requests. Each is done once, in every fork.
#[test]
fn backlog_of_a_disk_goes_on_in_forks() {
    needs_kvm!();
    if common::is_nearly_full("/var/tmp") {
        return common::skip("overlays leave the last 5 % of a file system free, and /var/tmp has no more");
    }
    let path = common::scratch().join("forked-backlog.img");
    let pages = (1..=1024_u64).flat_map(|page| {
        let mut bytes = vec![0; 4096];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        bytes
    });
    fs::write(&path, pages.collect::<Vec<u8>>()).unwrap();
    for (kind, access) in [
        ("read", "ro"),
        ("read", "ro,engine=io_uring"),
        ("read", "cow"),
        ("write", "cow"),
        ("zeroes", "cow"),
        ("discard", "cow"),
    ] {
        let mut guest = Guest::start(&format!("backlog-{kind}"), |config| {
            config.memory = MemorySize::from_mib(128).unwrap().into();
            config.disks = vec![with_access(&path, access)];
        });
        guest.byte();
        let parent = guest.fork();
        std::thread::sleep(Duration::from_millis(1));
        let template = parent.vm.freeze().unwrap();
        for mut fork in Guest::forks(&template, 2) {
            fork.write(b"w");
            fork.ends();
        }
    }
}
