//! `coracle host-emulate`: any command on an emulated machine that has KVM.

use coracle::config::MemorySize;
use coracle::emulated_host::{self, EmulatedExit, EmulatedHostArgs};

use super::{chain, say};
use crate::cli::HostEmulateArgs;
use crate::logger;

/// Runs the command and returns its exit code, or 128 and the signal that ended it.
pub(crate) fn run(args: &HostEmulateArgs) -> u8 {
    logger::start(0);
    let request = EmulatedHostArgs {
        shares: args.shares.clone(),
        cpus: args.cpus.map(|cpus| u32::from(cpus.value())),
        memory_mib: args.memory.map(MemorySize::mib),
        command: args.command.clone(),
    };
    match emulated_host::run(&request) {
        Ok(EmulatedExit::Code(code)) => code,
        Ok(EmulatedExit::Signal(signal)) => 128 + u8::try_from(signal).unwrap_or(0).min(127),
        Err(error) => {
            say(&chain(&error));
            error.exit_code()
        }
    }
}
