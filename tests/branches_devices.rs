//! Tests of branches and of snapshots over each other, of machines with virtio devices, with bare guests.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::forks::{Piped, builder};
use coracle::config::DiskConfig;
use coracle::{Fork, Restore, Vm, VmBuilder, snapshot};

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

/// A machine whose guest uses the disk, and has an entropy device and a vsock device too.
fn with_disk(disk: DiskConfig) -> VmBuilder {
    builder("disk-cell").configure(|config| {
        config.disks.push(disk);
        config.rng = true;
        config.vsock = Some("cid=5,id=talk".parse().unwrap());
    })
}

#[track_caller]
fn branch(guest: &Piped, change: impl FnOnce(Fork) -> Fork) -> Piped {
    Piped::of(guest.vm.branch(|fork| change(fork.console_piped())).unwrap())
}

/// Checks the two sectors that the payload `disk-cell` reads: one that it never writes to, and another.
#[track_caller]
fn has(guest: &mut Piped, letter: u8) {
    guest.send(b"?");
    guest.expect(&[b'G', letter]);
}

/// Lets the guest write to the second sector.
#[track_caller]
fn write(guest: &mut Piped, letter: u8) {
    guest.send(&[letter]);
    has(guest, letter);
}

fn quit(guests: impl IntoIterator<Item = Piped>) {
    for mut guest in guests {
        guest.send(b"q");
        guest.exits(0);
    }
}

#[test]
fn child_has_the_devices_of_its_parent_and_disks_that_its_owner_names() {
    needs_overlays!();
    let [image, copy, own] = ["branch-cow.img", "branch-copy.img", "branch-own.img"].map(disk);
    let mut parent = Piped::start(with_disk(at(&image, ",cow,id=data")));
    write(&mut parent, b'x');
    let devices = parent.vm.to_template().unwrap().devices();
    let all: Vec<_> =
        devices.iter().map(|device| (device.id.as_str(), device.kind, device.needs_host)).collect();
    assert_eq!(all, [("data", "disk", false), ("rng0", "rng", false), ("talk", "vsock", false)]);
    let mut child = branch(&parent, |fork| fork);
    // The writes of the parent's guest lie over the copy, too.
    let mut moved = branch(&parent, |fork| fork.disk("data", at(&copy, ",cow")));
    // Unless the whole disk is another one.
    let mut whole = branch(&parent, |fork| fork.disk("data", at(&own, "")).disk_changed_ok("data"));
    write(&mut parent, b'p');
    has(&mut child, b'x');
    has(&mut moved, b'x');
    has(&mut whole, b'H');
    write(&mut child, b'c');
    write(&mut moved, b'm');
    write(&mut whole, b'w');
    let mut grandchild = branch(&child, |fork| fork);
    has(&mut grandchild, b'c');
    write(&mut grandchild, b'g');
    has(&mut child, b'c');
    has(&mut parent, b'p');
    // The whole disk is that of one machine.
    let error = whole.vm.branch(|fork| fork).map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&format!("data: this device was connected to path={}", own.display())));
    // A child is written to files as any machine is.
    let path = common::fresh_path("branch-saved");
    grandchild.vm.snapshot_to(&path).unwrap();
    let restored = Vm::restore(&path).console_piped().reopen_recorded().start();
    let mut restored = Piped::of(restored.unwrap());
    has(&mut restored, b'g');
    let error = parent.vm.branch(|fork| fork.disk("talk", at(&copy, ""))).map(drop).unwrap_err().to_string();
    assert_eq!(error, "talk: this device is of the kind vsock, and not disk; use the id of another one");
    quit([parent, child, moved, whole, grandchild, restored]);
    assert_eq!(fs::read(&image).unwrap()[7 * 512], b'H', "nobody wrote to the image");
    assert_eq!(fs::read(&copy).unwrap()[7 * 512], b'H');
    assert_eq!(fs::read(&own).unwrap()[7 * 512], b'w');
}

#[test]
fn disk_that_its_guest_writes_to_is_refused_by_name_or_replaced() {
    needs_kvm!();
    let image = disk("branch-rw.img");
    let mut parent = Piped::start(with_disk(at(&image, ",id=data")));
    write(&mut parent, b'x');
    let recorded = format!("data: this device was connected to path={}, which is neither", image.display());
    let error = parent.vm.branch(|fork| fork).map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&recorded) && error.contains("disk(\"data\", ..)"), "{error}");
    let template = parent.vm.to_template().unwrap();
    let error = template.fork(2, |_, fork| fork).map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&format!("fork 0: {recorded}")), "{error}");
    // The parent has its file, whatever is allowed.
    for change in [Fork::reopen_recorded, |fork: Fork| fork.reopen_recorded().disk_changed_ok("data")] {
        let error = parent.vm.branch(change).map(drop).unwrap_err().to_string();
        assert!(error.contains("has it open"), "{error}");
    }
    let copies = ["branch-a.img", "branch-b.img"].map(|name| {
        let copy = common::fresh_path(name);
        fs::copy(&image, &copy).unwrap();
        copy
    });
    let mut child = branch(&parent, |fork| fork.disk("data", at(&copies[0], "")));
    let fork = template.fork(1, |_, fork| fork.console_piped().disk("data", at(&copies[1], "")));
    let mut fork = Piped::of(fork.unwrap().remove(0));
    for (guest, letter) in [(&mut child, b'c'), (&mut fork, b'f'), (&mut parent, b'p')] {
        has(guest, b'x');
        write(guest, letter);
    }
    quit([parent, child, fork]);
    for (path, letter) in [(&image, b'p'), (&copies[0], b'c'), (&copies[1], b'f')] {
        assert_eq!(fs::read(path).unwrap()[7 * 512], letter);
    }
}

fn restore(path: &Path, change: impl FnOnce(Restore) -> Restore) -> Piped {
    let restore = Vm::restore(path).parents_in(path.parent().unwrap()).console_piped();
    Piped::of(change(restore).start().unwrap())
}

#[test]
fn snapshots_over_each_other_have_the_overlay_of_their_moment() {
    needs_overlays!();
    let (image, top) = (disk("over-cow.img"), common::fresh_path("over-cow"));
    fs::create_dir(&top).unwrap();
    let path = |name: &str| top.join(name);
    let mut machine = Piped::start(with_disk(at(&image, ",cow,id=data")));
    has(&mut machine, b'H');
    machine.vm.snapshot_base(path("base")).unwrap();
    write(&mut machine, b'1');
    machine.vm.snapshot_over(path("base"), path("first")).unwrap();
    write(&mut machine, b'2');
    machine.vm.snapshot_over(path("first"), path("second")).unwrap();
    // Nothing was written since.
    machine.vm.snapshot_over(path("second"), path("third")).unwrap();
    write(&mut machine, b'z');
    snapshot::merge(path("second"), &top, path("merged")).unwrap();
    for (name, parent, has_blocks, letter) in [
        ("base", None, false, b'H'),
        ("first", Some("base"), true, b'1'),
        ("second", Some("first"), true, b'2'),
        ("third", Some("second"), true, b'2'),
        ("merged", None, true, b'2'),
    ] {
        let info = snapshot::check(path(name)).unwrap();
        assert_eq!(info.parent.map(|parent| parent.name).as_deref(), parent, "{name}");
        let kinds: Vec<_> = info.devices.iter().map(|device| device.kind.as_str()).collect();
        assert_eq!(kinds, ["disk", "rng", "vsock"]);
        assert_eq!(info.devices[0].has_blocks, has_blocks, "{name}");
        assert_eq!(info.devices[0].recorded, Some(format!("path={},cow", image.display())));
        let refused = Vm::restore(path(name)).parents_in(&top).start().map(drop).unwrap_err().to_string();
        assert!(refused.starts_with("data: this device was connected to path="), "{refused}");
        let mut guest = restore(&path(name), Restore::reopen_recorded);
        has(&mut guest, letter);
        // A machine that was restored goes on from its snapshot.
        write(&mut guest, b'r');
        let _ = fs::remove_dir_all(path("next"));
        guest.vm.snapshot_over(path(name), path("next")).unwrap();
        let mut next = restore(&path("next"), Restore::reopen_recorded);
        has(&mut next, b'r');
        quit([guest, next]);
    }
    has(&mut machine, b'z');
    quit([machine]);
    assert_eq!(fs::read(&image).unwrap()[7 * 512], b'H', "nobody wrote to the image");
}

#[test]
fn snapshot_over_another_of_a_disk_that_its_guest_writes_to_needs_a_copy() {
    needs_kvm!();
    let (image, top) = (disk("over-rw.img"), common::fresh_path("over-rw"));
    fs::create_dir(&top).unwrap();
    let mut machine = Piped::start(with_disk(at(&image, "")));
    machine.vm.snapshot_base(top.join("base")).unwrap();
    write(&mut machine, b'x');
    machine.vm.snapshot_over(top.join("base"), top.join("over")).unwrap();
    let copy = common::fresh_path("over-rw-copy.img");
    fs::copy(&image, &copy).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    write(&mut machine, b'y');
    quit([machine]);
    let over = top.join("over");
    let refused = Vm::restore(&over).parents_in(&top).reopen_recorded().start().map(drop);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.starts_with("disk0: ") && refused.contains("has changed"), "{refused}");
    let mut again = restore(&over, |restore| restore.disk("disk0", at(&copy, "")));
    has(&mut again, b'x');
    quit([again]);
}
