//! The agent of a machine: its devices and parameters, and its life with the machine.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use coracle_agent::protocol::agent::SavedSession;
use coracle_devices::virtio::listener::ListenError;

use super::client::AgentClient;
use super::error::AgentError;
use super::link::{Limits, LinkThread, Peer};
use super::restored::Past;
use crate::config::{AgentPlace, AgentTransport, VmConfig, VsockConfig, names_root};
use crate::ending::Ending;
use crate::virtio::{VirtioDevices, VsockPortError};

/// The reason why a machine cannot have its agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Listening on its vsock port failed.
    #[error("the agent's vsock port cannot be opened: {0}")]
    Vsock(VsockPortError),
    /// Listening on its port of the console device failed.
    #[error("the agent's port of the console device cannot be opened: {0}")]
    Console(ListenError),
    /// The host starts no thread for it.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl From<ListenError> for AttachError {
    fn from(error: ListenError) -> AttachError {
        AttachError::Console(error)
    }
}

impl From<VsockPortError> for AttachError {
    fn from(error: VsockPortError) -> AttachError {
        AttachError::Vsock(error)
    }
}

/// The agent of a machine, from its build to its end.
pub(crate) struct AgentAttachment {
    client: AgentClient,
    thread: Mutex<LinkThread>,
}

impl AgentAttachment {
    /// Makes the attachment, if the machine is to have an agent.
    pub(crate) fn new(
        config: &VmConfig,
        virtio: &VirtioDevices,
        line: Option<OwnedFd>,
        past: Past,
    ) -> Result<Option<AgentAttachment>, AttachError> {
        let Some(agent) = &config.agent else { return Ok(None) };
        let peer = match (agent.transport, line) {
            (AgentTransport::Vsock(port), _) => Peer::Listener(virtio.listen_privileged_port(port)?),
            (AgentTransport::Console, _) => match virtio.agent_port() {
                Some(port) => Peer::Listener(port.listen()?),
                None => return Ok(None),
            },
            (AgentTransport::Serial, Some(line)) => Peer::Line(line),
            (AgentTransport::Serial, None) => return Ok(None),
        };
        let thread = LinkThread::start(peer, Limits::of_machine(config, agent), past)
            .map_err(AgentError::host("a thread"))?;
        let client = AgentClient::of_machine(thread.link().clone(), virtio.first_mac());
        Ok(Some(AgentAttachment { client, thread: Mutex::new(thread) }))
    }

    pub(crate) fn client(&self) -> AgentClient {
        self.client.clone()
    }

    /// Returns what a snapshot keeps of the agent's session; `None` if there was none yet.
    pub(crate) fn save(&self) -> Option<SavedSession> {
        self.client.link().lock().save()
    }

    /// Ends the attachment of a machine that ends and whose vCPUs have stopped. Bytes that the agent has sent
    /// still arrive, and then everything fails. `panic` is the reason that the kernel gave.
    pub(crate) fn machine_ends(&self, ending: &Ending, panic: Option<String>) {
        self.lock().machine_ends(ending, panic);
    }

    /// Waits for the agent's thread. Nothing arrives any more.
    pub(crate) fn join(&self) {
        self.lock().join();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LinkThread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the configuration with the agent's device, and its parameters on the kernel's command line.
pub(crate) fn prepared(config: &VmConfig) -> VmConfig {
    let mut config = config.clone();
    let Some(agent) = &config.agent else { return config };
    let mut words = Vec::new();
    match agent.transport {
        AgentTransport::Vsock(port) => {
            words.push(format!("coracle.agent=vsock:{port}"));
            config.vsock.get_or_insert_with(VsockConfig::default);
        }
        AgentTransport::Console => words.push("coracle.agent=console".to_owned()),
        // The default is one port.
        AgentTransport::Serial => words.push("8250.nr_uarts=2 coracle.agent=ttyS1".to_owned()),
    }
    if agent.place != AgentPlace::BesideInit {
        words.push("coracle.init=agent".to_owned());
    }
    // Without an initrd, the loader is the first program anyway.
    let has_initrd = config.has_default_initramfs() || !config.initrds.is_empty();
    if agent.place != AgentPlace::DefaultGuest && has_initrd {
        words.push("rdinit=/coracle/init".to_owned());
    }
    config.cmdline = with_words(&config.cmdline, &words.join(" "));
    config
}

/// Returns whether the guest has a system that could start its agent, if the machine is to have one. With a
/// kernel of the user's, there is no default guest. An initramfs in the kernel itself may start an agent
/// beside its init.
pub(crate) fn has_system(config: &VmConfig) -> bool {
    let Some(agent) = config.agent.as_ref().filter(|_| config.kernel.is_some()) else { return true };
    let is_said_to_be_there = match agent.place {
        AgentPlace::DefaultGuest => false,
        AgentPlace::FirstProcess => names_root(&config.cmdline),
        AgentPlace::BesideInit => true,
    };
    is_said_to_be_there || config.root.is_some() || !config.initrds.is_empty()
}

/// Parameters after `--` are for the first program.
pub(crate) fn with_words(line: &str, words: &str) -> String {
    match line.split_once(" -- ") {
        Some((kernel, init)) => format!("{kernel} {words} -- {init}"),
        None => format!("{line} {words}").trim_start().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, RootConfig};

    #[test]
    fn machine_gets_what_its_agent_needs() {
        let mut config = VmConfig { cmdline: "quiet".into(), ..VmConfig::new("vmlinux") };
        assert_eq!(prepared(&config), config);
        config.agent = Some(AgentConfig::default());
        let with_agent = prepared(&config);
        assert_eq!(with_agent.cmdline, "quiet coracle.agent=vsock:1024 coracle.init=agent");
        assert_eq!(with_agent.vsock, Some(VsockConfig::default()));
        let own = VsockConfig { cid: 9, ..VsockConfig::default() };
        config.vsock = Some(own.clone());
        assert_eq!(prepared(&config).vsock, Some(own));
    }

    #[test]
    fn agent_of_a_console_port_needs_no_sockets() {
        let agent = AgentConfig { transport: AgentTransport::Console, ..AgentConfig::default() };
        let config = VmConfig { agent: Some(agent), ..VmConfig::new("vmlinux") };
        let with_agent = prepared(&config);
        assert!(with_agent.cmdline.ends_with("coracle.agent=console coracle.init=agent"));
        assert_eq!(with_agent.vsock, None);
    }

    #[test]
    fn agent_needs_a_system_to_run_in() {
        let with = |place| VmConfig { agent: Some(AgentConfig::new(place)), ..VmConfig::new("vmlinux") };
        for place in [AgentPlace::DefaultGuest, AgentPlace::FirstProcess] {
            assert!(!has_system(&with(place)), "{place:?}");
            let initrds = vec!["initrd".into()];
            assert!(has_system(&VmConfig { initrds, ..with(place) }));
            let root = Some(RootConfig::new("root"));
            assert!(has_system(&VmConfig { root, ..with(place) }));
            assert!(has_system(&VmConfig { kernel: None, ..with(place) }));
        }
        let cmdline = "quiet root=/dev/vda".to_owned();
        assert!(has_system(&VmConfig { cmdline, ..with(AgentPlace::FirstProcess) }));
        assert!(has_system(&with(AgentPlace::BesideInit)));
        assert!(has_system(&VmConfig::new("vmlinux")));
    }

    #[test]
    fn machine_whose_boot_may_take_long_has_an_agent_that_may() {
        let ready = |boot: Option<u64>| {
            let boot_timeout = boot.map(std::time::Duration::from_secs);
            let config = VmConfig { boot_timeout, ..VmConfig::new("vmlinux") };
            Limits::of_machine(&config, &AgentConfig::default()).ready.as_secs()
        };
        assert_eq!([ready(None), ready(Some(5)), ready(Some(300))], [180, 180, 310]);
    }

    #[test]
    fn words_for_the_first_program_stay_at_the_end() {
        assert_eq!(with_words("quiet -- a b", "x=1"), "quiet x=1 -- a b");
        assert_eq!(with_words("", "x=1"), "x=1");
    }
}
