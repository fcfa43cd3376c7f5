//! What can be asked of a guest's agent.

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coracle_agent::protocol::agent::{AgentInfo, NetworkInfo, NetworkRequest, Power, Request};
use coracle_devices::virtio::net::MacAddress;

use super::channel::{Answer, Channel};
use super::error::{AgentError, ReadyLimit};
use super::exec::Exec;
use super::link::{Limits, Link, LinkThread, Peer};
use crate::config::AgentConfig;

/// The agent of one guest. Any number of threads can use it at once.
#[derive(Clone)]
pub struct AgentClient {
    link: Arc<Link>,
    /// The hardware address of the machine's first network card.
    pub(super) card: Option<MacAddress>,
    /// Of a client that is no machine's: with the last one, the connection ends.
    _thread: Option<Arc<LinkThread>>,
}

/// How a guest's network is to come up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSettings {
    /// The interface, by its name or by its hardware address (`02:00:00:00:00:07`); none for the machine's first
    /// network card, whatever other interfaces the guest has. Of an agent that was reached by [`AgentClient::over`],
    /// which knows no machine, it is the first Ethernet interface, those of a device before bridges and the like.
    pub interface: Option<OsString>,
    /// Address, length of the network's prefix, and gateway; none to ask a DHCP server.
    pub address: Option<(Ipv4Addr, u8, Option<Ipv4Addr>)>,
    /// Name servers; with none, those that the DHCP server tells.
    pub dns: Vec<Ipv4Addr>,
    /// How long a DHCP server may take to answer, beside what [`AgentConfig::answer_limit`] gives each call; none for
    /// [`NetworkSettings::DEFAULT_LEASE_LIMIT`].
    pub lease_limit: Option<Duration>,
}

impl NetworkSettings {
    /// 60 s. A server next door answers within milliseconds; a bridge with the spanning tree protocol passes nothing on for 30 s,
    /// and an emulated host is slow.
    pub const DEFAULT_LEASE_LIMIT: Duration = Duration::from_secs(60);

    /// The time that a server has.
    pub(super) fn lease_time(&self) -> Duration {
        self.lease_limit.unwrap_or(Self::DEFAULT_LEASE_LIMIT)
    }

    pub(super) fn into_request(self, card: Option<MacAddress>) -> Request {
        let limit = self.lease_time();
        let NetworkSettings { interface, address, dns, lease_limit: _ } = self;
        let interface = interface.or_else(|| Some(card?.to_string().into()));
        Request::Network(NetworkRequest { interface, address, dns, limit })
    }
}

impl AgentClient {
    /// Speaks with an agent at the other end of `stream`, which is not of this program's machines: a unix socket of a
    /// vsock device, for example. The connection ends with the last clone.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn over(stream: impl Into<OwnedFd>) -> io::Result<AgentClient> {
        Self::over_within(stream, &AgentConfig::default())
    }

    /// The same with other limits than those of the default configuration; its place and transport do not matter here.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn over_within(stream: impl Into<OwnedFd>, config: &AgentConfig) -> io::Result<AgentClient> {
        let thread = LinkThread::start(Peer::Stream(stream.into()), Limits::of(config))?;
        Ok(AgentClient { link: thread.link().clone(), card: None, _thread: Some(Arc::new(thread)) })
    }

    pub(super) fn of_machine(link: Arc<Link>, card: Option<MacAddress>) -> AgentClient {
        AgentClient { link, card, _thread: None }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Waits until the agent is ready, and tells what it is.
    ///
    /// # Errors
    /// It is not within `limit`, or never will be.
    pub fn wait_ready(&self, limit: Duration) -> Result<AgentInfo, AgentError> {
        let state = self.link.wait_ready(limit, ReadyLimit::Call)?;
        // It is ready, so that it has said what it is.
        state.info().cloned().ok_or(AgentError::Lost)
    }

    /// A command to run: program and arguments. A program without a slash is looked up in the `PATH` of its variables.
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

    /// Brings the guest's network up: loopback, one interface with its address and route, and name servers in
    /// `/etc/resolv.conf`.
    ///
    /// # Errors
    /// The guest refuses, no DHCP server answers, or the agent or the machine has ended.
    pub fn network_up(&self, settings: NetworkSettings) -> Result<NetworkInfo, AgentError> {
        let limit = settings.lease_time();
        let answer = self.ask(settings.into_request(self.card));
        answer.map_err(|error| error.of_lease(limit))?.into_network()
    }

    /// Asks the guest to power off in good order, and does not wait for it.
    ///
    /// # Errors
    /// The agent is not ready within its limit, or has gone.
    pub fn power_off(&self) -> Result<(), AgentError> {
        self.power_off_within(self.link.limits.ready)
    }

    /// The same of an agent that is ready within `limit`.
    pub(crate) fn power_off_within(&self, limit: Duration) -> Result<(), AgentError> {
        Channel::open_within(&self.link, Request::Shutdown(Power::Off), limit).map(drop)
    }

    /// Asks the guest to restart in good order, and does not wait for it.
    ///
    /// # Errors
    /// The agent is not ready within its limit, or has gone.
    pub fn restart(&self) -> Result<(), AgentError> {
        Channel::open(&self.link, Request::Shutdown(Power::Restart)).map(drop)
    }

    pub(super) fn clock_request(time: SystemTime) -> Request {
        Request::SetClock(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// The answer to a request without streams.
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
