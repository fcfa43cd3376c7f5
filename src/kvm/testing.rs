//! A machine for the tests of `src/kvm` and `src/vcpu`: flat memory, page tables and descriptors that are
//! ready, and a piece of code in ring 0 or ring 3. It has no devices: the test answers each exit.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use coracle_arch::x86_64::cpuid::{self, CpuIdentity};
use coracle_arch::x86_64::registers::Segment;
use coracle_arch::x86_64::vcpu_state::{VcpuState, VmClockState};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use super::{Kicker, Kvm, KvmVm, StateError, StateFormat, Vcpu, VcpuExit, restore_vcpus, state};
use crate::config::MemorySize;
use crate::memory::GuestRam;
use crate::thread::ThreadKind;

/// The machine. Its fields are dropped in this order: the virtual machine before its memory.
pub(crate) struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) vm: KvmVm,
    pub(crate) ram: GuestRam,
    pub(crate) kvm: Kvm,
    cpuid: TestCpuid,
}

/// The CPUID of a test's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestCpuid {
    /// That of a guest of Coracle.
    Guest,
    /// All that KVM lists: `kvm_pvm` saves the AVX state only for such a guest.
    Kvm,
}

/// The privilege level of a piece of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    Zero,
    Three,
}

/// The reason why a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// The device wanted it.
    Device,
    /// The kick came first.
    Kick,
}

/// The first address of a piece of code.
pub(crate) const CODE: u64 = 0x1_0000;
/// Memory for the guest's results.
pub(crate) const DATA: u64 = 0x2_0000;
/// More memory for them.
pub(crate) const MORE_DATA: u64 = 0x2_8000;

/// Returns `false`, after printing why, if there is no KVM.
pub(crate) fn kvm_or_skip() -> bool {
    match Kvm::open() {
        Ok(_) => true,
        Err(error) => {
            skip(&error.to_string());
            false
        }
    }
}

/// Reports that a test has not run, in a way that the test harness does not capture.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

impl Machine {
    /// Makes a machine whose vCPUs are as after a reset.
    pub(crate) fn new(vcpus: u32, cpuid: TestCpuid) -> Machine {
        let kvm = Kvm::open().unwrap();
        let vm = kvm.create_vm().unwrap();
        let ram = GuestRam::new(MemorySize::MIN.into(), 0).unwrap();
        vm.add_memory(&ram).unwrap();
        vm.create_local_apics().unwrap();
        let make = |index| {
            let vcpu = vm.create_vcpu(index).unwrap();
            let leaves = match cpuid {
                TestCpuid::Guest => kvm.supported_cpuid().unwrap().to_vec(),
                TestCpuid::Kvm => kvm.ask_supported_cpuid().unwrap(),
            };
            let identity =
                CpuIdentity { apic_id: index, count: vcpus, tsc_deadline: true, tsc_khz: vcpu.tsc_khz() };
            vcpu.set_cpuid(&cpuid::for_vcpu(&leaves, &identity)).unwrap();
            vcpu
        };
        let vcpus = (0..vcpus).map(make).collect();
        Machine { vcpus, vm, ram, kvm, cpuid }
    }

    /// Makes a machine whose first vCPU stands at the start of `code`.
    pub(crate) fn with_code(vcpus: u32, code: &[u8], ring: Ring) -> Machine {
        let machine = Machine::new(vcpus, TestCpuid::Guest);
        machine.start(code, ring);
        machine
    }

    /// Writes the tables and `code`, and puts the first vCPU at its start.
    pub(crate) fn start(&self, code: &[u8], ring: Ring) {
        self.write_tables();
        self.write(CODE, code);
        let vcpu = &self.vcpus[0];
        let mut sregs = vcpu.fd.get_sregs().unwrap();
        let (selector, dpl) = if ring == Ring::Zero { (0x10, 0) } else { (0x2b, 3) };
        let code = Segment { selector, type_: 0xb, dpl, db: false, l: true, ..Segment::FLAT };
        let (selector, dpl) = if ring == Ring::Zero { (0x18, 0) } else { (0x23, 3) };
        let data = state::segment(&Segment { selector, dpl, ..Segment::FLAT });
        sregs.cs = state::segment(&code);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { base: TSS, limit: TSS_BYTES - 1, selector: 0x30, ..system_segment() };
        sregs.gdt = kvm_dtable { base: GDT, limit: 8 * 8 - 1, ..Default::default() };
        sregs.idt = kvm_dtable { base: IDT, limit: 256 * 16 - 1, ..Default::default() };
        // Protected mode, floating point without emulation, write protection; paging.
        sregs.cr0 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
        sregs.cr3 = PML4;
        // PAE, FXSR and SSE exceptions.
        sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
        // SYSCALL, long mode.
        sregs.efer = 1 << 0 | 1 << 8 | 1 << 10;
        vcpu.fd.set_sregs(&sregs).unwrap();
        // Ring 3 may use every port.
        let rflags = if ring == Ring::Zero { 2 } else { 0x3002 };
        let regs = kvm_regs { rip: CODE, rsp: STACK_TOP, rflags, ..Default::default() };
        vcpu.fd.set_regs(&regs).unwrap();
    }

    /// An identity map of 4 GiB that ring 3 may use, descriptors, and a TSS with a stack for ring 0.
    fn write_tables(&self) {
        const PRESENT_WRITE_USER: u64 = 0b111;
        self.write_u64(PML4, (PML4 + 0x1000) | PRESENT_WRITE_USER);
        for gib in 0..4 {
            let directory = PML4 + 0x2000 + gib * 0x1000;
            self.write_u64(PML4 + 0x1000 + gib * 8, directory | PRESENT_WRITE_USER);
            for entry in 0..512 {
                let address = (gib * 512 + entry) << 21;
                self.write_u64(directory + entry * 8, address | 1 << 7 | PRESENT_WRITE_USER);
            }
        }
        let tss_low = u64::from(TSS_BYTES - 1) | TSS << 16 | 0x8b << 40;
        let gdt = [
            0,
            0x00cf_9b00_0000_ffff, // 0x08: 32-bit code, ring 0
            0x00af_9b00_0000_ffff, // 0x10: 64-bit code, ring 0
            0x00cf_9300_0000_ffff, // 0x18: data, ring 0
            0x00cf_f300_0000_ffff, // 0x20: data, ring 3
            0x00af_fb00_0000_ffff, // 0x28: 64-bit code, ring 3
            tss_low,               // 0x30: TSS, 16 bytes
            0,
        ];
        for (index, descriptor) in gdt.into_iter().enumerate() {
            self.write_u64(GDT + index as u64 * 8, descriptor);
        }
        self.write_u64(TSS + 4, RING0_STACK_TOP);
    }

    /// Makes `vector` enter the code at `address`.
    pub(crate) fn set_gate(&self, vector: u8, address: u64) {
        let gate = IDT + u64::from(vector) * 16;
        let low = address & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        self.write_u64(gate, low);
        self.write_u64(gate + 8, address >> 32);
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.mmap().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn write_u64(&self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.mmap().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address, 8).try_into().unwrap())
    }

    /// Runs a vCPU until `device` returns true for an exit.
    ///
    /// # Panics
    /// Panics after a minute: no piece of code here takes that long.
    pub(crate) fn run(&mut self, vcpu: usize, device: impl FnMut(VcpuExit<'_>) -> bool + Send + 'static) {
        let end = self.run_for(vcpu, LIMIT, device);
        assert_eq!(end, RunEnd::Device, "the guest hangs: {:?}", self.vcpus[vcpu].registers());
    }

    /// Runs a vCPU until `device` returns true for an exit, or until a kick after this time.
    pub(crate) fn run_for(
        &mut self,
        vcpu: usize,
        time: Duration,
        mut device: impl FnMut(VcpuExit<'_>) -> bool + Send + 'static,
    ) -> RunEnd {
        let mut running = self.vcpus.remove(vcpu);
        let is_over = Arc::new(AtomicBool::new(false));
        let (ended, end) = mpsc::channel();
        let thread = ThreadKind::Vcpu(vcpu as u32).spawn({
            let is_over = is_over.clone();
            move || {
                running.allow_kicks().unwrap();
                let end = loop {
                    if is_over.load(Ordering::Acquire) {
                        break RunEnd::Kick;
                    }
                    match running.run() {
                        VcpuExit::Interrupted => {}
                        VcpuExit::Fault(fault) => panic!("{fault}, {:?}", running.registers()),
                        exit => {
                            if device(exit) {
                                break RunEnd::Device;
                            }
                        }
                    }
                };
                ended.send(()).unwrap();
                (running, end)
            }
        });
        let thread = thread.unwrap();
        let kicker = Kicker::new(&thread);
        if end.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
            is_over.store(true, Ordering::Release);
            kicker.kick();
        }
        let (running, end) = thread.join().unwrap();
        self.vcpus.insert(vcpu, running);
        end
    }

    /// Completes a vCPU's last access. `device` answers further accesses of the same instruction.
    pub(crate) fn complete(&mut self, vcpu: usize, mut device: impl FnMut(VcpuExit<'_>)) -> usize {
        let mut further = 0;
        while let Some(exit) = self.vcpus[vcpu].complete_exit() {
            assert!(!matches!(exit, VcpuExit::Fault(_) | VcpuExit::Shutdown), "the access ends the guest");
            device(exit);
            further += 1;
        }
        further
    }

    pub(crate) fn format(&self) -> &'static StateFormat {
        self.kvm.state_format().unwrap()
    }

    /// Saves all vCPUs.
    pub(crate) fn save(&self) -> Vec<VcpuState> {
        self.vcpus.iter().map(|vcpu| vcpu.save(self.format()).unwrap()).collect()
    }

    /// Makes another machine with these vCPUs, the clock, and a copy of the memory.
    pub(crate) fn restored(&self, states: &[VcpuState], clock: &VmClockState) -> Result<Machine, StateError> {
        self.restored_after(states, clock, 0)
    }

    /// The same after this many nanoseconds.
    pub(crate) fn restored_after(
        &self,
        states: &[VcpuState],
        clock: &VmClockState,
        elapsed: u64,
    ) -> Result<Machine, StateError> {
        let other = Machine::new(self.vcpus.len() as u32, self.cpuid);
        other.write(0, &self.read(0, MemorySize::MIN.bytes() as usize));
        other.vm.set_clock(clock).unwrap();
        restore_vcpus(&other.vcpus, states, other.format(), elapsed)?;
        Ok(other)
    }

    /// Makes a copy of the whole machine, by way of its encoded state.
    pub(crate) fn fork(&self) -> Machine {
        let encoded = postcard::to_allocvec(&(self.save(), self.vm.clock().unwrap())).unwrap();
        let (states, clock): (Vec<VcpuState>, VmClockState) = postcard::from_bytes(&encoded).unwrap();
        self.restored(&states, &clock).unwrap()
    }
}

fn system_segment() -> kvm_segment {
    kvm_segment { type_: 0xb, present: 1, ..Default::default() }
}

/// Far longer than any piece of code takes, on a busy machine and on an emulated one.
const LIMIT: Duration = Duration::from_secs(60);

const PML4: u64 = 0x1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const TSS_BYTES: u32 = 0x68;
const STACK_TOP: u64 = 0x4_0000;
const RING0_STACK_TOP: u64 = 0x4_8000;
