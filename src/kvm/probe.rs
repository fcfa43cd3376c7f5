//! A machine of one page for the host probe, without devices or a boot protocol.

use coracle_arch::x86_64::registers::Segment;

use super::system::Kvm;
use super::vcpu::{Vcpu, VcpuExit};
use super::{KvmError, KvmVm, call, state};
use crate::config::MemorySize;
use crate::memory::GuestRam;

/// A vCPU in 32-bit protected mode without paging, at the start of a piece of code.
pub(crate) struct ProbeMachine {
    // Dropped in this order: the virtual machine before its memory.
    vcpu: Vcpu,
    _vm: KvmVm,
    _ram: GuestRam,
}

impl ProbeMachine {
    /// Makes the machine with `code` at its entry.
    pub(crate) fn new(kvm: &Kvm, code: &[u8]) -> Result<ProbeMachine, KvmError> {
        use vm_memory::{Bytes, GuestAddress};
        let no_memory = |_| KvmError::Call {
            call: "memory for the probe",
            source: vmm_sys_util::errno::Error::new(libc::ENOMEM),
        };
        let vm = kvm.create_vm()?;
        let ram = GuestRam::new(MemorySize::MIN.into(), CODE).map_err(|_| no_memory(()))?;
        ram.mmap().write_slice(code, GuestAddress(CODE)).map_err(|_| no_memory(()))?;
        vm.add_memory(&ram)?;
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = call("KVM_GET_SREGS", vcpu.fd.get_sregs())?;
        sregs.cs = state::segment(&Segment { selector: 0x8, type_: 0xb, ..Segment::FLAT });
        let data = state::segment(&Segment { selector: 0x10, ..Segment::FLAT });
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        sregs.cr0 |= CR0_PROTECTED;
        call("KVM_SET_SREGS", vcpu.fd.set_sregs(&sregs))?;
        Ok(ProbeMachine { vcpu, _vm: vm, _ram: ram })
    }

    /// Runs the code with `ecx` until it writes to a port. Returns false if it ends in another way.
    pub(crate) fn run_to_port_write(&mut self, ecx: u32) -> Result<bool, KvmError> {
        let regs = kvm_bindings::kvm_regs { rip: CODE, rcx: ecx.into(), rflags: 2, ..Default::default() };
        call("KVM_SET_REGS", self.vcpu.fd.set_regs(&regs))?;
        loop {
            match self.vcpu.run() {
                VcpuExit::PortOut { .. } => return Ok(true),
                VcpuExit::Interrupted => {}
                _ => return Ok(false),
            }
        }
    }
}

const CODE: u64 = 0x1000;
const CR0_PROTECTED: u64 = 1;
