//! Tests of snapshots that have only what has changed since another one, with bare guests.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::forks::{Counter, Every, Pages, Piped};
use coracle::{SnapshotError, Template, Vm, snapshot};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

fn directory(name: &str) -> PathBuf {
    let path = common::fresh_path(name);
    fs::create_dir(&path).unwrap();
    path
}

fn restore(path: &Path, parents: &Path) -> Pages {
    Pages(Piped::of(Vm::restore(path).parents_in(parents).console_piped().start().unwrap()))
}

fn refusal(path: &Path, parents: &Path) -> String {
    let error = Template::load_over(path, parents).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) || text.contains(parents.to_str().unwrap()), "{text}");
    assert!(!text.contains('\n'), "{text}");
    text
}

/// Returns the KiB that the memory of a snapshot takes.
fn stored_kib(path: &Path) -> u64 {
    fs::metadata(path.join("memory")).unwrap().blocks() / 2
}

/// A base of 16 MiB and one snapshot over it.
fn two(name: &str) -> (PathBuf, Pages) {
    let top = directory(name);
    let mut machine = Pages::start();
    machine.write(8, Every::Page);
    machine.0.vm.snapshot_base(top.join("base")).unwrap();
    machine.write(1, Every::Page);
    machine.0.vm.snapshot_over(top.join("base"), top.join("over")).unwrap();
    (top, machine)
}

#[test]
fn snapshot_over_another_has_what_changed_and_goes_on_like_a_full_one() {
    needs_kvm!();
    let (top, mut machine) = two("increment");
    let path = |name: &str| top.join(name);
    let (base, over) = (stored_kib(&path("base")), stored_kib(&path("over")));
    assert!(base > 8 << 10 && (1 << 10..3 << 10).contains(&over), "{base} KiB and {over} KiB");
    machine.write(4, Every::Second);
    machine.0.vm.snapshot_over(path("over"), path("third")).unwrap();
    let hash = machine.hash(16);
    machine.0.vm.snapshot_to(path("full")).unwrap();
    for name in ["base", "over", "third", "full"] {
        let info = snapshot::check(path(name)).unwrap();
        let parent = match name {
            "over" => Some("base"),
            "third" => Some("over"),
            _ => None,
        };
        assert_eq!(info.parent.map(|parent| parent.name).as_deref(), parent);
    }
    snapshot::merge(path("third"), &top, path("merged")).unwrap();
    assert_eq!(snapshot::check(path("merged")).unwrap().parent, None);
    for name in ["third", "full", "merged"] {
        let mut restored = restore(&path(name), &top);
        assert_eq!(restored.hash(16), hash, "{name}");
        // A restored machine goes on from its snapshot.
        restored.write(2, Every::Page);
        let new = restored.hash(16);
        restored.0.vm.snapshot_over(path(name), path("next")).unwrap();
        assert!(stored_kib(&path("next")) < 4 << 10, "{name}");
        restored.end();
        let mut next = restore(&path("next"), &top);
        assert_eq!(next.hash(16), new, "{name}");
        next.end();
    }
    machine.end();
}

#[test]
fn chain_of_fifty_is_equal_to_a_full_snapshot_with_every_second_page_written() {
    needs_kvm!();
    let top = directory("increment-chain");
    let mut machine = Pages::start();
    machine.write(8, Every::Page);
    let path = |index: usize| top.join(index.to_string());
    machine.0.vm.snapshot_base(path(0)).unwrap();
    for index in 1..50 {
        machine.write(1 + index as u8 % 8, Every::Second);
        machine.0.vm.snapshot_over(path(index - 1), path(index)).unwrap();
    }
    let hash = machine.hash(8);
    machine.end();
    let mut restored = restore(&path(49), &top);
    assert_eq!(restored.hash(8), hash);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let count = maps.lines().filter(|line| line.contains("increment-chain")).count();
    assert!(count < 1000, "{count} mappings");
    restored.end();
    for index in 50..65 {
        let mut restored = restore(&path(index - 1), &top);
        restored.write(1, Every::Page);
        let written = restored.0.vm.snapshot_over(path(index - 1), path(index));
        if index < 64 {
            written.unwrap();
        } else {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("more than 64 snapshots lie over each other; merge them"), "{error}");
        }
        restored.end();
        if index == 64 {
            break;
        }
    }
    snapshot::merge(path(49), &top, top.join("whole")).unwrap();
    let mut merged = restore(&top.join("whole"), &top);
    assert_eq!(merged.hash(8), hash);
    merged.end();
}

#[test]
fn machine_that_does_not_go_on_from_a_snapshot_says_so_and_runs_on() {
    needs_kvm!();
    let (top, mut machine) = two("increment-other");
    let over = |vm: &Vm, parent: &str| {
        let written = vm.snapshot_over(top.join(parent), top.join("refused"));
        assert!(!top.join("refused").exists());
        written.unwrap_err()
    };
    assert!(matches!(over(&machine.0.vm, "base"), SnapshotError::OtherParent { .. }), "no longer");
    let error = over(&machine.0.vm, "nothing").to_string();
    assert!(error.contains("nothing"), "{error}");
    let mut other = Counter::start();
    let error = over(&other.0.vm, "over").to_string();
    assert!(error.contains("nobody knows what has changed since this snapshot"), "{error}");
    // A snapshot never replaces one that it needs.
    for name in ["base", "over"] {
        let error = machine.0.vm.snapshot_over(top.join("over"), top.join(name)).unwrap_err().to_string();
        assert!(error.contains("the snapshot there has memory that the new one needs"), "{error}");
        let error = snapshot::merge(top.join("over"), &top, top.join(name)).unwrap_err().to_string();
        assert!(error.contains("the snapshot there has memory that the new one needs"), "{error}");
    }
    // It still knows what has changed.
    machine.0.vm.snapshot_over(top.join("over"), top.join("third")).unwrap();
    let hash = machine.hash(8);
    let mut restored = restore(&top.join("third"), &top);
    assert_eq!(restored.hash(8), hash);
    // And so do a child and the forks of a template.
    let child = machine.0.vm.branch(|fork| fork).unwrap();
    child.snapshot_over(top.join("third"), top.join("of-child")).unwrap();
    let forks = Template::load_over(top.join("third"), &top).unwrap().fork(2, |_, fork| fork).unwrap();
    forks[1].snapshot_over(top.join("third"), top.join("of-fork")).unwrap();
    for name in ["of-child", "of-fork"] {
        let mut restored = restore(&top.join(name), &top);
        assert_eq!(restored.hash(8), hash);
        restored.end();
    }
    restored.end();
    other.count();
    other.end();
    machine.end();
}

#[test]
fn parent_that_is_missing_replaced_or_changed_is_refused_by_name() {
    needs_kvm!();
    let (top, machine) = two("increment-parents");
    machine.end();
    let (base, over) = (top.join("base"), top.join("over"));
    let error = Template::load(&over).unwrap_err().to_string();
    assert!(error.contains("it has only what has changed since the snapshot base ("), "{error}");
    assert!(error.contains("name the directory that has the folder base"), "{error}");
    let elsewhere = directory("increment-elsewhere");
    let error = refusal(&over, &elsewhere);
    assert!(error.contains("its parent, the snapshot ") && error.contains("No such file"), "{error}");
    // Under another name, as a link, or as something else.
    fs::rename(&base, top.join("moved")).unwrap();
    assert!(refusal(&over, &top).contains("No such file"));
    symlink(top.join("moved"), &base).unwrap();
    assert!(refusal(&over, &top).contains("which cannot be opened"));
    fs::remove_file(&base).unwrap();
    fs::write(&base, "x").unwrap();
    assert!(refusal(&over, &top).contains("which cannot be opened"));
    fs::remove_file(&base).unwrap();
    // Another snapshot of this name.
    let other = Counter::start();
    other.0.vm.snapshot_to(&base).unwrap();
    let id = snapshot::info(&base).unwrap().id;
    assert!(refusal(&over, &top).contains(&format!("there is the snapshot {id}")));
    other.end();
    fs::rename(&base, elsewhere.join("base")).unwrap();
    fs::rename(top.join("moved"), &base).unwrap();
    Template::load_over(&over, &top).unwrap();
    // The same one, edited: its manifest has another hash.
    edit_manifest(&base, "\"created\": 1", "\"created\": 2");
    assert!(refusal(&over, &top).contains("one of this id that was edited"));
    edit_manifest(&base, "\"created\": 2", "\"created\": 1");
    Template::load_over(&over, &top).unwrap();
    let memory = fs::OpenOptions::new().write(true).open(base.join("memory")).unwrap();
    memory.set_len(1 << 20).unwrap();
    assert!(refusal(&over, &top).contains("memory: it has 1048576 bytes"));
}

/// Replaces a text in a manifest, with a checksum that matches.
fn edit_manifest(folder: &Path, from: &str, to: &str) {
    use sha2::{Digest, Sha256};
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    let end = text.rfind(",\n  \"sha256\"").unwrap();
    let content = text[..end].replace(from, to);
    let digest: String =
        Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(&path, format!("{content},\n  \"sha256\": \"{digest}\"\n}}\n")).unwrap();
}

#[test]
fn manifests_of_layers_that_lie_open_nothing_else() {
    needs_kvm!();
    let (top, machine) = two("increment-lies");
    machine.end();
    let over = top.join("over");
    for name in ["..", ".", "../increment-lies/base", "/etc", "a/b", "a\\u0000b", ""] {
        edit_manifest(&over, "\"name\": \"base\"", &format!("\"name\": \"{name}\""));
        let error = refusal(&over, &top);
        assert!(error.contains("parent.name: `") && error.contains("is not the name of a folder"), "{error}");
        edit_manifest(&over, &format!("\"name\": \"{name}\""), "\"name\": \"base\"");
    }
    // Over itself.
    edit_manifest(&over, "\"name\": \"base\"", "\"name\": \"over\"");
    assert!(refusal(&over, &top).contains("its parent is the snapshot"));
    edit_manifest(&over, "\"name\": \"over\"", "\"name\": \"base\"");
    // A base that says that it lies over something, and a layer that says that it does not.
    let text = fs::read_to_string(over.join("manifest.json")).unwrap();
    let start = text.find("  \"parent\": {").unwrap();
    let parent = text[start..=start + text[start..].find("},\n").unwrap() + 2].to_owned();
    edit_manifest(&over, &parent, "");
    let error = refusal(&over, &top);
    assert!(error.contains("the section `ram` is missing"), "{error}");
    edit_manifest(&top.join("base"), "  \"state\": {", &format!("{parent}  \"state\": {{"));
    let error = refusal(&top.join("base"), &top);
    assert!(error.contains("the section `ram-changes` is missing"), "{error}");
}
