//! The guest agent: carries out what the host asks for, over one connection at a time (`docs/agent.md`).
//!
//! It is PID 1 of the default guest or of a user's root, or runs beside the init of a user's system. One thread polls
//! everything; only disks are waited for. A connection that ends takes its commands with it, and the agent connects
//! anew: so it goes on after the host has reset the transport.

mod aside;
mod cgroup;
mod command;
mod event_loop;
mod files;
mod job;
mod machine;
mod paths;
mod root;
mod spawn;
mod transport;
mod users;

use std::io;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::Place;

use self::event_loop::{End, Server};
pub(crate) use self::root::InitRoot;
pub(crate) use self::transport::Transport;
use crate::power::{PowerButton, signal_events};
use crate::report::report;
use crate::signals::Signals;

/// What the agent has to do besides serving its host.
pub(crate) struct Surroundings {
    pub(crate) place: Place,
    signals: Signals,
    button: Option<PowerButton>,
    init_root: Option<InitRoot>,
}

impl Surroundings {
    /// Those of PID 1: it heeds the power button and the signals by which programs ask for the machine's end.
    pub(crate) fn of_first_process(button: PowerButton) -> io::Result<Self> {
        Ok(Self {
            place: Place::FirstProcess,
            signals: signal_events()?,
            button: Some(button),
            init_root: None,
        })
    }

    /// Those of a process that was started before the system's init, and follows it.
    pub(crate) fn beside_init(root: InitRoot) -> io::Result<Self> {
        Ok(Self { init_root: Some(root), ..Self::of_process()? })
    }

    /// Those of a process like others.
    pub(crate) fn of_process() -> io::Result<Self> {
        let signals = Signals::open(&[libc::SIGCHLD])?;
        Ok(Self { place: Place::BesideInit, signals, button: None, init_root: None })
    }

    /// Moves to where paths mean what the system's processes mean by them.
    fn enter_root(&self) {
        self.init_root.iter().for_each(InitRoot::follow);
    }
}

/// Serves the host for ever, or until the only connection that the transport can give has ended.
pub(crate) fn run(transport: &Transport, surroundings: Surroundings) {
    raise_descriptor_limit();
    let mut server = Server::new(surroundings);
    let mut said = String::new();
    loop {
        server.enter_root();
        let why = match transport.open() {
            Ok(line) => match server.serve(line) {
                End::HungUp => String::new(),
                End::Broken(error) => format!("the connection to the host has ended: {error}"),
            },
            Err(error) => format!("{transport}: {error}"),
        };
        if transport.is_single() {
            return;
        }
        // A host that is not there is tried again and again; each reason is told once.
        if !why.is_empty() && why != said {
            report(&why);
        }
        said = why;
        server.wait_until(Instant::now() + RETRY);
    }
}

/// A command takes three descriptors, and a process may have 1024 by default.
fn raise_descriptor_limit() {
    let Ok(limit) = spawn::descriptor_limit() else { return };
    let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(MOST_DESCRIPTORS), ..limit };
    // SAFETY: reads the structure it is given. Without more, there are fewer commands at once.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
}

/// More than the channels of a session use.
const MOST_DESCRIPTORS: libc::rlim_t = 4096;
/// How soon a connection is tried again.
const RETRY: Duration = Duration::from_millis(100);
