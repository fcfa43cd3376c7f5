//! `cargo xtask ci`: everything that must hold before a change is accepted.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::fuzz::{self, FuzzArguments};
use crate::hostile::{self, HostileArguments};
use crate::process::{capture, cargo, run};
use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{structure, test, tuned};

/// Runs the steps in order, the quick ones first, up to the first that fails; returns `false` if one fails.
/// The last line on stdout is the tests' tally, in which a failed step that is not a test counts as a
/// failure.
pub(crate) fn check(workspace: &Workspace) -> bool {
    let mut tally = Tally::default();
    for (name, step) in STEPS {
        println!("==> {name}");
        let start = Instant::now();
        let result = step(workspace, &mut tally);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("==> {name}: passed in {seconds:.1} s, {}", space(workspace)),
            Err(error) => {
                println!("==> {name}: FAILED after {seconds:.1} s, {}: {error:#}", space(workspace));
                tally.failed = tally.failed.max(1);
                break;
            }
        }
    }
    println!("{tally}");
    tally.failed == 0
}

/// Returns the free space where the builds are, for messages: a full disk fails in any step.
fn space(workspace: &Workspace) -> String {
    let output = capture(Command::new("df").args(["-BM", "--output=avail"]).arg(&workspace.root));
    let free = output.ok().and_then(|output| output.lines().last().map(|line| line.trim().to_owned()));
    free.map_or_else(String::new, |free| format!("{free} of disk free"))
}

type Step = fn(&Workspace, &mut Tally) -> Result<()>;

const STEPS: [(&str, Step); 10] = [
    ("format", format),
    ("structure", structure),
    ("clippy", clippy),
    ("rustdoc", rustdoc),
    ("one version of each rust-vmm crate", single_versions),
    ("licences and bans", deny),
    ("fuzz targets, a short run", fuzz),
    ("tuned kernel", tuned_kernel),
    ("hostile guests, agents and files", hostile),
    ("tests", tests),
];

fn format(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    run(cargo().current_dir(&workspace.root).args(["fmt", "--all", "--check"]))?;
    let others = ["fuzz", "examples/cargo-runner"].map(|folder| workspace.root.join(folder));
    others.iter().try_for_each(|folder| run(cargo().current_dir(folder).args(["fmt", "--check"])))
}

fn structure(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    structure::check(workspace, false)
}

fn clippy(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run(cargo().current_dir(&workspace.root).args(arguments))
}

fn rustdoc(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    let arguments = ["doc", "--quiet", "--workspace", "--no-deps"];
    run(cargo().current_dir(&workspace.root).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The types of these crates are part of one another's interfaces: two versions would mean two incompatible
/// kinds of guest memory.
fn single_versions(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    let arguments = ["tree", "--workspace", "--duplicates", "--depth=0", "--prefix=none"];
    let tree = capture(cargo().current_dir(&workspace.root).args(arguments))?;
    let is_shared = |line: &&str| line.split(' ').next().is_some_and(|name| SHARED_CRATES.contains(&name));
    let duplicates: Vec<_> = tree.lines().filter(is_shared).collect();
    ensure!(duplicates.is_empty(), "more than one version resolves: {}", duplicates.join(", "));
    Ok(())
}

fn deny(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    let is_there = cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !is_there.is_ok_and(|status| status.success()) {
        println!("installing cargo-deny {CARGO_DENY_VERSION}");
        let arguments = ["install", "--quiet", "--locked", "cargo-deny", "--version", CARGO_DENY_VERSION];
        run(cargo().args(arguments))?;
    }
    // Without advisories: they need the network, and a change must not fail because of an event elsewhere.
    let arguments =
        ["deny", "--offline", "--workspace", "check", "--hide-inclusion-graph", "bans", "licenses"];
    run(cargo().current_dir(&workspace.root).args(arguments))
}

fn fuzz(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    fuzz::start(workspace, &FuzzArguments::smoke())
}

/// Builds the tuned kernel if it is missing, which takes some eight minutes on two CPUs.
fn tuned_kernel(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    tuned::make(workspace, false)
}

fn hostile(workspace: &Workspace, _: &mut Tally) -> Result<()> {
    ensure!(hostile::run(workspace, &HostileArguments::default())?, "attacks have not ended as they have to");
    Ok(())
}

fn tests(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    *tally += test::run(workspace)?;
    ensure!(tally.failed == 0, "tests failed: {}", tally.failed);
    Ok(())
}

const SHARED_CRATES: [&str; 5] =
    ["vm-memory", "kvm-bindings", "vmm-sys-util", "virtio-queue", "virtio-bindings"];

/// Pinned, so that the new checks of a new version come with a change of their own.
const CARGO_DENY_VERSION: &str = "0.20.2";
