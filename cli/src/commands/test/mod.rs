//! `coracle test`: boots guests and judges them by their consoles and by how they end.

mod attempts;
mod case;
mod console_log;
mod grace;
mod lines;
mod names;
mod progress;
mod report;
mod reporting;
mod scanner;
mod shown;
pub(crate) mod suite;
mod tap;
#[cfg(test)]
mod tap_tests;
mod verdict;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle::command::emulated_host;
use coracle::config::{Accel, HaltPolicy, RawConfig, SerialConfig, Timeout, VmConfig};
use coracle::exit_code;
use coracle::host::{KvmKind, on_emulated_host};
use coracle::{KernelImage, VmBuilder};

use self::attempts::Retries;
use self::case::{Case, Done};
use self::names::{default_name, name_files};
use self::progress::Progress;
use self::scanner::Patterns;
use self::shown::{Lost, Shown};
use self::suite::SuiteCase;
use self::verdict::Verdict;
use super::crossing::Crossing;
use super::place::{Place, place};
use super::report_file;
use super::run::command::prepare;
use super::run::is_default_guest;
use super::run::watch::Watch;
use super::settings::{self, Failure};
use super::{chain, say};
use crate::arguments::{GuestIp, NoKvm, Surroundings, TapMode, TestArgs, variable};
use crate::guest_text;
use crate::logger;
use crate::memory;

/// Runs the tests and returns the exit code.
pub(crate) fn run(args: &TestArgs) -> u8 {
    logger::start(args.vm.verbose);
    try_run(args).unwrap_or_else(|failure| {
        say(&failure.reason);
        failure.code
    })
}

fn try_run(args: &TestArgs) -> Result<u8, Failure> {
    let watch = Watch::tests().map_err(|error| Failure::of(&error))?;
    let mut cases = cases(args)?;
    name_files(&mut cases);
    memory::give_back();
    // Report everything that is wrong before the first test starts.
    report_file::check("--junit", args.junit.as_deref())?;
    report_file::check("--json", args.json.as_deref())?;
    let mut open_files = 0;
    for case in &mut cases {
        let opened = case.builder.clone().open_files();
        let checked = opened.and_then(|opened| opened.check_files().map(|()| opened));
        let opened = checked.map_err(|error| Failure::usage(format!("{}: {}", case.name, chain(&error))))?;
        open_files += 1 + case.builder.config().initrds.len();
        if open_files <= MAX_OPEN_FILES {
            case.builder = opened;
        }
    }
    // A report of an earlier run must not be mistaken for this one's.
    report_file::empty("--junit", args.junit.as_deref())?;
    report_file::empty("--json", args.json.as_deref())?;
    let result = run_cases(args, &cases, watch);
    reporting::with_missing(args, &cases, result)
}

fn run_cases(args: &TestArgs, cases: &[Case], watch: Watch) -> Result<u8, Failure> {
    match place_of(args, cases)? {
        Ground::Here => {}
        Ground::EmulatedHost { because } => {
            return crossing(args, cases, because)?.run(Some(watch));
        }
        Ground::Nowhere { reason } if args.no_kvm == NoKvm::Skip => {
            let done: Vec<Done> =
                cases.iter().map(|case| case.not_run(Verdict::Skipped(reason.clone()))).collect();
            say(&format!("skipped: {reason}"));
            return reporting::write(args, &done);
        }
        Ground::Nowhere { reason } => return Err(Failure { code: exit_code::NO_KVM, reason }),
    }
    let done = if args.suite.is_some() { run_suite(args, cases)? } else { run_one(args, cases)? };
    reporting::write(args, &done)
}

/// Returns the cases of the suite, or the single case that the flags describe.
fn cases(args: &TestArgs) -> Result<Vec<Case>, Failure> {
    let flags = settings::raw(&args.vm)?;
    let Some(path) = &args.suite else {
        if args.tap_grace.is_some() && args.tap != TapMode::Require {
            return Err(Failure::usage(
                "--tap-grace: it applies to required results only; add --tap require",
            ));
        }
        let mut compiler = suite::Compiler::default();
        let mut regexes =
            |what, patterns: &[String]| compiler.compile(what, patterns).map_err(Failure::usage);
        let patterns = Patterns {
            expect: regexes("--expect", &args.expect)?,
            reject: regexes("--reject", &args.reject)?,
            tap: args.tap,
        };
        let name = default_name(&flags, &args.command);
        let command = args.command.clone();
        let config = config(&flags, !command.is_empty())?;
        let surroundings = args.surroundings.clone();
        check_network(&surroundings, &config)
            .map_err(|reason| Failure::usage(format!("--ip: {reason}; add --net")))?;
        return Ok(vec![Case {
            name,
            file_name: String::new(),
            builder: VmBuilder::new(config),
            patterns,
            boot: args.assert_boot,
            command,
            surroundings,
            time: time(&flags),
            tap_grace: tap_grace(args.tap_grace),
        }]);
    };
    let looks = !args.expect.is_empty() || !args.reject.is_empty() || args.tap != TapMode::default();
    if looks || args.assert_boot.is_some() || args.tap_grace.is_some() {
        return Err(Failure::usage(
            "--suite: the expectations are in the file; leave out --expect and similar options",
        ));
    }
    let in_suite = suite::read(path).map_err(|error| Failure::of(&error))?;
    if args.only.iter().any(String::is_empty) {
        return Err(Failure::usage(
            "--only: the empty text is part of every name; leave it out, or write a part of the names",
        ));
    }
    let is_wanted =
        |case: &SuiteCase| args.only.is_empty() || args.only.iter().any(|text| case.name.contains(text));
    let cases = in_suite.into_iter().filter(is_wanted).map(|case| {
        let SuiteCase { name, machine, expect, reject, tap, tap_grace, boot, command, surroundings } = case;
        let patterns = Patterns { expect, reject, tap };
        // Flags apply to every case.
        let raw = flags.clone().over(machine);
        let config = config(&raw, !command.is_empty());
        let config =
            config.map_err(|failure| Failure { reason: format!("{name}: {}", failure.reason), ..failure })?;
        let (time, tap_grace) = (time(&raw), self::tap_grace(tap_grace));
        check_network(&surroundings, &config)
            .map_err(|reason| Failure::usage(format!("{name}: ip: {reason}; add `nets`")))?;
        let file_name = String::new();
        Ok(Case {
            name,
            file_name,
            builder: VmBuilder::new(config),
            patterns,
            boot,
            command,
            surroundings,
            time,
            tap_grace,
        })
    });
    let cases = cases.collect::<Result<Vec<Case>, Failure>>()?;
    if cases.is_empty() {
        return Err(Failure::usage(format!("--only {}: no case has this in its name", args.only.join(", "))));
    }
    Ok(cases)
}

/// Configures the machine of a case: its console goes to the test, a guest that has halted has ended, and
/// none runs for ever.
fn config(raw: &RawConfig, has_command: bool) -> Result<VmConfig, Failure> {
    let mut config = settings::config(raw, "quiet")?;
    config.serial = SerialConfig::Null;
    config.timeout = time(raw);
    if has_command {
        prepare(&mut config, false, is_default_guest(raw));
    }
    if raw.on_halt.is_none() {
        config.on_halt = HaltPolicy::Exit;
    }
    Ok(config)
}

/// Checks that there is a card for the network that is to be configured.
fn check_network(surroundings: &Surroundings, config: &VmConfig) -> Result<(), &'static str> {
    let has_none = surroundings.ip.is_some() && config.nets.is_empty();
    if has_none { Err("this machine has no network card") } else { Ok(()) }
}

/// Returns how long a case, or its command, may take.
fn time(raw: &RawConfig) -> Option<Duration> {
    raw.timeout.unwrap_or(Timeout::After(DEFAULT_TIMEOUT)).limit()
}

/// Returns how long a guest may be silent after the last of its planned TAP results. This runs on the
/// emulated host itself, where a program takes longer to print the next document.
fn tap_grace(given: Option<Timeout>) -> Option<Duration> {
    let default = if on_emulated_host() { EMULATED_TAP_GRACE } else { DEFAULT_TAP_GRACE };
    given.unwrap_or(Timeout::After(default)).limit()
}

/// The place where the tests run.
enum Ground {
    Here,
    EmulatedHost { because: Option<String> },
    Nowhere { reason: String },
}

/// Chooses one place for all cases: one where the most demanding case can run.
fn place_of(args: &TestArgs, cases: &[Case]) -> Result<Ground, Failure> {
    let accel = args.vm.accel.unwrap_or_default();
    let mut ground = Ground::Here;
    for case in cases {
        if let Place::EmulatedHost { because } = place(accel, kernel(case)?.as_ref()) {
            ground = Ground::EmulatedHost { because };
            break;
        }
        if accel == Accel::Kvm
            && let Some(reason) = unusable_here(case)?
        {
            return Ok(Ground::Nowhere { reason });
        }
    }
    match ground {
        Ground::EmulatedHost { because } => Ok(match emulated_host::check() {
            Ok(_) => Ground::EmulatedHost { because },
            Err(error) => {
                let emulated = format!("there is no emulated host: {}", chain(&error));
                Ground::Nowhere {
                    reason: because.map_or_else(|| emulated.clone(), |why| format!("{why}; {emulated}")),
                }
            }
        }),
        other => Ok(other),
    }
}

/// Returns the kernel that the user names for a case.
fn kernel(case: &Case) -> Result<Option<KernelImage>, Failure> {
    if let Some(opened) = case.builder.kernel_image() {
        return Ok(Some(opened.clone()));
    }
    let path = case.builder.config().kernel.as_deref();
    path.map(KernelImage::open).transpose().map_err(|error| Failure::of(&error))
}

/// Returns why the KVM of this host cannot run the guest of `case`.
fn unusable_here(case: &Case) -> Result<Option<String>, Failure> {
    let image = kernel(case)?;
    Ok(match KvmKind::probe() {
        KvmKind::Hardware { .. } => None,
        KvmKind::Unusable(error) => Some(chain(&error)),
        KvmKind::Software { .. } if image.is_some_and(|image| !image.is_linux()) => None,
        KvmKind::Software { .. } => Some(
            "this KVM interprets kernel code and does not run a stock Linux; --accel auto emulates"
                .to_owned(),
        ),
    })
}

fn crossing(args: &TestArgs, cases: &[Case], because: Option<String>) -> Result<Crossing, Failure> {
    let mut crossing = Crossing::because(because);
    // QEMU's emulation of nested paging occasionally fails when several CPUs run guests at once.
    crossing.cpus(1);
    crossing.boot_limit(args.vm.host_timeout);
    let time: Option<Duration> = cases.iter().map(|case| case.time).sum();
    crossing.time_limit(time.map(|time| time.saturating_mul(1 + u32::from(args.retries))));
    for case in cases {
        crossing.add(&case.builder)?;
    }
    crossing.add_read("--config ", &args.vm.config);
    crossing.add_read("--suite ", &args.suite);
    if let Some(folder) = &args.artifacts {
        let made = fs::create_dir_all(folder);
        made.map_err(|error| Failure::usage(format!("--artifacts {}: {error}", folder.display())))?;
        crossing.add_read("--artifacts ", [folder]);
        crossing.add_changed([folder]);
    }
    crossing.add_written("--junit ", &args.junit);
    crossing.add_written("--json ", &args.json);
    Ok(crossing)
}

/// Runs a single case, with its console on stdout as it comes.
fn run_one(args: &TestArgs, cases: &[Case]) -> Result<Vec<Done>, Failure> {
    let shown = if args.quiet { None } else { Some(shown()?) };
    let done = cases.iter().map(|case| retries(args).run(case, args.artifacts.as_deref(), shown.as_ref()));
    let done = done.collect::<Result<Vec<Done>, Failure>>()?;
    if let Some(shown) = &shown {
        shown.end_line();
        report_lost(shown);
    }
    for case in &done {
        if case.verdict.is_bad() {
            report::explanation(case, shown.is_some()).iter().for_each(|line| say(line));
        } else {
            let reason = case.verdict.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
            let word =
                case.flakiness().map_or_else(|| case.verdict.word().into(), |why| format!("flaky: {why}"));
            say(&format!("{}: {word}{reason}", case.name));
        }
    }
    remark(&done);
    Ok(done)
}

/// Runs many cases, several at once; then prints the table, and why the first of them failed.
fn run_suite(args: &TestArgs, cases: &[Case]) -> Result<Vec<Done>, Failure> {
    let jobs = args.jobs.map_or_else(|| default_jobs(cases), usize::from).min(cases.len());
    let progress = Progress::new(cases.len());
    let next = AtomicUsize::new(0);
    let ended: Mutex<Vec<(usize, Result<Done, Failure>)>> = Mutex::default();
    let work = || {
        while let Some((index, case)) = take(&next, cases) {
            progress.begins(&case.name);
            let done = retries(args).run(case, args.artifacts.as_deref(), None);
            if let Ok(done) = &done {
                progress.ends(done);
            }
            ended.lock().unwrap_or_else(PoisonError::into_inner).push((index, done));
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    progress.clear();
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(index, _)| *index);
    let done = ended.into_iter().map(|(_, done)| done).collect::<Result<Vec<Done>, Failure>>()?;
    let shown = shown()?;
    shown.text(&guest_text::for_terminal(&report::summary(&done)));
    report_lost(&shown);
    for case in done.iter().filter(|case| !case.verdict.is_bad()) {
        if let Some(why) = case.flakiness() {
            say(&format!("{}: flaky: {why}", case.name));
        }
    }
    if let Some(first) = done.iter().find(|case| case.verdict.is_bad()) {
        report::explanation(first, false).iter().for_each(|line| say(line));
    }
    remark(&done);
    Ok(done)
}

/// Mentions text that looked like TAP results but did not count.
fn remark(done: &[Done]) {
    for Done { name, scanner, .. } in done {
        if let Some(left_out) = scanner.tap_left_out() {
            say(&format!("{name}: TAP: {left_out}: not counted (--tap require fails on it)"));
        }
    }
}

fn retries(args: &TestArgs) -> Retries {
    Retries { count: args.retries, flaky: args.flaky }
}

fn shown() -> Result<Arc<Shown>, Failure> {
    Shown::start().map_err(|error| Failure::usage(format!("standard output cannot be used: {error}")))
}

/// Reports what could not be written to stdout. The verdict has taken it into account.
fn report_lost(shown: &Shown) {
    let Lost { bytes, failure } = shown.finish();
    if let Some(error) = failure {
        say(&format!("warning: stdout cannot be written: {error}"));
    } else if bytes > 0 {
        say(&format!("warning: {bytes} bytes are not on stdout, which was not read in time"));
    }
}

fn take<'a>(next: &AtomicUsize, cases: &'a [Case]) -> Option<(usize, &'a Case)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    cases.get(index).map(|case| (index, case))
}

/// Returns how many cases run at once by default: as many of the largest as fit this machine's CPUs.
fn default_jobs(cases: &[Case]) -> usize {
    let largest =
        cases.iter().map(|case| usize::from(case.builder.config().vcpus.value())).max().unwrap_or(1);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    (cpus / largest.max(1)).max(1)
}

/// The number of files that stay open from the check to the run: the kernels and initrds of the first cases.
/// The other cases open theirs again. A process usually may have 1024 descriptors open (RLIMIT_NOFILE).
const MAX_OPEN_FILES: usize = 256;
/// Far longer than a boot takes on an emulated host, and short enough that a hung guest does not hold up a
/// job.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than the pause between two documents that one init prints.
const DEFAULT_TAP_GRACE: Duration = Duration::from_secs(1);
const EMULATED_TAP_GRACE: Duration = Duration::from_secs(10);
