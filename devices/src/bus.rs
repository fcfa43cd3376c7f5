//! Address decoding: finds the device for a port or MMIO access of a vCPU.
//!
//! The builder of a VM fills a [`BusBuilder`], and vCPU threads call [`Bus::read`] and [`Bus::write`] on
//! every exit. A [`Bus`] never changes after the build, takes no lock and never logs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;

/// An immutable set of device windows in one address space (the 64 Ki I/O ports, or physical memory).
pub struct Bus {
    /// Sorted by base; windows do not overlap.
    windows: Box<[Window]>,
    /// Index of the window of the last hit. It is a guess that all vCPUs share, and any value is correct.
    last_hit: AtomicUsize,
}

impl Bus {
    /// Reads `data.len()` bytes at `addr`. An access that is not wholly inside one window reads all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((window, offset)) => window.device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`. An access that is not wholly inside one window is ignored.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((window, offset)) = self.find(addr, data.len()) {
            window.device.write(offset, data);
        }
    }

    /// Returns the window that holds all of `addr..addr + len`, and the offset of `addr` in it.
    fn find(&self, addr: u64, len: usize) -> Option<(&Window, u64)> {
        let hint = self.last_hit.load(Ordering::Relaxed);
        let hit = self.windows.get(hint).and_then(|window| Some((window, window.range.offset_of(addr)?)));
        let (window, offset) = match hit {
            Some(hit) => hit,
            None => self.search(addr)?,
        };
        window.range.holds(offset, len).then_some((window, offset))
    }

    fn search(&self, addr: u64) -> Option<(&Window, u64)> {
        let after = self.windows.partition_point(|window| window.range.base <= addr);
        let index = after.checked_sub(1)?;
        let window = self.windows.get(index)?;
        let offset = window.range.offset_of(addr)?;
        self.last_hit.store(index, Ordering::Relaxed);
        Some((window, offset))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.windows.iter().map(|window| window.range)).finish()
    }
}

/// Collects the windows of a bus and refuses those that cannot be decoded.
#[derive(Default)]
pub struct BusBuilder {
    windows: Vec<Window>,
}

impl BusBuilder {
    /// Starts a bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `range` to `device`. One device may own several ranges, and each counts offsets from its own
    /// base.
    ///
    /// # Errors
    /// Refuses a range that is empty, passes the end of the address space or overlaps an earlier one.
    pub fn insert(&mut self, range: BusRange, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        if range.len == 0 {
            return Err(BusError::Empty { base: range.base });
        }
        let Some(last) = range.last() else {
            return Err(BusError::Wraps { base: range.base, len: range.len });
        };
        let place = self.windows.partition_point(|window| window.range.base <= range.base);
        let before = place.checked_sub(1).and_then(|index| self.windows.get(index));
        let overlaps_before = before.filter(|window| window.range.offset_of(range.base).is_some());
        let overlaps_after = self.windows.get(place).filter(|window| window.range.base <= last);
        if let Some(window) = overlaps_before.or(overlaps_after) {
            return Err(BusError::Overlap { new: range, existing: window.range });
        }
        self.windows.insert(place, Window { range, device });
        Ok(())
    }

    /// Fixes the set of windows.
    pub fn build(self) -> Bus {
        Bus { windows: self.windows.into_boxed_slice(), last_hit: AtomicUsize::new(0) }
    }
}

/// The addresses of one window: `base` and the `len - 1` after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BusRange {
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
}

impl BusRange {
    /// Makes a window of `len` addresses from `base`. [`BusBuilder::insert`] checks it.
    pub const fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// Returns the last address, or `None` if the range is empty or passes the end of the address space.
    fn last(&self) -> Option<u64> {
        self.base.checked_add(self.len.checked_sub(1)?)
    }

    fn offset_of(&self, addr: u64) -> Option<u64> {
        addr.checked_sub(self.base).filter(|&offset| offset < self.len)
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        let room = self.len.saturating_sub(offset);
        u64::try_from(len).is_ok_and(|len| len <= room)
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.base.saturating_add(self.len.saturating_sub(1));
        write!(f, "{:#x}..={last:#x}", self.base)
    }
}

impl fmt::Debug for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A device's registers as the bus sees them.
///
/// Both calls are infallible. A register that does not exist, a width that it lacks or a value without
/// meaning is the guest's mistake, and results in all ones, or in nothing. The calls run on vCPU threads,
/// several at a time, so a device has locks of its own, holds them briefly and never waits. The bus promises
/// that `offset + data.len()` stays inside the window. It promises no alignment or width.
pub trait BusDevice: Send + Sync {
    /// Reads the registers at `offset` into `data`, filling all of it.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device whose registers are one byte each. A wider access becomes byte accesses at ascending offsets, as
/// on the ISA bus.
pub trait ByteRegisters: Send + Sync {
    /// Reads the register at `offset`.
    fn read_byte(&self, offset: u64) -> u8;

    /// Writes the register at `offset`.
    fn write_byte(&self, offset: u64, value: u8);
}

impl<T: ByteRegisters> BusDevice for T {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..=u64::MAX).zip(data) {
            *byte = self.read_byte(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (offset, &byte) in (offset..=u64::MAX).zip(data) {
            self.write_byte(offset, byte);
        }
    }
}

/// The reason why a window cannot be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusError {
    /// The window has no addresses.
    #[error("the window at {base:#x} is empty; a window needs at least one address")]
    Empty {
        /// The first address of the window.
        base: u64,
    },
    /// The window passes the end of the address space.
    #[error("the window at {base:#x} of {len:#x} bytes passes the end of the address space; lower its base")]
    Wraps {
        /// The first address of the window.
        base: u64,
        /// The length of the window.
        len: u64,
    },
    /// The window shares addresses with an earlier one.
    #[error("the window {new} overlaps the window {existing} that is already on the bus; move one of them")]
    Overlap {
        /// The window that was refused.
        new: BusRange,
        /// The earlier window that it overlaps.
        existing: BusRange,
    },
}

struct Window {
    range: BusRange,
    device: Arc<dyn BusDevice>,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// Returns its tag and the low byte of each offset on reads, and keeps writes.
    #[derive(Default)]
    struct Probe {
        tag: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            for (place, byte) in data.iter_mut().enumerate() {
                *byte = self.tag.wrapping_add((offset + place as u64) as u8);
            }
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus_of(windows: &[(u64, u64)]) -> (Bus, Vec<Arc<Probe>>) {
        let mut builder = BusBuilder::new();
        let probes: Vec<_> = (1..)
            .zip(windows)
            .map(|(tag, &(base, len))| {
                let probe = Arc::new(Probe { tag: tag * 16, ..Probe::default() });
                builder.insert(BusRange::new(base, len), probe.clone()).unwrap();
                probe
            })
            .collect();
        (builder.build(), probes)
    }

    fn insert(builder: &mut BusBuilder, base: u64, len: u64) -> Result<(), BusError> {
        builder.insert(BusRange::new(base, len), Arc::new(Probe::default()))
    }

    #[test]
    fn empty_window_is_refused() {
        let error = insert(&mut BusBuilder::new(), 0x3f8, 0).unwrap_err();
        assert_eq!(error, BusError::Empty { base: 0x3f8 });
    }

    #[test]
    fn wrapping_window_is_refused_and_the_last_address_is_usable() {
        let mut builder = BusBuilder::new();
        let error = insert(&mut builder, u64::MAX, 2).unwrap_err();
        assert_eq!(error, BusError::Wraps { base: u64::MAX, len: 2 });
        insert(&mut builder, u64::MAX, 1).unwrap();
        let bus = builder.build();
        let mut data = [0xaa];
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn overlap_is_refused_and_names_both_windows() {
        let mut builder = BusBuilder::new();
        insert(&mut builder, 0x100, 0x10).unwrap();
        for (base, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0x10f, 9), (0, 0x1000), (0x104, 2)] {
            let error = insert(&mut builder, base, len).unwrap_err();
            let existing = BusRange::new(0x100, 0x10);
            assert_eq!(error, BusError::Overlap { new: BusRange::new(base, len), existing });
        }
        let message = insert(&mut builder, 0x10f, 2).unwrap_err().to_string();
        assert!(message.contains("0x10f..=0x110") && message.contains("0x100..=0x10f"), "{message}");
        insert(&mut builder, 0xff, 1).unwrap();
        insert(&mut builder, 0x110, 1).unwrap();
    }

    #[test]
    fn every_port_without_a_device_reads_all_ones_and_ignores_writes() {
        let (bus, probes) = bus_of(&[(0x70, 2), (0x3f8, 8)]);
        for port in 0..=0xffff_u64 {
            for width in [1, 2, 4] {
                let inside = [(0x70, 2), (0x3f8, 8)].iter().any(|&(b, l)| port >= b && port + width <= b + l);
                let mut data = vec![0xaa; width as usize];
                bus.read(port, &mut data);
                bus.write(port, &data.clone());
                assert_eq!(data.iter().all(|&byte| byte == 0xff), !inside, "port {port:#x}, width {width}");
            }
        }
        assert_eq!(probes[0].writes.lock().unwrap().len(), 2 + 1);
        assert_eq!(probes[1].writes.lock().unwrap().len(), 8 + 7 + 5);
    }

    #[test]
    fn access_across_two_adjacent_windows_reaches_neither() {
        let (bus, probes) = bus_of(&[(0x10, 4), (0x14, 4)]);
        let mut data = [0; 4];
        bus.read(0x12, &mut data);
        bus.write(0x12, &data);
        assert_eq!(data, [0xff; 4]);
        assert!(probes.iter().all(|probe| probe.writes.lock().unwrap().is_empty()));
    }

    #[test]
    fn bytes_of_a_wide_access_go_to_ascending_registers() {
        struct Echo(Mutex<Vec<(u64, u8)>>);
        impl ByteRegisters for Echo {
            fn read_byte(&self, offset: u64) -> u8 {
                offset as u8
            }
            fn write_byte(&self, offset: u64, value: u8) {
                self.0.lock().unwrap().push((offset, value));
            }
        }
        let echo = Echo(Mutex::default());
        let mut data = [0; 4];
        echo.read(3, &mut data);
        echo.write(u64::MAX - 1, &[7, 8, 9]);
        assert_eq!(data, [3, 4, 5, 6]);
        assert_eq!(*echo.0.lock().unwrap(), [(u64::MAX - 1, 7), (u64::MAX, 8)]);
    }

    /// Returns addresses at which windows are likely to start and to end.
    fn address() -> impl Strategy<Value = u64> {
        prop_oneof![0..64_u64, u64::MAX - 64..=u64::MAX]
    }

    proptest! {
        /// The reference: a list that is searched from the front, in arithmetic that cannot wrap.
        #[test]
        fn agrees_with_a_linear_list(
            windows in proptest::collection::vec((address(), 0..12_u64), 0..12),
            accesses in proptest::collection::vec((address(), 0..12_usize), 1..64),
        ) {
            let end = |base: u64, len: u64| u128::from(base) + u128::from(len);
            let below = |(a, a_len), (b, _)| end(a, a_len) <= u128::from(b);
            let apart = |a, b| below(a, b) || below(b, a);
            let mut builder = BusBuilder::new();
            let mut list: Vec<(u64, u64, Arc<Probe>)> = Vec::new();
            for (tag, (base, len)) in (1..).zip(windows) {
                let probe = Arc::new(Probe { tag: tag * 16, ..Probe::default() });
                let fits = len > 0
                    && end(base, len) <= 1 << 64
                    && list.iter().all(|&(b, l, _)| apart((base, len), (b, l)));
                prop_assert_eq!(builder.insert(BusRange::new(base, len), probe.clone()).is_ok(), fits);
                if fits {
                    list.push((base, len, probe));
                }
            }
            let bus = builder.build();
            for (addr, width) in accesses {
                let owner = list.iter().find(|&&(base, len, _)| {
                    let window = u128::from(base)..end(base, len);
                    window.contains(&addr.into()) && end(addr, width as u64) <= window.end
                });
                let mut expected = vec![0xff; width];
                if let Some((base, _, probe)) = owner {
                    probe.read(addr - base, &mut expected);
                }
                let mut data = vec![0xaa; width];
                bus.read(addr, &mut data);
                prop_assert_eq!(&data, &expected);
                bus.write(addr, &data);
                for (base, _, probe) in &list {
                    let writes = std::mem::take(&mut *probe.writes.lock().unwrap());
                    let hit = owner.is_some_and(|(b, ..)| b == base);
                    prop_assert_eq!(writes, if hit { vec![(addr - base, data.clone())] } else { vec![] });
                }
            }
        }
    }
}
