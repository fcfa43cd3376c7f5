//! What this host can run: the kind of KVM that it has, found out by running a few instructions.

use std::time::{Duration, Instant};

use crate::kvm::{self, Kvm, KvmError, ProbeMachine};

/// Looks whether there is a KVM that this user can use, of whatever kind.
///
/// # Errors
/// Why not, with the fix.
pub fn check_kvm() -> Result<(), KvmError> {
    Kvm::open().map(drop)
}

/// Whether guests here see a CPU without XSAVE, AVX and protection keys, although this KVM offers them: the CPU of this
/// host is emulated by QEMU, where they do not hold their state in guests.
pub fn hides_xsave() -> bool {
    kvm::hides_xsave()
}

/// What KVM this host has.
#[derive(Debug)]
pub enum KvmKind {
    /// The CPU runs guests itself: any kernel runs at speed.
    Hardware {
        /// Time per kernel-mode instruction of the probe.
        per_instruction: Duration,
    },
    /// KVM interprets the guest's kernel mode (`kvm_pvm` without virtualization by the CPU): guests made for that,
    /// and small programs, run; a stock Linux kernel does not.
    Software {
        /// Time per kernel-mode instruction of the probe.
        per_instruction: Duration,
    },
    /// There is no KVM that this user could use.
    Unusable(KvmError),
}

impl KvmKind {
    /// Finds out, in well under a millisecond on hardware and some ten where KVM interprets.
    pub fn probe() -> KvmKind {
        match measure() {
            Err(error) => KvmKind::Unusable(error),
            Ok(per_instruction) if per_instruction < INTERPRETED => KvmKind::Hardware { per_instruction },
            Ok(per_instruction) => KvmKind::Software { per_instruction },
        }
    }
}

/// Times the probe: the best of a few runs, the first that is fast enough.
fn measure() -> Result<Duration, KvmError> {
    let mut machine = ProbeMachine::new(&Kvm::open()?, PROBE_CODE)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        if !machine.run_to_port_write(LOOPS)? {
            // It did not even get through three instructions: no kernel will.
            continue;
        }
        best = best.min(start.elapsed() / (2 * LOOPS));
        if best < INTERPRETED {
            break;
        }
    }
    Ok(best)
}

/// `1: dec ecx; jnz 1b; out 0x80, al` in 32-bit protected mode.
const PROBE_CODE: &[u8] = &[0x49, 0x75, 0xfd, 0xe6, 0x80];
const LOOPS: u32 = 5000;
const RUNS: u32 = 3;
/// An interpreted instruction takes some 400 nanoseconds or more, one on hardware a fraction of a nanosecond, and one
/// on a machine that is itself emulated some 10, the way in and out included.
const INTERPRETED: Duration = Duration::from_nanos(100);
