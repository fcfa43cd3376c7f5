use std::fs;

use coracle::config::Timeout;
use vmm_sys_util::tempdir::TempDir;

use super::*;

fn read_text(text: &str) -> Result<Vec<SuiteCase>, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("suite.toml");
    fs::write(&path, text).unwrap();
    // The message after the file's name: `:`, and the line if the error has one.
    read(&path).map_err(|error| error.to_string().split_once(".toml:").unwrap().1.to_owned())
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
    let case = "[[case]]\nname = \"x\"\n";
    for (text, words) in [
        ("", " it has no [[case]]"),
        ("[[case]\n", "1: "),
        ("case = 3\n", "1: case: expected an array, found 3"),
        ("[case]\nname = \"x\"\n", "1: case: there may be several; write [[case]]"),
        ("defaults = 1\n", "1: defaults: expected a table, found 1"),
        ("surprise = 1\n", "1: surprise: there is no such key; the keys are $schema, case, defaults, matrix"),
        ("\n[[cases]]\n", "2: cases: there is no such key; did you mean `case`? The keys are "),
        ("\n[[case]]\nmemory = \"64M\"\n", "2: case[0]: it has no name"),
        ("[[case]]\nname = \"\"\n", "1: case[0]: it has no name"),
        ("[[case]]\nname = 1\n", "2: case[0].name: expected a string such as \"boots\", found 1"),
        (
            &format!("{case}surprise = 1\nalpha = 1\n"),
            "3: case[0].surprise: there is no such key; the keys are name, assert_boot, command, env, expect, ip, reject, tap, tap_grace, user, workdir, acpi, ",
        ),
        (
            &format!("{case}[[case]]\n\nmemroy = 1\n"),
            "5: case[1].memroy: there is no such key; did you mean `memory`?",
        ),
        (
            &format!("[defaults]\nmemory = \"64M\"\ncpu5 = 1\n{case}"),
            "3: defaults.cpu5: there is no such key; did you mean `cpu`?",
        ),
        (&format!("[defaults]\nname = \"y\"\n{case}"), "2: defaults.name: there is no such key; "),
        (&format!("{case}[matrix]\ncpu5 = [1]\n"), "4: matrix.cpu5: there is no such key; "),
        (&format!("matrix.cpu5 = [1]\n{case}"), "1: matrix.cpu5: there is no such key; "),
        (&format!("[matrix]\nname = [\"a\"]\n{case}"), "2: matrix.name: there is no such key; "),
        (&format!("{case}memory = \"1M\"\n"), "3: case[0].memory: 1M is not possible"),
        (
            &format!("{case}reject = [\n\"a\",\n\"(\"]\n"),
            "5: case[0].reject[1] `(`: it is not a regular expression",
        ),
        (&format!("{case}expect = [\"\"]\n"), "3: case[0].expect[0]: the empty pattern matches every line"),
        (&format!("{case}assert_boot = \"soon\"\n"), "3: case[0].assert_boot: `soon` is not a time"),
        (&format!("{case}assert_boot = \"none\"\n"), "3: case[0].assert_boot: `none` is not a time"),
        (&format!("{case}tap = \"maybe\"\n"), "3: case[0].tap: unknown variant `maybe`, expected one of "),
        (
            &format!("{case}accel = \"kvm\"\n"),
            "3: case[0].accel: a case cannot have it; use `coracle test --accel`",
        ),
        (
            &format!("{case}[[case]]\nname = \"x\"\n"),
            "3: case[1]: another case is called 'x': give each case a name of its own",
        ),
        (&format!("[matrix]\ncpus = [1, 1]\n{case}"), "3: case[0]: another case is called 'x [cpus=1]'"),
        (&format!("[matrix]\ncpus = 4\n{case}"), "2: matrix.cpus: expected an array such as [1,64], found 4"),
        (
            &format!("[matrix]\ncpus = []\n{case}"),
            "2: matrix.cpus: expected an array such as [1,64], found []",
        ),
        (
            &format!("[matrix]\ncpus = [1,\n\"4\"]\n{case}"),
            "3: matrix.cpus[1]: expected a whole number such as 1, found \"4\"",
        ),
        (&format!("[matrix]\ncpus = [1,\n400]\n{case}"), "3: matrix.cpus[1]: 400 vCPUs are not possible"),
        (
            &format!("{case}disks = [\"a\",\n\"b,oops\"]\n"),
            "4: case[0].disks[1]: `oops` does not go with a disk",
        ),
    ] {
        let error = read_text(text).map(|cases| cases.len()).unwrap_err();
        assert!(error.starts_with(words), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for key in [" accel,", " outcome,", " serial,"] {
            assert!(!error.contains(key), "that is not a key of a case: {error}");
        }
    }
}

#[test]
fn value_of_a_wrong_type_names_every_key_its_line_and_what_was_found() {
    let schema = schema();
    let keys = schema["properties"]["case"]["items"]["properties"].as_object().unwrap();
    assert!(keys.len() > 30);
    for (key, schema) in keys {
        // No key accepts a date.
        let wrong = |value: &str, place: &str| {
            let text = format!("[[case]]\nname = \"a\"\n[[case]]\n\n{key} = {value}\n");
            let error = read_text(&text).map(|cases| cases.len()).unwrap_err();
            assert!(error.starts_with(&format!("5: case[1].{key}{place}: expected ")), "{text}: {error}");
            assert!(error.ends_with(", found 1979-05-27"), "{error}");
            let is_plain = schema["type"] == "boolean";
            assert!(is_plain || error.contains(" such as "), "{error}");
        };
        wrong("1979-05-27", "");
        if schema["type"] == "array" {
            wrong("[1979-05-27]", "[0]");
        }
        // The values of the schema's examples are valid.
        let example = &schema["examples"][0];
        let others = [("name", "\"a\""), ("command", "[\"true\"]")];
        let others = others.iter().filter(|(other, _)| other != key);
        let others: String = others.map(|(other, value)| format!("{other} = {value}\n")).collect();
        let text = format!("[[case]]\n{key} = {example}\n{others}");
        assert!(read_text(&text).is_ok(), "{text}: {:?}", read_text(&text));
    }
    let long = "x".repeat(60_000);
    for case in [
        format!("{long} = 1"),
        format!("memory = \"{long}\""),
        format!("name = \"{long}\"\n[[case]]\nname = \"{long}\""),
    ] {
        let error = read_text(&format!("[[case]]\n{case}\n")).unwrap_err();
        assert!(error.len() < 1100 && error.contains("xxx ..."), "{} bytes: {}", error.len(), &error[..100]);
    }
    let found = read_text("[[case]]\nname = \"x\"\ntimeout = true\n").unwrap_err();
    assert_eq!(found, "3: case[0].timeout: expected a string or a number such as \"20s\", found true");
    let found = read_text(&format!("[[case]]\nname = [\"{}\",\n2]\n", "x".repeat(1000))).unwrap_err();
    assert!(found.len() < 150 && found.ends_with("x ..."), "{found}");
}

#[test]
fn surroundings_of_a_command_are_those_of_the_case_else_of_the_defaults() {
    let cases = read_text(
        "[defaults]\nenv = [\"A=1\"]\nuser = \"1000:100\"\nworkdir = \"/tmp\"\nip = \"dhcp\"\n\
         [[case]]\nname = \"no command\"\n[[case]]\nname = \"a\"\ncommand = [\"true\"]\n\
         [[case]]\nname = \"b\"\ncommand = [\"true\"]\nenv = [\"B=2\", \"C\"]\nuser = \"0\"\nworkdir = \"srv\"\n\
         ip = \"10.0.0.2/24,gateway=10.0.0.1\"\n",
    )
    .unwrap();
    let [_, a, b] = cases.as_slice() else { panic!("{cases:?}") };
    let Surroundings { env, user, workdir, ip } = &a.surroundings;
    assert_eq!((env.as_slice(), user.as_deref()), (&["A=1".into()][..], Some("1000:100".as_ref())));
    assert_eq!((workdir.as_deref(), ip), (Some(Path::new("/tmp")), &Some("dhcp".parse().unwrap())));
    let Surroundings { env, user, workdir, ip } = &b.surroundings;
    assert_eq!((env.len(), user.as_deref()), (2, Some("0".as_ref())));
    // The directory is one of the guest's, so it is not resolved here.
    assert_eq!(workdir.as_deref(), Some(Path::new("srv")));
    assert_eq!(*ip, Some("10.0.0.2/24,gateway=10.0.0.1".parse().unwrap()));
}

#[test]
fn values_of_the_matrix_with_the_same_end_are_told_apart() {
    assert_eq!(
        names("[matrix]\nkernel = [\"a/vmlinux\", \"b/vmlinux\", \"c/bzImage\"]\n[[case]]\nname = \"x\"\n"),
        ["x [kernel=a/vmlinux]", "x [kernel=b/vmlinux]", "x [kernel=bzImage]"]
    );
}

#[test]
fn what_is_looked_for_can_be_in_the_matrix_and_times_can_be_numbers() {
    let cases = read_text(
        "[matrix]\ncommand = [[\"a\", \"/b/c\"], [\"d\"]]\n[[case]]\nname = \"x\"\nassert_boot = 1.5\ntap_grace = 2\n",
    );
    let cases = cases.unwrap();
    assert_eq!(
        cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(),
        ["x [command=a+c]", "x [command=d]"]
    );
    assert_eq!(cases[0].boot, Some(Duration::from_millis(1500)));
    assert_eq!(cases[1].tap_grace, Some(Timeout::After(Duration::from_secs(2))));
}

#[test]
fn matrix_that_explodes_is_refused_before_it_is_made() {
    let values = (1..=200).map(|n| format!("\"{n}s\"")).collect::<Vec<_>>().join(",");
    let keys = [
        "timeout",
        "boot_timeout",
        "idle_timeout",
        "host_timeout",
        "assert_boot",
        "tap_grace",
        "kernel",
        "cmdline",
    ];
    let keys = keys.map(|key| format!("{key} = [{values}]\n")).concat();
    for text in [
        format!("[matrix]\ntimeout = [{values}]\ncmdline = [{values}]\n[[case]]\nname = \"x\"\n"),
        format!("[matrix]\n{keys}[[case]]\nname = \"x\"\n"),
        format!("[matrix]\ntimeout = [{values}]\n{}", "[[case]]\nname = \"x\"\n".repeat(60)),
    ] {
        assert!(read_text(&text).unwrap_err().contains("its matrix makes more than 10000 cases"));
    }
    let many = "[[case]]\n".repeat(10_001);
    assert!(read_text(&many).unwrap_err().contains("it has more than 10000 cases"));
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
