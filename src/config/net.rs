//! A network card of the guest, and its end on the host.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use coracle_devices::virtio::net::MacAddress;
use coracle_devices::virtio::poll::Poll;

use super::keyed::{ID, Key, Keyed, Kind, with_words};
use super::setting::{setting, text};
use super::words::{Word, escaped, split};
use super::{ConfigError, DeviceId, duration};

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The host's end of the card.
    pub end: NetEnd,
    /// The MAC address; `None` for a random one.
    pub mac: Option<MacAddress>,
    /// The longest packet that the guest should send, in bytes without the Ethernet header, at least
    /// [`MIN_MTU`]; `None` for the guest's default, which is 1500.
    pub mtu: Option<u16>,
    /// How long the I/O thread polls for the next frame before it sleeps; zero for never, 1 ms at most. The
    /// thread polls less if polling finds nothing, and not at all while the CPUs are busy.
    pub poll: Duration,
    /// The id; `None` for `net0`, `net1` and so on.
    pub id: Option<DeviceId>,
}

/// The host's end of a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEnd {
    /// An existing tap device with this name.
    Tap(String),
    /// A descriptor that the process has inherited: a tap or a Unix stream socket.
    Fd(RawFd),
    /// The Unix stream socket at this path, of a program that exchanges frames preceded by their length.
    Socket(PathBuf),
}

/// The value of one `--net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetChoice {
    /// No network card, overriding a config file.
    None,
    /// A network card.
    Card(NetConfig),
}

/// The smallest MTU (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;

impl NetConfig {
    /// Creates the configuration of a card on the tap device with this name, with a random address.
    pub fn tap(name: impl Into<String>) -> NetConfig {
        NetConfig::new(NetEnd::Tap(name.into()))
    }

    /// Creates the configuration of a card on a Unix stream socket of a program that exchanges frames
    /// preceded by their length (passt, gvproxy), with a random address.
    pub fn stream(path: impl Into<PathBuf>) -> NetConfig {
        NetConfig::new(NetEnd::Socket(path.into()))
    }

    /// Creates the configuration of a card with a random address.
    pub fn new(end: NetEnd) -> NetConfig {
        NetConfig { end, mac: None, mtu: None, poll: Poll::DEFAULT, id: None }
    }
}

impl fmt::Display for NetEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetEnd::Tap(name) => write!(f, "tap={name}"),
            NetEnd::Fd(number) => write!(f, "fd={number}"),
            NetEnd::Socket(path) => write!(f, "socket={}", escaped(&path.to_string_lossy())),
        }
    }
}

impl fmt::Display for NetConfig {
    /// Writes the form that is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { end, mac, mtu, poll, id } = self;
        write!(f, "{end}")?;
        if let Some(mac) = mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = mtu {
            write!(f, ",mtu={mtu}")?;
        }
        duration::write_poll(*poll, f)?;
        id.as_ref().map_or(Ok(()), |id| write!(f, ",id={id}"))
    }
}

impl FromStr for NetChoice {
    type Err = ConfigError;

    /// Parses `none`, or a card.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "none" { Ok(NetChoice::None) } else { text.parse().map(NetChoice::Card) }
    }
}

impl From<NetConfig> for NetChoice {
    fn from(card: NetConfig) -> NetChoice {
        NetChoice::Card(card)
    }
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    /// Parses `tap=NAME`, `fd=NUMBER` or `socket=PATH`, followed by a comma-separated list of the other keys.
    /// A comma in the path is doubled.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::NetEnd { text: text.into() };
        let mut words = split(text);
        let end = end(&words.remove(0)).ok_or_else(wrong)?;
        with_words(NetDraft { end: Some(end), ..NetDraft::default() }, words)
    }
}

/// The state of a card while its keys are read.
#[derive(Default)]
pub(super) struct NetDraft {
    end: Option<NetEnd>,
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    poll: Option<Duration>,
    id: Option<DeviceId>,
}

setting!(NetChoice keyed NetConfig, text(), |net, change| {
    if let NetChoice::Card(NetConfig { end: NetEnd::Socket(path), .. }) = net {
        change(path);
    }
});

impl Keyed for NetConfig {
    type Draft = NetDraft;

    const KEYS: &'static [Key] = &[
        Key { name: "tap", kind: Kind::Text, about: "Tap device of the host" },
        Key {
            name: "fd",
            kind: Kind::Number,
            about: "Open descriptor, 3 or more, of a tap or a Unix stream socket",
        },
        Key {
            name: "socket",
            kind: Kind::Text,
            about: "Unix stream socket of a program such as passt or gvproxy",
        },
        Key { name: "mac", kind: Kind::Text, about: "MAC address; by default a random one" },
        Key {
            name: "mtu",
            kind: Kind::Number,
            about: "Longest packet that the guest should send, in bytes, from 68 to 65535",
        },
        Key {
            name: "poll",
            kind: Kind::Quantity,
            about: "How long the I/O thread polls for the next frame before it sleeps: off, or a time up to 1000us; \
                    a number is in microseconds",
        },
        ID,
    ];

    const NEEDS: &'static [&'static str] = &["tap", "fd", "socket"];

    fn draft() -> NetDraft {
        NetDraft::default()
    }

    fn set(net: &mut NetDraft, word: &Word) -> Option<Result<(), ConfigError>> {
        match (word.key(), word.value()) {
            ("tap" | "fd" | "socket", Some(_)) if net.end.is_none() => match end(word) {
                Some(end) => net.end = Some(end),
                None => return Some(Err(ConfigError::NetEnd { text: word.text.clone() })),
            },
            ("mac", Some(mac)) => match mac.parse() {
                Ok(mac) => net.mac = Some(mac),
                Err(reason) => return Some(Err(ConfigError::Mac { text: mac.into(), reason })),
            },
            ("mtu", Some(mtu)) => net.mtu = Some(mtu.parse().ok().filter(|mtu| *mtu >= MIN_MTU)?),
            ("poll", Some(time)) => net.poll = Some(duration::poll(time)?),
            ("id", Some(id)) => return Some(id.parse().map(|id| net.id = Some(id))),
            _ => return None,
        }
        Some(Ok(()))
    }

    fn refused(word: &str) -> ConfigError {
        ConfigError::NetWord { word: word.into() }
    }

    fn finish(NetDraft { end, mac, mtu, poll, id }: NetDraft) -> Result<NetConfig, ConfigError> {
        let end = end.ok_or_else(|| ConfigError::NetEnd { text: String::new() })?;
        Ok(NetConfig { end, mac, mtu, poll: poll.unwrap_or(Poll::DEFAULT), id })
    }
}

fn end(word: &Word) -> Option<NetEnd> {
    match (word.key(), word.value()?) {
        ("tap", name) if is_interface(name) => Some(NetEnd::Tap(name.into())),
        ("fd", number) => number.parse().ok().filter(|number| *number >= MIN_FD).map(NetEnd::Fd),
        ("socket", path) if !path.is_empty() => Some(NetEnd::Socket(path.into())),
        _ => None,
    }
}

/// Returns whether a network interface of Linux can have this name.
fn is_interface(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// The longest name of an interface: IFNAMSIZ without the terminating zero.
const MAX_NAME: usize = 15;
/// The first descriptor after the standard streams.
const MIN_FD: RawFd = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_is_written_as_it_is_read() {
        for text in ["tap=tap0", "fd=3,poll=off", "socket=a,,b,mac=02:00:00:00:00:07,mtu=9000,poll=50us,id=x"]
        {
            assert_eq!(text.parse::<NetConfig>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_end_is_read() {
        let ends = [
            ("tap=tap0", NetEnd::Tap("tap0".into())),
            ("fd=3", NetEnd::Fd(3)),
            ("socket=/run/a=b", NetEnd::Socket("/run/a=b".into())),
            ("socket=/run/a,,b", NetEnd::Socket("/run/a,b".into())),
        ];
        for (text, end) in ends {
            assert_eq!(text.parse(), Ok(NetChoice::Card(NetConfig::new(end.clone()))));
            assert_eq!(end.to_string(), text);
        }
        assert_eq!("none".parse(), Ok(NetChoice::None));
    }

    #[test]
    fn address_and_mtu_are_read_in_any_order() {
        let net: NetConfig = "tap=tap0,mtu=9000,mac=02:00:00:00:00:07".parse().unwrap();
        assert_eq!((net.mac.unwrap().to_string().as_str(), net.mtu), ("02:00:00:00:00:07", Some(9000)));
        assert_eq!("tap=tap0,mac=02:00:00:00:00:07,mtu=9000".parse(), Ok(net));
        for (text, micros) in
            [("tap=tap0", 32), ("tap=tap0,poll=off", 0), ("tap=tap0,poll=100us,mtu=9000", 100)]
        {
            let net: NetConfig = text.parse().unwrap();
            assert_eq!(net.poll, Duration::from_micros(micros), "{text}");
        }
    }

    #[test]
    fn what_is_no_end_is_refused() {
        for text in [
            "",
            "tap0",
            "tap=",
            "tap=a/b",
            "tap=a b",
            "tap=sixteen-and-more",
            "fd=",
            "fd=2",
            "fd=-1",
            "fd=x",
            "socket=",
            "none,mtu=9000",
            "mac=02:00:00:00:00:07",
        ] {
            assert!(matches!(text.parse::<NetChoice>(), Err(ConfigError::NetEnd { .. })), "{text}");
        }
    }

    #[test]
    fn other_words_are_refused_and_named() {
        for word in [
            "",
            "mtu",
            "mtu=67",
            "mtu=65536",
            "mtu=x",
            "vlan=3",
            "fd=4",
            "mtu=9000,mtu=9000",
            "poll=1001us",
            "poll=off,poll=off",
        ] {
            let last = word.rsplit(',').next().unwrap();
            let refused = format!("tap=tap0,{word}").parse::<NetConfig>();
            assert_eq!(refused, Err(ConfigError::NetWord { word: last.into() }), "{word}");
        }
        for mac in ["", "02", "01:00:00:00:00:07", "00:00:00:00:00:00"] {
            let refused = format!("tap=tap0,mac={mac}").parse::<NetConfig>();
            assert!(matches!(refused, Err(ConfigError::Mac { .. })), "{mac}");
        }
    }
}
