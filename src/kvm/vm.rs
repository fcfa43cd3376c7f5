//! A virtual machine of KVM: its memory slots, its interrupt controller, its vCPUs.

use std::sync::{Arc, Weak};

use coracle_arch::x86_64::layout;
use coracle_devices::irq::MsiMessage;
use coracle_devices::journal;
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_IRQ_ROUTING_MSI,
    KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::vcpu::Vcpu;
use super::{KvmError, call};
use crate::memory::GuestRam;

/// A KVM virtual machine. Cheap to clone: it is closed when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct KvmVm {
    pub(super) fd: Arc<VmFd>,
}

/// A virtual machine that does not stay open for this.
pub(crate) struct WeakKvmVm {
    fd: Weak<VmFd>,
}

impl WeakKvmVm {
    /// Returns the virtual machine if it is open.
    pub(crate) fn upgrade(&self) -> Option<KvmVm> {
        self.fd.upgrade().map(|fd| KvmVm { fd })
    }
}

impl KvmVm {
    /// Returns a reference that does not keep it open.
    pub(crate) fn downgrade(&self) -> WeakKvmVm {
        WeakKvmVm { fd: Arc::downgrade(&self.fd) }
    }

    pub(super) fn new(fd: VmFd) -> KvmVm {
        KvmVm { fd: Arc::new(fd) }
    }

    /// Maps `ram` into the guest, with one slot per region. Call it before [`KvmVm::create_local_apics`]:
    /// each later slot costs milliseconds.
    pub(crate) fn add_memory(&self, ram: &GuestRam) -> Result<(), KvmError> {
        for (slot, region) in ram.regions().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.guest_address,
                memory_size: region.bytes,
                userspace_addr: region.host_address,
            };
            // SAFETY: the region is a mapping of this process that `GuestRam` keeps alive; the virtual
            // machine is closed before it (`vm::stop`), and slots never overlap because regions do not.
            let result = unsafe { self.fd.set_user_memory_region(region) };
            call("KVM_SET_USER_MEMORY_REGION", result)?;
        }
        Ok(())
    }

    /// Makes the local APICs of future vCPUs. The I/O APIC is an emulated device. A virtual machine with
    /// KVM's own I/O APIC takes tens of milliseconds to close, and this one a fraction of one (`cargo xtask
    /// bench irqchip`).
    pub(crate) fn create_local_apics(&self) -> Result<(), KvmError> {
        // Intel CPUs without unrestricted guest mode need these pages for real mode; the others ignore them.
        let identity_map = self.fd.set_identity_map_address(layout::KVM_IDENTITY_MAP);
        call("KVM_SET_IDENTITY_MAP_ADDR", identity_map)?;
        call("KVM_SET_TSS_ADDR", self.fd.set_tss_address(layout::KVM_TSS as usize))?;
        let mut capability = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        capability.args[0] = IOAPIC_PINS;
        call("KVM_ENABLE_CAP of a split irqchip", self.fd.enable_cap(&capability))?;
        self.report_events_in_full();
        Ok(())
    }

    /// Makes KVM report pending exceptions as such, and pending triple faults, in the state of a vCPU
    /// (`vcpu_state`). An older KVM lacks one or both, and reports less.
    fn report_events_in_full(&self) {
        for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
            let mut capability = kvm_enable_cap { cap, ..Default::default() };
            capability.args[0] = 1;
            let _ = self.fd.enable_cap(&capability);
        }
    }

    /// Makes the vCPU with this index, which is also its APIC id.
    pub(crate) fn create_vcpu(&self, index: u32) -> Result<Vcpu, KvmError> {
        let fd = call("KVM_CREATE_VCPU", self.fd.create_vcpu(u64::from(index)))?;
        Ok(Vcpu::new(fd, index))
    }

    /// Makes KVM raise interrupt `gsi`, by its present route, whenever `event` is written.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        call("KVM_IRQFD", self.fd.register_irqfd(event, gsi))
    }

    /// Undoes [`KvmVm::connect_interrupt`], so that `event` can be connected to another virtual machine.
    pub(crate) fn disconnect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        call("KVM_IRQFD", self.fd.unregister_irqfd(event, gsi))
    }

    /// Makes KVM signal `doorbell` instead of exiting when the guest writes the 32 bits `value` to `address`.
    pub(crate) fn connect_doorbell(
        &self,
        doorbell: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        call("KVM_IOEVENTFD", self.fd.register_ioevent(doorbell, &address, value))
    }

    /// Sets the messages of the interrupts of [`KvmVm::connect_interrupt`]. All others have none.
    pub(super) fn set_routes(&self, routes: impl Iterator<Item = (u32, MsiMessage)>) -> Result<(), KvmError> {
        let entries: Vec<kvm_irq_routing_entry> = routes.map(|(gsi, message)| route(gsi, message)).collect();
        let full =
            |_| KvmError::Call { call: "KVM_SET_GSI_ROUTING", source: errno::Error::new(libc::EINVAL) };
        let routing = KvmIrqRouting::from_entries(&entries).map_err(full)?;
        call("KVM_SET_GSI_ROUTING", self.fd.set_gsi_routing(&routing))
    }

    /// Delivers an interrupt message to the local APICs.
    pub(super) fn signal(&self, message: MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // The guest chose the message. One that reaches no local APIC is lost, as on hardware.
        if let Err(error) = self.fd.signal_msi(msi) {
            let MsiMessage { data, address, .. } = message;
            journal!(Guest Debug, "the interrupt message {data:#x} to {address:#x} was not delivered: {error}");
        }
    }
}

fn route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    // SAFETY: the type says that this is the member that counts.
    let msi = unsafe { &mut entry.u.msi };
    msi.address_lo = message.address as u32;
    msi.address_hi = (message.address >> 32) as u32;
    msi.data = message.data;
    entry
}

/// The number of routes that KVM reserves for an I/O APIC in userspace.
const IOAPIC_PINS: u64 = 24;
