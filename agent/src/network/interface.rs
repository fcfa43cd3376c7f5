//! A network interface, by the calls of `netdevice(7)` and `rtentry` of `linux/route.h`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

/// An interface, and a socket for calls about it.
#[derive(Debug)]
pub(super) struct Interface {
    name: OsString,
    socket: UdpSocket,
}

impl Interface {
    pub(super) fn open(name: &OsStr) -> io::Result<Self> {
        // The last byte is the terminating zero.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(Self { name: name.to_owned(), socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))? })
    }

    /// Sets the interface up, so that frames pass.
    pub(super) fn bring_up(&self) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    pub(super) fn set_address(&self, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.call(libc::SIOCSIFADDR, &mut request)?;
        let mut request = self.request();
        request.ifr_ifru.ifru_netmask = socket_address(mask(prefix));
        self.call(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Removes all IPv4 addresses, and with the last one the routes of the interface.
    pub(super) fn remove_addresses(&self) -> io::Result<()> {
        for _ in 0..MOST_ADDRESSES {
            let mut request = self.request();
            match self.call(libc::SIOCGIFADDR, &mut request) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(()),
                Err(error) => return Err(error),
            }
            let mut request = self.request();
            request.ifr_ifru.ifru_addr = socket_address(Ipv4Addr::UNSPECIFIED);
            self.call(libc::SIOCSIFADDR, &mut request)?;
        }
        Ok(())
    }

    /// Sets the Ethernet address. A virtio card takes it while it is up.
    pub(super) fn set_hardware_address(&self, [a, b, c, d, e, f]: [u8; 6]) -> io::Result<()> {
        let mut request = self.request();
        let mut address = socket_address(Ipv4Addr::UNSPECIFIED);
        address.sa_family = libc::ARPHRD_ETHER;
        let bytes = [a, b, c, d, e, f].map(u8::cast_signed);
        address.sa_data.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        request.ifr_ifru.ifru_hwaddr = address;
        self.call(libc::SIOCSIFHWADDR, &mut request)
    }

    /// Replaces the link-local IPv6 address that follows from the Ethernet address `former` by that of `mac`.
    /// Nothing changes without the former one.
    pub(super) fn renew_link_local(&self, former: [u8; 6], mac: [u8; 6]) -> io::Result<()> {
        let Ok(socket) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return Ok(()) };
        let ifr6_ifindex = self.index()?;
        let call = |number: libc::Ioctl, address: Ipv6Addr| {
            let ifr6_addr = libc::in6_addr { s6_addr: address.octets() };
            let request = libc::in6_ifreq { ifr6_addr, ifr6_prefixlen: 64, ifr6_ifindex };
            // SAFETY: these calls read one in6_ifreq at the given address (ipv6(7)).
            unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw const request) }
        };
        if call(libc::SIOCDIFADDR, link_local(former)) == 0 && call(libc::SIOCSIFADDR, link_local(mac)) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Makes `gateway` the default route.
    pub(super) fn route_by(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: an all-zero structure is valid: it is plain data.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads one rtentry at the given address.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
        let error = io::Error::last_os_error();
        if result == 0 || error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(error) }
    }

    pub(super) fn index(&self) -> io::Result<i32> {
        let mut request = self.request();
        self.call(libc::SIOCGIFINDEX, &mut request)?;
        // SAFETY: the call has filled this field.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex })
    }

    /// Returns the Ethernet address.
    pub(super) fn hardware_address(&self) -> io::Result<[u8; 6]> {
        let mut request = self.request();
        self.call(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: the call has filled this field.
        let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        let [a, b, c, d, e, f, ..] = bytes.map(i8::cast_unsigned);
        Ok([a, b, c, d, e, f])
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: an all-zero structure is valid: it is plain data.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(self.name.as_bytes()) {
            *place = byte.cast_signed();
        }
        request
    }

    fn call(&self, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: these calls read and write one ifreq at the given address (netdevice(7)).
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, &raw mut *request) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// More addresses than the kernel's label of an interface usually stands for.
const MOST_ADDRESSES: usize = 256;

/// Returns the mask of a prefix length. Lengths above 32 count as 32.
fn mask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32_u32.saturating_sub(u32::from(prefix));
    Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// Returns the address that the kernel makes of an Ethernet address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: an all-zero structure is valid: it is plain data.
    let mut generic: libc::sockaddr = unsafe { std::mem::zeroed() };
    generic.sa_family = libc::AF_INET as libc::sa_family_t;
    // The port comes first, then the address (`ip(7)`).
    for (place, byte) in generic.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *place = byte.cast_signed();
    }
    generic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_follow_from_ethernet_addresses() {
        assert_eq!(link_local([2, 0, 0, 0, 0, 7]).to_string(), "fe80::ff:fe00:7");
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    }

    #[test]
    fn masks_are_those_of_their_prefixes() {
        let masks = [0, 1, 24, 31, 32, 99].map(|prefix| mask(prefix).to_string());
        assert_eq!(
            masks,
            [
                "0.0.0.0",
                "128.0.0.0",
                "255.255.255.0",
                "255.255.255.254",
                "255.255.255.255",
                "255.255.255.255"
            ]
        );
    }
}
