//! The devices of a machine that goes on, and their ends on the host, without a machine.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_devices::backend::disk::{FileIdentity, FileLock, RawDisk};
use vmm_sys_util::tempdir::TempDir;

use super::spec::SpecContext;
use super::template::{Content, KnownDisk, KnownNet};
use super::*;
use crate::config::{DiskConfig, NetConfig};

fn disk(text: &str) -> DiskConfig {
    text.parse().unwrap()
}

fn net(text: &str) -> NetConfig {
    text.parse().unwrap()
}

fn device(id: &str, link: Link) -> TemplateDevice {
    TemplateDevice { id: id.parse().unwrap(), link, content: Content::AtPath, identity: None }
}

fn known(is_read_only: bool) -> KnownDisk {
    KnownDisk { capacity: 4096, is_read_only, queues: 2, serial: "S1".into() }
}

/// A machine with a disk that its guest writes to, a card, and a vsock device with a socket.
fn devices() -> Vec<TemplateDevice> {
    let mac = "02:00:00:00:00:07".parse().unwrap();
    vec![
        device("data", Link::Disk(known(false), disk("/img,queues=2"))),
        device("net0", Link::Net(KnownNet { mac, mtu: None }, net("tap=tap0"))),
        device("rng0", Link::Plain(&rng::PLAIN)),
        device("vsock0", Link::Socket("cid=3,uds=/v.sock".parse().unwrap())),
    ]
}

fn error_of(devices: &[TemplateDevice], change: impl FnOnce(&mut Repointed)) -> String {
    let mut repointed = Repointed::default();
    change(&mut repointed);
    repointed.specs(devices, 0).map(drop).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_shared_is_refused_with_what_to_call() {
    let devices = devices();
    let refused = |change: &dyn Fn(&mut Repointed)| error_of(&devices, change);
    let said = refused(&|_| ());
    let expected = "data: this device was connected to path=/img,queues=2, which is neither shared nor opened by \
                    itself; give each machine an end of its own with disk(\"data\", ..), or let one take the \
                    recorded one with reopen_recorded()";
    assert_eq!(said, expected);
    let said = refused(&|repointed| repointed.disk("data", disk("/other")));
    assert!(said.starts_with("net0: this device was connected to tap=tap0, which"), "{said}");
    assert!(said.contains("with net(\"net0\", ..)"), "{said}");
    let said = refused(&|repointed| {
        repointed.disk("data", disk("/other"));
        repointed.net("net0", net("tap=tap1"));
    });
    assert!(said.contains("vsock0: this device was connected to cid=3,uds=/v.sock"), "{said}");
    assert!(said.contains("with vsock(..)"), "{said}");
    let mut all = Repointed::default();
    all.reopen_recorded();
    assert_eq!(all.specs(&devices, 0).unwrap().len(), 4);
    // A vsock device without a socket is everybody's.
    let mut own = devices.clone();
    own.truncate(3);
    own.push(device("vsock0", Link::Socket("cid=3".parse().unwrap())));
    let mut named = Repointed::default();
    named.disk("data", disk("/other"));
    named.net("net0", net("tap=tap1"));
    assert_eq!(named.specs(&own, 0).unwrap().len(), 4);
}

#[test]
fn unknown_ids_and_other_kinds_are_refused_by_name() {
    let devices = devices();
    let refused = |change: &dyn Fn(&mut Repointed)| error_of(&devices, change);
    let all = "the machine has data (disk), net0 (net), rng0 (rng), vsock0 (vsock)";
    let said = refused(&|repointed| repointed.disk("disk0", disk("/other")));
    assert_eq!(said, format!("there is no device `disk0`; {all}"));
    let said = refused(&|repointed| repointed.net("a\n", net("tap=t")));
    assert_eq!(said, format!("there is no device `a\\n`; {all}"));
    let said = refused(&|repointed| repointed.disk_changed_ok("x"));
    assert_eq!(said, format!("there is no device `x`; {all}"));
    let said = refused(&|repointed| repointed.disk("net0", disk("/other")));
    assert_eq!(said, "net0: this device is of the kind net, and not disk; use the id of another one");
    let said = refused(&|repointed| repointed.net("rng0", net("tap=t")));
    assert_eq!(said, "rng0: this device is of the kind rng, and not net; use the id of another one");
    let said = error_of(&devices[..3], |repointed| repointed.socket("cid=3".parse().unwrap()));
    let few = "the machine has data (disk), net0 (net), rng0 (rng)";
    assert_eq!(said, format!("there is no device `vsock0`; {few}"));
    let said = error_of(&[], |repointed| repointed.socket("cid=3".parse().unwrap()));
    assert_eq!(said, "there is no device `vsock0`; the machine has none");
}

#[test]
fn what_the_guest_knows_does_not_change() {
    let mut devices = devices();
    let refused = |devices: &[TemplateDevice], change: &dyn Fn(&mut Repointed)| {
        error_of(devices, |repointed| {
            repointed.reopen_recorded();
            change(repointed);
        })
    };
    let said = refused(&devices, &|repointed| repointed.disk("data", disk("/other,ro")));
    let expected = "data: the guest knows this disk as writable; leave out `ro`, or write `cow` to keep the guest's \
                    writes elsewhere";
    assert_eq!(said, expected);
    devices[0].link = Link::Disk(known(true), disk("/img,ro"));
    let said = refused(&devices, &|repointed| repointed.disk("data", disk("/other")));
    assert_eq!(said, "data: the guest knows this disk as read-only; add `ro`");
    let said = refused(&devices, &|repointed| repointed.net("net0", net("tap=t,mtu=9000")));
    assert!(said.starts_with("net0: the guest knows this device with mtu 1500 (none)"), "{said}");
    let mut same = Repointed::default();
    same.reopen_recorded();
    same.net("net0", net("tap=t,mac=02:00:00:00:00:07"));
    assert!(same.specs(&devices, 0).is_ok());
    devices[1].link =
        Link::Net(KnownNet { mac: "02:00:00:00:00:07".parse().unwrap(), mtu: None }, net("fd=9"));
    let said = refused(&devices, &|_| ());
    assert!(said.starts_with("net0: this device was connected to fd=9, a descriptor of the first"), "{said}");
}

#[test]
fn two_cards_do_not_get_the_same_address() {
    let card = |id: &str, mac: &str| {
        device(id, Link::Net(KnownNet { mac: mac.parse().unwrap(), mtu: None }, net("tap=t")))
    };
    let devices = [card("a", "02:00:00:00:00:07"), card("b", "02:00:00:00:00:08")];
    let said = error_of(&devices, |repointed| {
        repointed.reopen_recorded();
        repointed.net("a", net("tap=u,mac=02:00:00:00:00:08"));
    });
    let expected = "b: a has the address 02:00:00:00:00:08 too; give each its own with mac=, or leave it out";
    assert_eq!(said, expected);
    let mut swapped = Repointed::default();
    swapped.net("a", net("tap=u,mac=02:00:00:00:00:08"));
    swapped.net("b", net("tap=v,mac=02:00:00:00:00:07"));
    assert!(swapped.specs(&devices, 0).is_ok());
    assert!(swapped.has_net(&devices[1].id));
    let [kind, unknown] = [("a", "disk"), ("c", "net")].map(|(id, kind)| check_id(id, kind, &devices));
    assert_eq!(
        kind.unwrap_err().to_string(),
        "a: this device is of the kind net, and not disk; use the id of another one"
    );
    assert_eq!(unknown.unwrap_err().to_string(), "there is no device `c`; the machine has a (net), b (net)");
}

/// The disk of a machine, with its file.
struct File {
    folder: TempDir,
    path: PathBuf,
    device: TemplateDevice,
}

impl File {
    fn new(access: &str) -> File {
        let folder = TempDir::new_in("/var/tmp".as_ref()).unwrap();
        let path = folder.as_path().join("disk.img");
        fs::write(&path, [7; 4096]).unwrap();
        let config = disk(&format!("{}{access}", path.display()));
        let known = known(config.access == crate::config::DiskAccess::ReadOnly);
        let identity = FileIdentity::of(&fs::File::open(&path).unwrap()).unwrap();
        let device = TemplateDevice { identity, ..device("data", Link::Disk(known, config)) };
        File { folder, path, device }
    }

    fn open(&self, change: impl FnOnce(&mut Repointed)) -> Result<(), String> {
        let mut repointed = Repointed::default();
        change(&mut repointed);
        let devices = [self.device.clone()];
        let specs = repointed.specs(&devices, 0).map_err(|error| error.to_string())?;
        let gate = Arc::new(Gate::new());
        specs[0].open(&SpecContext { gate }).map(drop).map_err(|error| error.to_string())
    }

    fn copy(&self) -> PathBuf {
        let copy = self.folder.as_path().join("copy.img");
        fs::copy(&self.path, &copy).unwrap();
        copy
    }
}

fn at(path: &Path, access: &str) -> DiskConfig {
    disk(&format!("path={}{access}", path.display()))
}

#[test]
fn file_that_has_changed_is_refused_until_it_is_allowed() {
    for access in ["", ",ro", ",cow"] {
        let file = File::new(access);
        file.open(Repointed::reopen_recorded).unwrap();
        file.open(|repointed| repointed.disk("data", at(&file.path, access))).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&file.path, [8; 4096]).unwrap();
        let changed =
            format!("data: {} has changed since the machine's state was saved", file.path.display());
        let said = file.open(Repointed::reopen_recorded).unwrap_err();
        assert!(said.starts_with(&changed) && said.contains("(it was written to)"), "{said}");
        assert!(said.ends_with("allow it with disk_changed_ok(\"data\")"), "{said}");
        let said = file.open(|repointed| repointed.disk("data", at(&file.path, access))).unwrap_err();
        assert!(said.starts_with(&changed), "{said}");
        let copy = file.copy();
        file.open(|repointed| repointed.disk("data", at(&copy, access))).unwrap();
        file.open(|repointed| {
            repointed.reopen_recorded();
            repointed.disk_changed_ok("data");
        })
        .unwrap();
        fs::rename(&copy, &file.path).unwrap();
        let said = file.open(Repointed::reopen_recorded).unwrap_err();
        assert!(said.contains("(another file has its path)"), "{said}");
    }
}

#[test]
fn file_of_another_size_or_kind_is_refused() {
    let file = File::new("");
    let copy = file.copy();
    fs::OpenOptions::new().write(true).open(&copy).unwrap().set_len(8192).unwrap();
    for access in ["", ",cow"] {
        let said = file.open(|repointed| repointed.disk("data", at(&copy, access))).unwrap_err();
        let expected = format!(
            "data: {} has 8192 bytes, and the guest knows a disk of 4096; use one of that size",
            copy.display()
        );
        assert_eq!(said, expected);
    }
    for path in ["/dev/null", "/dev", "/no/such/disk"] {
        let said = file.open(|repointed| repointed.disk("data", disk(path))).unwrap_err();
        assert!(said.starts_with(&format!("disks[0].path {path}: ")), "{said}");
    }
    // The first machine still runs.
    let _held = RawDisk::open(&file.path, FileLock::Exclusive).unwrap();
    let said = file.open(Repointed::reopen_recorded).unwrap_err();
    assert!(said.contains("has it open"), "{said}");
}
