//! The work on a frame that its sender may leave to its receiver.

/// The work that a receiver of frames can do by itself. All other work is done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Check or finish TCP and UDP checksums. The other fields need it.
    pub checksum: bool,
    /// Take TCP over IPv4 in segments of up to 64 KiB.
    pub tso4: bool,
    /// Take TCP over IPv6 in segments of up to 64 KiB.
    pub tso6: bool,
    /// Take such segments with the congestion bit of TCP set.
    pub ecn: bool,
}

impl Offloads {
    /// All work that a tap can leave or take over.
    pub const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

    /// Returns whether a frame may be longer than the MTU.
    pub fn has_long_frames(self) -> bool {
        self.tso4 || self.tso6
    }

    /// Returns whether everything in `other` is included.
    pub fn contains(self, other: Offloads) -> bool {
        let Offloads { checksum, tso4, tso6, ecn } = other;
        (self.checksum || !checksum) && (self.tso4 || !tso4) && (self.tso6 || !tso6) && (self.ecn || !ecn)
    }

    /// Returns the work without the parts that need a missing one.
    #[must_use]
    pub fn possible(self) -> Offloads {
        let Offloads { checksum, tso4, tso6, ecn } = self;
        let (tso4, tso6) = (checksum && tso4, checksum && tso6);
        Offloads { checksum, tso4, tso6, ecn: ecn && (tso4 || tso6) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_need_checksums_and_ecn_needs_segments() {
        let none = Offloads::default();
        assert_eq!(Offloads { checksum: false, ..Offloads::ALL }.possible(), none);
        let checksum = Offloads { checksum: true, ..none };
        assert_eq!(Offloads { ecn: true, ..checksum }.possible(), checksum);
        assert_eq!(Offloads::ALL.possible(), Offloads::ALL);
    }

    #[test]
    fn all_contains_each_and_none_contains_only_none() {
        let tso = Offloads { checksum: true, tso4: true, ..Offloads::default() };
        assert!(Offloads::ALL.contains(tso) && tso.contains(Offloads::default()) && tso.contains(tso));
        assert!(!tso.contains(Offloads::ALL) && !Offloads::default().contains(tso));
    }
}
