use std::fs;

use coracle::config::Timeout;
use vmm_sys_util::tempdir::TempDir;

use super::*;

fn read_text(text: &str) -> Result<Vec<SuiteCase>, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("suite.toml");
    fs::write(&path, text).unwrap();
    read(&path).map_err(|error| error.to_string().split_once(".toml: ").unwrap().1.to_owned())
}

fn names(text: &str) -> Vec<String> {
    read_text(text).unwrap().into_iter().map(|case| case.name).collect()
}

#[test]
fn case_has_the_defaults_unless_it_says_otherwise() {
    let cases = read_text(
        "[defaults]\nmemory = \"64M\"\nexpect = [\"a\"]\ntimeout = \"5s\"\n\
         [[case]]\nname = \"one\"\n[[case]]\nname = \"two\"\nmemory = \"1G\"\nexpect = [\"b\", \"c\"]\n\
         assert_boot = \"150ms\"\ntap = \"require\"\n",
    )
    .unwrap();
    let [one, two] = cases.as_slice() else { panic!("{cases:?}") };
    assert_eq!(one.machine.memory.unwrap().to_string(), "64M");
    assert_eq!(two.machine.memory.unwrap().to_string(), "1G");
    assert_eq!((one.expect.len(), two.expect.len()), (1, 2));
    assert_eq!((one.tap, two.tap), (TapMode::Auto, TapMode::Require));
    assert_eq!((one.boot, two.boot), (None, Some(Duration::from_millis(150))));
    assert_eq!(two.machine.timeout, Some(Timeout::After(Duration::from_secs(5))));
}

#[test]
fn matrix_makes_a_case_of_each_combination() {
    let text = "[matrix]\nkernel = [\"a/vmlinux\", \"b/bzImage\"]\ncpus = [1, 4]\n[[case]]\nname = \"boots\"\n\
                [[case]]\nname = \"alone\"\nkernel = \"c\"\n";
    assert_eq!(
        names(text),
        [
            "boots [cpus=1 kernel=vmlinux]",
            "boots [cpus=1 kernel=bzImage]",
            "boots [cpus=4 kernel=vmlinux]",
            "boots [cpus=4 kernel=bzImage]",
        ]
        .into_iter()
        .chain(["alone [cpus=1]", "alone [cpus=4]"])
        .collect::<Vec<_>>()
    );
}

#[test]
fn paths_are_taken_from_the_folder_of_the_suite() {
    let cases = read_text("[[case]]\nname = \"x\"\nkernel = \"k\"\ninitrds = [\"i\"]\n").unwrap();
    let machine = &cases.first().unwrap().machine;
    assert!(machine.kernel.as_ref().unwrap().is_absolute());
    assert!(machine.initrds.as_ref().unwrap().first().unwrap().is_absolute());
}

#[test]
fn wrong_suites_are_refused_in_one_line_that_names_the_place() {
    for (text, words) in [
        ("", "it has no [[case]]"),
        ("[[case]\n", "line 1: "),
        ("surprise = 1\n[[case]]\nname = \"x\"\n", "line 1: unknown field `surprise`"),
        ("[[case]]\nmemory = \"64M\"\n", "case '?': it has no name"),
        (
            "[[case]]\nname = \"x\"\nsurprise = 1\nalpha = 1\n",
            "line 3: case 'x' has no key `surprise`; its keys are name, assert_boot, command, expect, reject, tap, tap_grace, acpi, ",
        ),
        ("[[case]]\n\nsurprise = 1\n", "line 3: a case without a name has no key `surprise`"),
        (
            "[defaults]\nmemory = \"64M\"\ncpu5 = 1\n[[case]]\nname = \"x\"\n",
            "line 3: [defaults] has no key `cpu5`",
        ),
        ("[[case]]\nname = \"x\"\n[matrix]\ncpu5 = [1]\n", "line 4: [matrix] has no key `cpu5`"),
        ("matrix.cpu5 = [1]\n[[case]]\nname = \"x\"\n", "line 1: [matrix] has no key `cpu5`"),
        ("[[case]]\nname = \"x\"\nmemory = \"1M\"\n", "case 'x': 1M is not possible"),
        (
            "[[case]]\nname = \"x\"\nexpect = [\"(\"]\n",
            "case 'x': expect `(`: it is not a regular expression",
        ),
        ("[[case]]\nname = \"x\"\nassert_boot = \"soon\"\n", "case 'x': `soon` is not a time"),
        ("[[case]]\nname = \"x\"\naccel = \"kvm\"\n", "case 'x': `accel` is not for a case"),
        ("[[case]]\nname = \"x\"\n[[case]]\nname = \"x\"\n", "case 'x': another case has this name"),
        ("[matrix]\ncpus = 4\n[[case]]\nname = \"x\"\n", "matrix.cpus: write an array"),
        ("[matrix]\ncpus = []\n[[case]]\nname = \"x\"\n", "matrix.cpus: write an array"),
    ] {
        let error = read_text(text).map(|cases| cases.len()).unwrap_err();
        assert!(error.starts_with(words), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for key in ["`accel`", "`outcome`", " accel,", " outcome,", " serial,"] {
            assert!(text.contains("accel") || !error.contains(key), "that is not a key of a case: {error}");
        }
    }
}

#[test]
fn matrix_that_explodes_is_refused_before_it_is_made() {
    let values = (0..200).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let keys = ["cpus", "memory", "kernel", "timeout", "cmdline", "acpi", "cpu", "console", "modules", "rng"];
    let keys = keys.map(|key| format!("{key} = [{values}]\n")).concat();
    for text in [
        format!("[matrix]\ncpus = [{values}]\nmemory = [{values}]\n[[case]]\nname = \"x\"\n"),
        format!("[matrix]\n{keys}[[case]]\nname = \"x\"\n"),
        format!("[matrix]\ncpus = [{values}]\n{}", "[[case]]\nname = \"x\"\n".repeat(60)),
    ] {
        assert!(read_text(&text).unwrap_err().contains("more than 10000 cases"));
    }
}

#[test]
fn cases_that_take_too_much_memory_together_are_refused() {
    let values = (1..1000).map(|n| format!("\"{n}s\"")).collect::<Vec<_>>().join(",");
    let text = format!(
        "[defaults]\ncommand = [\"{}\"]\n[matrix]\ntimeout = [{values}]\n[[case]]\nname = \"x\"\n",
        "a".repeat(100_000)
    );
    assert!(read_text(&text).unwrap_err().contains("take more than 20 MiB"));
}

#[test]
fn pattern_of_all_cases_is_compiled_once() {
    let values = (1..=60).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let text = format!(
        "[defaults]\nexpect = [\"(x{{100}}){{100}}\"]\n[matrix]\ncpus = [{values}]\n[[case]]\nname = \"x\"\n"
    );
    assert_eq!(read_text(&text).unwrap().len(), 60);
}

#[test]
fn what_is_no_regular_file_of_that_length_is_refused() {
    let said = |path: &Path| match read(path) {
        Err(SuiteError::Read { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said(Path::new("/dev/zero")).contains("a character device"));
    let folder = TempDir::new().unwrap();
    let long = folder.as_path().join("long.toml");
    fs::write(&long, "#".repeat(MAX_LEN as usize + 1)).unwrap();
    assert!(said(&long).contains("more than 131072 bytes"));
}
