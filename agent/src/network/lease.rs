//! The messages of DHCP (RFC 2131, RFC 2132) that a client needs. They have IPv4 and UDP headers, because the
//! interface has no address yet.

use std::net::Ipv4Addr;

/// The settings that a server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
}

/// An answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: u8,
    pub(super) server: Ipv4Addr,
    pub(super) lease: Lease,
}

/// Kinds of message (RFC 2132, 9.6).
pub(super) const DISCOVER: u8 = 1;
pub(super) const OFFER: u8 = 2;
pub(super) const REQUEST: u8 = 3;
pub(super) const ACK: u8 = 5;

/// Builds a broadcast packet from a client without an address. It asks for an offer, or accepts one.
pub(super) fn question(
    kind: u8,
    transaction: u32,
    hardware: [u8; 6],
    taken: Option<(Ipv4Addr, Ipv4Addr)>,
) -> Vec<u8> {
    let mut message = vec![BOOT_REQUEST, ETHERNET, 6, 0];
    message.extend(transaction.to_be_bytes());
    // Seconds since the start, and the flag that asks for a broadcast answer.
    message.extend([0, 0, 0x80, 0]);
    message.extend([0; 16]);
    message.extend(hardware);
    message.resize(OPTIONS, 0);
    message.extend(COOKIE);
    message.extend([MESSAGE_KIND, 1, kind]);
    if let Some((address, server)) = taken {
        message.extend([REQUESTED_ADDRESS, 4]);
        message.extend(address.octets());
        message.extend([SERVER, 4]);
        message.extend(server.octets());
    }
    message.extend([WANTED, 3, SUBNET_MASK, ROUTER, NAME_SERVERS, END]);
    // The smallest length that old relays accept.
    message.resize(message.len().max(300), 0);
    in_packet(&message)
}

/// Reads a packet that arrived. `None` for all but an answer to this client in this transaction.
pub(super) fn answer(packet: &[u8], transaction: u32, hardware: [u8; 6]) -> Option<Answer> {
    let header = usize::from(packet.first()? & 0xf).checked_mul(4)?;
    let is_udp = packet.first()? >> 4 == 4 && *packet.get(9)? == UDP;
    let udp = packet.get(header..)?;
    let to_client = udp.get(2..4)? == CLIENT_PORT.to_be_bytes();
    let message = udp.get(8..)?;
    let is_mine = message.first() == Some(&BOOT_REPLY)
        && message.get(4..8)? == transaction.to_be_bytes()
        && message.get(28..34)? == hardware;
    if !(is_udp && to_client && is_mine && message.get(OPTIONS - 4 + 4..OPTIONS + 4)? == COOKIE) {
        return None;
    }
    let options = Options(message.get(OPTIONS + 4..)?);
    let address = Ipv4Addr::from(*message.get(16..20)?.first_chunk::<4>()?);
    let prefix = options.addresses(SUBNET_MASK).next().map_or(24, |mask| mask.to_bits().leading_ones() as u8);
    let lease = Lease {
        address,
        prefix,
        gateway: options.addresses(ROUTER).next(),
        dns: options.addresses(NAME_SERVERS).take(MAX_SERVERS).collect(),
    };
    let kind = *options.find(MESSAGE_KIND)?.first()?;
    Some(Answer { kind, server: options.addresses(SERVER).next()?, lease })
}

/// The options of a message, one after the other (RFC 2132, section 2).
#[derive(Clone, Copy)]
struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    fn find(self, wanted: u8) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            let (&code, after) = rest.split_first()?;
            match code {
                PADDING => rest = after,
                END => return None,
                _ => {
                    let (&length, after) = after.split_first()?;
                    let (value, after) = after.split_at_checked(usize::from(length))?;
                    if code == wanted {
                        return Some(value);
                    }
                    rest = after;
                }
            }
        }
    }

    fn addresses(self, wanted: u8) -> impl Iterator<Item = Ipv4Addr> {
        let (whole, _) = self.find(wanted).unwrap_or_default().as_chunks::<4>();
        whole.iter().map(|bytes| Ipv4Addr::from(*bytes))
    }
}

/// Wraps a message in UDP (RFC 768) and IPv4 (RFC 791), from no address to the broadcast address. A UDP
/// checksum of 0 means that there is none.
fn in_packet(message: &[u8]) -> Vec<u8> {
    let udp_length = message.len().saturating_add(8) as u16;
    let length = udp_length.saturating_add(20);
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend([0; 4]);
    packet.extend([0xff; 4]);
    let checksum = internet_checksum(&packet);
    packet.splice(10..12, checksum.to_be_bytes());
    for field in [CLIENT_PORT, SERVER_PORT, udp_length, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(message);
    packet
}

/// Computes the checksum of RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>();
    let folded = (sum & 0xffff).wrapping_add(sum >> 16);
    !((folded & 0xffff).wrapping_add(folded >> 16) as u16)
}

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const UDP: u8 = 17;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// The offset of the options, which begin with a cookie (RFC 2131, sections 2 and 3).
const OPTIONS: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const PADDING: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVERS: u8 = 6;
const REQUESTED_ADDRESS: u8 = 50;
const MESSAGE_KIND: u8 = 53;
const SERVER: u8 = 54;
const WANTED: u8 = 55;
const END: u8 = 255;
/// The largest number of name servers that the resolver of the C library uses.
const MAX_SERVERS: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// Builds a server's offer.
    fn offer(options: &[u8]) -> Vec<u8> {
        let mut packet = question(DISCOVER, 7, HARDWARE, None);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        let message = 28;
        packet[message] = BOOT_REPLY;
        packet[message + 16..message + 20].copy_from_slice(&[10, 0, 0, 5]);
        packet.truncate(message + OPTIONS + 4);
        packet.extend(options);
        packet
    }

    #[test]
    fn offer_is_read() {
        let options = [
            &[MESSAGE_KIND, 1, OFFER, PADDING, SERVER, 4, 10, 0, 0, 1][..],
            &[SUBNET_MASK, 4, 255, 255, 240, 0, ROUTER, 4, 10, 0, 0, 2],
            &[NAME_SERVERS, 8, 9, 9, 9, 9, 8, 8, 8, 8, END],
        ]
        .concat();
        let lease = Lease {
            address: [10, 0, 0, 5].into(),
            prefix: 20,
            gateway: Some([10, 0, 0, 2].into()),
            dns: vec![[9, 9, 9, 9].into(), [8, 8, 8, 8].into()],
        };
        let expected = Answer { kind: OFFER, server: [10, 0, 0, 1].into(), lease };
        assert_eq!(answer(&offer(&options), 7, HARDWARE), Some(expected));
        assert_eq!(answer(&offer(&options), 8, HARDWARE), None);
        assert_eq!(answer(&offer(&options), 7, [0; 6]), None);
        assert_eq!(answer(&question(DISCOVER, 7, HARDWARE, None), 7, HARDWARE), None);
    }

    #[test]
    fn question_is_a_sound_packet() {
        let packet = question(REQUEST, 7, HARDWARE, Some(([10, 0, 0, 5].into(), [10, 0, 0, 1].into())));
        assert_eq!(internet_checksum(&packet[..20]), 0);
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = answer(&bytes, 7, HARDWARE);
            let _ = answer(&offer(&bytes), 7, HARDWARE);
        }
    }
}
