//! What a guest is made of, at first and again after each reset: the same files and settings give fresh
//! memory, a fresh virtual machine of KVM's, and vCPUs at the kernel's entry.

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

/// Everything that a guest is made of. Opened once: a reset reads the files that the first start has read.
pub(super) struct Recipe {
    /// The settings, with what an agent adds to them.
    pub(super) config: VmConfig,
    pub(super) inputs: Inputs,
    pub(super) kvm: Kvm,
    /// Where the virtio devices are, in the order of the tables.
    pub(super) virtio: Vec<VirtioMmio>,
}

impl Recipe {
    /// Where the vCPUs' threads may run.
    pub(super) fn cpu_affinity(&self) -> Option<&CpuAffinity> {
        self.config.cpu_affinity.as_ref()
    }

    /// Makes fresh memory with kernel and tables in it, and vCPUs that stand at the kernel's entry.
    pub(super) fn make(&self) -> Result<(Guest, Vec<Vcpu>), BuildError> {
        let vm = self.kvm.create_vm()?;
        let ram = GuestRam::new(self.config.memory)?;
        vm.add_memory(&ram).map_err(|source| {
            let size = self.config.memory.size();
            BuildError::MemoryRefused { size, source }
        })?;
        vm.create_local_apics()?;
        let boot = self.load(&ram)?;
        let vcpus = self.create_vcpus(&vm, &boot)?;
        Ok((Guest { kvm: vm, ram }, vcpus))
    }

    /// Puts kernel, initrds, command line and tables into the memory.
    fn load(&self, ram: &GuestRam) -> Result<BootState, BuildError> {
        let virtio = self.virtio.as_slice();
        let cpus = self.config.vcpus.value();
        let has_com2 = self.config.agent.as_ref().is_some_and(AgentConfig::needs_serial);
        let acpi_rsdp = match self.config.acpi {
            AcpiMode::On => Some(acpi::write_tables(ram.mmap(), &AcpiConfig { cpus, virtio, has_com2 })?),
            AcpiMode::Off => {
                let com2 = has_com2.then_some(layout::COM2_IRQ);
                let interrupts: Vec<u32> = virtio.iter().map(|place| place.gsi).chain(com2).collect();
                mptable::write_table(ram.mmap(), cpus, &interrupts)?;
                None
            }
        };
        let request = LoadRequest {
            image: &self.inputs.kernel,
            initrds: &self.inputs.initrds,
            cmdline: &self.cmdline(),
            ram_bytes: self.config.memory.bytes(),
            acpi_rsdp,
        };
        Ok(load::load(ram.mmap(), &request)?)
    }

    /// The configured command line, and what the machine itself has to tell the kernel: where its root is,
    /// and to a Linux kernel that is to do without ACPI that it need not look for its tables.
    pub(super) fn cmdline(&self) -> String {
        let Recipe { inputs, virtio, .. } = self;
        let mut words = Vec::new();
        words.extend(inputs.root.as_ref().map(|root| root.cmdline_words(self.config.disks.len())));
        if self.config.acpi == AcpiMode::Off && inputs.kernel.is_linux() {
            words.push("acpi=off".to_owned());
            words.extend(virtio.iter().map(|place| place.cmdline_word()));
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
        let features = CpuFeatures::new(&self.config.cpu, self.inputs.cpu.clone(), &self.kvm)?;
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
