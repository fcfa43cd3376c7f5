//! The first call of a program that embeds Coracle. If the KVM of this host is not sufficient, the program
//! runs again on an emulated host.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process;

use coracle_image::guest_data;

use super::{KvmKind, check_kvm, on_emulated_host};
use crate::emulated_host::{self, EmulatedExit, EmulatedHostArgs, EmulatedHostError};
use crate::exit_code;
use crate::kvm::KvmError;

/// The KVM that a program needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvmPolicy {
    /// A KVM that runs Linux guests: this host's, or else, slowly, an emulated host's.
    #[default]
    Auto,
    /// A KVM of this host that runs Linux guests. If there is none, that is an error.
    Hardware,
    /// Any KVM of this host, also one that runs small programs only.
    Any,
    /// The KVM of an emulated host, whatever this host has.
    Emulated,
}

/// The reason why a program does not get the KVM that it needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnsureKvmError {
    /// There is no KVM that this user may use.
    #[error(transparent)]
    Unusable(#[from] KvmError),
    /// The KVM interprets kernel code.
    #[error(
        "this KVM interprets kernel code and does not run a stock Linux; take a host whose CPU has virtualization, or \
         KvmPolicy::Auto"
    )]
    Software,
    /// The emulated host is not available.
    #[error("the emulated host is not available: {0}")]
    Emulated(EmulatedHostError),
    /// The program's own file cannot be found.
    #[error("the program's own file cannot be found: {0}")]
    Program(io::Error),
}

impl From<EmulatedHostError> for EnsureKvmError {
    fn from(error: EmulatedHostError) -> EnsureKvmError {
        EnsureKvmError::Emulated(error)
    }
}

impl EnsureKvmError {
    /// Returns the process exit code for the error: 115, or 125 if it is not about KVM.
    pub fn exit_code(&self) -> u8 {
        match self {
            EnsureKvmError::Unusable(_) | EnsureKvmError::Software => exit_code::NO_KVM,
            EnsureKvmError::Emulated(error) => error.exit_code(),
            EnsureKvmError::Program(_) => exit_code::BAD_USAGE,
        }
    }
}

/// Makes sure that the program has a KVM. Call it first in `main`, before there are threads.
///
/// If an emulated host is needed, this does not return. The program is run there with the same arguments,
/// environment, streams and files, and this process ends with its result. It is the only function of the
/// library that ends the process, or that emulates. On the emulated host it returns at once.
///
/// Files under `/tmp`, `/run` and `/dev/shm` are private to the emulated host, except those in `shares`, the
/// working directory and the program.
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
/// There is no such KVM, and no emulated host either.
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
        EmulatedExit::Signal(signal) | EmulatedExit::Killed(signal) => exit_code::of_signal(signal).into(),
    })
}

fn run_on_emulated_host(shares: &[PathBuf]) -> Result<EmulatedExit, EnsureKvmError> {
    let program = env::current_exe().map_err(EnsureKvmError::Program)?;
    let command = std::iter::once(program.into_os_string()).chain(env::args_os().skip(1)).collect();
    let shares = shares.iter().cloned().chain(guest_data::existing_folders()).collect();
    Ok(emulated_host::run(&EmulatedHostArgs { command, shares, ..EmulatedHostArgs::default() })?)
}
