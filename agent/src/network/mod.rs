//! The network of a guest: loopback, and one interface with its address, route and name servers.

mod dhcp;
mod interface;
mod lease;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use coracle_agent::guest_protocol::{Failure, NetworkInfo, NetworkRequest, Step};

use self::interface::Interface;
use crate::console;

/// Brings `lo` up; the kernel gives it its addresses then.
pub(crate) fn bring_up_loopback() {
    if let Err(error) = loopback_up() {
        console::report(&format!("cannot bring the interface lo up: {error}"));
    }
}

fn loopback_up() -> io::Result<()> {
    Interface::open("lo".as_ref())?.bring_up()
}

/// Brings an interface up as the host wants it. It waits for a DHCP server's answer: the caller has a process for that.
pub(crate) fn bring_up(request: &NetworkRequest) -> Result<NetworkInfo, Failure> {
    let failed = |step, subject: &OsStr| {
        let subject = subject.to_owned();
        move |error: io::Error| Failure::new(step, subject, &error)
    };
    loopback_up().map_err(failed(Step::Interface, "lo".as_ref()))?;
    let name = match &request.interface {
        Some(name) => name.clone(),
        None => first_ethernet().ok_or_else(|| {
            failed(Step::Interface, "eth0".as_ref())(io::Error::from_raw_os_error(libc::ENODEV))
        })?,
    };
    let interface = Interface::open(&name).map_err(failed(Step::Interface, &name))?;
    interface.bring_up().map_err(failed(Step::Interface, &name))?;
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

/// The first interface, by name, that has an Ethernet address.
fn first_ethernet() -> Option<OsString> {
    let interfaces = fs::read_dir(INTERFACES).ok()?.flatten();
    let is_ethernet = |name: &OsString| {
        let kind = fs::read_to_string(Path::new(INTERFACES).join(name).join("type"));
        // ARPHRD_ETHER of `linux/if_arp.h`.
        kind.is_ok_and(|kind| kind.trim() == "1")
    };
    interfaces.map(|entry| entry.file_name()).filter(is_ethernet).min()
}

fn write_resolver(dns: &[Ipv4Addr]) -> io::Result<()> {
    let lines: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    if let Some(folder) = Path::new(RESOLVER).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(RESOLVER, lines)
}

const INTERFACES: &str = "/sys/class/net";
const RESOLVER: &str = "/etc/resolv.conf";
