//! Addresses of network cards.

use std::fmt;
use std::str::FromStr;

/// The address of one Ethernet interface, written as in `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// Not an address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacSyntax {
    /// Not six pairs of hexadecimal digits.
    #[error("six pairs of hexadecimal digits make an address, as in 02:00:00:00:00:01")]
    Form,
    /// A group address, or nothing.
    #[error(
        "an interface cannot have the address of a group, or all zeroes: the first pair has to be even, as in 02"
    )]
    NotUnicast,
}

impl MacAddress {
    /// An address of one interface; none for that of a group, and for zeroes.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let is_group = bytes.first().is_none_or(|first| first & GROUP != 0);
        (!is_group && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// A random one of those that everybody may give (IEEE 802, locally administered).
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        // SAFETY: the pointer and the length are those of the array. So few bytes come whole or, early in a
        // host's life, not at all: an address of zeroes and the local bit is one, too.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        let [first, rest @ ..] = &mut bytes;
        *first = *first & !GROUP | LOCAL;
        if *rest == [0; 5] {
            *rest = [1; 5];
        }
        Self(bytes)
    }

    /// Its bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacSyntax;

    fn from_str(text: &str) -> Result<Self, MacSyntax> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair =
                pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(MacSyntax::Form)?;
        }
        if pairs.next().is_some() {
            return Err(MacSyntax::Form);
        }
        Self::new(bytes).ok_or(MacSyntax::NotUnicast)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The bit of the first byte that makes an address one of a group.
const GROUP: u8 = 1;
/// The bit that makes it one that no maker of cards has given.
const LOCAL: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["02:00:00:00:00:01", "52:54:00:ab:cd:ef", "00:00:00:00:00:01"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
        assert_eq!("02:AB:00:00:00:01".parse::<MacAddress>().unwrap().to_string(), "02:ab:00:00:00:01");
    }

    #[test]
    fn what_no_interface_can_have_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacSyntax::Form), "{text}");
        }
        for text in ["01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<MacAddress>(), Err(MacSyntax::NotUnicast), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_ones_of_one_interface_and_differ() {
        let all: Vec<MacAddress> = (0..100).map(|_| MacAddress::random()).collect();
        assert!(all.iter().all(|mac| mac.bytes()[0] & 3 == LOCAL));
        assert!(all.iter().skip(1).any(|mac| *mac != all[0]));
    }
}
