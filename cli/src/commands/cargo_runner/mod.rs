//! `coracle cargo-runner`: the runner that cargo starts for a program that it has built. The program runs in
//! a guest with this command's streams, and its exit code becomes this command's.
//!
//! Its files come in an initramfs after the guest's own: the kernel unpacks them faster than an agent could
//! receive them, and this works with any kernel and guest.

mod files;
mod program;

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::VmBuilder;
use coracle::config::{MemoryBacking, MemoryConfig, MemorySize, RawConfig, SerialConfig, Timeout};
use coracle::outcome::TimeLimit;
use coracle_image::guest_data::{self, GuestData};

use self::files::GuestFiles;
use self::program::Program;
use super::crossing::Crossing;
use super::place::{Place, place};
use super::run::signals::Blocked;
use super::run::snapshots::Snapshots;
use super::run::watch::Watch;
use super::run::{self, command, is_default_guest};
use super::say;
use super::settings::{self, Failure};
use crate::arguments::{CargoRunnerArgs, CommandArgs, Surroundings};
use crate::logger;

/// Runs the program in a guest, and returns its exit code or, if the run ended in another way, the code of
/// that ending.
pub(crate) fn run(args: &CargoRunnerArgs) -> u8 {
    logger::start(args.vm.verbose);
    try_run(args).unwrap_or_else(|failure| {
        say(&failure.reason);
        failure.code
    })
}

fn try_run(args: &CargoRunnerArgs) -> Result<u8, Failure> {
    let signals = Blocked::new().map_err(|error| Failure::of(&error))?;
    let raw = raw(args)?;
    let watch = Watch::preparation(&signals, raw.outcome.clone()).map_err(|error| Failure::of(&error))?;
    let mut config = settings::config(&raw, "quiet")?;
    // Standard output belongs to the program.
    config.serial = raw.serial.clone().unwrap_or(SerialConfig::Null);
    command::prepare(&mut config, false, is_default_guest(&raw));
    let luggage = Luggage::of(args)?;
    // Report everything that is wrong with the files before anything starts.
    let builder = VmBuilder::new(config).open_files().map_err(|error| Failure::of(&error))?;
    match place(raw.accel.unwrap_or_default(), builder.kernel_image()) {
        Place::Here => run_here(&raw, builder, args, &luggage, (signals, watch)),
        Place::EmulatedHost { because } => {
            builder.check_files().map_err(|error| Failure::of(&error))?;
            let mut crossing = Crossing::because(because);
            crossing.boot_limit(raw.host_timeout);
            crossing.time_limit(limit(&raw, args, &luggage));
            crossing.add(&builder)?;
            crossing.add_read("--config ", &args.vm.config);
            crossing.add_read("the program ", luggage.programs.iter().map(|program| &program.path));
            crossing.add_read("the library ", luggage.programs.iter().flat_map(|program| &program.libraries));
            crossing.add_read("--copy ", &args.copies);
            crossing.for_command(None);
            crossing.run(Some(watch))
        }
    }
}

/// Returns the settings of the flags and the config file. If only the kernel differs from the default
/// guest's, the default guest's initramfs is added.
fn raw(args: &CargoRunnerArgs) -> Result<RawConfig, Failure> {
    let mut raw = settings::raw(&args.vm)?;
    if let Some(root) = &raw.root {
        return Err(Failure::usage(format!(
            "--root {}: the program and its libraries come as an initramfs, which cannot be combined with a root; \
             leave it out, and \
             --copy what the program needs",
            root.path.display()
        )));
    }
    if settings::has_root(&raw) {
        return Err(Failure::usage(
            "-a root=: the program and its libraries come as an initramfs, which cannot be combined with a root; \
             leave it out, and --copy \
             what the program needs",
        ));
    }
    if raw.kernel.is_some() && raw.initrds.is_none() {
        let initramfs = guest_data::find(GuestData::GuestInitramfs).map_err(|error| Failure::of(&error))?;
        raw.initrds = Some(vec![initramfs]);
    }
    Ok(raw)
}

fn run_here(
    raw: &RawConfig,
    builder: VmBuilder,
    args: &CargoRunnerArgs,
    luggage: &Luggage,
    (signals, watch): (Blocked, Watch),
) -> Result<u8, Failure> {
    let files = luggage.files(&args.copies)?;
    let memory = memory(raw.memory, files.bytes())?;
    let file = files.into_archive().spool().map_err(|error| Failure::of(&error))?;
    // The file has no name elsewhere; this path is valid while `file` is open, until the end of the run.
    let files = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let builder = builder.initrd(files).configure(|config| config.memory = memory);
    let command = CommandArgs {
        surroundings: Surroundings {
            env: variables(args),
            workdir: Some(luggage.folder.clone()),
            ..Surroundings::default()
        },
        init: false,
        command: luggage.command(&args.command),
    };
    let outcome = command::outcome(
        &builder,
        &command,
        limit(raw, args, luggage),
        (signals, watch, &Snapshots::default()),
    )?;
    let tests_failed = outcome.ending.workload_code() == Some(TESTS_FAILED);
    Ok(match outcome.command {
        Some(_) if tests_failed => {
            run::report(raw, &outcome);
            TESTS_FAILED_CODE
        }
        _ if command::ended_quietly(&outcome) => run::report(raw, &outcome),
        _ => {
            let code = run::report_ending(raw, &outcome, true);
            if outcome.ending.time_limit() == Some(TimeLimit::Command) {
                say(timed_out_by(raw.timeout));
            }
            code
        }
    })
}

/// Returns how long the program may run.
fn limit(raw: &RawConfig, args: &CargoRunnerArgs, luggage: &Luggage) -> Option<Duration> {
    raw.timeout.unwrap_or_else(|| default_timeout(&luggage.path, &args.command)).limit()
}

/// Returns the limit of a program without `--timeout`. A test program that hangs must not hold up a job for
/// ever. Any other program may be a server, and a benchmark takes as long as it takes.
fn default_timeout(program: &Path, command: &[OsString]) -> Timeout {
    let is_bench = command.iter().any(|argument| argument == "--bench");
    if is_test(program) && !is_bench { Timeout::After(TEST_LIMIT) } else { Timeout::None }
}

/// Names the option whose limit expired.
fn timed_out_by(given: Option<Timeout>) -> &'static str {
    match given {
        Some(_) => "the limit comes from --timeout; --timeout none removes it",
        None => {
            "a test program may run for 20 minutes; --timeout TIME sets another limit, --timeout none removes it"
        }
    }
}

/// Returns whether the program lies in the directory in which cargo puts its test programs.
fn is_test(program: &Path) -> bool {
    program.parent().is_some_and(|folder| folder.ends_with("deps"))
}

/// Everything that goes into the guest.
struct Luggage {
    /// The program to run, and the other programs of its package, which it may start.
    programs: Vec<Program>,
    /// The path of the program to run.
    path: PathBuf,
    /// The working directory, which cargo sets to the package's directory.
    folder: PathBuf,
}

impl Luggage {
    fn of(args: &CargoRunnerArgs) -> Result<Luggage, Failure> {
        let failed = |error: &dyn std::error::Error| Failure::of(error);
        let given = args.command.first().map_or(Path::new(""), Path::new);
        if given.as_os_str().is_empty() {
            return Err(Failure::usage(
                "the program's path is empty: cargo puts it after `coracle cargo-runner`",
            ));
        }
        let path = std::path::absolute(given).map_err(|error| failed(&error))?;
        let folder = env::current_dir().map_err(|error| failed(&error))?;
        // The other programs of the package, which its tests may start.
        let others = env::vars_os().filter(|(name, _)| begins_with(name, &PROGRAMS));
        let others = others.map(|(_, value)| PathBuf::from(value)).filter(|other| other.is_file());
        let programs = std::iter::once(path.clone()).chain(others).map(|path| Program::find(&path));
        let programs = programs.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        Ok(Luggage { programs, path, folder })
    }

    /// Collects all files of the guest, at the paths that they have here.
    fn files(&self, copies: &[PathBuf]) -> Result<GuestFiles, Failure> {
        let mut files = GuestFiles::default();
        self.add_to(&mut files, copies).map_err(|error| Failure::of(&error))?;
        if files.left_out() > 0 {
            say(&format!("--copy: {} sockets, FIFOs and devices were left out", files.left_out()));
        }
        Ok(files)
    }

    fn add_to(&self, files: &mut GuestFiles, copies: &[PathBuf]) -> Result<(), files::FilesError> {
        files.add_folder(&self.folder)?;
        if let Some(scratch) = self.scratch_folder() {
            files.add_folder(&scratch)?;
        }
        for program in &self.programs {
            files.add(&program.path)?;
            for library in &program.libraries {
                files.add(library)?;
            }
        }
        let loader_cache = Path::new(LOADER_CACHE);
        if self.programs.iter().any(|program| !program.libraries.is_empty()) && loader_cache.is_file() {
            files.add(loader_cache)?;
        }
        copies.iter().try_for_each(|path| files.add(&self.folder.join(path)))
    }

    /// Returns `CARGO_TARGET_TMPDIR`, whose path is compiled into integration tests: `tmp` beside the
    /// directory of the profile or, with an explicit target, beside that of the target.
    fn scratch_folder(&self) -> Option<PathBuf> {
        let is_test = is_test(&self.path);
        let above = self.path.ancestors().skip(3).take(2).filter(|_| is_test);
        above.map(|folder| folder.join("tmp")).find(|scratch| scratch.is_dir())
    }

    /// Returns the command line in the guest: the program and its arguments.
    fn command(&self, given: &[OsString]) -> Vec<OsString> {
        std::iter::once(self.path.clone().into_os_string()).chain(given.iter().skip(1).cloned()).collect()
    }
}

/// Returns the variables that cargo and similar tools set for a program, without credentials, followed by
/// those of the command line.
fn variables(args: &CargoRunnerArgs) -> Vec<OsString> {
    let is_secret =
        |name: &OsStr| SECRETS.iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()));
    let is_cargos = |name: &OsString| begins_with(name, &FORWARDED) && !is_secret(name);
    let names = env::vars_os().map(|(name, _)| name).filter(is_cargos);
    names.chain(args.env.iter().cloned()).collect()
}

fn begins_with(name: &OsStr, starts: &[&str]) -> bool {
    starts.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
}

/// Returns the memory of a guest that has to hold the files twice, in the initramfs and unpacked, with room
/// to work. The host allocates it as the guest touches it.
fn memory(wanted: Option<MemoryConfig>, bytes: u64) -> Result<MemoryConfig, Failure> {
    let files = bytes.div_ceil(1 << 20);
    let Some(wanted) = wanted else {
        let mib = (files.saturating_mul(3).saturating_add(ROOM_MIB)).max(MIN_MIB);
        let size = MemorySize::from_mib(mib).map_err(|error| Failure::of(&error))?;
        return MemoryConfig::new(size, MemoryBacking::default()).map_err(|error| Failure::of(&error));
    };
    let least = files.saturating_mul(2).saturating_add(KERNEL_MIB);
    if wanted.size().mib() < least {
        return Err(Failure::usage(format!(
            "--memory {}M: the program, its libraries and what --copy names take {files} MiB, which the guest holds \
             in memory \
             twice while it unpacks them; it needs at least {least}M",
            wanted.size().mib()
        )));
    }
    Ok(wanted)
}

/// The prefixes of the variables by which cargo and cargo-nextest name the package's own programs.
const PROGRAMS: [&str; 2] = ["CARGO_BIN_EXE_", "NEXTEST_BIN_EXE_"];

/// The cache by which the dynamic loader finds libraries outside its built-in directories.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// The prefixes of forwarded variables: those of cargo, of Rust's runtime and test harness, of cargo-nextest,
/// and of the dynamic loader.
const FORWARDED: [&str; 5] = ["CARGO", "RUST", "NEXTEST", "LD_LIBRARY_PATH", "OUT_DIR"];
const SECRETS: [&str; 2] = ["_TOKEN", "_SECRET_KEY"];

/// The exit code by which Rust's test harness reports failed tests. cargo knows it, and prints a long
/// explanation of any other code.
const TESTS_FAILED: u32 = 101;
const TESTS_FAILED_CODE: u8 = 101;

/// How long a test program may run by default: far longer than a test takes, and short enough that a job on
/// CI does not hang for hours.
const TEST_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Memory besides the files: for the kernel, and for what tests use.
const ROOM_MIB: u64 = 256;
/// The smallest default. The host allocates it as it is touched, so that its size costs nothing.
const MIN_MIB: u64 = 512;
/// The memory that a stock kernel and the default guest use themselves, with a margin.
const KERNEL_MIB: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_have_a_limit_by_default() {
        let limit = |program: &str, arguments: &[&str]| {
            let command: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            default_timeout(Path::new(program), &command).limit()
        };
        let test = "/p/target/debug/deps/machine-0123456789abcdef";
        assert_eq!(limit(test, &[test, "filter"]), Some(Duration::from_secs(1200)));
        assert_eq!(limit(test, &[test, "--bench"]), None);
        assert_eq!(limit("/p/target/debug/server", &[]), None);
        assert_eq!(limit("/p/target/debug/examples/deps", &[]), None);
    }

    #[test]
    fn memory_grows_with_the_files_and_is_refused_where_they_do_not_fit() {
        let mib = |wanted: Option<&str>, files: u64| {
            let wanted = wanted.map(|text| text.parse().unwrap());
            memory(wanted, files << 20).map(|memory| memory.size().mib()).map_err(|failure| failure.reason)
        };
        assert_eq!(mib(None, 1), Ok(512));
        assert_eq!(mib(None, 200), Ok(856));
        assert_eq!(mib(Some("1G"), 200), Ok(1024));
        let refused = mib(Some("256M"), 100).unwrap_err();
        assert!(refused.starts_with("--memory 256M: ") && refused.ends_with("at least 328M"), "{refused}");
    }
}
