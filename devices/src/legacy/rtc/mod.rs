//! The CMOS real-time clock of a PC (MC146818A), from which a kernel learns the date at boot.
//!
//! It shows the host's clock in UTC and cannot be set. It never interrupts: alarm and enable bits are kept
//! and have no effect. The rest of the 128 bytes is plain memory, zero at start and lost with the machine.
//! That includes the registers in which a BIOS leaves the memory size.

mod state;

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::state::ClockState;
use super::LegacyDevice;
use crate::bus::ByteRegisters;
use crate::lock;
use crate::state::{Restoration, SavedState, StateError};

/// The clock's ports: index at offset 0, data at offset 1 (0x70 and 0x71 on a PC).
pub struct CmosRtc {
    cmos: Mutex<Cmos>,
}

impl CmosRtc {
    /// Length of the window in ports.
    pub const WINDOW_LEN: u64 = 2;

    /// Creates a clock that shows the host's time.
    pub fn new() -> Self {
        let mut ram = [0; RAM_LEN];
        for (cell, value) in ram.iter_mut().zip(POWER_ON) {
            *cell = value;
        }
        Self { cmos: Mutex::new(Cmos { index: 0, ram }) }
    }
}

impl Default for CmosRtc {
    fn default() -> Self {
        Self::new()
    }
}

impl LegacyDevice for CmosRtc {
    /// Clock and memory run on a battery: a reset of the machine changes neither.
    fn reset(&self) {}

    fn save(&self) -> SavedState {
        let Self { cmos } = self;
        ClockState::of(&lock(cmos)).encode()
    }

    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let cmos = ClockState::decode(state)?;
        Ok(Restoration::new(move || *lock(&self.cmos) = cmos))
    }
}

impl ByteRegisters for CmosRtc {
    /// The index port is write-only and reads all ones.
    fn read_byte(&self, offset: u64) -> u8 {
        // A host clock before 1970 shows 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match offset {
            DATA_PORT => lock(&self.cmos).read(now),
            _ => 0xff,
        }
    }

    fn write_byte(&self, offset: u64, value: u8) {
        match offset {
            // Bit 7 masks the NMI, which nothing here raises.
            INDEX_PORT => lock(&self.cmos).index = value & INDEX_MASK,
            DATA_PORT => lock(&self.cmos).write(value),
            _ => {}
        }
    }
}

struct Cmos {
    index: u8,
    ram: [u8; RAM_LEN],
}

impl Cmos {
    /// Returns the selected register at `now`, the time since 1970-01-01 00:00 UTC.
    fn read(&self, now: Duration) -> u8 {
        let time = || Civil::at(now.as_secs());
        let value = match self.index {
            SECONDS => time().second,
            MINUTES => time().minute,
            HOURS => time().hour,
            DAY_OF_WEEK => time().day_of_week,
            DAY_OF_MONTH => time().day,
            MONTH => time().month,
            YEAR => time().year % 100,
            CENTURY => time().year / 100,
            STATUS_A => return self.stored() | update_in_progress(now),
            STATUS_C => return 0,
            STATUS_D => return VALID_RAM_AND_TIME,
            _ => return self.stored(),
        };
        self.encode(value)
    }

    /// Writes the selected register. The time and the status registers C and D are read-only, and so are
    /// register A's update bit and the 24-hour mode.
    fn write(&mut self, value: u8) {
        let value = match self.index {
            index if is_computed(index) => return,
            STATUS_A => value & !UPDATE_IN_PROGRESS,
            STATUS_B => value | MODE_24_HOURS,
            _ => value,
        };
        if let Some(cell) = self.ram.get_mut(usize::from(self.index)) {
            *cell = value;
        }
    }

    fn stored(&self) -> u8 {
        self.ram.get(usize::from(self.index)).copied().unwrap_or(0xff)
    }

    /// Encodes a number below 100 in the format that register B selects.
    fn encode(&self, value: u64) -> u8 {
        let binary = self.ram.get(usize::from(STATUS_B)).is_some_and(|b| b & MODE_BINARY != 0);
        let code = if binary { value } else { ((value / 10) << 4) | (value % 10) };
        u8::try_from(code).unwrap_or(0xff)
    }
}

/// Returns whether a register has no memory: the time, and the status registers C and D.
fn is_computed(index: u8) -> bool {
    matches!(
        index,
        SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY_OF_MONTH | MONTH | YEAR | CENTURY | STATUS_C | STATUS_D
    )
}

/// A moment in the proleptic Gregorian calendar, UTC.
#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 to 7, from Sunday.
    day_of_week: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// Returns the moment `seconds` after 1970-01-01 00:00:00, at most the last one of the year 9999.
    fn at(seconds: u64) -> Self {
        let seconds = seconds.min(END_OF_9999);
        let days = seconds / SECONDS_PER_DAY;
        let mut year = 1970_u64;
        let mut day = days;
        while let Some(rest) = day.checked_sub(days_in_year(year)) {
            day = rest;
            year = year.saturating_add(1);
        }
        let mut month = 1_u64;
        while let Some(rest) = day.checked_sub(days_in_month(year, month)) {
            day = rest;
            month = month.saturating_add(1);
        }
        Self {
            year,
            month,
            day: day.saturating_add(1),
            day_of_week: (days.saturating_add(DAYS_FROM_SUNDAY_TO_1970) % 7).saturating_add(1),
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

fn is_leap_year(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap_year(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap_year(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the update bit. It is set for a short time before each second ends. It is computed from the clock
/// itself, so that it can neither stick nor be missed by a guest that reads the time only while the bit is
/// clear.
fn update_in_progress(now: Duration) -> u8 {
    if now.subsec_nanos() >= UPDATE_STARTS_AT_NANOS { UPDATE_IN_PROGRESS } else { 0 }
}

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
const INDEX_MASK: u8 = 0x7f;
const RAM_LEN: usize = 128;

/// Register indices (MC146818A data sheet, figure "Address Map"). The century's index is the one in the FADT
/// of a PC.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const MODE_24_HOURS: u8 = 1 << 1;
const MODE_BINARY: u8 = 1 << 2;
const VALID_RAM_AND_TIME: u8 = 1 << 7;
/// Registers 0 to 0x0b at power-on: a 32.768 kHz time base with the usual 1,024 Hz rate; BCD, 24 hours.
const POWER_ON: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x26, MODE_24_HOURS];

/// The start of the update bit within a second. The chip promises 244 us between the clear bit and the
/// update. Seven register reads may take longer if each is an exit of a slow virtual machine, so the bit
/// comes 2 ms ahead.
const UPDATE_STARTS_AT_NANOS: u32 = 998_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// 1970-01-01 was a Thursday.
const DAYS_FROM_SUNDAY_TO_1970: u64 = 4;
/// 9999-12-31 23:59:59: the last moment that two digits of century can show.
const END_OF_9999: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::testing::sweep;

    fn civil(seconds: u64) -> [u64; 7] {
        let Civil { year, month, day, day_of_week, hour, minute, second } = Civil::at(seconds);
        [year, month, day, hour, minute, second, day_of_week]
    }

    fn read(rtc: &CmosRtc, index: u8, seconds: u64) -> u8 {
        rtc.write(INDEX_PORT, &[index]);
        lock(&rtc.cmos).read(Duration::from_secs(seconds))
    }

    fn write(rtc: &CmosRtc, index: u8, value: u8) {
        rtc.write(INDEX_PORT, &[index]);
        rtc.write(DATA_PORT, &[value]);
    }

    #[test]
    fn known_moments_have_their_dates() {
        // Values of `date -u -d @SECONDS`; day of week 1 is Sunday.
        assert_eq!(civil(0), [1970, 1, 1, 0, 0, 0, 5]);
        assert_eq!(civil(68_169_599), [1972, 2, 28, 23, 59, 59, 2]);
        assert_eq!(civil(68_169_600), [1972, 2, 29, 0, 0, 0, 3]);
        assert_eq!(civil(951_782_400), [2000, 2, 29, 0, 0, 0, 3]);
        assert_eq!(civil(951_868_800), [2000, 3, 1, 0, 0, 0, 4]);
        assert_eq!(civil(1_735_689_599), [2024, 12, 31, 23, 59, 59, 3]);
        assert_eq!(civil(1_735_689_600), [2025, 1, 1, 0, 0, 0, 4]);
        assert_eq!(civil(4_107_542_399), [2100, 2, 28, 23, 59, 59, 1]);
        assert_eq!(civil(4_107_542_400), [2100, 3, 1, 0, 0, 0, 2]);
        assert_eq!(civil(253_402_300_799), [9999, 12, 31, 23, 59, 59, 6]);
        assert_eq!(civil(u64::MAX), civil(253_402_300_799));
    }

    #[test]
    fn dates_agree_with_the_host_library() {
        for seconds in (0..8_000_000_000_u64).step_by(1_234_567) {
            let time = seconds as libc::time_t;
            // SAFETY: an all-zero `tm` is a valid value of this plain C struct.
            let mut tm: libc::tm = unsafe { std::mem::zeroed() };
            // SAFETY: both pointers are to live locals.
            assert!(!unsafe { libc::gmtime_r(&time, &mut tm) }.is_null());
            let expected = [
                tm.tm_year + 1900,
                tm.tm_mon + 1,
                tm.tm_mday,
                tm.tm_hour,
                tm.tm_min,
                tm.tm_sec,
                tm.tm_wday + 1,
            ];
            assert_eq!(civil(seconds), expected.map(|value| value as u64), "{seconds}");
        }
    }

    #[test]
    fn time_reads_as_bcd_and_after_register_b_as_binary() {
        let rtc = CmosRtc::new();
        let indices = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS];
        let time = 1_735_689_599;
        assert_eq!(indices.map(|i| read(&rtc, i, time)), [0x20, 0x24, 0x12, 0x31, 0x23, 0x59, 0x59]);
        write(&rtc, STATUS_B, MODE_BINARY);
        assert_eq!(indices.map(|i| read(&rtc, i, time)), [20, 24, 12, 31, 23, 59, 59]);
        assert_eq!(read(&rtc, STATUS_B, time), MODE_BINARY | MODE_24_HOURS);
    }

    #[test]
    fn update_bit_is_set_only_at_the_end_of_a_second() {
        let rtc = CmosRtc::new();
        write(&rtc, STATUS_A, 0xff);
        let status = |nanos| lock(&rtc.cmos).read(Duration::new(5, nanos));
        rtc.write(INDEX_PORT, &[STATUS_A]);
        assert_eq!([0, 997_999_999, 998_000_000, 999_999_999].map(status), [0x7f, 0x7f, 0xff, 0xff]);
    }

    #[test]
    fn time_and_status_registers_cannot_be_written() {
        let rtc = CmosRtc::new();
        for index in [0, 2, 4, 6, 7, 8, 9, 0x0c, 0x0d, 0x32] {
            let before = read(&rtc, index, 0);
            write(&rtc, index, !before);
            assert_eq!(read(&rtc, index, 0), before, "register {index:#x}");
        }
        assert_eq!(read(&rtc, STATUS_C, 0), 0);
        assert_eq!(read(&rtc, STATUS_D, 0), 0x80);
    }

    #[test]
    fn alarm_and_memory_are_kept_and_bit_7_of_the_index_is_ignored() {
        let rtc = CmosRtc::new();
        for index in [1, 3, 5].into_iter().chain(0x0e..0x32).chain(0x33..0x80) {
            assert_eq!(read(&rtc, index, 0), 0, "register {index:#x} starts at zero");
            write(&rtc, index | 0x80, index ^ 0x5a);
        }
        for index in [1, 3, 5].into_iter().chain(0x0e..0x32).chain(0x33..0x80) {
            assert_eq!(read(&rtc, index, 0), index ^ 0x5a);
        }
    }

    #[test]
    fn data_port_shows_the_host_clock() {
        let rtc = CmosRtc::new();
        write(&rtc, STATUS_B, MODE_BINARY);
        let mut port = [0; 2];
        rtc.write(INDEX_PORT, &[YEAR]);
        rtc.read(INDEX_PORT, &mut port);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(port, [0xff, (Civil::at(now).year % 100) as u8]);
    }

    #[test]
    fn any_access_is_survived() {
        let rtc = CmosRtc::new();
        for index in 0..=u8::MAX {
            rtc.write(INDEX_PORT, &[index]);
            sweep(&rtc, CmosRtc::WINDOW_LEN);
        }
    }
}
