//! `coracle host-emulate`: any command on an emulated machine that has KVM.

use coracle::command::emulated_host::{self, EmulatedHostArgs};
use coracle::config::MemorySize;

use super::{emulated_exit_code, say};
use crate::arguments::HostEmulateArgs;
use crate::logger;

/// Runs the command and returns its exit code, or 128 plus the number of the signal that killed it.
pub(crate) fn run(args: &HostEmulateArgs) -> u8 {
    logger::start(0);
    let request = EmulatedHostArgs {
        shares: args.shares.clone(),
        cpus: args.cpus.map(|cpus| u32::from(cpus.value())),
        memory_mib: args.memory.map(MemorySize::mib),
        command: args.command.clone(),
        writable: args.read_only.as_ref().map(|_| Vec::new()),
        boot_limit: args.host_timeout,
        time_limit: None,
        ends_unread: false,
    };
    emulated_exit_code(emulated_host::run(&request)).unwrap_or_else(|(code, reason)| {
        say(&reason);
        code
    })
}
