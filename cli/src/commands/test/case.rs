//! A test case: its machine, its expectations, and its run.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use coracle::agent::AgentError;
use coracle::outcome::{Ending, HostFailure, Outcome};
use coracle::{Grace, Vm, VmBuilder, VmHandle};

use super::attempts::Attempt;
use super::grace::Grace as TapGrace;
use super::names;
use super::scanner::{Patterns, Scanner, Writer};
use super::shown::Shown;
use super::verdict::{Verdict, judge, judge_command, judge_without_command};
use crate::arguments::{GuestIp, Surroundings, TapMode};
use crate::commands::chain;
use crate::commands::report_file;
use crate::commands::run::command::{TURN, surrounded};
use crate::commands::run::command_ending::{ending_of, of_error, of_network_error};
use crate::commands::run::copying::{Copying, Rest};
use crate::commands::settings::Failure;

/// A test to run.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The name of its files in `--artifacts` without their extensions, unique among the cases
    /// ([`names::name_files`]).
    pub(crate) file_name: String,
    /// Its machine; the files of few cases are open in it.
    pub(crate) builder: VmBuilder,
    pub(crate) patterns: Patterns,
    /// The longest time that the guest may take to reach its init.
    pub(crate) boot: Option<Duration>,
    /// The command to run in the guest; empty for none.
    pub(crate) command: Vec<OsString>,
    pub(crate) surroundings: Surroundings,
    /// How long the case may take.
    pub(crate) time: Option<Duration>,
    /// How long the guest may be silent once all planned TAP results have come; `None` to wait for its end.
    pub(crate) tap_grace: Option<Duration>,
}

/// A test that has run.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    /// `None` if the machine never ran.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) scanner: Scanner,
    /// The time from the start of building its machine to its end.
    pub(crate) time: Duration,
    /// The earlier runs, which failed.
    pub(crate) earlier: Vec<Attempt>,
    /// True if the case passed after an earlier run failed.
    pub(crate) is_flaky: bool,
}

impl Case {
    /// Creates a case with this name that boots the default guest and expects nothing.
    #[cfg(test)]
    pub(crate) fn sample(name: &str) -> Case {
        Case {
            name: name.to_owned(),
            file_name: String::new(),
            builder: VmBuilder::default(),
            patterns: Patterns::default(),
            boot: None,
            command: Vec::new(),
            surroundings: Surroundings::default(),
            time: None,
            tap_grace: None,
        }
    }

    /// Runs the case to its verdict, after `earlier` failed runs. The console goes to a file in `artifacts`,
    /// and to `shown` as it comes.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(crate) fn run(
        &self,
        earlier: usize,
        artifacts: Option<&Path>,
        shown: Option<&Arc<Shown>>,
    ) -> Result<Done, Failure> {
        let log = artifacts.map(|folder| self.create_log(folder, earlier)).transpose()?;
        let start = Instant::now();
        let scanner = Arc::new(Mutex::new(Scanner::new(self.patterns.clone(), log)));
        let reader = Reader::new(self, &scanner, shown);
        let outcome = self.run_machine(&reader, earlier);
        let decided_at = reader.decided_at.get().copied();
        drop(reader);
        // The console's thread has ended with the machine; a thread for an output of the command may still be
        // ending.
        let mut scanner = Arc::try_unwrap(scanner).map_or_else(
            |shared| std::mem::replace(&mut *lock(&shared), Scanner::new(Patterns::default(), None)),
            |scanner| scanner.into_inner().unwrap_or_else(PoisonError::into_inner),
        );
        scanner.end();
        let log_failure = scanner.log_failure();
        let (verdict, outcome) = match outcome {
            Ok((outcome, Some(command))) => {
                (judge_command(&command, &outcome, &scanner, self.boot), Some(outcome))
            }
            Ok((outcome, None)) if !self.command.is_empty() => {
                (judge_without_command(&outcome, &scanner, self.boot), Some(outcome))
            }
            Ok((outcome, None)) => (judge(&outcome, &scanner, self.boot), Some(outcome)),
            Err(Failure { code, reason }) => (Verdict::Broken { code, reason }, None),
        };
        let lost = outcome.as_ref().and_then(|outcome| lost_before(outcome, decided_at));
        let verdict = verdict.unless_lost(lost.or(log_failure));
        Ok(Done {
            name: self.name.clone(),
            verdict,
            outcome,
            scanner,
            time: start.elapsed(),
            earlier: Vec::new(),
            is_flaky: false,
        })
    }

    /// Creates the result of a case that has not run, with the reason in `verdict`.
    pub(crate) fn not_run(&self, verdict: Verdict) -> Done {
        Done {
            name: self.name.clone(),
            verdict,
            outcome: None,
            scanner: Scanner::new(Patterns::default(), None),
            time: Duration::ZERO,
            earlier: Vec::new(),
            is_flaky: false,
        }
    }

    fn run_machine(&self, reader: &Reader, earlier: usize) -> Result<(Outcome, Option<Ending>), Failure> {
        let vm = {
            let reader = reader.clone();
            let console = move |bytes: &[u8]| reader.take(Writer::Console, bytes);
            // A retry opens the files again: they may have been replaced.
            let builder = match earlier {
                0 => self.builder.clone(),
                _ => VmBuilder::new(self.builder.config().clone()),
            };
            builder.console_callback(console).build()
        };
        let vm = vm.map_err(|error| Failure { code: error.exit_code(), reason: chain(&error) })?;
        reader.handle.get_or_init(|| vm.handle()).resume();
        if !reader.has_command {
            return Ok((reader.wait(&vm), None));
        }
        Ok(match self.run_command(&vm, reader) {
            None => (vm.wait(), None),
            Some(ending) => (vm.stop(Grace::NONE), Some(ending)),
        })
    }

    /// Runs the command to its end; `None` if the machine ended before the command, by itself or because the
    /// verdict was decided.
    fn run_command(&self, vm: &Vm, reader: &Reader) -> Option<Ending> {
        if let Some(GuestIp(settings)) = &self.surroundings.ip {
            match vm.network_up(settings.clone()) {
                Ok(_) => {}
                Err(error @ AgentError::NotReady { .. }) => return of_error(&error.into()),
                Err(error) => return of_network_error(&error),
            }
        }
        let exec = surrounded(vm.exec(self.command.iter().cloned()), &self.surroundings);
        let exec = match self.time {
            Some(limit) => exec.timeout(limit),
            None => exec,
        };
        let mut process = match exec.spawn() {
            Ok(process) => process,
            Err(error) => return of_error(&error),
        };
        let to = |writer| OutputReader { writer, reader: reader.clone() };
        let outputs = [
            process.stdout.take().map(|output| Copying::start(output, to(Writer::Stdout))).transpose(),
            process.stderr.take().map(|output| Copying::start(output, to(Writer::Stderr))).transpose(),
        ];
        let lost = |stream, error: &io::Error| {
            Some(HostFailure::CommandOutput { stream, reason: error.to_string() }.into())
        };
        let outputs = match outputs {
            [Ok(stdout), Ok(stderr)] => [stdout, stderr],
            [Err(error), _] => return lost("stdout", &error),
            [_, Err(error)] => return lost("stderr", &error),
        };
        let status = match process.wait() {
            Ok(status) => status,
            Err(error) => return of_error(&error),
        };
        let mut rest = Rest::new();
        while !rest.is_over(&outputs) {
            if vm.handle().wait_for(TURN).is_some() {
                break;
            }
        }
        Some(ending_of(status))
    }

    fn create_log(&self, folder: &Path, earlier: usize) -> Result<File, Failure> {
        let path = folder.join(names::log_name(&self.file_name, earlier));
        let made = fs::create_dir_all(folder).and_then(|()| report_file::create(&path));
        made.map_err(|error| {
            Failure::usage(format!("--artifacts: {} cannot be made: {error}", path.display()))
        })
    }
}

/// Shows the output, passes it to the scanner, and ends the machine once the verdict is decided.
#[derive(Clone)]
struct Reader {
    scanner: Arc<Mutex<Scanner>>,
    /// Set once the machine exists.
    handle: Arc<OnceLock<VmHandle>>,
    shown: Option<Arc<Shown>>,
    has_command: bool,
    /// `None` if TAP results do not end the guest.
    grace: Option<Arc<Mutex<TapGrace>>>,
    /// The number of console bytes that were scanned.
    console_bytes: Arc<AtomicU64>,
    /// The same number at the moment of the decision.
    decided_at: Arc<OnceLock<u64>>,
}

impl Reader {
    fn new(case: &Case, scanner: &Arc<Mutex<Scanner>>, shown: Option<&Arc<Shown>>) -> Reader {
        let has_command = !case.command.is_empty();
        // A command ends with its own exit code, and TAP results that are not required do not end a guest.
        let ends_by_results = !has_command && case.patterns.tap == TapMode::Require;
        let grace = case.tap_grace.filter(|_| ends_by_results);
        Reader {
            scanner: scanner.clone(),
            handle: Arc::default(),
            shown: shown.cloned(),
            has_command,
            grace: grace.map(|silence| Arc::new(Mutex::new(TapGrace::new(silence)))),
            console_bytes: Arc::default(),
            decided_at: Arc::default(),
        }
    }

    fn take(&self, writer: Writer, bytes: &[u8]) {
        if let Some(shown) = &self.shown {
            shown.output(bytes);
        }
        let mut scanner = lock(&self.scanner);
        scanner.feed(writer, bytes);
        let is_decided =
            if self.has_command { scanner.is_decided_by_command() } else { scanner.is_decided() };
        if writer == Writer::Console {
            self.console_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        if is_decided {
            self.decide();
        }
        if let Some(grace) = &self.grace {
            lock(grace).output(scanner.all_planned(), Instant::now());
        }
        drop(scanner);
        if let Some(handle) = self.handle.get().filter(|_| is_decided) {
            handle.stop();
        }
    }
}

impl Reader {
    /// Waits for the end of the machine, and ends it when all planned results have come and their grace
    /// period is over.
    fn wait(&self, vm: &Vm) -> Outcome {
        let Some(grace) = &self.grace else { return vm.wait() };
        loop {
            if let Some(outcome) = vm.handle().wait_for(GRACE_TURN) {
                return outcome;
            }
            if lock(grace).is_over(Instant::now()) {
                self.decide();
                return vm.stop(Grace::NONE);
            }
        }
    }

    /// Notes that the verdict no longer depends on what the guest does.
    fn decide(&self) {
        self.decided_at.get_or_init(|| self.console_bytes.load(Ordering::Relaxed));
    }
}

/// Describes what was lost of the console before the decision. Later output is not scanned anyway.
fn lost_before(outcome: &Outcome, decided_at: Option<u64>) -> Option<String> {
    let from = outcome.console_lost_from?;
    let counts = decided_at.is_none_or(|decided| from < decided);
    counts.then(|| {
        let bytes = outcome.console_bytes_dropped;
        format!("{bytes} bytes of the console were lost, because the guest printed faster than they could be scanned")
    })
}

/// An output of the command.
struct OutputReader {
    writer: Writer,
    reader: Reader,
}

impl Write for OutputReader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reader.take(self.writer, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How late a guest may be ended after its grace period.
const GRACE_TURN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_after_the_decision_is_not_missed() {
        let mut outcome = Outcome::bare(Ending::PoweredOff);
        assert_eq!(lost_before(&outcome, None), None);
        outcome.console_bytes_dropped = 7;
        outcome.console_lost_from = Some(100);
        assert!(lost_before(&outcome, None).unwrap().starts_with("7 bytes of the console were lost"));
        assert_eq!(lost_before(&outcome, Some(100)), None);
        assert!(lost_before(&outcome, Some(101)).is_some());
    }
}
