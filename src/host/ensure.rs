//! The first call of a program that embeds Coracle: where the KVM of this host does not do, the program runs again on an
//! emulated one.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process;

use super::{KvmKind, check_kvm, on_emulated_host};
use crate::emulated_host::{self, EmulatedExit, EmulatedHostArgs, EmulatedHostError};
use crate::exit_code;
use crate::guest_data;
use crate::kvm::KvmError;

/// Which KVM a program wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvmPolicy {
    /// One that runs Linux guests: the host's, else, slowly, that of an emulated host.
    #[default]
    Auto,
    /// One that runs Linux guests, of this host; there is an error else.
    Hardware,
    /// Any of this host, also one that runs small programs only.
    Any,
    /// That of an emulated host, whatever this one has.
    Emulated,
}

/// Why a program does not have the KVM that it wants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnsureKvmError {
    /// There is no KVM that this user could use.
    #[error(transparent)]
    Unusable(#[from] KvmError),
    /// It interprets kernel code.
    #[error(
        "this KVM interprets kernel code and does not run a stock Linux; take a host whose CPU has virtualization, or \
         KvmPolicy::Auto"
    )]
    Software,
    /// The emulated host cannot be had.
    #[error("the emulated host cannot be had: {0}")]
    Emulated(EmulatedHostError),
    /// This program cannot be found.
    #[error("the program's own file cannot be found: {0}")]
    Program(io::Error),
}

impl From<EmulatedHostError> for EnsureKvmError {
    fn from(error: EmulatedHostError) -> EnsureKvmError {
        EnsureKvmError::Emulated(error)
    }
}

impl EnsureKvmError {
    /// The process exit code for it: 115, or 125 for what is no matter of KVM.
    pub fn exit_code(&self) -> u8 {
        match self {
            EnsureKvmError::Unusable(_) | EnsureKvmError::Software => exit_code::NO_KVM,
            EnsureKvmError::Emulated(error) => error.exit_code(),
            EnsureKvmError::Program(_) => exit_code::BAD_USAGE,
        }
    }
}

/// Makes sure of a KVM. Call it first in `main`, before there are threads.
///
/// Where it comes to an emulated host, this does not return: the program is run there, with the same arguments,
/// environment, streams and files, and this process ends as that one does. It is the only function of the library that
/// ends the process, or that emulates. On the emulated host it returns at once.
///
/// Files under `/tmp`, `/run` and `/dev/shm` are private to the emulated host, but for those in `shares`, the working
/// folder and the program.
///
/// ```no_run
/// use coracle::host::{self, KvmPolicy};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     host::ensure_kvm(KvmPolicy::Auto, &[])?;
///     println!("{}", coracle::Vm::builder().run()?.reason());
///     Ok(())
/// }
/// ```
///
/// # Errors
/// There is no such KVM, and no emulated host.
pub fn ensure_kvm(policy: KvmPolicy, shares: &[PathBuf]) -> Result<(), EnsureKvmError> {
    if on_emulated_host() {
        return Ok(check_kvm()?);
    }
    match policy {
        KvmPolicy::Any => return Ok(check_kvm()?),
        KvmPolicy::Emulated => {}
        KvmPolicy::Auto | KvmPolicy::Hardware => match KvmKind::probe() {
            KvmKind::Hardware { .. } => return Ok(()),
            KvmKind::Software { .. } if policy == KvmPolicy::Hardware => {
                return Err(EnsureKvmError::Software);
            }
            KvmKind::Unusable(error) if policy == KvmPolicy::Hardware => return Err(error.into()),
            KvmKind::Software { .. } | KvmKind::Unusable(_) => {}
        },
    }
    let exit = run_on_emulated_host(shares)?;
    process::exit(match exit {
        EmulatedExit::Code(code) => code.into(),
        EmulatedExit::Signal(signal) => exit_code::of_signal(signal).into(),
    })
}

fn run_on_emulated_host(shares: &[PathBuf]) -> Result<EmulatedExit, EnsureKvmError> {
    let program = env::current_exe().map_err(EnsureKvmError::Program)?;
    let command = std::iter::once(program.into_os_string()).chain(env::args_os().skip(1)).collect();
    let shares = shares.iter().cloned().chain(guest_data::existing_folders()).collect();
    Ok(emulated_host::run(&EmulatedHostArgs { command, shares, ..EmulatedHostArgs::default() })?)
}
