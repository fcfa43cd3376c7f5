//! The emulated host: a machine that has KVM, whose files are the caller's, and that runs one command.
//!
//! QEMU starts it for `coracle host-emulate` and `coracle run --accel emulate`. The command's streams and its
//! control messages cross virtio-serial ports. The console carries messages of the kernel and of this agent.

mod command;
mod control;
mod kvm;
mod ports;
mod root;
mod session;

use std::process::ExitCode;

use coracle_agent::protocol::emulated_host::{FromAgent, Request, StartFailure, StartStep, VERSION};

use crate::report::report;
use crate::{modules, network, power};
use command::RunningCommand;
use control::{ControlError, ControlPort};
use ports::{Ports, PortsError};
use root::{OuterRoot, RootError};
use session::{Session, SessionError};

/// The reason why the emulated host cannot do its work.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error("cannot open the ports to the outer side: {0}")]
    Ports(#[from] PortsError),
    #[error("cannot make the caller's files the root: {0}")]
    Root(#[from] RootError),
    #[error("lost the control port: {0}")]
    Control(#[from] ControlError),
    #[error("cannot go on relaying: {0}")]
    Session(#[from] SessionError),
}

/// Runs the one command of this machine. The outer side ends the machine when it has read everything. This
/// function powers off only if there is no outer side to talk to.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = serve() {
        report(&error.to_string());
    }
    power::power_off()
}

fn serve() -> Result<(), HostError> {
    root::mount_early();
    modules::load_all(modules::LIST);
    network::bring_up_loopback();
    let Ports { control, streams } = ports::open()?;
    let outer = root::switch()?;
    kvm::tolerate_refined_tsc();
    let mut control = ControlPort::new(control);
    control.send(&FromAgent::Hello { version: VERSION })?;
    let request = control.receive_request()?;
    let last = match show_and_start(&outer, &request) {
        Ok(command) => {
            control.send(&FromAgent::Started)?;
            let (ending, produced) = Session::new(&mut control, command, streams)?.run()?;
            end_all_processes();
            FromAgent::Exited { ending, produced }
        }
        Err(failure) => FromAgent::Failed(failure),
    };
    control.send(&last)?;
    // Bytes may still be in flight on the ports, at the speed of the caller's reading. The outer side ends
    // the machine when it has them all.
    power::wait_for_ever()
}

fn show_and_start(outer: &OuterRoot, request: &Request) -> Result<RunningCommand, StartFailure> {
    for share in &request.shares {
        outer
            .show(share)
            .map_err(|error| command::failure(StartStep::Share, share.source.as_os_str(), &error))?;
    }
    command::start(request)
}

/// Ends processes that the command left behind and writes back all data, so that the machine can be switched
/// off.
fn end_all_processes() {
    // SAFETY: sends a signal to every process but this one; no memory is involved.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    // SAFETY: flushes file systems; no memory is involved.
    unsafe { libc::sync() };
}
