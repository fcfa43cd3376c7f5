//! Runs one command on an emulated machine that has KVM, with the caller's files, streams and terminal.
//!
//! For hosts whose CPU has no hardware virtualization: QEMU emulates a machine with AMD's, a Linux kernel and
//! Coracle's agent boot in it, the caller's `/` is shared with it, and the command runs there as it would here.
//! `coracle host-emulate` and `coracle run --accel emulate` call [`run`]; nothing else does. This module prints
//! nothing: what appears on stdout and stderr is the command's.
//!
//! What does not cross: file locks, holes, sockets, block devices, taps and inherited descriptors above 2. The
//! machine has its own `/tmp`, `/run` and `/dev/shm`; what the command needs of the caller's is shared by path.

mod confine;
mod control;
mod drain;
mod error;
mod liveness;
mod log;
mod machine;
mod request;
mod session;
mod shares;
mod signals;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::guest_data::{self, HostData};
use machine::{Machine, MachineSize};
use session::{Limits, Session};
use signals::Signals;

pub use coracle_agent::protocol::emulated_host::environment::MARK;
pub use error::{EmulatedHostError, LastWords, ShareProblem};

/// A command for the emulated host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulatedHostArgs {
    /// Program and arguments. The program is looked up as a shell would.
    pub command: Vec<OsString>,
    /// Files and directories under `/tmp`, `/run` or `/dev/shm` that the command shall see. The working
    /// directory and the program itself are shared without being named.
    pub shares: Vec<PathBuf>,
    /// Virtual CPUs of the machine; by default as many as this one has, but at most four.
    pub cpus: Option<u32>,
    /// Memory of the machine in MiB; by default a third of this one's, but at most 3072. It is taken as it is
    /// touched.
    pub memory_mib: Option<u64>,
    /// The files and directories of the caller's that may be changed from inside; nothing else of the caller's can
    /// be, also not by a QEMU that a guest has taken over. None: all that the caller may change.
    pub writable: Option<Vec<PathBuf>>,
    /// How long the machine may take until the command runs; by default [`BOOT_LIMIT`].
    pub boot_limit: Option<Duration>,
    /// The time after which the command ends by itself. A machine that does not answer any more when it is over is
    /// ended.
    pub time_limit: Option<Duration>,
    /// What the command has written and nobody reads within a second of its end is lost. Otherwise its output waits for
    /// a reader until `time_limit` is over.
    pub ends_unread: bool,
}

/// How long the machine may take until the command runs, unless its caller says otherwise. A small host that has
/// nothing else to do takes some five seconds.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmulatedExit {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it, or ended the machine on the caller's request.
    Signal(i32),
}

/// Looks whether an emulated host could be started, and says with what.
///
/// # Errors
/// What is missing first: QEMU, or the files that `cargo xtask guest` makes.
pub fn check() -> Result<String, EmulatedHostError> {
    let version = machine::qemu_version()?;
    let HostData { kernel, .. } = guest_data::find_host()?;
    Ok(format!("{version}, {}", kernel.display()))
}

/// Boots the machine, runs the command, and returns when its output has been written to this process's stdout
/// and stderr.
///
/// Meanwhile the calling thread has SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT and SIGWINCH
/// blocked, and passes them on to the command; other threads of the process must have them blocked too. A
/// terminal on stdin is in raw mode while the command runs.
///
/// # Errors
/// The machine could not be had, did not come up, or ended before the command; or the command could not be
/// started on it. [`EmulatedHostError::exit_code`] tells these apart.
pub fn run(args: &EmulatedHostArgs) -> Result<EmulatedExit, EmulatedHostError> {
    let signals =
        Signals::block().map_err(|source| EmulatedHostError::Local { step: "block signals", source })?;
    let request = request::of_caller(args, signals.ignored())?;
    let machine = Machine::start(MachineSize::of(args), args.writable.as_deref())?;
    let limits = Limits {
        boot: args.boot_limit.unwrap_or(BOOT_LIMIT),
        command: args.time_limit,
        ends_unread: args.ends_unread,
    };
    Session::new(machine, signals, request, limits)?.run()
}
