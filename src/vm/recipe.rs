//! The ingredients of a guest, at the first start and again after each reset: the same files and settings
//! give fresh memory, a fresh KVM virtual machine, and vCPUs at the kernel's entry point.

use std::io;

use coracle_arch::x86_64::acpi::{self, AcpiConfig};
use coracle_arch::x86_64::layout::{self, VirtioMmio};
use coracle_arch::x86_64::load::{self, LoadRequest};
use coracle_arch::x86_64::mptable;
use coracle_arch::x86_64::registers::BootState;
use coracle_devices::journal;

use super::BuildError;
use super::inputs::Inputs;
use super::machine::Guest;
use crate::agent::with_words;
use crate::config::{AcpiMode, AgentConfig, CpuAffinity, VmConfig};
use crate::cpu::CpuFeatures;
use crate::kvm::{Kvm, KvmVm, Vcpu};
use crate::memory::GuestRam;

/// Everything that a guest is made from. The files are opened once: after a reset the guest gets the same
/// files as at its first start.
pub(super) struct Recipe {
    /// The settings, including what the agent adds to them.
    pub(super) config: VmConfig,
    pub(super) inputs: Inputs,
    pub(super) kvm: Kvm,
    pub(super) features: CpuFeatures,
    /// The windows and interrupts of the virtio devices, in the order of the tables.
    pub(super) virtio: Vec<VirtioMmio>,
}

impl Recipe {
    /// The host CPUs that the vCPUs' threads may run on; `None` for all.
    pub(super) fn cpu_affinity(&self) -> Option<&CpuAffinity> {
        self.config.cpu_affinity.as_ref()
    }

    /// Creates fresh memory with the kernel and the tables in it, and vCPUs at the kernel's entry point.
    pub(super) fn make(&self) -> Result<(Guest, Vec<Vcpu>), BuildError> {
        let cmdline = self.cmdline();
        // A large memory takes seconds to create, so what does not fit into it is refused before.
        load::check(&self.load_request(&cmdline, None))?;
        let vm = self.kvm.create_vm()?;
        let ram = GuestRam::new(self.config.memory, self.inputs.kernel.memory_end())?;
        vm.add_memory(&ram).map_err(|source| {
            let size = self.config.memory.size();
            BuildError::MemoryRefused { size, source }
        })?;
        vm.create_local_apics()?;
        let boot = self.load(&ram, &cmdline)?;
        let vcpus = self.create_vcpus(&vm, &boot)?;
        Ok((Guest { kvm: vm, ram }, vcpus))
    }

    /// Loads the kernel, the initrds, the command line and the tables into the memory.
    fn load(&self, ram: &GuestRam, cmdline: &str) -> Result<BootState, BuildError> {
        let virtio = self.virtio.as_slice();
        let cpus = self.config.vcpus.value();
        let has_com2 = self.config.agent.as_ref().is_some_and(AgentConfig::needs_serial);
        let acpi_rsdp = match self.config.acpi {
            AcpiMode::On => {
                let has_rtc = self.announces_rtc();
                let generation_id = random_bits()?;
                let tables = AcpiConfig { cpus, virtio, has_com2, has_rtc, generation_id };
                Some(acpi::write_tables(ram.mmap(), &tables)?)
            }
            AcpiMode::Off => {
                let com2 = has_com2.then_some(layout::COM2_IRQ);
                let rtc = self.announces_rtc().then_some(layout::RTC_IRQ);
                let virtio = virtio.iter().map(|place| place.gsi);
                let interrupts: Vec<u32> = rtc.into_iter().chain(virtio).chain(com2).collect();
                mptable::write_table(ram.mmap(), cpus, &interrupts)?;
                None
            }
        };
        Ok(load::load(ram.mmap(), &self.load_request(cmdline, acpi_rsdp))?)
    }

    fn load_request<'a>(&'a self, cmdline: &'a str, acpi_rsdp: Option<u64>) -> LoadRequest<'a> {
        LoadRequest {
            image: &self.inputs.kernel,
            initrds: &self.inputs.initrds,
            cmdline,
            ram_bytes: self.config.memory.bytes(),
            acpi_rsdp,
        }
    }

    /// Returns whether the CMOS clock is announced to the guest.
    fn announces_rtc(&self) -> bool {
        self.config.rtc.announces(self.features.has_kvm_clock())
    }

    /// Returns the configured command line with what the machine adds: the kernel's root, and for a Linux
    /// kernel without ACPI the parameter that stops it from looking for the tables, the windows of the virtio
    /// devices, and what keeps it from a clock that is not announced. Without ACPI, Linux takes for granted
    /// that there is one (`arch/x86/kernel/rtc.c`).
    pub(super) fn cmdline(&self) -> String {
        let Recipe { inputs, virtio, .. } = self;
        let mut words = Vec::new();
        words.extend(inputs.root.as_ref().map(|root| root.cmdline_words(self.config.disks.len())));
        if self.config.acpi == AcpiMode::Off && inputs.kernel.is_linux() {
            words.push("acpi=off".to_owned());
            words.extend(virtio.iter().map(|place| place.cmdline_word()));
            words.extend((!self.announces_rtc()).then(|| "initcall_blacklist=add_rtc_cmos".to_owned()));
        }
        if words.is_empty() {
            self.config.cmdline.clone()
        } else {
            with_words(&self.config.cmdline, &words.join(" "))
        }
    }

    fn create_vcpus(&self, vm: &KvmVm, boot: &BootState) -> Result<Vec<Vcpu>, BuildError> {
        let count = u32::from(self.config.vcpus.value());
        let limits = self.kvm.vcpu_limits();
        if count as usize > limits.max {
            return Err(BuildError::TooManyVcpus { wanted: count, most: limits.max });
        }
        if count as usize > limits.recommended {
            journal!(Host Warn, "{count} vCPUs share the {} CPUs of this host", limits.recommended);
        }
        let features = &self.features;
        let make = |apic_id| {
            let vcpu = vm.create_vcpu(apic_id)?;
            features.give(&vcpu, count)?;
            let msrs = [boot.msrs.clone(), features.msrs(&vcpu)?].concat();
            vcpu.set_firmware_state(&msrs)?;
            if apic_id == 0 {
                vcpu.set_boot_registers(boot)?;
            }
            Ok(vcpu)
        };
        (0..count).map(make).collect()
    }
}

/// Draws a random number.
pub(super) fn random_bits() -> Result<u128, BuildError> {
    let mut bytes = [0; 16];
    // SAFETY: pointer and length are those of the array, and so few bytes are never cut short
    // (getrandom(2)).
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count < 0 {
        Err(BuildError::Random(io::Error::last_os_error()))
    } else {
        Ok(u128::from_le_bytes(bytes))
    }
}
