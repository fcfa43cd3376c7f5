//! Tests of the files that `coracle test` writes: their content, and what happens to one if the other cannot
//! be written.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{coracle, file, finish, kvm_or_skip, payload, scratch};
use serde_json::Value;

fn test(name: &str) -> Command {
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "--memory", "16M", "--timeout", "20s"]).arg(payload(name));
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn report_for_a_fifo_that_nobody_reads_is_an_error_in_the_end() {
    if !kvm_or_skip() {
        return;
    }
    let fifo = scratch().join("unread.xml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let run = finish(test("hello").arg("--expect").arg("hello").arg("--junit").arg(&fifo));
    run.expect(125, "start its reader first, or name a regular file");
    // On the emulated host it would be another FIFO, while its reader is here.
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read_to_string(fifo).unwrap()
    });
    let mut command = coracle();
    command.env_remove(coracle_agent::protocol::emulated_host::environment::MARK).args([
        "run",
        "--accel",
        "emulate",
        "--outcome",
    ]);
    command.arg(&fifo).arg(payload("hello"));
    finish(&mut command).expect(125, "an emulated host cannot reach this host's FIFOs");
    assert!(reader.join().unwrap().contains("not-run"));
}

#[test]
fn reports_say_what_the_exit_code_says() {
    if !kvm_or_skip() {
        return;
    }
    let (junit, report) = (scratch().join("one.xml"), scratch().join("one.json"));
    let logs = scratch().join("logs");
    let mut command = test("hello");
    command.args(["--expect", "never", "--junit"]).arg(&junit).arg("--json").arg(&report);
    finish(command.arg("--artifacts").arg(&logs)).expect(120, "");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(r#"tests="1" failures="1" errors="0" skipped="0""#), "{xml}");
    let case = &json(&report)["cases"][0];
    assert_eq!((&case["verdict"], &case["code"]), (&"failed".into(), &120.into()), "{case}");
    assert_eq!(case["outcome"]["ending"], "powered-off", "{case}");
    let log = fs::read_dir(&logs).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(log).unwrap().trim(), "hello");

    let mut command = test("spin");
    command.args(["--timeout", "200ms", "--junit"]).arg(&junit);
    finish(&mut command).expect(124, "timed out");
    let xml = fs::read_to_string(&junit).unwrap();
    let (_, error) = xml.split_once("<error message=\"timed out after 0.2 s\" type=\"timed-out\">").unwrap();
    assert!(error.contains("it reached at least its entry") && error.contains("vCPU 0 was at"), "{xml}");
}

/// A test of a guest that prints `hello`, with a directory whose file system has room for names of new files,
/// but not for content.
fn with_full_folder(full: &Path) -> Option<Command> {
    let probe = finish(Command::new("unshare").args(["-m", "sh", "-c", "mount -t tmpfs none /mnt"]));
    if probe.status.code() != Some(0) {
        common::skip("no file system can be mounted");
        return None;
    }
    fs::create_dir_all(full).unwrap();
    let script =
        "mount -t tmpfs -o size=16k none \"$0\" && ! cat /dev/zero > \"$0/fill\" 2> /dev/null && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(full).arg(coracle().get_program());
    command.args(["test", "--accel", "kvm", "--memory", "16M", "--timeout", "120s"]).arg(payload("hello"));
    Some(command)
}

#[test]
fn report_that_cannot_be_written_leaves_the_other_with_the_results() {
    if !kvm_or_skip() {
        return;
    }
    let full = scratch().join("full");
    for (there, missing) in [("--junit", "--json"), ("--json", "--junit")] {
        let report = scratch().join("there");
        let Some(mut command) = with_full_folder(&full) else { return };
        command.arg(there).arg(&report).arg(missing).arg(full.join("report"));
        let words =
            format!("{missing} {}: it cannot be written: No space left", full.join("report").display());
        finish(command.args(["--expect", "never"])).expect(125, &words);
        let report = fs::read_to_string(report).unwrap();
        assert!(report.contains("matched `never`") && !report.contains("cannot be written"), "{report}");
        let verdict =
            if there == "--junit" { "failures=\"1\" errors=\"0\"" } else { "\"verdict\": \"failed\"" };
        assert!(report.contains(verdict), "{report}");
    }
}

#[test]
fn failures_of_tap_results_say_why() {
    if !kvm_or_skip() {
        return;
    }
    let console = b"1..2\nnot ok 1 a\n# (in test file a.bats, line 6)\n  ---\n  got: 2\n  ...\nok 2 b\n";
    let (junit, report) = (scratch().join("why.xml"), scratch().join("why.json"));
    let mut command = test("print-initrd");
    command.arg("--initrd").arg(file("why", console)).arg("--junit").arg(&junit).arg("--json").arg(&report);
    finish(&mut command).expect(120, "TAP: 1 of 2 failed: a");
    let why = "# (in test file a.bats, line 6)\ngot: 2";
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(&format!("type=\"tap\">{why}</failure>")), "{xml}");
    assert_eq!(json(&report)["cases"][0]["tap"]["results"][0]["diagnostics"], why);
}

#[test]
fn reports_of_an_emulated_host_that_never_was_say_so() {
    let [junit, json] = ["earlier.xml", "earlier.json"].map(|name| file(name, b"an earlier run's"));
    let mut command = coracle();
    // This path has no QEMU.
    command.args(["test", "--accel", "emulate"]).env("PATH", scratch());
    command.arg("--junit").arg(&junit).arg("--json").arg(&json);
    finish(&mut command).expect(115, "qemu-system-x86_64");
    let [junit, json] = [junit, json].map(|path| fs::read_to_string(path).unwrap());
    assert!(junit.contains("errors=\"1\"") && junit.contains("qemu-system-x86_64"), "{junit}");
    assert!(json.contains("\"broken\"") && json.contains("115"), "{json}");
}
