//! Tests of the options of `coracle restore` for devices, and of `coracle snapshot merge`, with bare guests.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    Finished, collect, coracle, eventually, finish, finish_with_input, fresh_path, kvm_or_skip, run_payload,
    signal, wait,
};

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

/// A disk of 64 sectors with this letter.
fn disk(path: PathBuf, letter: u8) -> PathBuf {
    fs::write(&path, [letter; 64 * 512]).unwrap();
    path
}

/// Returns the snapshot of a guest that tells a letter of its disk `data` for a `?`, keeps any other letter
/// there, and ends on a `q`; and the disk.
fn snapshot(name: &str) -> (PathBuf, PathBuf) {
    let (folder, image) = (fresh_path(name), disk(fresh_path(&format!("{name}.img")), b'a'));
    let mut command = run_payload("disk-cell");
    command.args(["--memory", "32M", "--disk"]).arg(format!("path={},id=data", image.display()));
    command.arg("--snapshot-on-signal").arg(&folder);
    let mut guest =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The driver is ready once the guest answers.
    let (mut input, mut output) = (guest.stdin.take().unwrap(), guest.stdout.take().unwrap());
    input.write_all(b"?").unwrap();
    output.read_exact(&mut [0; 2]).unwrap();
    signal(&guest, libc::SIGUSR1);
    eventually("the snapshot is there", || folder.join("manifest.json").exists());
    input.write_all(b"q").unwrap();
    assert_eq!(wait(&mut guest).code(), Some(0));
    (folder, image)
}

fn restore(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = coracle();
    command.arg("restore").arg(folder).args(["--timeout", "20s"]).args(arguments);
    command
}

fn answer(folder: &Path, arguments: &[&str]) -> Finished {
    finish_with_input(&mut restore(folder, arguments), b"?xq")
}

#[test]
fn disk_is_named_again_or_taken_as_recorded() {
    needs_kvm!();
    let (folder, image) = snapshot("named");
    let named = |path: &Path| path.display().to_string();
    let refused = answer(&folder, &[]);
    refused.expect(125, "connect it with --disk path=PATH,id=data, or take the recorded end with --reopen");
    assert!(refused.stderr.contains(&named(&image)) && !refused.stderr.contains("(\"data\""), "{refused:?}");
    // By its id, or because it is the only one.
    for option in ["", ",id=data"] {
        let copy = disk(fresh_path("copy.img"), b'b');
        let run = answer(&folder, &["--disk", &(named(&copy) + option)]);
        run.expect(0, "");
        assert_eq!(run.text(), "bb");
        assert_eq!(fs::read(&copy).unwrap()[7 * 512], b'x');
    }
    let run = answer(&folder, &["--reopen"]);
    run.expect(0, &format!("--reopen: data is connected to path={}", image.display()));
    assert_eq!(run.text(), "aa");
    // It has changed by that.
    let changed = answer(&folder, &["--reopen"]);
    changed.expect(125, "name a copy from that time with --disk, or allow it with --disk-changed-ok data");
    let run = answer(&folder, &["--reopen", "--disk-changed-ok", "data"]);
    run.expect(0, "");
    assert_eq!(run.text(), "ax");
    for (arguments, why) in [
        (["--disk", "/no/such,id=data"], "/no/such"),
        (["--disk", "/no/such,id=root"], "there is no device `root`; the machine has data (disk)"),
        (["--net", "tap=no-such"], "--net tap=no-such: the snapshot's machine has no device of this kind"),
        (["--vsock", "uds=/tmp/v"], "there is no device `vsock0`"),
        (["--disk-changed-ok", "root"], "there is no device `root`"),
        (["--disk", "path=,id=data"], "--disk"),
        (["--hostname", "x"], "--hostname: the snapshot's machine has no agent"),
        (["--ip", "10.0.0.2/24"], "--ip: the snapshot's machine has no network card"),
        (["--snapshot-on-ready", "/tmp/x"], "--snapshot-on-ready: the snapshot's machine has no command"),
        (["--", "true"], "-- COMMAND: the snapshot's machine has no agent"),
    ] {
        answer(&folder, &arguments).expect(125, why);
    }
}

#[test]
fn forks_have_disks_of_their_own_by_their_index() {
    needs_kvm!();
    let (folder, image) = snapshot("indexed");
    let copies = fresh_path("copies");
    fs::create_dir(&copies).unwrap();
    let each = [b'0', b'1'].map(|digit| disk(copies.join(format!("{}.img", digit as char)), digit));
    let all = copies.join("{i}.img").display().to_string();
    // The guests wait for a letter that never comes.
    let fork =
        |disk: &str, time| finish(&mut restore(&folder, &["--fork", "2", "--disk", disk, "--timeout", time]));
    fork(&all, "200ms").expect(124, "fork 1: timed out");
    assert!(each.iter().all(|path| path.exists()));
    fork(&format!("{},cow", image.display()), "200ms").expect(124, "fork 1: timed out");
    let shared = fork(&image.display().to_string(), "5s");
    shared.expect(
        125,
        "the forks would write to one file; put {i}, the index of the fork, into its name, or add cow",
    );
    fs::remove_file(&each[1]).unwrap();
    fork(&all, "5s").expect(125, "copies/1.img");
    let (taps, why) = (["--fork", "2", "--net", "tap=t"], "each fork needs an end of its own");
    finish(&mut restore(&folder, &taps)).expect(125, why);
    let (sockets, why) = (["--fork", "2", "--vsock", "uds=/tmp/v"], "each fork needs a socket of its own");
    finish(&mut restore(&folder, &sockets)).expect(125, why);
}

#[test]
fn restored_machine_is_saved_again_by_a_signal() {
    needs_kvm!();
    let (folder, image) = snapshot("once");
    let again = fresh_path("again");
    let option = ["--snapshot-on-signal", again.to_str().unwrap(), "--reopen"];
    let mut command = restore(&folder, &option);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut machine = command.spawn().unwrap();
    let (mut input, mut output) = (machine.stdin.take().unwrap(), machine.stdout.take().unwrap());
    input.write_all(b"x?").unwrap();
    output.read_exact(&mut [0; 2]).unwrap();
    signal(&machine, libc::SIGUSR1);
    eventually("the snapshot is there", || again.join("manifest.json").exists());
    input.write_all(b"q").unwrap();
    collect(machine).expect(0, "complete after");
    let run = answer(&again, &["--disk", image.to_str().unwrap()]);
    run.expect(0, "");
    assert_eq!(run.text(), "ax");
    let refused = finish(&mut restore(&folder, &["--snapshot-on-signal", "/no/such/folder", "--reopen"]));
    refused.expect(125, "--snapshot-on-signal: ");
    finish(&mut restore(&folder, &["--snapshot-on-signal", "x", "--fork", "2"]))
        .expect(125, "cannot be used with");
}

#[test]
fn merged_snapshot_is_one_that_goes_on_alone() {
    needs_kvm!();
    let around = fresh_path("chain");
    fs::create_dir(&around).unwrap();
    let (first, second) = (around.join("0"), around.join("1"));
    let mut guest = common::forks::Piped::start(common::forks::builder("counter"));
    guest.send(b"?");
    guest.vm.snapshot_base(&first).unwrap();
    guest.send(b"?");
    guest.vm.snapshot_over(&first, &second).unwrap();
    guest.send(b"q");
    guest.exits(0);
    let merged = fresh_path("merged");
    let merge = |from: &Path| {
        let mut command = coracle();
        command.args(["snapshot", "merge"]).arg(from).arg(&merged).arg("--parents").arg(&around);
        finish(&mut command)
    };
    let written = merge(&second);
    assert!(written.expect(0, "").text().starts_with("ok: snapshot "), "{written:?}");
    finish_with_input(&mut restore(&merged, &[]), b"q").expect(0, "");
    finish_with_input(&mut restore(&second, &[]), b"q").expect(125, "with --parents, or merge the two with");
    let parents = around.to_str().unwrap();
    finish_with_input(&mut restore(&second, &["--parents", parents]), b"q").expect(0, "");
    merge(&around.join("2")).expect(125, "give the path of a snapshot that exists");
    // The second one is needed by nobody, and so is the merged one.
    merge(&second).expect(0, "");
}

#[test]
fn time_of_the_guest_stands_or_passes() {
    needs_kvm!();
    let (folder, _) = snapshot("time");
    for time in ["stands", "elapsed"] {
        let copy = disk(fresh_path("time.img"), b'c');
        let run = answer(&folder, &["--time", time, "--disk", copy.to_str().unwrap()]);
        run.expect(0, "");
        assert_eq!(run.text(), "cc");
    }
    answer(&folder, &["--time", "never"]).expect(125, "stands, elapsed");
    let child = restore(&folder, &["--accel", "kvm", "--reopen", "--timeout", "200ms"]);
    let mut child = child;
    let child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1));
    collect(child).expect(124, "timed out");
}
