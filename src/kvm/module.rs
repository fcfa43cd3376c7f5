//! The kernel's module for virtual machines. Its name is the kind of KVM: which hardware it uses, or none.

use std::path::Path;

/// Returns the name of the module behind `/dev/kvm`: `kvm_intel`, `kvm_amd` or `kvm_pvm`, of which a kernel
/// has only one at a time. `None` if `/sys` does not show it.
pub fn module() -> Option<&'static str> {
    MODULES.into_iter().find(|name| Path::new("/sys/module").join(name).exists())
}

const MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];
