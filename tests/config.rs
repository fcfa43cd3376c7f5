//! Tests of `coracle run --config` and `coracle config`: the file, its errors, and flags that override it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Finished, coracle, file, finish, kvm_or_skip, payload, scratch};
use coracle_payload::Payload;
use serde_json::Value;

/// The example that users are shown.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/examples/vm.json");

/// Creates a directory with the example, a payload in place of its kernel, and an initrd.
fn example_with_files(name: &str) -> PathBuf {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(EXAMPLE, folder.join("vm.json")).unwrap();
    fs::write(folder.join("vmlinux"), Payload::named("hello").unwrap().elf()).unwrap();
    fs::write(folder.join("initrd.cpio"), b"an initrd that nobody unpacks").unwrap();
    folder
}

fn run(config: &Path, args: &[&str]) -> Finished {
    finish(coracle().args(["run", "--accel", "kvm", "--config"]).arg(config).args(args))
}

fn check(config: &Path) -> Finished {
    finish(coracle().args(["config", "check"]).arg(config))
}

#[track_caller]
fn refused(run: &Finished, words: &[&str]) {
    assert_eq!(run.code(), 125, "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    for words in words {
        assert!(run.stderr.contains(words), "{words:?} is not in {:?}", run.stderr);
    }
}

#[test]
fn example_is_right_and_runs_with_its_paths_taken_from_its_folder() {
    let folder = example_with_files("example");
    let config = folder.join("vm.json");
    let checked = check(&config);
    assert_eq!((checked.code(), checked.text().as_str()), (0, "ok\n"), "{checked:?}");
    if !kvm_or_skip() {
        return;
    }
    run(&config, &[]).expect(0, "powered off");
    assert!(!fs::read(folder.join("console.log")).unwrap().is_empty());
    let outcome: Value = serde_json::from_slice(&fs::read(folder.join("outcome.json")).unwrap()).unwrap();
    assert_eq!(outcome["code"], 0, "{outcome}");
}

#[test]
fn flags_override_the_file() {
    let config = example_with_files("flags").join("vm.json");
    // If the file's kernel and memory were used, the error would be another.
    refused(&run(&config, &["/no/such/kernel"]), &["/no/such/kernel"]);
    if !kvm_or_skip() {
        return;
    }
    let told = run(&config, &["--serial", "stdio", "--memory", "16M", payload("hello").to_str().unwrap()]);
    told.expect(0, "powered off");
    assert!(!told.stdout.is_empty(), "{told:?}");
}

#[test]
fn error_names_file_line_and_field() {
    let config = file("bad.json", b"{\n  \"kernel\": \"vmlinux\",\n  \"cpus\": 65\n}\n");
    let place = format!("{}:3: cpus: 65 vCPUs are not possible", config.display());
    refused(&run(&config, &[]), &[&place]);
    refused(&check(&config), &[&place]);
    let config = file("unknown.json", b"{\n  \"memroy\": \"1G\"\n}\n");
    refused(&run(&config, &[]), &[&format!("{}:2: memroy: there is no such field", config.display())]);
    refused(&run(Path::new("/no/such/vm.json"), &[]), &["/no/such/vm.json", "No such file"]);
}

#[test]
fn disk_of_an_object_is_that_of_its_text() {
    let missing = |disk: &str| format!("{{\"disks\": [{disk}]}}");
    for (disk, words) in [
        (r#"{ "path": "no-such.img", "readonly": true }"#, "no-such.img: "),
        (r#""path=no-such.img,ro""#, "no-such.img: "),
        (
            r#"{ "path": "a.img", "redonly": true }"#,
            ":1: disks[0].redonly: there is no such field; did you mean `readonly`?",
        ),
        (r#""a.img,redonly""#, ":1: disks[0]: `redonly` does not go with a disk"),
    ] {
        let config = file("objects.json", missing(disk).as_bytes());
        let kernel = payload("poweroff");
        if kvm_or_skip() {
            refused(&run(&config, &[kernel.to_str().unwrap()]), &[words]);
        }
    }
    let config = file("objects.json", missing(r#"{ "path": "a.img", "queues": "2" }"#).as_bytes());
    refused(&check(&config), &["disks[0].queues: invalid type: string"]);
    let config = file("near.json", b"{\n  \"memroy\": \"1G\"\n}\n");
    refused(&check(&config), &["near.json:2: memroy: there is no such field; did you mean `memory`?"]);
}

#[test]
fn check_opens_what_the_file_names() {
    let config = file("missing.json", b"{\"kernel\": \"no-such-kernel\"}");
    refused(&check(&config), &["missing.json", "no-such-kernel"]);
    // The rest may come from flags.
    for fields in [r#"{"cpus": 2}"#, r#"{"cpu_affinity": "3=1"}"#] {
        check(&file("partial.json", fields.as_bytes())).expect(0, "");
    }
}

/// A file that no host can run is refused by the check, with or without a kernel, and by the run, with the
/// same reason.
#[test]
fn check_refuses_what_no_host_can_run() {
    let disks: Vec<String> = (0..40).map(|index| format!("\"{index}.img\"")).collect();
    let disks = format!(r#""disks": [{}]"#, disks.join(","));
    for (fields, reason) in [
        (r#""append": ["a\u0000b"]"#, "NUL"),
        (r#""append": ["a\nb"]"#, "newline"),
        (r#""cmdline": "a\nb""#, "newline"),
        (disks.as_str(), "a machine has interrupts for 17 virtio devices"),
        (r#""disks": ["a,id=x", "b,id=x"]"#, "it has the id x, which another device"),
        (r#""disks": ["a,id=A"]"#, "is not an id"),
        (r#""disks": ["a,serial=x", "b,serial=x"]"#, "two disks have the serial number x"),
        (r#""nets": ["tap=a", "tap=a"]"#, "two network cards have the end tap=a"),
        (r#""disks": ["a\u0000"]"#, ":1: disks: the path `a\\u{0}` contains a NUL character"),
        (r#""initrds": ["a\u0000"]"#, ":1: initrds: the path `a\\u{0}` contains a NUL character"),
        (r#""serial": {"socket": "a\u0000"}"#, ":1: serial: the path `a\\u{0}` contains a NUL character"),
        (r#""cpu_affinity": "99=1""#, "there is no vCPU 99"),
        (r#""cpus": 2, "cpu_affinity": "3=1""#, "there is no vCPU 3"),
        (r#""nets": ["none", {"tap": "a"}]"#, "`none` cannot be combined with a network card"),
    ] {
        let kernel = payload("poweroff");
        let whole = format!("{{{fields}, \"kernel\": {kernel:?}}}");
        for json in [format!("{{{fields}}}"), whole.clone()] {
            let config = file("no-host.json", json.as_bytes());
            let checked = check(&config);
            refused(&checked, &["no-host.json:", reason]);
            assert!(!checked.stderr.contains(" -"), "a file has fields, not flags: {}", checked.stderr);
        }
        refused(&run(&file("no-host.json", whole.as_bytes()), &[]), &[reason]);
    }
}

#[test]
fn failure_before_the_run_is_in_the_outcome_file_that_the_config_names() {
    let config =
        file("outcome-of-failure.json", b"{\"kernel\": \"/no/such/kernel\", \"outcome\": \"why.json\"}");
    refused(&run(&config, &[]), &["/no/such/kernel"]);
    let outcome = fs::read(config.with_file_name("why.json")).unwrap();
    let outcome: Value = serde_json::from_slice(&outcome).unwrap();
    assert_eq!(outcome["code"], 125, "{outcome}");
}

#[test]
fn schema_is_json_and_knows_the_fields_of_the_example() {
    let schema = finish(coracle().args(["config", "schema"]));
    assert_eq!(schema.code(), 0, "{schema:?}");
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let example: Value = serde_json::from_slice(&fs::read(EXAMPLE).unwrap()).unwrap();
    for field in example.as_object().unwrap().keys() {
        assert!(schema["properties"].get(field).is_some(), "{field}");
    }
}
