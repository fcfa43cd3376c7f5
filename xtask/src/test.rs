//! `cargo xtask test`: every test, each on a KVM that can run its guests.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{capture, cargo, line};
use crate::tally::{Tally, TestOutput};
use crate::workspace::Workspace;
use crate::{examples, guest, setup, static_build, tools};

/// Sets up what is missing, builds what the tests use and runs all tests, even after a failure.
///
/// # Errors
/// The tests cannot be started. A failed test is not an error; it is counted in the tally.
pub(crate) fn run(workspace: &Workspace) -> Result<Tally> {
    setup::make_ready()?;
    guest::make(workspace, false)?;
    tools::make(workspace)?;
    examples::make(workspace)?;
    println!("building coracle");
    let coracle = static_build::coracle(workspace)?;
    let kvm = linux_capable_kvm(&coracle)?;
    let tests = Tests { workspace, coracle };

    println!("tests without a guest");
    let mut tally = tests.run(&["--lib", "--bins"], Place::Here)?;
    tally += tests.run(&["--doc"], Place::Here)?;

    println!("the emulated host");
    tally += tests.run(&["--test", EMULATED_HOST_TEST], Place::Here)?;

    let (payloads_run, why) = kvm.place_of_payloads();
    println!("payload guests: {why}");
    let is_payload_test = |name: &&String| ![LINUX_TEST, EMULATED_HOST_TEST].contains(&name.as_str());
    let payload_tests = workspace.test_targets.iter().filter(is_payload_test);
    let payload_tests: Vec<_> = payload_tests.flat_map(|name| ["--test", name]).collect();
    if !payload_tests.is_empty() {
        tally += tests.run(&payload_tests, payloads_run)?;
    }

    let (linux_runs, why) = kvm.place_of_linux();
    println!("Linux guests: {why}");
    tally += tests.run_linux(linux_runs)?;
    Ok(tally)
}

/// The guests that `/dev/kvm` of this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kvm {
    /// Any guest.
    Hardware,
    /// Bare payloads, but no stock Linux kernel.
    Software,
    /// Nothing: it does not exist.
    Missing,
    /// Nothing: this user may not open it.
    Denied,
}

impl Kvm {
    fn place_of_payloads(self) -> (Place, &'static str) {
        match self {
            Self::Hardware | Self::Software => {
                (Place::Here, "on this machine's /dev/kvm, which can run them")
            }
            Self::Missing => {
                (Place::EmulatedHost, "on the emulated host, because this machine has no /dev/kvm")
            }
            Self::Denied => {
                (Place::EmulatedHost, "on the emulated host, because this user may not open /dev/kvm")
            }
        }
    }

    fn place_of_linux(self) -> (Place, &'static str) {
        match self {
            Self::Hardware => (Place::Here, "on this machine's /dev/kvm, which has hardware virtualization"),
            Self::Software => (
                Place::EmulatedHost,
                "on the emulated host, because this machine's software KVM cannot run a stock kernel",
            ),
            Self::Missing | Self::Denied => self.place_of_payloads(),
        }
    }
}

/// Asks `coracle`, which tries it, so that tests and users get the same choice.
fn linux_capable_kvm(coracle: &Path) -> Result<Kvm> {
    let word = capture(Command::new(coracle).args(["doctor", "--kind"]))?;
    match word.trim() {
        "hardware" => Ok(Kvm::Hardware),
        "software" => Ok(Kvm::Software),
        "none" => Ok(Kvm::Missing),
        "denied" => Ok(Kvm::Denied),
        other => bail!("`coracle doctor --kind` says {other:?}, which is not a kind of KVM"),
    }
}

/// The place where a test program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    EmulatedHost,
}

/// The state that all test runs share.
struct Tests<'a> {
    workspace: &'a Workspace,
    coracle: PathBuf,
}

impl Tests<'_> {
    /// Runs `cargo test` with these arguments, passes its output on and counts the results. It always names
    /// the whole workspace, so that features stay the same and nothing is built twice.
    fn run(&self, arguments: &[&str], place: Place) -> Result<Tally> {
        let mut command = cargo();
        command
            .current_dir(&self.workspace.root)
            .args(["test", "--no-fail-fast", "--workspace"])
            .args(arguments);
        command.env("CORACLE_BIN", &self.coracle).env("CORACLE_DATA", &self.workspace.data);
        if place == Place::EmulatedHost {
            command.env(RUNNER_VARIABLE, self.emulated_host_runner()?);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{}`", line(&command)))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let outputs = thread::scope(|scope| {
            let stdout = scope.spawn(|| pass_on(stdout, std::io::stdout()));
            let stderr = pass_on(stderr, std::io::stderr());
            [stdout.join().unwrap_or_default(), stderr]
        });
        let status = child.wait().context("cannot wait for cargo")?;
        Ok(TestOutput::tally(outputs, status.success()))
    }

    /// Runs the tests with Linux guests: on emulated hosts, which have one CPU each, two halves run at the
    /// same time.
    fn run_linux(&self, place: Place) -> Result<Tally> {
        let whole = ["--test", LINUX_TEST, "--test", SERVICE_TEST];
        if place == Place::Here || thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
            return self.run(&whole, place);
        }
        // A single cargo builds both, so that neither waits for the other.
        self.run(&[&whole[..], &["--no-run"]].concat(), Place::Here)?;
        let first = [&["--test", LINUX_TEST, "--"][..], &FIRST_HALF].concat();
        let skips = FIRST_HALF.iter().flat_map(|module| ["--skip", module]);
        let second: Vec<_> = whole.into_iter().chain(["--"]).chain(skips).collect();
        thread::scope(|scope| {
            let first = scope.spawn(|| self.run(&first, place));
            let mut tally = self.run(&second, place)?;
            tally += first.join().unwrap_or_else(|_| bail!("the first half of the tests panicked"))?;
            Ok(tally)
        })
    }

    /// Returns the command that cargo runs a test program with. It is set for one run of cargo at a time and
    /// not in a configuration file, where it would also apply to `cargo run` and to these tasks.
    fn emulated_host_runner(&self) -> Result<String> {
        let Workspace { root, target, data, .. } = self.workspace;
        let mut words = vec![self.coracle.as_path(), Path::new("host-emulate")];
        // One CPU: QEMU's emulation of nested paging occasionally fails when several run guests at once.
        words.extend(["--cpus", "1"].map(Path::new));
        for folder in [root, data, target] {
            words.extend([Path::new("--share"), folder]);
        }
        words.push(Path::new("--"));
        let words = words.into_iter().map(|word| word.to_str().context("a path is not UTF-8"));
        let words = words.collect::<Result<Vec<_>>>()?;
        for word in &words {
            let has_space = word.contains(char::is_whitespace);
            ensure!(
                !has_space,
                "{word:?} contains a space, at which cargo would split {RUNNER_VARIABLE}: use another folder"
            );
        }
        Ok(words.join(" "))
    }
}

/// Copies a stream line by line and counts results. If the stream breaks, cargo's exit status decides.
fn pass_on(from: Option<impl Read>, mut to: impl Write) -> TestOutput {
    let mut output = TestOutput::default();
    let Some(mut from) = from else {
        return output;
    };
    let mut print = |line: &[u8]| {
        let _ = to.write_all(line).and_then(|()| to.flush());
    };
    let mut piece = [0; 8192];
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => output.push(piece.get(..length).unwrap_or_default(), &mut print),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    print(output.rest());
    output
}

/// The test program whose guests are stock Linux kernels.
const LINUX_TEST: &str = "linux_guest";
/// The test program of the example `sandbox-service`, which has such guests too.
const SERVICE_TEST: &str = "service";
/// The modules of [`LINUX_TEST`] that take half of its time.
const FIRST_HALF: [&str; 5] = ["agent::", "boot_test::", "command::", "forks::", "tuned::"];
/// The tests of the emulated host itself, which start their own.
const EMULATED_HOST_TEST: &str = "emulated_host";

const RUNNER_VARIABLE: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

#[cfg(test)]
mod tests {
    use super::*;

    fn tests_in(target: &str) -> Result<String> {
        let workspace = Workspace {
            root: "/src/coracle".into(),
            target: target.into(),
            data: "/data".into(),
            test_targets: Vec::new(),
        };
        Tests { workspace: &workspace, coracle: "/bin/coracle".into() }.emulated_host_runner()
    }

    #[test]
    fn runner_shares_every_folder_that_tests_use() {
        let expected =
            "/bin/coracle host-emulate --cpus 1 --share /src/coracle --share /data --share /build --";
        assert_eq!(tests_in("/build").unwrap(), expected);
    }

    #[test]
    fn folder_that_cargo_would_split_is_refused() {
        let error = tests_in("/my builds/target").unwrap_err().to_string();
        assert!(error.contains("/my builds/target"), "{error}");
    }

    #[test]
    fn every_kind_of_kvm_has_its_places() {
        let places = |kvm: Kvm| (kvm.place_of_payloads().0, kvm.place_of_linux().0);
        assert_eq!(places(Kvm::Hardware), (Place::Here, Place::Here));
        assert_eq!(places(Kvm::Software), (Place::Here, Place::EmulatedHost));
        assert_eq!(places(Kvm::Missing), (Place::EmulatedHost, Place::EmulatedHost));
        assert_eq!(places(Kvm::Denied), (Place::EmulatedHost, Place::EmulatedHost));
    }
}
