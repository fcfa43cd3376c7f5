//! The addresses of network cards.

use std::fmt;
use std::str::FromStr;

/// The MAC address of one Ethernet interface. Its text form is `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// The reason why a text is not the address of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacSyntax {
    /// The text is not six pairs of hexadecimal digits with colons in between.
    #[error("an address has six pairs of hexadecimal digits, such as 02:00:00:00:00:01")]
    Form,
    /// The address belongs to a group, or is all zeroes.
    #[error(
        "an interface cannot have a group address or all zeroes: the first pair has to be even, such as 02"
    )]
    NotUnicast,
}

impl MacAddress {
    /// Makes an address of one interface. Returns `None` for a group address and for all zeroes.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let is_group = bytes.first().is_none_or(|first| first & GROUP != 0);
        (!is_group && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// Makes a random address, with the bit that marks it as locally administered (IEEE 802).
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        // SAFETY: the pointer and the length are those of the array. So few bytes arrive whole or, early in a
        // host's life, not at all; the code below makes an address even of zeroes.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
        let [first, rest @ ..] = &mut bytes;
        *first = *first & !GROUP | LOCAL;
        if *rest == [0; 5] {
            *rest = [1; 5];
        }
        Self(bytes)
    }

    /// Returns the bytes in the order of transmission.
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

/// The bit of the first byte that marks a group address (I/G).
const GROUP: u8 = 1;
/// The bit of the first byte that marks a locally administered address (U/L), which no manufacturer has
/// assigned.
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
    fn addresses_that_no_interface_can_have_are_refused() {
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
    fn random_addresses_are_local_unicast_ones_and_differ() {
        let all: Vec<MacAddress> = (0..100).map(|_| MacAddress::random()).collect();
        assert!(all.iter().all(|mac| mac.bytes()[0] & 3 == LOCAL));
        assert!(all.iter().skip(1).any(|mac| *mac != all[0]));
    }
}
