//! Tests of `coracle run --snapshot-on-signal`, `coracle restore` and `coracle snapshot`, with bare guests.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{
    collect, coracle, eventually, file, finish, finish_with_input, fresh_path, kvm_or_skip, run_payload,
    signal, wait,
};
use serde_json::Value;

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

/// A command whose guest tells its count for each `?`, and ends with 0 on a `q`.
struct Counter {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Counter {
    fn start(command: &mut Command) -> Counter {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Counter { child, input, output: BufReader::new(output) }
    }

    /// Starts a guest that writes a snapshot to `folder` at each SIGUSR1.
    fn saved_to(folder: &Path) -> Counter {
        Counter::start(run_payload("counter").arg("--snapshot-on-signal").arg(folder))
    }

    fn count(&mut self) -> u32 {
        self.input.write_all(b"?").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        u32::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// Asks for a snapshot, and waits until it is at `folder`.
    fn save(&mut self, folder: &Path) {
        let before = id(folder);
        signal(&self.child, libc::SIGUSR1);
        eventually("the snapshot is there", || id(folder).is_some_and(|id| before.as_ref() != Some(&id)));
    }

    /// Ends the guest, and returns the exit code and what the command printed on stderr.
    fn end(mut self) -> (i32, String) {
        self.input.write_all(b"q").unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (wait(&mut self.child).code().unwrap(), stderr)
    }
}

fn restore(folder: &Path) -> Command {
    let mut command = coracle();
    command.arg("restore").arg(folder);
    command
}

/// Returns the identity of the snapshot, if there is one.
fn id(folder: &Path) -> Option<String> {
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok()?;
    Some(manifest["id"].as_str()?.to_owned())
}

/// Returns a snapshot of a counter, and a count that it had before.
fn snapshot(name: &str) -> (PathBuf, u32) {
    let folder = fresh_path(name);
    let mut counter = Counter::saved_to(&folder);
    let before = counter.count();
    counter.save(&folder);
    assert_eq!(counter.end().0, 0);
    (folder, before)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn signal_takes_a_snapshot_from_which_machines_go_on() {
    needs_kvm!();
    let folder = fresh_path("on-signal");
    let mut counter = Counter::saved_to(&folder);
    let before = counter.count();
    counter.save(&folder);
    let first = id(&folder);
    let ahead = (0..100).map(|_| counter.count()).last().unwrap();
    let outcome = fresh_path("restored.json");
    let mut restored = Counter::start(restore(&folder).arg("--outcome").arg(&outcome));
    let early = restored.count();
    assert!(early > before && early < ahead, "{before} < {early} < {ahead}");
    assert_eq!(restored.end().0, 0);
    let report = json(&outcome);
    assert_eq!(report["phase"], "restored");
    assert_eq!(report["restored_from"]["id"], Value::from(first.clone().unwrap()));
    assert_eq!(report["restored_from"]["path"], Value::from(folder.to_str().unwrap()));
    assert_eq!(report["fork"], Value::Null);
    // A second signal replaces the first snapshot.
    counter.save(&folder);
    assert_ne!(id(&folder), first);
    let mut late = Counter::start(&mut restore(&folder));
    assert!(late.count() > ahead);
    assert_eq!(late.end().0, 0);
    let (code, stderr) = counter.end();
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stderr.matches(": complete after ").count(), 2, "{stderr}");
}

#[test]
fn forks_go_on_each_by_itself_and_tell_their_index() {
    needs_kvm!();
    let folder = fresh_path("forked");
    // It prints for as long as it runs.
    let mut source = Counter::start(run_payload("fork-print").arg("--snapshot-on-signal").arg(&folder));
    source.output.read_until(b'\n', &mut Vec::new()).unwrap();
    source.save(&folder);
    source.child.kill().unwrap();
    source.child.wait().unwrap();
    let outcome = fresh_path("forks.json");
    let forks =
        finish(restore(&folder).args(["--fork", "3", "--timeout", "200ms", "--outcome"]).arg(&outcome));
    forks.expect(124, "fork 2: timed out after 0.2 s");
    let text = forks.text();
    assert!(
        text.lines().all(|line| ["0: ", "1: ", "2: "].iter().any(|start| line.starts_with(start))),
        "{text}"
    );
    let report = json(&outcome);
    let of_all =
        |field: &str| report.as_array().unwrap().iter().map(|fork| fork[field].clone()).collect::<Vec<_>>();
    assert_eq!(of_all("fork"), [0, 1, 2]);
    assert_eq!(of_all("phase"), ["restored"; 3]);
    assert!(of_all("restored_from").iter().all(|from| from["id"] == id(&folder).unwrap().as_str()));
}

#[test]
fn signal_ends_all_forks() {
    needs_kvm!();
    let (folder, _) = snapshot("signalled");
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let mut forks = Counter::start(restore(&folder).args(["--fork", "2"]));
        let threads = format!("/proc/{}/task", forks.child.id());
        eventually("both machines run", || fs::read_dir(&threads).is_ok_and(|tasks| tasks.count() >= 6));
        signal(&forks.child, number);
        if number != libc::SIGQUIT {
            // The guest does not look at its power button. Two at once count as one.
            thread::sleep(Duration::from_millis(150));
            signal(&forks.child, number);
        }
        assert_eq!(wait(&mut forks.child).code(), Some(128 + number));
    }
}

#[test]
fn forks_whose_output_nobody_reads_end_by_a_signal() {
    needs_kvm!();
    let folder = fresh_path("unread");
    // It prints for ever.
    let mut source = Counter::start(run_payload("flood").arg("--snapshot-on-signal").arg(&folder));
    source.output.read_exact(&mut [0]).unwrap();
    source.save(&folder);
    source.child.kill().unwrap();
    source.child.wait().unwrap();
    let mut forks = Counter::start(restore(&folder).args(["--fork", "2"]));
    forks.output.read_exact(&mut [0]).unwrap();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        signal(&forks.child, libc::SIGTERM);
        thread::sleep(Duration::from_millis(150));
    }
    let mut stderr = String::new();
    forks.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(wait(&mut forks.child).code(), Some(128 + libc::SIGTERM), "{stderr}");
    assert!(stderr.contains("fork 1: stopped by signal 15"), "{stderr}");
}

#[test]
fn snapshot_is_completed_when_the_guest_ends_meanwhile() {
    needs_kvm!();
    let folder = fresh_path("ends");
    let mut saved = 0;
    for pause in 0..10 {
        let mut counter = Counter::saved_to(&folder);
        counter.count();
        signal(&counter.child, libc::SIGUSR1);
        thread::sleep(Duration::from_millis(pause));
        let (code, stderr) = counter.end();
        // The guest may have ended before its snapshot began, or before the signal was read.
        let has_failed = stderr.contains("the machine has ended");
        assert_eq!(code, if has_failed { 125 } else { 0 }, "{stderr}");
        saved += usize::from(stderr.contains(": complete after "));
        assert!(saved == 0 || id(&folder).is_some(), "{stderr}");
    }
    assert!(saved > 0);
    snapshot_is_whole(&folder);
}

fn snapshot_is_whole(folder: &Path) {
    finish(coracle().args(["snapshot", "check"]).arg(folder)).expect(0, "");
}

#[test]
fn path_that_is_not_free_is_refused_before_the_guest_runs() {
    needs_kvm!();
    let taken = file("taken", b"mine");
    let run = finish_with_input(run_payload("counter").arg("--snapshot-on-signal").arg(&taken), b"q");
    run.expect(125, "--snapshot-on-signal: ");
    assert!(run.stderr.contains(taken.to_str().unwrap()), "{run:?}");
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    let missing = fresh_path("no-such-folder").join("snapshot");
    let run = finish_with_input(run_payload("counter").arg("--snapshot-on-signal").arg(&missing), b"q");
    run.expect(125, "No such file or directory");
}

#[test]
fn snapshot_that_fails_is_told_and_the_guest_runs_on() {
    needs_kvm!();
    let folder = fresh_path("fails").join("snapshot");
    let around = folder.parent().unwrap();
    fs::create_dir(around).unwrap();
    let mut counter = Counter::saved_to(&folder);
    let before = counter.count();
    fs::remove_dir_all(around).unwrap();
    signal(&counter.child, libc::SIGUSR1);
    let mut said = BufReader::new(counter.child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("snapshot") && line.contains("No such file or directory"), "{line}");
    assert!(counter.count() > before);
    counter.input.write_all(b"q").unwrap();
    assert_eq!(wait(&mut counter.child).code(), Some(125), "the last snapshot was not written");
}

#[test]
fn snapshot_that_cannot_be_restored_says_why() {
    needs_kvm!();
    let (folder, _) = snapshot("damaged");
    let outcome = fresh_path("not-run.json");
    let missing = fresh_path("missing");
    finish(restore(&missing).arg("--outcome").arg(&outcome)).expect(125, "No such file or directory");
    assert_eq!(json(&outcome)["ending"], "not-run");
    finish(restore(&missing).args(["--fork", "2"])).expect(125, "No such file or directory");
    finish(restore(&folder).args(["--memory", "1G"]))
        .expect(125, "the snapshot has fixed --memory: leave it out");
    finish(restore(&folder).args(["--fork", "0"])).expect(125, "--fork");
    finish(restore(&folder).args(["--fork", "2", "--serial", "null"])).expect(125, "cannot be used with");
    let few = finish(
        Command::new("sh")
            .args(["-c", "ulimit -n 40; exec \"$@\"", "sh"])
            .arg(coracle().get_program())
            .args(["restore", "--fork", "50"])
            .arg(&folder),
    );
    few.expect(125, "Too many open files");
    let mut state = fs::read(folder.join("state")).unwrap();
    state[60] ^= 1;
    fs::set_permissions(folder.join("state"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.join("state"), state).unwrap();
    for command in [&mut restore(&folder), coracle().args(["snapshot", "check"]).arg(&folder)] {
        finish(command).expect(125, "state");
    }
}

#[test]
fn facts_about_a_snapshot_are_json() {
    needs_kvm!();
    let (folder, _) = snapshot("facts");
    let shown = finish(coracle().args(["snapshot", "info"]).arg(&folder));
    let facts: Value = serde_json::from_slice(&shown.expect(0, "").stdout).unwrap();
    assert_eq!(
        (&facts["machine"]["memory_mib"], &facts["machine"]["vcpus"]),
        (&Value::from(256), &Value::from(1))
    );
    let checked = finish(coracle().args(["snapshot", "check"]).arg(&folder));
    assert!(checked.expect(0, "").text().starts_with("ok: snapshot "), "{checked:?}");
}

#[test]
fn limits_count_from_the_restore() {
    needs_kvm!();
    let (folder, _) = snapshot("limits");
    let run =
        restore(&folder).args(["--timeout", "300ms"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    collect(run.unwrap()).expect(124, "timed out after 0.3 s");
}
