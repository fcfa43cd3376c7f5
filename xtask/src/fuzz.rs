//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer and AddressSanitizer, and runs them.
//!
//! It passes the same flags to the compiler as cargo-fuzz, so that no other program has to be installed;
//! `cargo +nightly fuzz run TARGET` works, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cargo, run};
use crate::setup;
use crate::workspace::Workspace;

/// The targets to fuzz, and the time for each.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FuzzArguments {
    /// The target; without it, every target for the whole time
    target: Option<String>,
    /// Time for each target, in seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// A short run, as in `cargo xtask ci`: all targets, 10 seconds each
    #[arg(long, conflicts_with = "seconds")]
    smoke: bool,
}

impl FuzzArguments {
    /// Returns the arguments of `cargo xtask ci`.
    pub(crate) fn smoke() -> Self {
        Self { target: None, seconds: 0, smoke: true }
    }

    fn seconds_each(&self) -> u32 {
        if self.smoke { SMOKE_SECONDS } else { self.seconds }
    }
}

/// Builds and runs the targets, two at a time.
///
/// # Errors
/// There is no such target, it does not build, or there was a finding; the error names the file of its input.
pub(crate) fn start(workspace: &Workspace, arguments: &FuzzArguments) -> Result<()> {
    let fuzz = Fuzz { source: workspace.root.join("fuzz"), build: workspace.target.join("fuzz") };
    let mut targets = fuzz.targets()?;
    if let Some(wanted) = &arguments.target {
        let known = targets.join(", ");
        targets.retain(|target| target == wanted);
        ensure!(!targets.is_empty(), "there is no fuzz target {wanted}: there are {known}");
    }
    setup::make_ready_to_fuzz()?;
    fuzz.build(workspace)?;
    let seconds = arguments.seconds_each();
    let mut failures = Vec::new();
    // Two at a time: the targets are single-threaded, and two cores are the fewest that a machine has.
    for pair in targets.chunks(2) {
        thread::scope(|scope| {
            let runs: Vec<_> = pair.iter().map(|target| scope.spawn(|| fuzz.run(target, seconds))).collect();
            for (target, run) in pair.iter().zip(runs) {
                match run.join() {
                    Ok(Ok(last_line)) => println!("{target}: {last_line}"),
                    Ok(Err(error)) => failures.push(format!("{target}: {error:#}")),
                    Err(_) => failures.push(format!("{target}: its thread panicked")),
                }
            }
        });
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

struct Fuzz {
    /// The directory of the targets and their corpora.
    source: PathBuf,
    /// The directory of everything that is built.
    build: PathBuf,
}

impl Fuzz {
    /// Returns the names of the targets, which are those of the corpora.
    fn targets(&self) -> Result<Vec<String>> {
        let folder = self.source.join("corpus");
        let files = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut names = files
            .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn build(&self, workspace: &Workspace) -> Result<()> {
        let manifest = self.source.join("Cargo.toml");
        // Use the product's versions, to which those for libFuzzer are added.
        let lock = self.source.join("Cargo.lock");
        fs::copy(workspace.root.join("Cargo.lock"), &lock)
            .with_context(|| format!("cannot write {}", lock.display()))?;
        let mut command = cargo();
        // An explicit target keeps the flags away from build scripts and macros, which cannot be built with
        // them.
        command.args(["build", "--quiet", "--release", "--bins", "--target", TARGET_TRIPLE]);
        command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&self.build);
        command.env("RUSTFLAGS", FLAGS.join(" "));
        // Sanitizers are not stable yet. This makes the product's own compiler accept the flags: so its
        // output is what is fuzzed, and no second toolchain is needed.
        command.env("RUSTC_BOOTSTRAP", "1");
        run(&mut command)
    }

    /// Runs one target and returns the last line that it printed. New inputs that reach further are kept in
    /// the build directory and used by the next run.
    fn run(&self, target: &str, seconds: u32) -> Result<String> {
        let found = self.build.join("corpus").join(target);
        let findings = self.build.join("findings").join(target);
        for folder in [&found, &findings] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut command = Command::new(self.build.join(TARGET_TRIPLE).join("release").join(target));
        command.args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", findings.display()),
        ]);
        command.args(LIMITS).arg(format!("-malloc_limit_mb={}", largest_block_mib(target)));
        command.arg(&found).arg(self.source.join("corpus").join(target));
        let output = command.output().with_context(|| format!("cannot start {target}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Ok(text.lines().last().unwrap_or("ran without output").to_owned());
        }
        let lines: Vec<_> = text.lines().collect();
        let report = lines.iter().position(|line| is_report(line)).unwrap_or(lines.len().saturating_sub(20));
        let shown: Vec<_> = lines.iter().skip(report).take(40).copied().collect();
        bail!("{}\n{}", finding(&findings, target), shown.join("\n"))
    }
}

/// Returns whether the report of a finding begins here.
fn is_report(line: &str) -> bool {
    line.contains("panicked at") || line.contains("ERROR: ")
}

fn finding(folder: &Path, target: &str) -> String {
    format!(
        "a finding; its input is the newest file in {}. Fix the code and add the input to fuzz/corpus/{target}, which \
         `cargo test --test fuzz_corpus` replays",
        folder.display()
    )
}

const SMOKE_SECONDS: u32 = 10;

const TARGET_TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Returns the largest allocation, in MiB, that a target may make. Parsing a file takes memory in proportion
/// to it, and inputs are small; but a decoder may have a window of 128 MiB, and a kernel may decompress to
/// more.
fn largest_block_mib(target: &str) -> u32 {
    match target {
        "config_file" | "diagnosis_inputs" | "root_tar" | "snapshot_state" | "suite_toml" | "tap_stream" => {
            24
        }
        _ => 256,
    }
}

/// An input takes milliseconds and a few MiB. These limits are far above that, even on a busy machine.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=0"];

/// Coverage and compared values for libFuzzer, and AddressSanitizer.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
    "--cfg=fuzzing",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_a_finding_is_found_in_what_the_fuzzer_writes() {
        assert!(is_report("thread '<unnamed>' panicked at src/lib.rs:1:1:"));
        assert!(is_report("==7==ERROR: AddressSanitizer: heap-buffer-overflow"));
        assert!(!is_report("#1024 pulse cov: 12 ft: 13 corp: 2/2b"));
    }

    #[test]
    fn every_corpus_has_its_target() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz");
        let fuzz = Fuzz { source: root.clone(), build: root.clone() };
        let targets = fuzz.targets().unwrap();
        assert!(targets.len() >= 4, "{targets:?}");
        for target in targets {
            assert!(root.join("fuzz_targets").join(format!("{target}.rs")).is_file(), "{target}");
        }
    }
}
