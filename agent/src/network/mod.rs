//! The network of a guest: loopback, and one interface with its address, route and name servers.

mod dhcp;
mod interface;
mod lease;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use coracle_agent::protocol::agent::{CardIdentity, Failure, NetworkInfo, NetworkRequest, Step};

use self::interface::Interface;
use crate::report::report;

/// Sets `lo` up. The kernel then gives it its addresses.
pub(crate) fn bring_up_loopback() {
    if let Err(error) = loopback_up() {
        report(&format!("cannot bring the interface lo up: {error}"));
    }
}

fn loopback_up() -> io::Result<()> {
    Interface::open("lo".as_ref())?.bring_up()
}

/// Sets an interface up as the host asked. The call waits for a DHCP server, so the caller runs it in a
/// process of its own.
pub(crate) fn bring_up(request: &NetworkRequest) -> Result<NetworkInfo, Failure> {
    loopback_up().map_err(failed(Step::Interface, "lo".as_ref()))?;
    let wanted = request.interface.as_deref();
    let name = named(wanted, interfaces()).ok_or_else(|| {
        let missing = io::Error::from_raw_os_error(libc::ENODEV);
        failed(Step::Interface, wanted.unwrap_or("eth0".as_ref()))(missing)
    })?;
    configure(name, request, false)
}

/// Sets an interface up. With `is_taken_over`, the addresses that it has are those of another machine, and
/// go.
fn configure(name: OsString, request: &NetworkRequest, is_taken_over: bool) -> Result<NetworkInfo, Failure> {
    let interface = Interface::open(&name).map_err(failed(Step::Interface, &name))?;
    interface.bring_up().map_err(failed(Step::Interface, &name))?;
    if is_taken_over {
        interface.remove_addresses().map_err(failed(Step::Interface, &name))?;
    }
    let (address, prefix, gateway, mut dns) = match request.address {
        Some((address, prefix, gateway)) => (address, prefix, gateway, Vec::new()),
        None => {
            let lease = dhcp::ask(&interface, request.limit).map_err(failed(Step::Lease, &name))?;
            (lease.address, lease.prefix, lease.gateway, lease.dns)
        }
    };
    interface.set_address(address, prefix).map_err(failed(Step::Interface, &name))?;
    if let Some(gateway) = gateway {
        let subject = OsString::from(gateway.to_string());
        interface.route_by(gateway).map_err(failed(Step::Route, &subject))?;
    }
    if !request.dns.is_empty() {
        dns.clone_from(&request.dns);
    }
    if !dns.is_empty() {
        write_resolver(&dns).map_err(failed(Step::Resolver, RESOLVER.as_ref()))?;
    }
    Ok(NetworkInfo { interface: name, address, prefix, gateway, dns })
}

/// Gives the interfaces of cards their new hardware addresses, and sets those up that get an address of the
/// network. An interface that is not found keeps its hardware address: the guest has no driver for the card,
/// or has moved it to another namespace. All are found before any of them changes, because one may get the
/// address that another one had.
///
/// # Errors
/// An interface refuses, one that is to be set up is missing, or no DHCP server answers.
pub(crate) fn take_over(cards: &[CardIdentity]) -> Result<(), Failure> {
    if cards.is_empty() {
        return Ok(());
    }
    let mut all = interfaces();
    let names: Vec<Option<OsString>> = cards.iter().map(|card| take_named(&card.former, &mut all)).collect();
    for (card, name) in cards.iter().zip(&names) {
        let Some(name) = name.as_deref().filter(|_| card.mac != card.former) else { continue };
        let set = Interface::open(name).and_then(|interface| {
            interface.set_hardware_address(card.mac)?;
            interface.renew_link_local(card.former, card.mac)
        });
        set.map_err(failed(Step::Interface, name))?;
    }
    for (card, name) in cards.iter().zip(names) {
        let Some(network) = &card.network else { continue };
        let missing = || {
            let subject = OsString::from(text_of(&card.former));
            failed(Step::Interface, &subject)(io::Error::from_raw_os_error(libc::ENODEV))
        };
        configure(name.ok_or_else(missing)?, network, true)?;
    }
    Ok(())
}

/// Returns the name of the interface with this hardware address, and removes it from the list: each is the
/// interface of one card.
fn take_named(mac: &[u8; 6], all: &mut Vec<Ethernet>) -> Option<OsString> {
    let name = named(Some(text_of(mac).as_ref()), all.clone())?;
    all.retain(|found| found.name != name);
    Some(name)
}

/// Returns a hardware address as the kernel writes it.
fn text_of([a, b, c, d, e, f]: &[u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn failed(step: Step, subject: &OsStr) -> impl FnOnce(io::Error) -> Failure {
    let subject = subject.to_owned();
    move |error| Failure::new(step, subject, &error)
}

/// An interface with an Ethernet address.
#[derive(Clone, Debug)]
struct Ethernet {
    name: OsString,
    address: String,
    /// Whether it belongs to a device. A bridge or a bond does not, but may have the address of one.
    is_device: bool,
}

/// Returns the name of the wanted interface, which is given by its hardware address (longer than any name can
/// be), by its name, or not at all (then the first one). Interfaces of devices come first.
fn named(wanted: Option<&OsStr>, mut interfaces: Vec<Ethernet>) -> Option<OsString> {
    let address = match wanted {
        Some(wanted) if wanted.len() != ADDRESS_LEN => return Some(wanted.to_owned()),
        Some(address) => Some(address.to_str()?.to_ascii_lowercase()),
        None => None,
    };
    interfaces.retain(|found| address.as_ref().is_none_or(|address| *address == found.address));
    interfaces.into_iter().min_by_key(|found| (!found.is_device, found.name.clone())).map(|found| found.name)
}

fn interfaces() -> Vec<Ethernet> {
    let entries = fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    let ethernet = |name: OsString| {
        let folder = Path::new(INTERFACES).join(&name);
        let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default().trim().to_owned();
        // ARPHRD_ETHER of `linux/if_arp.h`.
        let is_ethernet = read("type") == "1";
        let is_device = folder.join("device").exists();
        is_ethernet.then(|| Ethernet { name, address: read("address"), is_device })
    };
    entries.filter_map(|entry| ethernet(entry.file_name())).collect()
}

/// Writes the file of name servers. If it is a link to a directory that only its owner creates, as with
/// systemd-resolved, the directory is created.
fn write_resolver(dns: &[Ipv4Addr]) -> io::Result<()> {
    let lines: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    let link = Path::new(RESOLVER);
    let folder = link.parent().unwrap_or(link);
    let file = fs::read_link(link).map_or_else(|_| link.to_owned(), |target| folder.join(target));
    fs::create_dir_all(file.parent().unwrap_or(folder))?;
    fs::write(file, lines)
}

/// The length of `02:00:00:00:00:07`.
const ADDRESS_LEN: usize = 17;
const INTERFACES: &str = "/sys/class/net";
const RESOLVER: &str = "/etc/resolv.conf";

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Vec<Ethernet> {
        let ethernet = |name: &str, last: u8, is_device| Ethernet {
            name: name.into(),
            address: format!("02:00:00:00:00:{last:02x}"),
            is_device,
        };
        let (bridge, card, other) =
            (ethernet("br0", 0xa, false), ethernet("eth0", 0xa, true), ethernet("eth1", 0xb, true));
        vec![bridge, ethernet("docker0", 0xc, false), card, other]
    }

    fn named(wanted: Option<&str>) -> Option<String> {
        super::named(wanted.map(OsStr::new), interfaces()).map(|name| name.into_string().unwrap())
    }

    #[test]
    fn interface_is_found_by_address_whatever_bridges_there_are() {
        assert_eq!(named(Some("02:00:00:00:00:0b")).as_deref(), Some("eth1"));
        assert_eq!(named(Some("02:00:00:00:00:0A")).as_deref(), Some("eth0"), "a bridge has it, too");
        assert_eq!(named(Some("02:00:00:00:00:0c")).as_deref(), Some("docker0"));
        assert_eq!(named(Some("02:00:00:00:00:0d")), None);
    }

    #[test]
    fn each_interface_is_that_of_one_card() {
        let mut all = interfaces();
        let mut take =
            |last: u8| take_named(&[2, 0, 0, 0, 0, last], &mut all).map(|n| n.into_string().unwrap());
        let [first, second, third] = [take(0xa), take(0xa), take(0xa)];
        assert_eq!((first.as_deref(), second.as_deref(), third), (Some("eth0"), Some("br0"), None));
        assert_eq!((take(0xb).as_deref(), take(0xd)), (Some("eth1"), None));
    }

    #[test]
    fn without_an_address_it_is_what_is_named_or_the_first_device() {
        assert_eq!(named(Some("br0")).as_deref(), Some("br0"));
        assert_eq!(named(None).as_deref(), Some("eth0"));
        let virtual_only = interfaces().into_iter().filter(|found| !found.is_device).collect();
        assert_eq!(super::named(None, virtual_only), Some("br0".into()));
        assert_eq!(super::named(None, Vec::new()), None);
    }
}
