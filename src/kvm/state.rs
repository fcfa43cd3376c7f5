//! Puts a vCPU into the state in which a guest starts: turns plain data into ioctls.

use coracle_arch::x86_64::cpuid::CpuidEntry;
use coracle_arch::x86_64::lapic;
use coracle_arch::x86_64::registers::{BootState, DescriptorTable, Segment};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_msr_entry, kvm_regs,
    kvm_segment,
};

use super::vcpu::Vcpu;
use super::{KvmError, call};

impl Vcpu {
    /// Sets the CPUID leaves that the guest sees.
    pub(crate) fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<(), KvmError> {
        let entries: Vec<kvm_cpuid_entry2> = entries.iter().map(cpuid_entry).collect();
        // Only a list longer than KVM's limit is refused here, and KVM made this list.
        let cpuid = CpuId::from_entries(&entries).map_err(|_| KvmError::Call {
            call: "the CPUID leaves",
            source: vmm_sys_util::errno::Error::new(libc::E2BIG),
        })?;
        call("KVM_SET_CPUID2", self.fd.set_cpuid2(&cpuid))
    }

    /// Returns the value of a model-specific register.
    pub(crate) fn msr(&self, index: u32) -> Result<u64, KvmError> {
        let mut list = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
            .map_err(|_| KvmError::Msr { msr: index })?;
        match call("KVM_GET_MSRS", self.fd.get_msrs(&mut list))? {
            0 => Err(KvmError::Msr { msr: index }),
            _ => list.as_slice().first().map(|entry| entry.data).ok_or(KvmError::Msr { msr: index }),
        }
    }

    /// Sets the state that firmware sets on every CPU: model-specific registers and the wiring of the local
    /// APIC.
    pub(crate) fn set_firmware_state(&self, msrs: &[(u32, u64)]) -> Result<(), KvmError> {
        let entries: Vec<kvm_msr_entry> =
            msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        if let Ok(list) = Msrs::from_entries(&entries) {
            let done = call("KVM_SET_MSRS", self.fd.set_msrs(&list))?;
            if let Some(refused) = entries.get(done) {
                return Err(KvmError::Msr { msr: refused.index });
            }
        }
        let mut page = call("KVM_GET_LAPIC", self.fd.get_lapic())?;
        lapic::set_virtual_wire(&mut page.regs);
        call("KVM_SET_LAPIC", self.fd.set_lapic(&page))
    }

    /// Sets the registers of the first vCPU. The others wait for their start-up interrupt in KVM's reset
    /// state.
    pub(crate) fn set_boot_registers(&self, state: &BootState) -> Result<(), KvmError> {
        let mut sregs = call("KVM_GET_SREGS", self.fd.get_sregs())?;
        let data = segment(&state.segments.data);
        sregs.cs = segment(&state.segments.code);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = segment(&state.segments.task);
        sregs.gdt = table(state.gdt);
        sregs.idt = table(state.idt);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
        call("KVM_SET_SREGS", self.fd.set_sregs(&sregs))?;
        let registers = state.registers;
        let regs = kvm_regs {
            rip: registers.rip,
            rsp: registers.rsp,
            rsi: registers.rsi,
            rbx: registers.rbx,
            rflags: registers.rflags,
            ..Default::default()
        };
        call("KVM_SET_REGS", self.fd.set_regs(&regs))
    }

    /// Returns the frequency of the guest's time-stamp counter, if KVM reports it.
    pub(crate) fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|khz| *khz > 0)
    }
}

fn cpuid_entry(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.index_significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    }
}

pub(super) fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        unusable: (!segment.present).into(),
        ..Default::default()
    }
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}
