//! The policies for resets and halts of a guest, and the way in which a machine describes itself to the
//! guest.

use std::str::FromStr;

use super::ConfigError;

/// Whether the guest finds ACPI tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcpiMode {
    /// The guest finds ACPI tables, and nothing that repeats them.
    #[default]
    On,
    /// The guest finds an MP table, and a Linux guest gets `acpi=off` on its command line. There is no power
    /// button.
    Off,
}

/// Whether the CMOS clock is announced to the guest. The clock's ports answer in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RtcMode {
    /// The clock is announced if KVM gives the guest's CPU no clock of its own (kvm-clock).
    #[default]
    Auto,
    /// The clock is announced. Linux then has `/dev/rtc0`, and needs about a hundred exits more to boot.
    On,
    /// The clock is not announced.
    Off,
}

/// The action when the guest resets its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetPolicy {
    /// The virtual machine ends.
    #[default]
    Exit,
    /// The guest is restarted: kernel, memory, vCPUs and devices are as at first, while the console and the
    /// time limits continue. A kernel panic and a triple fault end the machine all the same.
    Reboot,
}

/// The action when every vCPU has halted with interrupts off, so that nothing can wake the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HaltPolicy {
    /// The machine stays as it is, until a time limit expires or it is stopped.
    #[default]
    Wait,
    /// The virtual machine ends.
    Exit,
}

impl FromStr for AcpiMode {
    type Err = ConfigError;

    /// Parses `on` or `off`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        one_of(text, [("on", AcpiMode::On), ("off", AcpiMode::Off)])
    }
}

impl RtcMode {
    /// Returns whether the clock is announced.
    pub(crate) fn announces(self, has_kvm_clock: bool) -> bool {
        match self {
            RtcMode::Auto => !has_kvm_clock,
            RtcMode::On => true,
            RtcMode::Off => false,
        }
    }
}

impl FromStr for RtcMode {
    type Err = ConfigError;

    /// Parses `auto`, `on` or `off`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(RtcMode::Auto),
            "on" => Ok(RtcMode::On),
            "off" => Ok(RtcMode::Off),
            _ => Err(ConfigError::Rtc { text: text.into() }),
        }
    }
}

impl FromStr for ResetPolicy {
    type Err = ConfigError;

    /// Parses `exit` or `reboot`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        one_of(text, [("exit", ResetPolicy::Exit), ("reboot", ResetPolicy::Reboot)])
    }
}

impl FromStr for HaltPolicy {
    type Err = ConfigError;

    /// Parses `wait` or `exit`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        one_of(text, [("wait", HaltPolicy::Wait), ("exit", HaltPolicy::Exit)])
    }
}

fn one_of<T: Copy>(text: &str, choices: [(&'static str, T); 2]) -> Result<T, ConfigError> {
    let choice = choices.iter().find(|(word, _)| *word == text);
    let words = choices.map(|(word, _)| word);
    choice.map(|(_, value)| *value).ok_or(ConfigError::Choice { text: text.into(), words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_announced_on_request_or_where_there_is_no_other() {
        let announced = |mode: RtcMode| [true, false].map(|has_kvm_clock| mode.announces(has_kvm_clock));
        assert_eq!(announced(RtcMode::Auto), [false, true]);
        assert_eq!(announced(RtcMode::On), [true, true]);
        assert_eq!(announced(RtcMode::Off), [false, false]);
    }

    #[test]
    fn each_word_is_read_and_others_are_refused_with_the_choice() {
        assert_eq!("off".parse(), Ok(AcpiMode::Off));
        assert_eq!("auto".parse(), Ok(RtcMode::Auto));
        assert_eq!("on".parse(), Ok(RtcMode::On));
        assert_eq!("off".parse(), Ok(RtcMode::Off));
        assert_eq!("reboot".parse(), Ok(ResetPolicy::Reboot));
        assert_eq!("exit".parse(), Ok(ResetPolicy::Exit));
        assert_eq!("exit".parse(), Ok(HaltPolicy::Exit));
        for text in ["", "On", "yes", "on "] {
            assert!(text.parse::<AcpiMode>().is_err(), "{text}");
        }
        let error = "halt".parse::<HaltPolicy>().unwrap_err().to_string();
        assert_eq!(error, "`halt` is not known here: use wait or exit");
        let error = "yes".parse::<RtcMode>().unwrap_err().to_string();
        assert_eq!(error, "`yes` is not known here: use auto, on or off");
    }
}
