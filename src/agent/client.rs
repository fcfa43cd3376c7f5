//! The requests to a guest's agent.

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_agent::protocol::agent::{AgentInfo, NetworkInfo, NetworkRequest, Power, ProcessInfo, Request};
use coracle_devices::virtio::net::MacAddress;

use super::channel::{Answer, Channel};
use super::error::{AgentError, ExecError, ReadyLimit};
use super::exec::Exec;
use super::link::{Limits, Link, LinkThread, Peer};
use super::process::Process;
use super::restored::Past;
use crate::config::AgentConfig;

/// The agent of one guest. Any number of threads can use it at the same time.
#[derive(Clone)]
pub struct AgentClient {
    link: Arc<Link>,
    /// The hardware address of the machine's first network card.
    pub(super) card: Option<MacAddress>,
    /// The thread of a client without a machine. The connection ends with the last clone.
    _thread: Option<Arc<LinkThread>>,
}

/// The settings with which a guest's network is to come up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSettings {
    /// The interface, by its name or by its hardware address (`02:00:00:00:00:07`). `None` means the
    /// machine's first network card, whatever other interfaces the guest has. For an agent reached by
    /// [`AgentClient::over`], which knows no machine, it means the first Ethernet interface, those of devices
    /// before bridges and the like.
    pub interface: Option<OsString>,
    /// Address, length of the network's prefix, and gateway; `None` to ask a DHCP server.
    pub address: Option<(Ipv4Addr, u8, Option<Ipv4Addr>)>,
    /// Name servers. If there are none, those that the DHCP server names.
    pub dns: Vec<Ipv4Addr>,
    /// The longest time for a DHCP server's answer, beside the [`AgentConfig::answer_limit`] of each call.
    /// `None` means [`NetworkSettings::DEFAULT_LEASE_LIMIT`].
    pub lease_limit: Option<Duration>,
}

impl NetworkSettings {
    /// 60 s. A server on the same network answers within milliseconds, but a bridge with the spanning tree
    /// protocol forwards nothing for 30 s, and an emulated host is slow.
    pub const DEFAULT_LEASE_LIMIT: Duration = Duration::from_secs(60);

    /// Returns the longest time for a server's answer.
    pub(crate) fn lease_time(&self) -> Duration {
        self.lease_limit.unwrap_or(Self::DEFAULT_LEASE_LIMIT)
    }

    pub(super) fn into_request(mut self, card: Option<MacAddress>) -> Request {
        self.interface = self.interface.or_else(|| Some(card?.to_string().into()));
        Request::Network(self.into_network())
    }

    pub(crate) fn into_network(self) -> NetworkRequest {
        let limit = self.lease_time();
        let NetworkSettings { interface, address, dns, lease_limit: _ } = self;
        NetworkRequest { interface, address, dns, limit }
    }
}

impl AgentClient {
    /// Connects to an agent at the other end of `stream` that belongs to no machine of this program, for
    /// example through a unix socket of a vsock device. The connection ends with the last clone.
    ///
    /// # Errors
    /// The host starts no thread.
    pub fn over(stream: impl Into<OwnedFd>) -> io::Result<AgentClient> {
        Self::over_within(stream, &AgentConfig::default())
    }

    /// Connects like [`AgentClient::over`], with the limits of `config`. Its place and transport do not
    /// matter here.
    ///
    /// # Errors
    /// The host starts no thread.
    pub fn over_within(stream: impl Into<OwnedFd>, config: &AgentConfig) -> io::Result<AgentClient> {
        let thread = LinkThread::start(Peer::Stream(stream.into()), Limits::of(config), Past::default())?;
        Ok(AgentClient { link: thread.link().clone(), card: None, _thread: Some(Arc::new(thread)) })
    }

    pub(super) fn of_machine(link: Arc<Link>, card: Option<MacAddress>) -> AgentClient {
        AgentClient { link, card, _thread: None }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Waits until the agent is ready, and returns its properties.
    ///
    /// # Errors
    /// The agent is not ready within `limit`, or never will be.
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        let state = self.link.wait_ready(limit, ReadyLimit::Call)?;
        // A ready agent has reported its properties.
        state.info().cloned().ok_or(AgentError::Lost)
    }

    /// Makes a command of program and arguments. A program without a slash is looked up in the `PATH` of its
    /// variables.
    pub fn exec<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Exec {
        Exec::new(Ok(self.clone()), argv)
    }

    /// Sets the guest's clock.
    ///
    /// # Errors
    /// The guest refuses, or the agent or the machine has ended.
    pub fn set_clock(&self, time: SystemTime) -> Result<(), AgentError> {
        self.ask(Self::clock_request(time)).map(drop)
    }

    /// Sets the guest's network up: loopback, one interface with its address and route, and name servers in
    /// `/etc/resolv.conf`.
    ///
    /// # Errors
    /// The guest refuses, no DHCP server answers, or the agent or the machine has ended.
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        let limit = settings.lease_time();
        let answer = self.ask(settings.into_request(self.card));
        answer.map_err(|error| error.of_lease(limit))?.into_network()
    }

    /// Lists the commands that run on since before the snapshot from which the machine goes on: those that
    /// the machine that was saved had started. What they write is kept, up to 256 KiB of each output, until
    /// [`AgentClient::attach`] takes them up.
    ///
    /// # Errors
    /// The agent or the machine has ended.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        self.ask(Request::Processes)?.into_processes()
    }

    /// Takes up a command of [`AgentClient::processes`]. It has no limits of its own any more, and it is
    /// killed when the result is dropped. Bytes that were on their way at the time of the snapshot belong to
    /// the machine that was saved.
    ///
    /// # Errors
    /// It has been taken up already, or the agent or the machine has ended.
    pub fn attach(&self, process: &ProcessInfo) -> Result<Process, ExecError> {
        let channel = Channel::open(&self.link, Request::Attach(process.attach_request()))?;
        let process = Process::attached(channel, process);
        process.wait_started()?;
        Ok(process)
    }

    /// Asks the guest to power off cleanly, and does not wait for it.
    ///
    /// # Errors
    /// The agent is not ready within its limit, or has gone.
    pub fn power_off(&self) -> Result<(), AgentError> {
        self.power_off_within(self.link.limits.ready)
    }

    /// Asks the guest to power off cleanly, if the agent is ready within `limit`.
    pub(crate) fn power_off_within(&self, limit: Duration) -> Result<(), AgentError> {
        Channel::open_within(&self.link, Request::Shutdown(Power::Off), limit).map(drop)
    }

    /// Asks the guest to restart cleanly, and does not wait for it.
    ///
    /// # Errors
    /// The agent is not ready within its limit, or has gone.
    pub fn restart(&self) -> Result<(), AgentError> {
        Channel::open(&self.link, Request::Shutdown(Power::Restart)).map(drop)
    }

    pub(super) fn clock_request(time: SystemTime) -> Request {
        Request::SetClock(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// Returns the answer to a request without streams.
    fn ask(&self, request: Request) -> Result<Answer, AgentError> {
        let channel = Channel::open(&self.link, request)?;
        let (mut locked, mut patience) = (channel.lock(), channel.patience());
        loop {
            if let Some(answer) = locked.seen().answer()? {
                return Ok(answer);
            }
            locked = locked.wait_answer(&mut patience)?;
        }
    }
}
