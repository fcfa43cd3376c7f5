//! `coracle test` with bare payloads: every kind of guest, every verdict, suites, and the files it writes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    Finished, coracle, file, finish, kvm_or_skip, payload, pseudo_terminal, read_until, scratch, wait,
};
use serde_json::Value;

fn test(name: &str) -> Command {
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "--memory", "16M", "--timeout", "20s"]).arg(payload(name));
    command
}

fn suite(name: &str, text: &str) -> PathBuf {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    for payload in ["hello", "panic", "spin", "flood"] {
        fs::copy(common::payload(payload), folder.join(format!("{payload}.elf"))).unwrap();
    }
    let path = folder.join("suite.toml");
    fs::write(&path, text).unwrap();
    path
}

fn run_suite(path: &Path) -> Command {
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "--suite"]).arg(path);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn each_ending_without_expectations_has_its_code() {
    if !kvm_or_skip() {
        return;
    }
    for (guest, code, words) in [
        ("hello", 0, "hello.elf: passed"),
        ("exit-7", 120, "the guest's workload ended with code 7"),
        ("panic", 110, "the guest's kernel panicked"),
        ("triple-fault", 111, "triple fault"),
        ("reset-acpi", 112, "asked for a reset"),
        ("halt", 116, "the guest halted"),
    ] {
        finish(&mut test(guest)).expect(code, words);
    }
    finish(test("spin").args(["--timeout", "300ms"])).expect(124, "timed out after 0.3 s");
}

#[test]
fn expectation_that_is_met_passes_at_once_whatever_the_guest_does_next() {
    if !kvm_or_skip() {
        return;
    }
    // The guest prints for ever.
    let run = finish(test("flood").args(["--expect", "[.]", "--quiet", "--timeout", "280s"]));
    run.expect(0, "passed");
    assert!(run.elapsed < Duration::from_secs(140), "{:?}", run.elapsed);
    assert_eq!(run.text(), "", "--quiet");
}

#[test]
fn unmet_expectation_fails_a_guest_that_ends_and_one_that_does_not() {
    if !kvm_or_skip() {
        return;
    }
    let words = "the guest powered off, and no line of its console matched `never`";
    let run = finish(test("hello").args(["--expect", "hello", "--expect", "never"]));
    run.expect(120, words);
    assert_eq!(run.text().trim(), "hello", "the console is shown");
    finish(test("spin").args(["--expect", "never", "--timeout", "300ms"])).expect(124, "matched `never`");
    // A crash takes precedence over an unmet expectation.
    finish(test("panic").args(["--expect", "never"])).expect(110, "panicked");
    finish(test("triple-fault").args(["--expect", "never"])).expect(111, "ud2");
}

#[test]
fn line_that_is_not_allowed_fails_the_test_though_all_else_is_well() {
    if !kvm_or_skip() {
        return;
    }
    let run = finish(test("hello").args(["--expect", "hello", "--reject", "h.l"]));
    run.expect(120, "--reject h.l: the console has `hello`");
}

#[test]
fn reader_of_stdout_that_stands_still_changes_no_verdict() {
    if !kvm_or_skip() {
        return;
    }
    let run = |options: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = test("bug-at-last");
        command.args(["--timeout", "120s"]).args(options);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let finished = common::collect(command.spawn().unwrap());
        drop(reader);
        finished
    };
    run(&["--reject", "BUG:"]).expect(120, "the console has `BUG: the last line`");
    run(&["--expect", "BUG:"]).expect(0, "bytes are not on stdout, which was not read in time");
    // A full device does not help either.
    let mut command = test("bug-at-last");
    command.args(["--timeout", "120s"]).stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    command.stderr(Stdio::piped());
    common::collect(command.spawn().unwrap()).expect(0, "stdout cannot be written: No space left on device");
}

#[test]
fn console_that_its_file_cannot_take_does_not_pass() {
    if !kvm_or_skip() {
        return;
    }
    let mut command = test("bug-at-last");
    command.args(["--timeout", "120s", "--artifacts"]).arg(scratch().join("limited"));
    common::limit_files(&mut command, 10_000);
    finish(&mut command)
        .expect(117, "--artifacts: the console cannot be written to its file: File too large");
}

#[test]
fn way_to_init_is_held_against_its_limit() {
    if !kvm_or_skip() {
        return;
    }
    finish(test("boot-mark").args(["--assert-boot", "10s"])).expect(0, "passed");
    finish(test("boot-mark").args(["--assert-boot", "1us"])).expect(125, "`1us` is not a time");
    finish(test("hello").args(["--assert-boot", "10s"])).expect(120, "is not known");
}

/// Creates a guest that prints these bytes. The payload defines the bytes that wait, spin or end.
fn prints(name: &str, console: &[u8]) -> Command {
    let mut command = test("print-initrd");
    command.args(["--quiet", "--initrd"]).arg(file(name, console));
    command
}

#[test]
fn every_document_of_results_counts_before_the_guest_is_stopped() {
    if !kvm_or_skip() {
        return;
    }
    for (name, console, code, words) in [
        ("good", &b"TAP version 13\n1..1\nok 1\n"[..], 0, "passed"),
        (
            "second",
            b"TAP version 13\n1..1\nok 1\n\xfeTAP version 13\n1..1\nnot ok 1\n",
            120,
            "TAP: 1 of 2 failed: 1",
        ),
        (
            "cut",
            b"TAP version 13\n1..2\nok 1\n\xfeTAP version 13\n1..1\nok 1\n",
            120,
            "document 1: 1 of 2 results",
        ),
        ("end", b"TAP version 13\n1..2\nok 1\n", 120, "the guest powered off, and TAP: 1 of 2 results came"),
        ("plain", b"ok 1 - a\nok 2 - b\n1..2\n", 0, "passed"),
        ("left-out", b"ok 1 - a\nnot ok 2 - b\n", 0, "`not ok` of b came without a plan: not counted"),
        ("skipped", b"1..0 # SKIP no disk\n", 77, "TAP: all tests were skipped: no disk"),
        ("code", b"TAP version 13\n1..1\nok 1\n\xfc", 120, "ended with code 7"),
        (
            "steers",
            b"TAP version 13\n1..1\nnot ok 1 \x1b[31ma\x07b\xc2\x9bc\n",
            120,
            "failed: a\u{fffd}b\u{fffd}c",
        ),
    ] {
        finish(&mut prints(name, console)).expect(code, words);
    }
    // Another line of the guest's in a sentence does not control the terminal either.
    let run = finish(prints("turned", "BUG: \u{202e}\u{9b}2J at\n".as_bytes()).args(["--reject", "BUG"]));
    assert!(run.expect(120, "BUG: ").stderr.contains("2J at"), "{}", run.stderr);
    assert!(!run.stderr.contains(['\u{202e}', '\u{9b}', '\u{1b}']), "{}", run.stderr);
    // A kernel that has run its built-in tests panics without a root. That is its regular end, unless results
    // are missing.
    let kernel = |plan: u32| {
        format!(
            "[    1.0] KTAP version 1\n[    1.0] 1..{plan}\n[    1.0] ok 1 a\n\
             [    1.0] Kernel panic - not syncing: VFS: Unable \
             to mount root fs on unknown-block(0,0)\n\
             [    1.0] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\n"
        )
        .into_bytes()
    };
    for (plan, code, words) in [(1, 0, "passed"), (2, 110, "panicked")] {
        let console = [kernel(plan), b"\xfd".to_vec()].concat();
        finish(&mut prints("kunit", &console)).expect(code, words);
    }
    // A guest that continues for ever after its results: it ends at its time limit, or when the expected line
    // comes.
    let console = b"TAP version 13\n1..1\nok 1\n\xfedone\n\xfd";
    finish(prints("on", console).args(["--timeout", "5s"])).expect(0, "passed");
    let run = finish(prints("mark", console).args(["--expect", "done", "--timeout", "280s"]));
    run.expect(0, "passed");
    assert!(run.elapsed < Duration::from_secs(140), "{:?}", run.elapsed);
}

#[test]
fn guest_that_stays_up_is_ended_when_its_planned_results_are_complete() {
    if !kvm_or_skip() {
        return;
    }
    // 0xfe waits for a while, 0xfd for ever.
    let document = &b"TAP version 13\n1..1\nok 1\n"[..];
    let failing = b"\xfeTAP version 13\n1..1\nnot ok 1\n";
    for (name, console, options, code, words) in [
        ("stays", [document, b"\xfd"].concat(), &["--tap", "require"][..], 0, "passed"),
        (
            "stays-second",
            [document, failing, b"\xfd"].concat(),
            &["--tap", "require", "--tap-grace", "6s"],
            120,
            "1 of 2 failed",
        ),
        (
            "stays-cut",
            [document, b"TAP version 13\n1..2\nok 1\n\xfd"].concat(),
            &["--tap", "require", "--timeout", "2s"],
            124,
            "1 of 2 results came",
        ),
        ("stays-auto", [document, b"\xfd"].concat(), &["--timeout", "2s"], 0, "passed"),
        (
            "stays-none",
            [document, b"\xfd"].concat(),
            &["--tap", "require", "--tap-grace", "none", "--timeout", "2s"],
            0,
            "passed",
        ),
    ] {
        let report = scratch().join("stays.json");
        let mut command = prints(name, &console);
        command.args(["--timeout", "280s"]).args(options).arg("--json").arg(&report);
        let run = finish(&mut command);
        run.expect(code, words);
        assert!(run.elapsed < Duration::from_secs(140), "{name}: {:?}", run.elapsed);
        let ending = if options.contains(&"2s") { "timed-out" } else { "stopped" };
        assert_eq!(json(&report)["cases"][0]["outcome"]["ending"], ending, "{name}");
    }
}

/// A test whose kernel hangs at first, and is replaced once it has run.
fn flaky(name: &str, options: &[&str]) -> (Finished, Value, String) {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    let (kernel, next) = (folder.join("turns.elf"), folder.join("next.elf"));
    fs::copy(payload("panic-words"), &kernel).unwrap();
    fs::copy(payload("hello"), &next).unwrap();
    let (junit, report) = (folder.join("out.xml"), folder.join("out.json"));
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "--memory", "16M", "--timeout", "2s", "--retries", "10"]);
    command.args(["--expect", "^hello$", "--artifacts"]).arg(&folder).arg("--junit").arg(&junit);
    command.arg("--json").arg(&report).args(options).arg(&kernel);
    let log = folder.join("turns.elf.log");
    let turn = std::thread::spawn(move || {
        let runs = || fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        common::eventually("the first run prints", runs);
        fs::rename(&next, &kernel).unwrap();
    });
    let run = finish(&mut command);
    turn.join().unwrap();
    (run, json(&report), fs::read_to_string(&junit).unwrap())
}

#[test]
fn case_that_passes_in_a_later_run_is_flaky() {
    if !kvm_or_skip() {
        return;
    }
    let (run, report, xml) = flaky("flaky", &[]);
    run.expect(0, "turns.elf: flaky: passed in run ");
    let case = &report["cases"][0];
    assert_eq!(
        (&case["verdict"], &case["code"], &case["flaky"]),
        (&"passed".into(), &0.into(), &true.into())
    );
    let failed = case["failed_runs"].as_array().unwrap();
    assert!(!failed.is_empty() && failed.iter().all(|run| run["code"] == 124), "{case}");
    assert!(xml.contains(r#"tests="1" failures="0" errors="0" skipped="0""#), "{xml}");
    assert_eq!(xml.matches("<flakyError message=\"timed out after 2 s").count(), failed.len(), "{xml}");
    let (run, report, xml) = flaky("flaky-fails", &["--flaky", "fail"]);
    run.expect(120, "turns.elf: flaky: passed in run ");
    assert_eq!(report["cases"][0]["flaky"], true);
    assert!(
        xml.contains(r#"failures="1""#) && xml.contains("<failure message=\"flaky: passed in run "),
        "{xml}"
    );
}

#[test]
fn case_that_fails_in_each_run_has_failed_and_each_run_is_told() {
    if !kvm_or_skip() {
        return;
    }
    let (folder, junit) = (scratch().join("each"), scratch().join("each.xml"));
    let mut command = test("hello");
    command
        .args(["--expect", "never", "--retries", "2", "--junit"])
        .arg(&junit)
        .arg("--artifacts")
        .arg(&folder);
    finish(&mut command).expect(120, "matched `never`");
    let xml = fs::read_to_string(&junit).unwrap();
    assert_eq!((xml.matches("<failure ").count(), xml.matches("<rerunFailure ").count()), (1, 2), "{xml}");
    let mut logs: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|log| log.unwrap().file_name().into_string().unwrap()).collect();
    logs.sort();
    let ends = |end: &str| logs.iter().any(|log| log.ends_with(end));
    assert!(logs.len() == 3 && ends(".elf.log") && ends(".retry-1.log") && ends(".retry-2.log"), "{logs:?}");
    // Without the option there is a single run.
    finish(test("hello").args(["--expect", "never", "--junit"]).arg(&junit)).expect(120, "matched `never`");
    assert!(!fs::read_to_string(&junit).unwrap().contains("rerun"));
}

#[test]
fn suite_runs_every_case_and_ends_with_the_worst_code() {
    if !kvm_or_skip() {
        return;
    }
    let path = suite(
        "worst",
        "[defaults]\nmemory = \"16M\"\ntimeout = \"20s\"\n[matrix]\ncpus = [1, 2]\n\
         [[case]]\nname = \"greets\"\nkernel = \"hello.elf\"\nexpect = [\"^hello$\"]\n\
         [[case]]\nname = \"panics\"\nkernel = \"panic.elf\"\n\
         [[case]]\nname = \"floods\"\nkernel = \"flood.elf\"\nexpect = [\"never\"]\ntimeout = \"500ms\"\ncpus = 1\n",
    );
    let report = path.with_extension("json");
    let run = finish(run_suite(&path).args(["--jobs", "3", "--json"]).arg(&report));
    run.expect(110, "| [    0.000000] Kernel panic - not syncing");
    assert!(run.text().ends_with("5 cases: 2 passed, 3 failed, 0 skipped\n"), "{}", run.text());
    let report = json(&report);
    let case =
        |index: usize| (report["cases"][index]["name"].clone(), report["cases"][index]["code"].clone());
    assert_eq!(case(0), ("greets [cpus=1]".into(), 0.into()));
    assert_eq!(case(3), ("panics [cpus=2]".into(), 110.into()));
    assert_eq!(case(4), ("floods".into(), 124.into()));
    // The text is a part of the name.
    finish(run_suite(&path).args(["--only", "greets"])).expect(0, "");
    finish(run_suite(&path).args(["--only", "nobody"])).expect(125, "no case has this in its name");
    // A flag applies to every case.
    finish(run_suite(&path).args(["--only", "floods", "--timeout", "100ms"])).expect(124, "after 0.1 s");
}

#[test]
fn bad_input_is_told_in_one_line_before_anything_runs() {
    let hello = payload("hello");
    let broken = suite("broken", "[[case]]\nname = \"x\"\nkernel = \"hello.elf\"\nsurprise = 1\n");
    let missing = suite("missing", "[[case]]\nname = \"x\"\nkernel = \"nothing.elf\"\n");
    let junk = file("junk.toml", b"\xff\xfe");
    let refused = |run: &Finished, words: &str| {
        run.expect(125, words);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert_eq!(run.text(), "");
    };
    let run = |args: &[&str]| finish(coracle().arg("test").args(args));
    let hello = hello.to_str().unwrap();
    refused(&run(&[hello, "--expect", "("]), "--expect `(`: it is not a regular expression");
    refused(&run(&[hello, "--expect", ""]), "--expect: the empty pattern matches every line");
    refused(&run(&[hello, "--reject", ""]), "--reject: the empty pattern matches every line");
    refused(&run(&["--suite", missing.to_str().unwrap(), "--only", ""]), "--only: the empty text");
    for option in ["--junit", "--json"] {
        refused(
            &run(&[hello, option, "/no/such/file"]),
            &format!("{option} /no/such/file: it cannot be written"),
        );
        refused(&run(&[hello, option, "/"]), "Is a directory");
    }
    refused(
        &finish(coracle().args(["run", hello, "--outcome", "/no/such/file"])),
        "--outcome /no/such/file: it cannot",
    );
    let left = scratch().join("not-run.xml");
    refused(&run(&["/no/such/kernel", "--junit", left.to_str().unwrap()]), "/no/such/kernel");
    assert!(!left.exists(), "trying leaves nothing");
    refused(&run(&["--suite", "/no/such.toml"]), "--suite /no/such.toml: it cannot be read");
    refused(&run(&["--suite", junk.to_str().unwrap()]), "it cannot be read");
    refused(
        &run(&["--suite", broken.to_str().unwrap()]),
        ".toml:4: case[0].surprise: there is no such key; the keys are name, ",
    );
    refused(&run(&["--suite", missing.to_str().unwrap()]), "nothing.elf");
    refused(&run(&["--suite", broken.to_str().unwrap(), "--expect", "x"]), "leave out --expect");
    refused(&run(&["--suite", broken.to_str().unwrap(), "--tap", "ignore"]), "leave out --expect");
    refused(&run(&["/no/such/kernel"]), "/no/such/kernel");
    refused(&run(&["--ip", "dhcp", "--", "true"]), "--ip: this machine has no network card; add --net");
    let ip = suite("ip", "[[case]]\nname = \"x\"\nip = \"dhcp\"\ncommand = [\"true\"]\n");
    refused(&run(&["--suite", ip.to_str().unwrap()]), "x: ip: this machine has no network card; add `nets`");
    let grace = run(&[hello, "--tap-grace", "2s"]);
    refused(&grace, "--tap-grace: it applies to required results only; add --tap require");
}

#[test]
fn without_a_usable_kvm_a_test_fails_or_is_skipped_as_asked() {
    // No KVM can be opened in an empty /dev. If an empty /dev cannot be created, this case cannot be shown.
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"]);
    let probe = finish(Command::new("unshare").args(["-m", "true"]));
    if probe.status.code() != Some(0) {
        return common::skip("no mount namespace can be made");
    }
    let junit = scratch().join("skipped.xml");
    command.arg(coracle().get_program()).args(["test", "--accel", "kvm"]).arg(payload("hello"));
    command.arg("--junit").arg(&junit);
    finish(&mut command).expect(115, "/dev/kvm");
    finish(command.args(["--no-kvm", "skip"])).expect(77, "skipped: ");
    assert!(fs::read_to_string(&junit).unwrap().contains(r#"skipped="1""#));
}

#[test]
fn schema_of_suites_is_printed() {
    let run = finish(coracle().args(["config", "schema", "--suite"]));
    run.expect(0, "");
    let schema: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(schema["properties"]["case"]["items"]["required"][0], "name");
}

#[test]
fn verdict_begins_on_a_new_line_of_the_terminal_and_adds_nothing_to_a_file() {
    if !kvm_or_skip() {
        return;
    }
    let (mut person, program) = pseudo_terminal();
    let stream = || Stdio::from(program.try_clone().unwrap());
    let mut shown = |guest, args: &[&str]| {
        let mut command = test(guest);
        command.args(args).stdin(stream()).stdout(stream()).stderr(stream());
        let mut child = command.spawn().unwrap();
        let seen = read_until(&mut person, "passed\r\n");
        assert_eq!(wait(&mut child).code(), Some(0));
        seen
    };
    // It is stopped somewhere in its lines, of which each has a carriage return of its own.
    let prompt = ["--expect", "^# $"];
    let seen = shown("panic-words", &prompt);
    let (console, _) = seen.split_once("coracle: ").unwrap();
    assert!(console.ends_with("\r\n"), "{seen:?}");
    let seen = shown("hello", &[]);
    assert!(seen.contains("hello\r\r\ncoracle: "), "no line is left empty: {seen:?}");
    let run = finish(test("panic-words").args(prompt));
    let words = "# echo Kernel panic - not syncing\r\nKernel panic - not syncing\r\n# ";
    let text = run.expect(0, "passed").text();
    assert!(text.starts_with("# ") && words.starts_with(&text), "{text:?}");
}
