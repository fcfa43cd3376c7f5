//! The kind of KVM that this host has, found by running a few instructions.

use std::time::{Duration, Instant};

use crate::kvm::{self, Kvm, KvmError, ProbeMachine};

/// Checks whether there is a KVM that this user may use, of any kind.
///
/// # Errors
/// The reason why not, with a fix.
pub fn check_kvm() -> Result<(), KvmError> {
    Kvm::open().map(drop)
}

/// Returns whether guests here see a CPU without XSAVE, AVX and protection keys, although this KVM offers
/// them. QEMU emulates the CPU of such a host, and these features do not keep their state in guests there.
pub fn hides_xsave() -> bool {
    kvm::hides_xsave()
}

/// The kind of a host's KVM.
#[derive(Debug)]
pub enum KvmKind {
    /// The CPU runs guests itself: any kernel runs at speed.
    Hardware {
        /// Time per kernel-mode instruction of the probe.
        per_instruction: Duration,
    },
    /// KVM interprets the guest's kernel mode (`kvm_pvm` without virtualization by the CPU). Small programs
    /// and guests made for it run, and a stock Linux kernel does not.
    Software {
        /// Time per kernel-mode instruction of the probe.
        per_instruction: Duration,
    },
    /// There is no KVM that this user may use.
    Unusable(KvmError),
}

impl KvmKind {
    /// Finds the kind. It takes well under a millisecond on hardware, and tens of milliseconds if KVM
    /// interprets.
    pub fn probe() -> KvmKind {
        match measure() {
            Err(error) => KvmKind::Unusable(error),
            Ok(per_instruction) if per_instruction < INTERPRETED => KvmKind::Hardware { per_instruction },
            Ok(per_instruction) => KvmKind::Software { per_instruction },
        }
    }
}

/// Times the probe. Returns the best of a few runs, or the first that is fast enough.
fn measure() -> Result<Duration, KvmError> {
    let mut machine = ProbeMachine::new(&Kvm::open()?, PROBE_CODE)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        if !machine.run_to_port_write(LOOPS)? {
            // It did not even finish three instructions, so no kernel will run.
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
/// The time above which an instruction counts as interpreted. An interpreted instruction takes some 400
/// nanoseconds or more, one on hardware a fraction of a nanosecond, and one on an emulated host some 10,
/// entry and exit included.
const INTERPRETED: Duration = Duration::from_nanos(100);
