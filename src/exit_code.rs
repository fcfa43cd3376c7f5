//! The exit codes of the command. The errors and endings of this library return them too: `exit_code()` of
//! [`Ending`](crate::outcome::Ending), [`BuildError`](crate::BuildError) and others. docs/outcomes.md
//! explains each of them.
//!
//! Codes below 100 are the guest's; codes from 100 up are Coracle's, together with those to which shells give
//! a meaning.

/// The guest powered off.
pub const POWERED_OFF: u8 = 0;
/// `coracle test`: the test asked to be skipped; the same code as in the Automake and Meson test drivers.
pub const SKIPPED: u8 = 77;
/// The guest's workload ended with a code of 100 or above.
pub const WORKLOAD_CODE_TOO_LARGE: u8 = 100;
/// The guest's kernel panicked.
pub const PANICKED: u8 = 110;
/// The guest crashed in a way that resets a physical machine, or its agent was lost.
pub const CRASHED: u8 = 111;
/// The guest requested a reset.
pub const RESET: u8 = 112;
/// KVM cannot continue the guest.
pub const CANNOT_RUN: u8 = 113;
/// The host has no usable KVM, and no emulated host could be started.
pub const NO_KVM: u8 = 115;
/// All vCPUs have halted with interrupts off.
pub const HALTED: u8 = 116;
/// Coracle or its host failed while the guest ran.
pub const HOST_FAILED: u8 = 117;
/// The machine was stopped on request.
pub const STOPPED: u8 = 118;
/// `coracle test`: an expectation about the guest was not met.
pub const EXPECTATION_UNMET: u8 = 120;
/// A time limit expired; the same code as that of timeout(1).
pub const TIMED_OUT: u8 = 124;
/// Wrong usage or configuration, or a host error before the guest ran.
pub const BAD_USAGE: u8 = 125;
/// The guest's command cannot be executed; the same code as in shells.
pub const NOT_EXECUTABLE: u8 = 126;
/// The guest's command was not found; the same code as in shells.
pub const NOT_FOUND: u8 = 127;

/// Returns the code of an end by a signal: 128 plus the signal's number, as in shells. A negative
/// number counts as 0, and the code never exceeds 255.
pub fn of_signal(signal: i32) -> u8 {
    128 + u8::try_from(signal).unwrap_or(0).min(127)
}

/// Returns the code of a workload that ended with `code`: `code` itself below [`WORKLOAD_CODE_TOO_LARGE`],
/// and that constant for all others.
pub fn of_workload(code: u32) -> u8 {
    u8::try_from(code).map_or(WORKLOAD_CODE_TOO_LARGE, |code| code.min(WORKLOAD_CODE_TOO_LARGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_codes_below_100_pass_and_the_rest_fold_to_100() {
        for (code, exit) in [(0, 0), (7, 7), (99, 99), (100, 100), (200, 100), (256, 100), (u32::MAX, 100)] {
            assert_eq!(of_workload(code), exit, "{code}");
        }
    }

    #[test]
    fn a_signal_gives_128_and_its_number() {
        assert_eq!(
            [of_signal(libc::SIGTERM), of_signal(64), of_signal(300), of_signal(-1)],
            [143, 192, 128, 128]
        );
    }
}
