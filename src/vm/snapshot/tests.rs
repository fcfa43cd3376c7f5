//! Snapshots of a real machine whose state is changed before it goes on.

use std::path::{Path, PathBuf};

use coracle_arch::x86_64::cpuid::{self, CpuidEntry};
use coracle_devices::state::SavedState;
use coracle_payload::Payload;
use vmm_sys_util::tempdir::TempDir;

use super::restore::Loaded;
use super::sections::{self, RamContent, StateFile};
use super::*;
use crate::kvm::testing::{kvm_or_skip, skip};
use crate::snapshot_files::{Section, Sections, SnapshotId, encode_state};
use crate::vm::Vm;

/// Takes a snapshot of a guest that spins.
fn snapshot() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let kernel = folder.as_path().join("kernel");
    std::fs::write(&kernel, Payload::named("counter").unwrap().elf()).unwrap();
    let vm = Vm::builder().kernel(&kernel).memory_mib(16).cpus(2).start().unwrap();
    let path = folder.as_path().join("snapshot");
    vm.snapshot_to(&path).unwrap();
    (folder, path)
}

fn id() -> SnapshotId {
    SnapshotId::from_bytes([1; 16])
}

/// Encodes and decodes a state, which `change` changes in between.
fn through(loaded: &Loaded, change: impl FnOnce(&mut Vec<Section>)) -> Result<StateFile, String> {
    let Loaded { path: _, manifest: _, state, ram, disks: _ } = loaded;
    let pieces = ram.ram.regions().iter().map(|region| region.pieces.iter().map(|piece| piece.range.clone()));
    let parts = RamContent::Whole(pieces.map(Iterator::collect).collect());
    let mut sections = sections::encode(&state.machine, &parts, &state.subject, &state.devices);
    change(&mut sections);
    let sections = Sections::decode(&encode_state(&id(), &sections), &id()).unwrap();
    StateFile::decode(sections, 2, 16, false).map_err(|error| error.to_string())
}

#[test]
fn features_that_this_host_lacks_are_refused_by_name() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, path) = snapshot();
    let kvm = Kvm::open().unwrap();
    let Loaded { manifest, state, .. } = Loaded::open(&path, None).unwrap();
    let check = |machine: &MachineState| host::check(&path, &manifest.host, machine, &kvm);
    assert!(check(&state.machine).is_ok());
    let everything = [CpuidEntry { function: 7, eax: 1, edx: u32::MAX, ..CpuidEntry::default() }];
    let shown = kvm.shown_cpuid().unwrap();
    let lacking = cpuid::missing_features(&everything, shown);
    let Some(feature) = lacking.iter().find(|feature| !feature.to_string().contains(' ')) else {
        return skip("this host has every feature that has a name");
    };
    let mut newer = state.machine.clone();
    let leaf = newer.vcpus[1].cpuid.iter_mut().find(|leaf| (leaf.function, leaf.index) == (7, 0));
    leaf.unwrap().edx |= 1 << feature.bit;
    let error = check(&newer).unwrap_err().to_string();
    let expected = format!("this host's CPU lacks what the guest was shown: {feature}; restore it on a host");
    assert!(error.contains(&expected) && error.contains(path.to_str().unwrap()), "{error}");
    let mut other = state.machine.clone();
    other.vcpus[0].cpuid.iter_mut().find(|leaf| leaf.function == 0).unwrap().ebx =
        u32::from_le_bytes(*b"Cent");
    let error = check(&other).unwrap_err().to_string();
    assert!(error.contains("the guest was shown a CPU of Cent"), "{error}");
}

#[test]
fn state_of_a_machine_goes_through_its_file_and_nothing_else_does() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, path) = snapshot();
    let loaded = Loaded::open(&path, None).unwrap();
    let same = through(&loaded, |_| ()).unwrap();
    assert_eq!(format!("{:?}", same.machine), format!("{:?}", loaded.state.machine));
    assert_eq!(same.subject.save(), loaded.state.subject.save());
    let names = ["vcpus", "clock", "legacy", "ram", "guest"];
    for (index, name) in names.into_iter().enumerate() {
        let without = through(&loaded, |sections| drop(sections.remove(index)));
        let is_needed = name != "guest";
        assert_eq!(without.is_err(), is_needed, "{name}");
        let expected = format!("the section `{name}` is missing; it is damaged");
        assert!(without.err().is_none_or(|error| error == expected), "{name}");
        let change = |change: fn(u16, Vec<u8>) -> SavedState| {
            through(&loaded, |sections| {
                let content = &sections[index].content;
                sections[index].content = change(content.version(), content.bytes().to_vec());
            })
            .unwrap_err()
        };
        let newer = change(|_, bytes| SavedState::from_parts(2, bytes));
        assert_eq!(
            newer,
            format!("section `{name}`: its state has version 2; this build reads versions from 1 to 1")
        );
        let longer = change(|version, bytes| SavedState::from_parts(version, [&bytes[..], b"!"].concat()));
        assert_eq!(longer, format!("section `{name}`: 1 bytes follow the end of its state"));
        let empty = change(|version, _| SavedState::from_parts(version, Vec::new()));
        assert!(empty.starts_with(&format!("section `{name}`: the 0 bytes of its state")), "{empty}");
    }
}

#[test]
fn values_that_no_machine_has_are_refused_by_section_and_field() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, path) = snapshot();
    let refusal = |change: fn(&mut MachineState)| {
        let mut loaded = Loaded::open(&path, None).unwrap();
        change(&mut loaded.state.machine);
        through(&loaded, |_| ()).unwrap_err()
    };
    assert_eq!(
        refusal(|machine| drop(machine.vcpus.pop())),
        "section `vcpus`: field `vcpus` has 1 entries: the manifest has 2 (machine.vcpus)"
    );
    assert_eq!(
        refusal(|machine| machine.vcpus[1].state.special_registers.cr8 = 16),
        "vCPU 1: cr8: 0x10 is not possible, only 0 to 15; the state is damaged"
    );
    assert_eq!(
        refusal(|machine| machine.vcpus[0].cpuid.resize(257, CpuidEntry::default())),
        "section `vcpus`: field `cpuid` has 257 entries: at most 256"
    );
    let many = refusal(|machine| {
        machine.legacy = vec![(String::new(), SavedState::from_parts(0, Vec::new())); 30_000];
    });
    assert_eq!(many, "section `legacy` has 90003 bytes, and at most 65536 are possible; it is damaged");
    // The devices check theirs.
    let mut loaded = Loaded::open(&path, None).unwrap();
    let machine = &mut loaded.state.machine;
    assert!(check::check_legacy(&path, machine).is_ok());
    machine.legacy.pop();
    let error = check::check_legacy(&path, machine).unwrap_err().to_string();
    let expected =
        format!("snapshot {}: state: section `legacy`: the state of I/O APIC is missing", path.display());
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn machine_that_no_longer_stands_still_does_not_wait_for_its_files() {
    if !kvm_or_skip() {
        return;
    }
    let (folder, _) = snapshot();
    // A snapshot that is being written keeps others away, and the machine's owner may do as he likes.
    let kernel = folder.as_path().join("kernel");
    let vm = Vm::builder().kernel(&kernel).memory_mib(16).start().unwrap();
    let shared = vm.shared.clone();
    let still = vm.shared.with_machine(move |_, machine| save::Still::begin(&shared, machine));
    let still = still.unwrap().unwrap();
    assert!(matches!(vm.freeze(), Err(SnapshotError::InProgress)));
    let path = folder.as_path().join("second");
    assert!(matches!(vm.snapshot_to(&path), Err(SnapshotError::InProgress)));
    assert!(!Path::exists(&path));
    vm.handle().stop();
    assert_eq!(vm.wait().ending, crate::Ending::Stopped, "although the snapshot is not complete");
    drop(vm);
    drop(still);
}
