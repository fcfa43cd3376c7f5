//! Slow requests, in a process of their own while the agent goes on: a DHCP server may answer late, and a
//! directory to remove may be large.

use std::fs::File;
use std::io::{self, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};

use coracle_agent::protocol::agent::{AgentMessage, AgentSession, Failure, Step};
use coracle_agent::relay::set_non_blocking;

/// A process that answers a request.
#[derive(Debug)]
pub(super) struct Aside {
    channel: u32,
    /// The request's step, for the report if the process dies.
    step: Step,
    /// The pipe on which the process reports its answer, as a frame.
    report: File,
    frame: Vec<u8>,
}

impl Aside {
    /// Starts the process. `work` returns its answer.
    pub(super) fn start(
        channel: u32,
        step: Step,
        work: impl FnOnce() -> Result<AgentMessage, Failure>,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(step, "", &error);
        let (report, mut reporter) = pipe().map_err(failed)?;
        set_non_blocking(&report).map_err(failed)?;
        // SAFETY: the process has one thread, so that the copy finds no lock taken.
        match unsafe { libc::fork() } {
            0 => {
                let answer = work().unwrap_or_else(AgentMessage::Failed);
                let told = reporter.write_all(&answer.to_frame(channel));
                // SAFETY: ends this process without running anything of its parent's.
                unsafe { libc::_exit(i32::from(told.is_err())) }
            }
            -1 => Err(failed(io::Error::last_os_error())),
            _ => Ok(Self { channel, step, report: OwnedFd::from(report).into(), frame: Vec::new() }),
        }
    }

    pub(super) fn poll_fd(&self) -> i32 {
        self.report.as_raw_fd()
    }

    /// Reads from the process. Returns true once it has ended and the host has its answer.
    pub(super) fn read(&mut self, session: &mut AgentSession) -> bool {
        let mut buffer = [0; 1024];
        match self.report.read(&mut buffer) {
            Ok(count @ 1..) => {
                self.frame.extend_from_slice(buffer.get(..count).unwrap_or_default());
                return false;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            Ok(_) | Err(_) => {}
        }
        let answer = self.frame.get(4..).and_then(|content| AgentMessage::parse(content).ok());
        let died = || Failure::new(self.step, "", &io::Error::from_raw_os_error(libc::ECHILD));
        let answer = answer.map_or_else(|| AgentMessage::Failed(died()), |(_, answer)| answer);
        session.answer(self.channel, &answer);
        true
    }
}
