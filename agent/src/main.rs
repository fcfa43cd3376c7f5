//! PID 1 of Coracle's default guest and of its emulated host, and the module loader of a user's own kernel:
//! one static program with three roles.
//!
//! The kernel starts it as `/init` of an initramfs, and the file `/etc/coracle/role` there names its role. As
//! `/coracle/init`, or without that file, it is the module loader. It never returns to the kernel by
//! accident. An emulated host that cannot go on powers off with the reason on its console. A guest whose
//! agent fails panics its kernel, so that the failure is never taken for a clean end.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod branch_here;
mod console;
mod furnish;
mod mark;
mod modules;
mod mounts;
mod network;
mod new_root;
mod power;
mod pty;
mod report;
mod roles;
mod server;
mod signals;

use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;

use report::report_end;
use roles::{default_guest, emulated_host, loader};
use server::{Surroundings, Transport};

#[cfg(coracle_small_libc)]
#[path = "../../resources/small_libc.rs"]
mod small_libc;

const ROLE_FILE: &str = "/etc/coracle/role";

/// A variable of the first process, set on the kernel command line. With it, the process prints [`MARK`]
/// before anything else, for measuring how long a boot takes.
const MARK_VARIABLE: &str = "CORACLE_MARK";

const MARK: &str = "coracle-agent: first process";

/// The role of this process in its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Guest,
    Host,
    Loader,
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        return serve_by_hand();
    }
    if std::env::var_os(MARK_VARIABLE).is_some() {
        println!("{MARK}");
    }
    let role = match fs::read_to_string(ROLE_FILE).as_deref().map(str::trim) {
        _ if loader::is_asked_for() => Role::Loader,
        Ok("guest") => Role::Guest,
        Ok("host") => Role::Host,
        Ok(other) => {
            report_end(&format!("{ROLE_FILE} has the unknown role '{other}'"));
            return ExitCode::FAILURE;
        }
        Err(_) if loader::is_all_there_is() => Role::Loader,
        Err(error) => {
            report_end(&format!("cannot read {ROLE_FILE}: {error}"));
            return ExitCode::FAILURE;
        }
    };
    std::panic::set_hook(Box::new(move |panic| {
        report_end(&panic.to_string());
        match role {
            // The end of PID 1 panics the kernel: that is how a guest reports that it failed.
            Role::Guest | Role::Loader => std::process::exit(101),
            Role::Host => power::power_off(),
        }
    }));
    match role {
        Role::Guest => default_guest::run(),
        Role::Host => emulated_host::run(),
        Role::Loader => loader::run(),
    }
}

/// Runs the agent that an init or a person started. The argument names the transport to the host.
fn serve_by_hand() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next();
    if word.as_deref() == Some("branch-here".as_ref()) {
        return branch_here::run(arguments);
    }
    let transport = word.as_deref().and_then(OsStr::to_str).and_then(Transport::parse);
    let Some(transport) = transport else {
        eprintln!(
            "coracle-agent: this is the first process of a machine, or serves its host by vsock:PORT, console or a \
             serial device: give one of them, as in vsock:1024. With branch-here, a process waits at its branch point"
        );
        return ExitCode::from(125);
    };
    match Surroundings::of_process() {
        Ok(surroundings) => {
            server::run(&transport, surroundings);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("coracle-agent: cannot wait for processes: {error}");
            ExitCode::FAILURE
        }
    }
}
