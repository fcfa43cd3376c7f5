//! The guest agent: carries out the host's requests, over one connection at a time (`docs/agent.md`).
//!
//! It is PID 1 of the default guest or of a user's root, or runs beside the init of a user's system. One
//! thread polls everything, and waits only for disks. A connection that ends takes its commands with it, and
//! the agent connects again: so it goes on after the host has reset the transport.

mod aside;
mod branch;
mod cgroup;
mod command;
mod event_loop;
mod files;
mod identity;
mod job;
mod machine;
mod parked;
mod paths;
mod requests;
mod root;
mod spawn;
mod transport;
mod users;

use std::io;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::Place;

use self::branch::Branch;
use self::event_loop::{End, Server};
pub(crate) use self::root::InitRoot;
pub(crate) use self::transport::Transport;
use crate::power::{PowerButton, signal_events};
use crate::report::report;
use crate::signals::Signals;

/// The agent's duties besides serving its host.
pub(crate) struct Surroundings {
    pub(crate) place: Place,
    signals: Signals,
    button: Option<PowerButton>,
    init_root: Option<InitRoot>,
}

impl Surroundings {
    /// Duties of PID 1: it obeys the power button and the signals by which programs ask for the machine's
    /// end.
    pub(crate) fn of_first_process(button: PowerButton) -> io::Result<Self> {
        Ok(Self {
            place: Place::FirstProcess,
            signals: signal_events()?,
            button: Some(button),
            init_root: None,
        })
    }

    /// Duties of a process that was started before the system's init, and follows it to its root.
    pub(crate) fn beside_init(root: InitRoot) -> io::Result<Self> {
        Ok(Self { init_root: Some(root), ..Self::of_process()? })
    }

    /// Duties of an ordinary process.
    pub(crate) fn of_process() -> io::Result<Self> {
        let signals = Signals::open(&[libc::SIGCHLD])?;
        Ok(Self { place: Place::BesideInit, signals, button: None, init_root: None })
    }

    /// Moves to the root of the system's processes, so that paths mean the same.
    fn enter_root(&self) {
        self.init_root.iter().for_each(InitRoot::follow);
    }
}

/// Serves the host forever, or until the only connection that the transport can make has ended.
pub(crate) fn run(transport: &Transport, surroundings: Surroundings) {
    raise_descriptor_limit();
    // An agent for one connection belongs to no machine.
    let branch = if transport.is_single() { Branch::default() } else { Branch::open() };
    let mut server = Server::new(surroundings, branch);
    let mut said = String::new();
    loop {
        server.enter_root();
        let mut is_next_at_once = false;
        let why = match transport.open() {
            Ok(line) => match server.serve(line) {
                End::HungUp { was_open } => {
                    is_next_at_once = was_open;
                    String::new()
                }
                End::Broken(error) => format!("the connection to the host has ended: {error}"),
            },
            Err(error) => format!("{transport}: {error}"),
        };
        if transport.is_single() {
            server.drop_parked();
            return;
        }
        // A missing host is tried again and again. Each reason is reported once.
        if !why.is_empty() && why != said {
            report(&why);
        }
        said = why;
        // The host of a machine that goes on from a snapshot is there already.
        if !is_next_at_once {
            server.wait_until(Instant::now() + RETRY);
        }
    }
}

/// Raises the limit of descriptors. A command takes three, and a process may have 1024 by default.
fn raise_descriptor_limit() {
    let Ok(limit) = spawn::descriptor_limit() else { return };
    let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(MAX_DESCRIPTORS), ..limit };
    // SAFETY: reads the structure it is given. If it fails, fewer commands can run at a time.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
}

/// The limit of descriptors: more than the channels of a session use.
const MAX_DESCRIPTORS: libc::rlim_t = 4096;
/// The interval at which a connection is tried again.
const RETRY: Duration = Duration::from_millis(100);
