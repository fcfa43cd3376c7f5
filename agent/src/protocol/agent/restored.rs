//! Messages about a machine that goes on from a snapshot: its identity, and the commands that run on.

use std::ffi::OsString;
use std::time::Duration;

use super::ProtocolError;
use super::request::{
    NetworkRequest, decode_network_settings, decode_time, encode_network_settings, encode_time,
};
use crate::protocol::wire::{Decoder, Encoder};

/// The part of a session that a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// The number that the agent chose for the session.
    pub token: u64,
}

/// The identity of a machine that goes on from a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityRequest {
    /// The host name; `None` to keep the one it has.
    pub hostname: Option<OsString>,
    /// The content of `/etc/machine-id`, as 32 hexadecimal digits.
    pub machine_id: String,
    /// Random bytes for the kernel's generator.
    pub seed: Vec<u8>,
    /// The wall clock, since 1970.
    pub time: Duration,
    /// Variables of later commands.
    pub env: Vec<(OsString, OsString)>,
    /// The network cards that have another hardware address, or that get an address of the network.
    pub cards: Vec<CardIdentity>,
}

/// The identity of a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardIdentity {
    /// The hardware address that its interface has.
    pub former: [u8; 6],
    /// The hardware address that its interface is to have.
    pub mac: [u8; 6],
    /// The settings with which its interface is to come up, instead of the addresses that it has; `None` to
    /// leave those. They name no interface.
    pub network: Option<NetworkRequest>,
}

impl IdentityRequest {
    /// The largest number of bytes of a seed.
    pub const MAX_SEED: usize = 512;
    /// The largest number of cards: more than a machine has interrupts for.
    pub const MAX_CARDS: usize = 64;

    pub(super) fn encode(&self, frame: Encoder) -> Encoder {
        let Self { hostname, machine_id, seed, time, env, cards } = self;
        let frame = frame
            .option(hostname.as_deref(), Encoder::text)
            .text(machine_id.as_ref())
            .u32(u32::try_from(seed.len()).unwrap_or(u32::MAX))
            .raw(seed);
        encode_time(frame, *time)
            .list(env, |frame, (name, value)| frame.text(name).text(value))
            .list(cards, |frame, card| card.encode(frame))
    }

    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        let hostname = fields.option("host name", |fields| fields.text("host name"))?;
        let machine_id = fields.text("machine id")?;
        let machine_id = machine_id.into_string().ok().filter(|id| is_machine_id(id));
        let machine_id =
            machine_id.ok_or(ProtocolError::UnknownValue { what: "machine id", value: u8::MAX })?;
        let length = fields.u32("seed")? as usize;
        if length > Self::MAX_SEED {
            return Err(ProtocolError::FrameLength { length, limit: Self::MAX_SEED });
        }
        Ok(Self {
            hostname,
            machine_id,
            seed: fields.raw(length, "seed")?.to_vec(),
            time: decode_time(fields)?,
            env: fields.list("env", |fields| Ok((fields.text("name")?, fields.text("value")?)))?,
            cards: fields.list_up_to(Self::MAX_CARDS, "cards", CardIdentity::decode)?,
        })
    }
}

impl CardIdentity {
    /// The largest number of name servers.
    pub const MAX_DNS: usize = 64;

    fn encode(&self, frame: Encoder) -> Encoder {
        let Self { former, mac, network } = self;
        let frame = frame.raw(former).raw(mac);
        frame.option(network.as_ref(), |frame, network| encode_network_settings(network, frame))
    }

    fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        let [former, mac] = [decode_mac(fields)?, decode_mac(fields)?];
        let network = fields.option("network", decode_network_settings)?;
        let servers = network.as_ref().map_or(0, |network| network.dns.len());
        if servers > Self::MAX_DNS {
            let (what, count, limit) = ("name servers", servers, Self::MAX_DNS);
            return Err(ProtocolError::ListLength { what, count, limit });
        }
        Ok(Self { former, mac, network })
    }
}

/// Reads the hardware address of one interface, not that of a group.
fn decode_mac(fields: &mut Decoder<'_>) -> Result<[u8; 6], ProtocolError> {
    let mac = fields.array("hardware address")?;
    match mac {
        [0, 0, 0, 0, 0, 0] => Err(ProtocolError::UnknownValue { what: "hardware address", value: 0 }),
        [first, ..] if first & 1 == 1 => {
            Err(ProtocolError::UnknownValue { what: "hardware address", value: first })
        }
        mac => Ok(mac),
    }
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A command to take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// The number of the command in the list.
    pub id: u32,
    /// Whether it has an input.
    pub stdin: bool,
    /// Whether it runs at a terminal.
    pub terminal: bool,
}

impl AttachRequest {
    pub(super) fn encode(&self, frame: Encoder) -> Encoder {
        let Self { id, stdin, terminal } = *self;
        frame.u32(id).u8(u8::from(stdin)).u8(u8::from(terminal))
    }

    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: fields.u32("command")?,
            stdin: fields.flag("stdin")?,
            terminal: fields.flag("terminal")?,
        })
    }
}

/// A command that runs on since before the snapshot from which its machine goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// The number by which it is taken up.
    pub id: u32,
    /// Its process id in the guest.
    pub pid: u32,
    /// Its program, as the request named it, cut to [`ProcessInfo::MAX_NAME`] bytes.
    pub program: OsString,
    /// Whether its input is open.
    pub has_stdin: bool,
    /// Whether it runs at a terminal.
    pub has_terminal: bool,
    /// Whether it has ended meanwhile.
    pub has_ended: bool,
}

impl ProcessInfo {
    /// The length of the longest program in bytes, so that a list of all commands fits into a frame.
    pub const MAX_NAME: usize = 64;

    /// Returns the request that takes it up.
    pub fn attach_request(&self) -> AttachRequest {
        AttachRequest { id: self.id, stdin: self.has_stdin, terminal: self.has_terminal }
    }

    /// Makes the description of a command.
    pub fn new(id: u32, pid: u32, program: OsString) -> Self {
        Self { id, pid, program, has_stdin: false, has_terminal: false, has_ended: false }
    }

    pub(super) fn encode(&self, frame: Encoder) -> Encoder {
        let Self { id, pid, program, has_stdin, has_terminal, has_ended } = self;
        let flags = [*has_stdin, *has_terminal, *has_ended].map(u8::from);
        frame.u32(*id).u32(*pid).text(program).raw(&flags)
    }

    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: fields.u32("command")?,
            pid: fields.u32("pid")?,
            program: fields.text("program")?,
            has_stdin: fields.flag("stdin")?,
            has_terminal: fields.flag("terminal")?,
            has_ended: fields.flag("ended")?,
        })
    }
}
