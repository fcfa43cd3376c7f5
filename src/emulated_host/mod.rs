//! Runs one command on an emulated machine that has KVM, with the caller's files, streams and terminal.
//!
//! It is for hosts whose CPU has no hardware virtualization. QEMU emulates a machine with AMD's, in which a
//! Linux kernel and Coracle's agent boot. The caller's `/` is shared with it, and the command runs there as
//! it would here. `coracle host-emulate` and `coracle run --accel emulate` call [`run`], and nothing else
//! does. This module prints nothing: stdout and stderr are the command's.
//!
//! File locks, holes, sockets, block devices, taps and inherited descriptors above 2 do not cross. The
//! machine has its own `/tmp`, `/run` and `/dev/shm`. Files of the caller's there are shared by path.

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

use machine::{Machine, MachineSize};
use session::{Limits, Session};
use signals::Signals;

use coracle_image::guest_data::{self, HostData};

pub use error::{EmulatedHostError, LastWords, ShareProblem};

/// A command for the emulated host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmulatedHostArgs {
    /// Program and arguments. The program is looked up as a shell would.
    pub command: Vec<OsString>,
    /// Files and directories under `/tmp`, `/run` or `/dev/shm` that the command can see. The working
    /// directory and the program itself are always shared.
    pub shares: Vec<PathBuf>,
    /// Number of virtual CPUs. The default is the number of this host's, but at most four.
    pub cpus: Option<u32>,
    /// Memory of the machine in MiB. The default is a third of this host's, but at most 3072. It is allocated
    /// when it is touched.
    pub memory_mib: Option<u64>,
    /// Files and directories of the caller's that may be changed from inside. All others are protected, even
    /// from a QEMU that a guest has taken over. `None` allows everything that the caller may change.
    pub writable: Option<Vec<PathBuf>>,
    /// The time that the machine may take until the command runs. The default is 3 minutes.
    pub boot_limit: Option<Duration>,
    /// The time limit that the command itself keeps. A machine that does not answer any more after it is
    /// ended.
    pub time_limit: Option<Duration>,
    /// Whether output that nobody reads within a second of the command's end is dropped. If not, the output
    /// waits for a reader until `time_limit` is over.
    pub ends_unread: bool,
}

/// The default time that the machine may take until the command runs. An idle small host takes some five
/// seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// The way in which the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmulatedExit {
    /// The command exited with this code.
    Code(u8),
    /// A signal ended the command or the machine after the caller had passed it on.
    Signal(i32),
    /// A signal that the caller had not passed on killed the command, for example because the machine's
    /// memory was used up.
    Killed(i32),
}

/// Checks whether an emulated host could be started. Returns the version of QEMU.
///
/// # Errors
/// The first missing part: QEMU, or the files that `cargo xtask guest` makes.
pub fn check() -> Result<String, EmulatedHostError> {
    let version = machine::qemu_version()?;
    let HostData { kernel, .. } = guest_data::find_host()?;
    Ok(format!("{version}, {}", kernel.display()))
}

/// Returns the number of CPUs that the machine has by default.
pub fn default_cpus() -> u32 {
    u32::try_from(MachineSize::of(&EmulatedHostArgs::default()).cpus).unwrap_or(u32::MAX)
}

/// Returns the memory that the machine has by default, in MiB.
pub fn default_memory_mib() -> u64 {
    MachineSize::of(&EmulatedHostArgs::default()).memory_mib
}

/// Boots the machine, runs the command, and returns when its output has been written to this process's stdout
/// and stderr.
///
/// Meanwhile the calling thread has SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT and SIGWINCH
/// blocked, and passes them on to the command. Other threads of the process must have them blocked too. A
/// terminal on stdin is in raw mode while the command runs.
///
/// # Errors
/// The machine is not available, did not boot, or ended before the command; or the command could not be
/// started on it. [`EmulatedHostError::exit_code`] distinguishes these.
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
