//! The signs from which Coracle concludes how far a guest came, and the watch on the devices that finds them.
//!
//! No sign needs console output: `quiet` hides the kernel's banner, but not that the kernel reads its clock,
//! sets its interrupt controller up or probes its serial port. The platform puts [`Watched`] devices on the
//! buses, and the ordered stop adds the signs of the vCPUs. Each sign has the time at which it was first
//! seen.

mod state;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use coracle_agent::boot_mark;
use coracle_devices::bus::BusDevice;
use coracle_devices::legacy::LegacyDevice;
use coracle_devices::state::{Restoration, SavedState, StateError};
use serde::{Serialize, Serializer};

use self::state::SignsState;
use crate::config::milliseconds;
use crate::ending::Phase;

/// An act of a guest that shows how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// The guest wrote a byte to its console.
    ConsoleByte,
    /// The guest printed `Linux version`.
    Banner,
    /// The guest read the CMOS clock.
    ClockRead,
    /// The guest read the I/O APIC.
    InterruptsRead,
    /// The guest configured the serial port's line, as a console does.
    SerialSetUp,
    /// The guest wrote the I/O APIC's redirection table.
    InterruptsSetUp,
    /// The guest started a second vCPU.
    SecondVcpu,
    /// The guest probed the serial port, as the 8250 driver does.
    SerialProbed,
    /// The guest enabled the serial port's receive interrupt, as Linux does when it opens the console for its
    /// init.
    ConsoleOpened,
    /// A vCPU was in user mode, or in a process's address space.
    UserMode,
    /// Its last output was such as a kernel prints only after it has started its init.
    LastWords,
    /// Its init wrote the boot mark.
    InitMark,
}

/// A sign, and the time at which it was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Milestone {
    /// The sign.
    pub sign: Sign,
    /// The time since the guest was first let run. `None` for a sign that was only seen at the end.
    #[serde(rename = "ms", serialize_with = "in_milliseconds")]
    pub at: Option<Duration>,
}

impl Sign {
    /// Returns the phase that a guest with this sign has reached at least. Only a Linux kernel acts in a
    /// known order. About another image, nothing is known but its output and its reports.
    pub fn phase(self, is_linux: bool) -> Phase {
        match self {
            Sign::InitMark => Phase::Init,
            Sign::ConsoleByte => Phase::Console,
            _ if !is_linux => Phase::Entered,
            Sign::Banner | Sign::ClockRead | Sign::InterruptsRead | Sign::SerialSetUp => Phase::Kernel,
            Sign::InterruptsSetUp => Phase::Interrupts,
            Sign::SecondVcpu => Phase::Processors,
            Sign::SerialProbed | Sign::ConsoleOpened => Phase::Devices,
            Sign::UserMode | Sign::LastWords => Phase::Init,
        }
    }
}

impl std::fmt::Display for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sign::ConsoleByte => "its first byte came",
            Sign::Banner => "it printed its banner",
            Sign::ClockRead => "it read the clock",
            Sign::InterruptsRead => "it looked at the I/O APIC",
            Sign::SerialSetUp => "it set up the line of its serial port",
            Sign::InterruptsSetUp => "it set up the I/O APIC",
            Sign::SecondVcpu => "it started a second vCPU",
            Sign::SerialProbed => "its serial driver probed the port",
            Sign::ConsoleOpened => "it opened its console",
            Sign::UserMode => "it ran a process",
            Sign::LastWords => "its last words",
            Sign::InitMark => "its init wrote the boot mark",
        })
    }
}

/// The signs of a running guest, shared by the devices that see them.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    first_seen: [OnceLock<Instant>; LIVE.len()],
}

impl Signs {
    /// Records the time at which a sign is first seen. Later calls cost one load.
    pub(crate) fn saw(&self, sign: Sign) {
        let place = LIVE.iter().position(|live| *live == sign).and_then(|index| self.first_seen.get(index));
        if let Some(place) = place {
            place.get_or_init(Instant::now);
        }
    }

    /// Returns the signs that were seen, as a bit for each of [`LIVE`].
    fn seen(&self) -> u8 {
        let Self { first_seen } = self;
        let bits = (0..u8::BITS).zip(first_seen).filter(|(_, at)| at.get().is_some());
        bits.fold(0, |seen, (bit, _)| seen | (1 << bit))
    }

    /// Returns whether the guest's init is known to have been started. A kernel without a serial console
    /// starts its init without a sign, unless the init writes the boot mark.
    pub(crate) fn init_was_seen(&self) -> bool {
        let seen =
            |sign| LIVE.iter().zip(&self.first_seen).any(|(live, at)| *live == sign && at.get().is_some());
        seen(Sign::InitMark) || seen(Sign::ConsoleOpened)
    }

    /// Returns the signs with their times since `start`.
    pub(crate) fn milestones(&self, start: Option<Instant>) -> impl Iterator<Item = Milestone> {
        LIVE.iter()
            .zip(&self.first_seen)
            .filter_map(move |(sign, seen)| Some(Milestone { sign: *sign, at: since(start, *seen.get()?) }))
    }
}

/// Returns the time from `start` to `seen`.
pub(super) fn since(start: Option<Instant>, seen: Instant) -> Option<Duration> {
    Some(seen.saturating_duration_since(start?))
}

/// A device whose accesses are examined before the device gets them.
pub(crate) struct Watched {
    device: Arc<dyn BusDevice>,
    signs: Arc<Signs>,
    watch: Watch,
}

/// The kind of a watched device.
pub(crate) enum Watch {
    /// The CMOS clock.
    Clock,
    /// A 16550A.
    Serial,
    /// An I/O APIC. The value is the register that was selected last.
    IoApic(AtomicU8),
}

impl Watched {
    /// Wraps `device`, so that its accesses leave their signs in `signs`.
    pub(crate) fn new(device: Arc<dyn BusDevice>, signs: &Arc<Signs>, watch: Watch) -> Arc<Watched> {
        Arc::new(Watched { device, signs: signs.clone(), watch })
    }
}

impl BusDevice for Watched {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.watch {
            Watch::Clock => self.signs.saw(Sign::ClockRead),
            Watch::IoApic(_) => self.signs.saw(Sign::InterruptsRead),
            Watch::Serial => {}
        }
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match &self.watch {
            Watch::Clock => {}
            Watch::Serial => {
                if let Some(sign) = serial_write(offset, data) {
                    self.signs.saw(sign);
                }
            }
            Watch::IoApic(selected) => match (offset, data.first()) {
                (IOREGSEL, Some(register)) => selected.store(*register, Ordering::Relaxed),
                (IOWIN, Some(_)) if selected.load(Ordering::Relaxed) >= FIRST_REDIRECTION => {
                    self.signs.saw(Sign::InterruptsSetUp);
                }
                _ => {}
            },
        }
        self.device.write(offset, data);
    }
}

/// Returns the sign of a write to a 16550A. The high byte of the line's divisor shares the interrupt
/// register's offset, but no divisor for speeds above 450 baud has these values in it. So the state of the
/// divisor latch need not be known.
fn serial_write(offset: u64, data: &[u8]) -> Option<Sign> {
    let register = |wanted: u64| data.get(usize::try_from(wanted.checked_sub(offset)?).ok()?).copied();
    match register(INTERRUPT_ENABLE) {
        Some(ALL_INTERRUPTS) => return Some(Sign::SerialProbed),
        Some(enabled) if enabled & RECEIVED_DATA != 0 => return Some(Sign::ConsoleOpened),
        _ => {}
    }
    register(LINE_CONTROL).map(|_| Sign::SerialSetUp)
}

/// The port of the boot mark.
pub(crate) struct BootMark {
    signs: Arc<Signs>,
}

impl BootMark {
    /// Length of the window in ports.
    pub(crate) const WINDOW_LEN: u64 = 1;

    /// Creates the port. Marks go to `signs`.
    pub(crate) fn new(signs: Arc<Signs>) -> BootMark {
        BootMark { signs }
    }
}

impl LegacyDevice for BootMark {
    /// The signs are those of the whole run.
    fn reset(&self) {}

    /// The port itself has no state. The signs are its state, so that a guest that goes on in another machine
    /// has come as far there.
    fn save(&self) -> SavedState {
        let Self { signs } = self;
        SignsState { seen: signs.seen() }.encode()
    }

    /// Adds the signs to those of this run, with the present time if they are new.
    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError> {
        let SignsState { seen } = SignsState::decode(state)?;
        Ok(Restoration::new(move || {
            let restored = (0..u8::BITS).zip(LIVE).filter(|(bit, _)| seen & (1 << bit) != 0);
            restored.for_each(|(_, sign)| self.signs.saw(sign));
        }))
    }
}

impl BusDevice for BootMark {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [boot_mark::INIT_RUNS] {
            self.signs.saw(Sign::InitMark);
        }
    }
}

fn in_milliseconds<S: Serializer>(at: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(milliseconds).serialize(serializer)
}

/// The signs that devices see while the guest runs. Their order is that of the bits of a saved state: a new
/// sign comes last, and makes a new version.
const LIVE: [Sign; 7] = [
    Sign::ClockRead,
    Sign::InterruptsRead,
    Sign::SerialSetUp,
    Sign::InterruptsSetUp,
    Sign::SerialProbed,
    Sign::ConsoleOpened,
    Sign::InitMark,
];

// Registers of a 16550A (PC16550D data sheet, table II).
const INTERRUPT_ENABLE: u64 = 1;
const LINE_CONTROL: u64 = 3;
/// The value that Linux's 8250 driver writes to check that these four bits, and no others, can be set.
const ALL_INTERRUPTS: u8 = 0x0f;
const RECEIVED_DATA: u8 = 1;

// Registers of an I/O APIC (82093AA data sheet, 3.1 and 3.2).
const IOREGSEL: u64 = 0;
const IOWIN: u64 = 0x10;
const FIRST_REDIRECTION: u8 = 0x10;

#[cfg(test)]
mod tests {
    use coracle_arch::x86_64::layout;

    use super::*;

    struct Nothing;

    impl BusDevice for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn seen(signs: &Signs) -> Vec<Sign> {
        signs.milestones(None).map(|milestone| milestone.sign).collect()
    }

    fn watched(watch: Watch) -> (Arc<Signs>, Arc<Watched>) {
        let signs = Arc::new(Signs::default());
        let device = Watched::new(Arc::new(Nothing), &signs, watch);
        (signs, device)
    }

    #[test]
    fn agent_and_machine_agree_on_the_port() {
        assert_eq!(boot_mark::PORT, layout::BOOT_MARK_PORT);
    }

    #[test]
    fn serial_port_is_set_up_probed_and_opened_by_different_writes() {
        let (signs, port) = watched(Watch::Serial);
        port.write(0, b"H");
        port.write(1, &[0]);
        port.write(4, &[0x0b]);
        assert_eq!(seen(&signs), []);
        port.write(3, &[0x13]);
        port.write(1, &[0x0f]);
        assert_eq!(seen(&signs), [Sign::SerialSetUp, Sign::SerialProbed]);
        port.write(1, &[0x05]);
        assert_eq!(seen(&signs), [Sign::SerialSetUp, Sign::SerialProbed, Sign::ConsoleOpened]);
    }

    #[test]
    fn wide_write_reaches_the_registers_after_its_own() {
        let (signs, port) = watched(Watch::Serial);
        port.write(2, &[0, 0x13]);
        port.write(0, &[b'H', 0x01]);
        assert_eq!(seen(&signs), [Sign::SerialSetUp, Sign::ConsoleOpened]);
    }

    #[test]
    fn io_apic_is_read_before_its_table_is_written() {
        let (signs, ioapic) = watched(Watch::IoApic(AtomicU8::new(0)));
        ioapic.write(IOREGSEL, &[1, 0, 0, 0]);
        ioapic.read(IOWIN, &mut [0; 4]);
        ioapic.write(IOREGSEL, &[0, 0, 0, 0]);
        ioapic.write(IOWIN, &[0, 0, 0, 1]);
        assert_eq!(seen(&signs), [Sign::InterruptsRead], "its id is not an entry of the table");
        ioapic.write(IOREGSEL, &[0x12, 0, 0, 0]);
        ioapic.write(IOWIN, &[0, 0, 1, 0]);
        assert_eq!(seen(&signs), [Sign::InterruptsRead, Sign::InterruptsSetUp]);
    }

    #[test]
    fn only_the_byte_of_the_mark_is_a_mark() {
        let signs = Arc::new(Signs::default());
        let port = BootMark::new(signs.clone());
        for data in [&[0u8][..], &[2], &[0xff], &[1, 0], &[]] {
            port.write(0, data);
        }
        assert_eq!(seen(&signs), []);
        port.write(0, &[1]);
        assert_eq!(seen(&signs), [Sign::InitMark]);
    }

    #[test]
    fn first_sight_keeps_its_time() {
        let signs = Signs::default();
        let start = Instant::now();
        signs.saw(Sign::ClockRead);
        let first: Vec<_> = signs.milestones(Some(start)).collect();
        signs.saw(Sign::ClockRead);
        assert_eq!(signs.milestones(Some(start)).collect::<Vec<_>>(), first);
        assert!(first.first().is_some_and(|milestone| milestone.at.is_some()));
    }

    #[test]
    fn image_that_is_not_linux_is_known_by_its_words_alone() {
        for sign in LIVE {
            let expected = if sign == Sign::InitMark { Phase::Init } else { Phase::Entered };
            assert_eq!(sign.phase(false), expected, "{sign:?}");
            assert!(sign.phase(true) > Phase::Console, "{sign:?}");
        }
        assert_eq!(Sign::ConsoleByte.phase(false), Phase::Console);
    }
}
