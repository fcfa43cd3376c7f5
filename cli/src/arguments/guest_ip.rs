//! The value of `--ip`: how the guest's network is configured for a command.

use std::net::Ipv4Addr;
use std::str::FromStr;

use coracle::agent::NetworkSettings;
use coracle::config::parse_duration;

/// The settings of the first network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestIp(pub NetworkSettings);

impl FromStr for GuestIp {
    type Err = String;

    /// Parses `dhcp` or `ADDRESS/LENGTH`, followed by a comma-separated list of any number of `dns=` and, for
    /// an address, `gateway=` or, for `dhcp`, `timeout=`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let mut settings = NetworkSettings::default();
        if first != "dhcp" {
            let (address, prefix) = address(first).ok_or_else(|| {
                format!("{first:?} is neither dhcp nor an IPv4 address such as 10.0.0.2/24")
            })?;
            settings.address = Some((address, prefix, None));
        }
        for word in words {
            match (word.split_once('='), &mut settings.address) {
                (Some(("dns", server)), _) => settings.dns.push(ip(word, server)?),
                (Some(("gateway", router)), Some((_, _, gateway @ None))) => {
                    *gateway = Some(ip(word, router)?);
                }
                (Some(("timeout", time)), None) if settings.lease_limit.is_none() => {
                    settings.lease_limit = Some(parse_duration(time).map_err(|error| error.to_string())?);
                }
                _ => {
                    return Err(format!(
                        "{word:?} does not go with this address, or is repeated: write dns=ADDRESS, and \
                         gateway=ADDRESS for an address or timeout=TIME for dhcp"
                    ));
                }
            }
        }
        Ok(GuestIp(settings))
    }
}

fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

fn ip(word: &str, text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{word:?} has no IPv4 address"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn server_or_address_is_read() {
        let settings = |text: &str| text.parse::<GuestIp>().unwrap().0;
        assert_eq!(settings("dhcp"), NetworkSettings::default());
        assert_eq!(settings("dhcp,dns=1.1.1.1,dns=9.9.9.9").dns.len(), 2);
        let own = settings("10.0.0.2/24,gateway=10.0.0.1");
        assert_eq!(own.address, Some(([10, 0, 0, 2].into(), 24, Some([10, 0, 0, 1].into()))));
        assert_eq!(settings("dhcp,timeout=90s").lease_limit, Some(Duration::from_secs(90)));
        assert_eq!(settings("10.0.0.2/32").address, Some(([10, 0, 0, 2].into(), 32, None)));
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        for text in ["", "on", "10.0.0.2", "10.0.0.2/0", "10.0.0.2/33", "10.0.0/24", "::1/64"] {
            assert!(text.parse::<GuestIp>().unwrap_err().contains("neither dhcp nor"), "{text}");
        }
        for word in ["gateway=10.0.0.1", "dns", "dns=x", "mtu=1", ""] {
            assert!(format!("dhcp,{word}").parse::<GuestIp>().unwrap_err().contains(word), "{word}");
        }
        assert!("10.0.0.2/24,gateway=10.0.0.1,gateway=10.0.0.1".parse::<GuestIp>().is_err());
        assert!("dhcp,timeout=5sec".parse::<GuestIp>().unwrap_err().contains("write 5s"));
        assert!("10.0.0.2/24,timeout=5s".parse::<GuestIp>().unwrap_err().contains("timeout=TIME for dhcp"));
    }
}
