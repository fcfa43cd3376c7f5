//! Tests of `coracle test` with guests that work, fail, panic, halt, hang and stay silent: each verdict with
//! its explanation.

use std::fs;
use std::path::Path;

use coracle::guest_data::GuestData;
use serde_json::Value;

use super::common::{self, coracle, finish, scratch};
use super::{data, no_linux};

#[test]
fn suite_of_guests_in_every_state_is_judged_and_ends() {
    needs_linux!();
    let folder = scratch().join("boot-tests");
    fs::create_dir_all(&folder).unwrap();
    let (kernel, initrd) = (data(GuestData::GuestVmlinux), data(GuestData::GuestInitramfs));
    // One and a half boots and a margin: the time of a boot depends on the machine.
    let boot = super::run("poweroff", &[]).elapsed.as_secs();
    let silence = format!("expect = [\"never\"]\ntimeout = \"{}s\"", boot * 3 / 2 + 4);
    let case = |name: &str, action: &str, more: &str| {
        format!("[[case]]\nname = \"{name}\"\nappend = [\"quiet coracle.init={action}\"]\n{more}\n")
    };
    let text = [
        format!("[defaults]\nkernel = {kernel:?}\ninitrds = [{initrd:?}]\ntimeout = \"250s\"\n"),
        case("good", "report", "expect = [\"^  cpus     1 online$\"]\nassert_boot = \"200s\""),
        case("rejected", "report", "reject = [\"kernel +6\"]"),
        case("panics", "panic", "expect = [\"never\"]"),
        case("halts", "halt", "expect = [\"never\"]"),
        case("silent", "hang", &silence),
        case("powers off", "poweroff", "expect = [\"never\"]"),
    ];
    let (suite, report, junit) =
        (folder.join("suite.toml"), folder.join("report.json"), folder.join("report.xml"));
    fs::write(&suite, text.concat()).unwrap();
    let mut command = coracle();
    command.args(["test", "--accel", "kvm", "--suite"]).arg(&suite).arg("--json").arg(&report);
    let run = finish(command.arg("--junit").arg(&junit));
    run.expect(110, "rejected: --reject kernel +6: the console has `kernel   6.");

    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let code = |index: usize| report["cases"][index]["code"].as_u64().unwrap();
    assert_eq!((0..6).map(code).collect::<Vec<_>>(), [0, 120, 110, 120, 124, 120], "{report:#}");
    assert_eq!(report["cases"][4]["outcome"]["phase"], "init", "{report:#}");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(r#"tests="6" failures="3" errors="2" skipped="0""#), "{xml}");
    assert!(xml.contains("Kernel panic - not syncing"), "{xml}");
}

#[test]
fn suite_of_the_example_passes() {
    needs_linux!();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/boot-test");
    let report = scratch().join("example.json");
    let mut command = coracle();
    command
        .args(["test", "--accel", "kvm", "--jobs", "1", "--suite", "boot-tests.toml", "--json"])
        .arg(&report);
    let run = finish(command.current_dir(folder));
    run.expect(0, "");
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<_> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("boots [")).count(), 4, "{names:?}");
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(cases.iter().all(|case| case["verdict"] == "passed"), "{report:#}");
}
