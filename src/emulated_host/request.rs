//! The caller's surroundings, as the command on the emulated machine inherits them.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{env, fs};

use coracle_agent::protocol::emulated_host::environment::{CALLER, MARK};
use coracle_agent::protocol::emulated_host::{Limit, Request, TerminalModes, WindowSize};

use super::terminal::CallerTerminal;
use super::{EmulatedHostArgs, EmulatedHostError, shares};

/// Resource limits that concern the command. The others (memory, processes, locked pages) concern the
/// machine, and the emulated machine has its own.
const LIMITS: [libc::__rlimit_resource_t; 4] =
    [libc::RLIMIT_CORE, libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE, libc::RLIMIT_STACK];

/// Makes the request for a command of this process.
///
/// # Errors
/// There is no command, a share is impossible, or the surroundings cannot be read.
pub(super) fn of_caller(args: &EmulatedHostArgs, ignored: &[u8]) -> Result<Request, EmulatedHostError> {
    let program = args.command.first().ok_or(EmulatedHostError::NoCommand)?;
    let cwd = env::current_dir().map_err(local("read the working directory"))?;
    let search_path = env::var_os("PATH");
    let terminals = CallerTerminal::all().map_err(local("inspect the standard streams"))?;
    Ok(Request {
        argv: args.command.clone(),
        env: env::vars_os().chain(marks()?).collect(),
        umask: umask().map_err(local("read the file mode creation mask"))?,
        terminal: terminal(&terminals).map_err(local("read the terminal's modes"))?,
        terminals: terminals.each_ref().map(Option::is_some),
        ignored_signals: ignored.to_vec(),
        limits: limits().map_err(local("read the resource limits"))?,
        shares: shares::of_command(&args.shares, &cwd, program, search_path.as_deref())?,
        cwd,
    })
}

/// Returns the variables that tell the command where it runs, and for whom.
fn marks() -> Result<[(OsString, OsString); 2], EmulatedHostError> {
    let process = fs::metadata("/proc/self").map_err(local("tell this process's user"))?;
    Ok([(MARK.into(), "1".into()), (CALLER.into(), process.uid().to_string().into())])
}

fn terminal(terminals: &[Option<CallerTerminal>; 3]) -> io::Result<Option<(TerminalModes, WindowSize)>> {
    let Some(terminal) = terminals.iter().flatten().next() else { return Ok(None) };
    let mut modes = terminal.modes();
    let [stdin, ..] = terminals;
    if stdin.is_none() {
        // The caller's terminal keeps its mode then, and itself turns newlines into line breaks.
        modes.output &= !libc::OPOST;
    }
    Ok(Some((modes, terminal.size()?)))
}

/// Returns this process's mask, read without changing it (`proc_pid_status(5)`).
fn umask() -> io::Result<u32> {
    let status = fs::read_to_string(Path::new("/proc/self/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn limits() -> io::Result<Vec<Limit>> {
    let mut limits = Vec::new();
    for resource in LIMITS {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: fills the structure it is given.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let resource = u8::try_from(resource).unwrap_or(u8::MAX);
        limits.push(Limit { resource, soft: limit.rlim_cur, hard: limit.rlim_max });
    }
    Ok(limits)
}

fn local(step: &'static str) -> impl FnOnce(io::Error) -> EmulatedHostError {
    move |source| EmulatedHostError::Local { step, source }
}
