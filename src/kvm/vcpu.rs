//! A vCPU: enters the guest, and returns the reason of each exit.

use std::fmt;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_run, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use serde::Serialize;
use vmm_sys_util::errno;

use super::{KvmError, call, kick};

/// A vCPU. Used by one thread at a time.
pub(crate) struct Vcpu {
    pub(super) fd: VcpuFd,
    index: u32,
    /// Whether the guest's last exit was an access that KVM finishes at the next entry.
    access_pending: bool,
    /// Whether the one-shot timer of the local APIC had expired before the last entry, which raised it.
    pub(super) timer_is_done: bool,
}

/// The reason why a vCPU left the guest. The slices lie in memory shared with KVM, which reads results from
/// them at the next entry.
pub(crate) enum VcpuExit<'a> {
    /// The guest wrote to a port: items of `unit` bytes, more than one for a string instruction.
    PortOut { port: u16, unit: usize, data: &'a [u8] },
    /// The guest reads from a port.
    PortIn { port: u16, unit: usize, data: &'a mut [u8] },
    /// The guest reads from an address without memory.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// The guest wrote to an address without memory.
    MmioWrite { address: u64, data: &'a [u8] },
    /// A kick, or an exit that needs no action. The caller enters again.
    Interrupted,
    /// The guest triple-faulted.
    Shutdown,
    /// KVM cannot continue the guest.
    Fault(VcpuFault),
}

/// The reason why KVM cannot go on with a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum VcpuFault {
    /// KVM gave up on the guest (`KVM_EXIT_INTERNAL_ERROR`).
    Internal {
        /// The sub-error of `linux/kvm.h`.
        suberror: u32,
        /// The bytes of the instruction that KVM could not emulate, if it returns them.
        instruction: Vec<u8>,
    },
    /// The hardware refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailedEntry {
        /// The hardware's own reason.
        hardware_reason: u64,
    },
    /// KVM exited for a reason that this machine does not handle.
    UnexpectedExit {
        /// The number in `linux/kvm.h`.
        exit_reason: u32,
    },
    /// `KVM_RUN` itself failed.
    RunFailed {
        /// The error number of the host.
        errno: i32,
    },
}

impl fmt::Display for VcpuFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VcpuFault::Internal { suberror, instruction } => {
                let what = match *suberror {
                    KVM_INTERNAL_ERROR_EMULATION => "an instruction that this KVM cannot emulate",
                    KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once that it cannot merge",
                    KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while it delivered an event",
                    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                        "an exit of the hardware that it does not know"
                    }
                    _ => "an internal error of an unknown kind",
                };
                write!(f, "KVM stopped at {what} (sub-error {suberror})")?;
                if instruction.is_empty() {
                    return Ok(());
                }
                write!(f, ", instruction bytes")?;
                instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            VcpuFault::FailedEntry { hardware_reason } => {
                write!(f, "the CPU refused to enter the guest (reason {hardware_reason:#x})")
            }
            VcpuFault::UnexpectedExit { exit_reason } => {
                write!(f, "KVM left the guest for a reason that Coracle does not handle ({exit_reason})")
            }
            VcpuFault::RunFailed { errno } => {
                write!(f, "KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, index: u32) -> Vcpu {
        Vcpu { fd, index, access_pending: false, timer_is_done: false }
    }

    /// Returns the vCPU's index, which is also its APIC id.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Lets kicks end [`Vcpu::run`] in a thread that blocks all signals, and no other signal.
    pub(crate) fn allow_kicks(&self) -> Result<(), KvmError> {
        call("KVM_SET_SIGNAL_MASK", kick::allow_kicks(&self.fd))
    }

    /// Reports a pause to the guest's kvm-clock, so that the guest's watchdogs do not take it for a lock-up
    /// (Documentation/virt/kvm/api.rst, KVM_KVMCLOCK_CTRL).
    pub(crate) fn report_pause(&self) {
        // KVM refuses it if the guest does not use kvm-clock, and then there is nothing to report.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs the guest until it exits.
    pub(crate) fn run(&mut self) -> VcpuExit<'_> {
        let result = self.fd.run().map(drop);
        self.exit(result)
    }

    /// Makes KVM finish the access with which the guest exited, without running the guest further: only then
    /// are registers and memory those after the instruction, or after the completed part of a string
    /// instruction (Documentation/virt/kvm/api.rst, KVM_RUN). Returns `None` once nothing remains to be
    /// finished, and before that the next access of the same instruction: handle it, and call this again. An
    /// instruction makes at most some thousand: KVM interrupts a string instruction after 1,024 items.
    pub(crate) fn complete_exit(&mut self) -> Option<VcpuExit<'_>> {
        if !self.access_pending {
            return None;
        }
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(drop);
        self.fd.set_kvm_immediate_exit(0);
        match self.exit(result) {
            VcpuExit::Interrupted => None,
            exit => Some(exit),
        }
    }

    /// Returns whether [`Vcpu::complete_exit`] has something to finish.
    pub(super) fn has_access_pending(&self) -> bool {
        self.access_pending
    }

    /// Interprets the result of KVM_RUN.
    pub(super) fn exit(&mut self, result: Result<(), errno::Error>) -> VcpuExit<'_> {
        self.access_pending = false;
        self.timer_is_done = false;
        if let Err(error) = result {
            return match error.errno() {
                libc::EINTR => {
                    kick::consume_kicks();
                    VcpuExit::Interrupted
                }
                // The vCPU was waiting for its INIT, or the exit was for the kernel's own work.
                libc::EAGAIN => VcpuExit::Interrupted,
                errno => VcpuExit::Fault(VcpuFault::RunFailed { errno }),
            };
        }
        let run = self.fd.get_kvm_run();
        self.access_pending = matches!(run.exit_reason, KVM_EXIT_IO | KVM_EXIT_MMIO);
        decode(run)
    }

    /// Returns the registers of a vCPU that is outside the guest. `None` if they are lost: AMD CPUs leave
    /// them undefined after a triple fault, and KVM then shows those of a reset vCPU.
    pub(crate) fn registers(&self) -> Option<VcpuRegisters> {
        let (regs, sregs) = self.raw_registers()?;
        Some(VcpuRegisters {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cs: sregs.cs.selector,
            ring: sregs.cs.dpl,
        })
    }

    /// Returns the registers as KVM shows them. `None` if they are lost: see [`Vcpu::registers`].
    pub(super) fn raw_registers(&self) -> Option<(kvm_regs, kvm_sregs)> {
        let regs = self.fd.get_regs().ok()?;
        let sregs = self.fd.get_sregs().ok()?;
        ((regs.rip, sregs.cs.base) != RESET_VECTOR).then_some((regs, sregs))
    }
}

/// The registers of a vCPU that is outside the guest: paused, or unable to continue. Names are those of the
/// Intel SDM. Displayed, they are a line with all of them but `cs`, in the form in which `coracle run` prints
/// those of a vCPU that could not continue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct VcpuRegisters {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cs: u16,
    /// The privilege level of the code segment, 0 to 3.
    pub ring: u8,
}

impl VcpuRegisters {
    /// Shows where the vCPU stands.
    pub(crate) fn place(&self) -> impl fmt::Display {
        let &VcpuRegisters { rip, rsp, cr2, cr3, ring, .. } = self;
        fmt::from_fn(move |f| write!(f, "rip {rip:#x} rsp {rsp:#x} cr2 {cr2:#x} cr3 {cr3:#x} ring {ring}"))
    }

    /// Shows the registers that [`VcpuRegisters::place`] leaves out, with the flags and modes.
    pub(crate) fn general(&self) -> impl fmt::Display {
        let r = self.clone();
        fmt::from_fn(move |f| {
            write!(f, "rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} ", r.rax, r.rbx, r.rcx, r.rdx)?;
            write!(f, "rsi {:#x} rdi {:#x} ", r.rsi, r.rdi)?;
            write!(f, "rflags {:#x} cr0 {:#x} cr4 {:#x}", r.rflags, r.cr0, r.cr4)
        })
    }

    /// Shows the registers that 64-bit mode adds.
    pub(crate) fn extended(&self) -> impl fmt::Display {
        let r = self.clone();
        fmt::from_fn(move |f| {
            write!(f, "r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} ", r.r8, r.r9, r.r10, r.r11)?;
            write!(f, "r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}", r.r12, r.r13, r.r14, r.r15)
        })
    }
}

impl fmt::Display for VcpuRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.place(), self.general(), self.extended())
    }
}

/// Decodes the exit in the page that KVM shares. kvm-ioctls' own decoding loses the unit of string
/// instructions and the details of an internal error.
fn decode(run: &mut kvm_run) -> VcpuExit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => decode_port(run),
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says that this member of the union is the valid one.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = (mmio.len as usize).min(mmio.data.len());
            let (data, _) = mmio.data.split_at_mut(length);
            if mmio.is_write != 0 {
                VcpuExit::MmioWrite { address: mmio.phys_addr, data }
            } else {
                VcpuExit::MmioRead { address: mmio.phys_addr, data }
            }
        }
        KVM_EXIT_INTR => {
            kick::consume_kicks();
            VcpuExit::Interrupted
        }
        // With local APICs in KVM, neither needs handling: a halt never comes here, no device is
        // level-triggered, and breakpoints are not set.
        KVM_EXIT_HLT | KVM_EXIT_IOAPIC_EOI | KVM_EXIT_DEBUG => VcpuExit::Interrupted,
        // KVM raises a system event for the crash and reset MSRs of Hyper-V, and for the end of an SEV-ES
        // guest. No guest is offered either. If one comes all the same, the guest cannot continue.
        KVM_EXIT_SHUTDOWN | KVM_EXIT_SYSTEM_EVENT => VcpuExit::Shutdown,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that this member of the union is the valid one.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            VcpuExit::Fault(VcpuFault::FailedEntry { hardware_reason: entry.hardware_entry_failure_reason })
        }
        KVM_EXIT_INTERNAL_ERROR => VcpuExit::Fault(decode_internal_error(run)),
        exit_reason => VcpuExit::Fault(VcpuFault::UnexpectedExit { exit_reason }),
    }
}

fn decode_port(run: &mut kvm_run) -> VcpuExit<'_> {
    // SAFETY: the exit reason says that this member of the union is the valid one.
    let io = unsafe { run.__bindgen_anon_1.io };
    let unit = usize::from(io.size);
    let length = unit.saturating_mul(io.count as usize);
    let start = (&raw mut *run).cast::<u8>();
    // SAFETY: KVM puts the data of a port access inside the area that it shares, of which `run` is the first
    // page.
    let start = unsafe { start.add(io.data_offset as usize) };
    // SAFETY: as above, `length` bytes of it; the borrow of `run` keeps the area mapped and unaliased.
    let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        VcpuExit::PortIn { port: io.port, unit, data }
    } else {
        VcpuExit::PortOut { port: io.port, unit, data }
    }
}

fn decode_internal_error(run: &kvm_run) -> VcpuFault {
    // SAFETY: the exit reason says that this member of the union is the valid one; the emulation failure is
    // the same words with names.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let mut instruction = Vec::new();
    let has_bytes = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & EMULATION_FLAG_INSTRUCTION_BYTES != 0;
    if has_bytes {
        // SAFETY: the flag says that KVM filled these bytes; they are plain integers whatever their value.
        let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let length = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        instruction.extend(bytes.insn_bytes.iter().take(length));
    }
    VcpuFault::Internal { suberror: failure.suberror, instruction }
}

/// The instruction pointer and code segment base of a CPU after a reset (Intel SDM vol. 3, 10.1.4).
const RESET_VECTOR: (u64, u64) = (0xfff0, 0xffff_0000);

/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES` of `linux/kvm.h`.
const EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_displayed_with_all_that_are_read() {
        let registers = VcpuRegisters {
            rip: 1,
            rsp: 2,
            rflags: 3,
            rax: 4,
            rbx: 5,
            rcx: 6,
            rdx: 7,
            rsi: 8,
            rdi: 9,
            r8: 10,
            r9: 11,
            r10: 12,
            r11: 13,
            r12: 14,
            r13: 15,
            r14: 16,
            r15: 17,
            cr0: 18,
            cr2: 19,
            cr3: 20,
            cr4: 21,
            cs: 22,
            ring: 3,
        };
        assert_eq!(
            registers.to_string(),
            "rip 0x1 rsp 0x2 cr2 0x13 cr3 0x14 ring 3 rax 0x4 rbx 0x5 rcx 0x6 rdx 0x7 rsi 0x8 rdi 0x9 rflags 0x3 \
             cr0 0x12 cr4 0x15 r8 0xa r9 0xb r10 0xc r11 0xd r12 0xe r13 0xf r14 0x10 r15 0x11"
        );
    }
}
