//! `coracle run --snapshot-on-ready` and `coracle restore` with a Linux guest: the command that has prepared
//! itself goes on, with the streams and the exit code of the restore.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::common::{self, collect, coracle, finish, finish_with_input, fresh_path};
use super::{no_linux, outcome};

fn run(folder: &Path, script: &str) -> Command {
    let mut run = coracle();
    run.args(["run", "--accel", "kvm", "--snapshot-on-ready"]).arg(folder).args(["--", "sh", "-c", script]);
    run
}

fn restore(folder: &Path, arguments: &[&str]) -> Command {
    let mut restore = coracle();
    restore.arg("restore").arg(folder).args(["--accel", "kvm"]).args(arguments);
    restore
}

#[test]
fn prepared_command_goes_on_in_each_restored_machine() {
    needs_linux!();
    let folder = fresh_path("prepared");
    let script = r#"read name; eval "$(coracle-agent branch-here)"; [ "$CORACLE_FORK_ID" ] || exit 4
        echo "$name $(hostname) $CORACLE_FORK_INDEX $OWN $CORACLE_FORK_ID $(cat /proc/sys/kernel/random/uuid)"
        read more; echo "more: $more" >&2; exit 3"#;
    let mut command = run(&folder, script);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut prepared = command.spawn().unwrap();
    // Its input is not at its end when the snapshot is taken.
    let mut input = prepared.stdin.take().unwrap();
    input.write_all(b"name\n").unwrap();
    collect(prepared).expect(4, "complete after");
    drop(input);
    let path = fresh_path("restored.json");
    let mut command = restore(&folder, &["--hostname", "first", "-e", "OWN=it's", "--outcome"]);
    let restored = finish_with_input(command.arg(&path), b"typed\n");
    restored.expect(3, "more: typed");
    assert_eq!(restored.stderr, "more: typed\n", "its code is the whole result");
    let words: Vec<String> = restored.text().split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..4], ["name", "first", "0", "it's"]);
    let report = outcome(&path);
    assert_eq!((&report["ending"], &report["phase"]), (&"exited".into(), &"command".into()), "{report}");
    assert_eq!(report["restored_from"]["path"], folder.to_str().unwrap());
    // Many at once, without input.
    let forks = finish(&mut restore(&folder, &["--fork", "4", "--hostname", "w{i}", "-e", "OWN=x"]));
    forks.expect(3, "3: more: ");
    let text = forks.text();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    let mut drawn: HashSet<&str> = words[4..].iter().map(String::as_str).collect();
    for line in &lines {
        let index = line[0].trim_end_matches(':');
        assert_eq!(line[1..5], ["name", &format!("w{index}"), index, "x"]);
        drawn.extend(&line[5..]);
    }
    assert_eq!(drawn.len(), 10, "ids and random numbers: {text}");
    // Another command, beside the one that waits for its input.
    let other = finish_with_input(
        &mut restore(&folder, &["-u", "1000", "--", "sh", "-c", "id -u; cat; exit 5"]),
        b"in",
    );
    other.expect(5, "");
    assert_eq!(other.text(), "1000\nin");
    finish(&mut restore(&folder, &["--", "/no/such"])).expect(127, "the guest has no program");
    let limited = finish(&mut restore(&folder, &["--timeout", "1s", "--", "sleep", "60"]));
    limited.expect(124, "timed out after 1 s");
}

#[test]
fn run_without_a_branch_point_fails_and_leaves_nothing() {
    needs_linux!();
    let folder = fresh_path("never");
    let ended = finish(&mut run(&folder, "echo done"));
    ended.expect(125, "the machine ended before its command had called `coracle-agent branch-here`");
    assert_eq!(ended.text(), "done\n");
    assert!(!folder.exists());
    finish(&mut run(&folder, "exit 9")).expect(9, "no snapshot was written");
    let around = fresh_path("gone");
    fs::create_dir(&around).unwrap();
    fs::create_dir(around.join("snapshot")).unwrap();
    finish(&mut run(&around.join("snapshot"), "exit 0")).expect(125, "--snapshot-on-ready: ");
}
