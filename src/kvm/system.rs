//! `/dev/kvm` itself: its capabilities, and the virtual machines that it makes.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_arch::x86_64::cpuid::{self, CpuidEntry};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Cap;

use super::vm::KvmVm;
use super::{KvmError, StateError, call};

/// An open `/dev/kvm`.
pub(crate) struct Kvm {
    pub(super) fd: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it has what every virtual machine here needs.
    pub(crate) fn open() -> Result<Kvm, KvmError> {
        let path = Path::new(DEVICE);
        let fd = kvm_ioctls::Kvm::new().map_err(|source| open_error(path, source))?;
        if !IS_SUFFICIENT.load(Ordering::Relaxed) {
            check(&fd)?;
            IS_SUFFICIENT.store(true, Ordering::Relaxed);
        }
        Ok(Kvm { fd })
    }

    /// Makes an empty virtual machine.
    pub(crate) fn create_vm(&self) -> Result<KvmVm, KvmError> {
        loop {
            match self.fd.create_vm() {
                // A signal came while KVM set up its threads; nothing was made.
                Err(error) if error.errno() == libc::EINTR => {}
                result => return Ok(KvmVm::new(call("KVM_CREATE_VM", result)?)),
            }
        }
    }

    /// Returns the CPUID leaves that this KVM can show to a guest. KVM is asked once for the whole process:
    /// it executes CPUID for each leaf, which on a virtual host makes a quarter of the CPU time of a
    /// short-lived machine.
    pub(crate) fn supported_cpuid(&self) -> Result<&'static [CpuidEntry], KvmError> {
        if let Some(entries) = SUPPORTED_CPUID.get() {
            return Ok(entries);
        }
        let entries = self.ask_supported_cpuid()?;
        let entries = if hides_xsave() || !cpuid::has_xsave(&entries) {
            cpuid::without_xsave(&entries)
        } else {
            entries
        };
        Ok(SUPPORTED_CPUID.get_or_init(|| entries))
    }

    pub(super) fn ask_supported_cpuid(&self) -> Result<Vec<CpuidEntry>, KvmError> {
        let cpuid = call("KVM_GET_SUPPORTED_CPUID", self.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
        Ok(cpuid.as_slice().iter().map(leaf).collect())
    }

    /// Returns the CPUID leaves that a vCPU is shown which has been given all that KVM supports. A KVM
    /// without hardware (`kvm_pvm`) cannot hide the leaves of the host's CPU, so these may be more than
    /// [`Kvm::supported_cpuid`]. KVM is asked once for the whole process.
    pub(crate) fn shown_cpuid(&self) -> Result<&'static [CpuidEntry], StateError> {
        if let Some(entries) = SHOWN_CPUID.get() {
            return Ok(entries);
        }
        let error = |source| StateError::Kvm { vcpu: 0, source };
        let vm = self.create_vm().map_err(error)?;
        vm.create_local_apics().map_err(error)?;
        let vcpu = vm.create_vcpu(0).map_err(error)?;
        vcpu.set_cpuid(self.supported_cpuid().map_err(error)?).map_err(error)?;
        let entries = vcpu.cpuid()?;
        Ok(SHOWN_CPUID.get_or_init(|| entries))
    }

    /// Returns the model-specific registers that this KVM can save. KVM is asked once for the whole process.
    pub(crate) fn msr_index_list(&self) -> Result<&'static [u32], KvmError> {
        if let Some(msrs) = MSR_INDEX_LIST.get() {
            return Ok(msrs);
        }
        let list = call("KVM_GET_MSR_INDEX_LIST", self.fd.get_msr_index_list())?;
        Ok(MSR_INDEX_LIST.get_or_init(|| list.as_slice().to_vec()))
    }

    /// Returns whether the guest may use the local APIC's TSC-deadline timer.
    pub(crate) fn has_tsc_deadline_timer(&self) -> bool {
        self.fd.check_extension(Cap::TscDeadlineTimer)
    }

    /// Returns the largest number of vCPUs of a virtual machine, and the number that KVM recommends.
    pub(crate) fn vcpu_limits(&self) -> VcpuLimits {
        VcpuLimits { max: self.fd.get_max_vcpus(), recommended: self.fd.get_nr_vcpus() }
    }
}

/// Turns a CPUID leaf of KVM into plain data.
pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        index_significant: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// The limits on the number of vCPUs of a virtual machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VcpuLimits {
    /// KVM_CAP_MAX_VCPUS.
    pub max: usize,
    /// KVM_CAP_NR_VCPUS: usually the number of CPUs of the host.
    pub recommended: usize,
}

fn open_error(path: &Path, source: vmm_sys_util::errno::Error) -> KvmError {
    let path = path.to_path_buf();
    match source.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing { path },
        libc::EACCES | libc::EPERM => KvmError::Denied { path },
        _ => KvmError::Open { path, source },
    }
}

/// Checks that it has what every virtual machine here needs.
fn check(fd: &kvm_ioctls::Kvm) -> Result<(), KvmError> {
    let version = fd.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion { path: DEVICE.into(), version });
    }
    let lacks = REQUIRED.iter().find(|(cap, _)| !fd.check_extension(*cap));
    lacks.map_or(Ok(()), |(_, capability)| Err(KvmError::Capability { capability }))
}

/// Returns whether guests of this host see a CPU without XSAVE, although KVM offers it, because QEMU emulates
/// the host's CPU. There KVM is not told when a guest sets XCR0: CPUID leaf 0xd does not follow, which stock
/// kernels treat as a defect (Linux 6 warns, Linux 7 panics), and XCR0 is lost at the next exit.
pub(crate) fn hides_xsave() -> bool {
    // Without a hypervisor, this leaf has other contents.
    let leaf = std::arch::x86_64::__cpuid(HYPERVISOR_SIGNATURE);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).as_flattened() == QEMU_EMULATION
}

/// The leaf with the name of the hypervisor under this host, if there is one.
const HYPERVISOR_SIGNATURE: u32 = 0x4000_0000;
/// The signature of QEMU's TCG.
const QEMU_EMULATION: &[u8] = b"TCGTCGTCGTCG";

/// Read once: it is a fact of the host, which no virtual machine changes.
static SUPPORTED_CPUID: OnceLock<Vec<CpuidEntry>> = OnceLock::new();

/// Read once, as above.
static SHOWN_CPUID: OnceLock<Vec<CpuidEntry>> = OnceLock::new();

/// Read once, as above.
static MSR_INDEX_LIST: OnceLock<Vec<u32>> = OnceLock::new();

/// Whether a check has passed in this process: the facts of the host do not change.
static IS_SUFFICIENT: AtomicBool = AtomicBool::new(false);

/// The device node.
const DEVICE: &str = "/dev/kvm";
/// The only API version since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// The capabilities that a KVM may lack. A split irqchip came with Linux 4.4, when every KVM of x86 had
/// memory slots from userspace, CPUID and the state of vCPUs. Without an immediate exit (Linux 4.13), a vCPU
/// that completes its last access would run on.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
