//! Decides where a guest runs: on the KVM of this host, or on an emulated host, on which this command runs
//! again.

use coracle::KernelImage;
use coracle::config::Accel;
use coracle::host::{self, KvmKind, on_emulated_host};

use super::chain;

/// The place where guests run.
pub(super) enum Place {
    /// On the KVM of this host.
    Here,
    /// On an emulated host, with the reason if the user did not ask for it.
    EmulatedHost { because: Option<String> },
}

/// Decides where the guest with this kernel runs. An image that is not Linux runs on any KVM.
pub(super) fn place(accel: Accel, kernel: Option<&KernelImage>) -> Place {
    match accel {
        Accel::Kvm => return Place::Here,
        // This process already runs on the emulated host that was started for it.
        Accel::Emulate if on_emulated_host() => return Place::Here,
        Accel::Emulate => return Place::EmulatedHost { because: None },
        Accel::Auto => {}
    }
    if kernel.is_some_and(|kernel| !kernel.is_linux()) && host::check_kvm().is_ok() {
        return Place::Here;
    }
    let because = match KvmKind::probe() {
        KvmKind::Hardware { .. } => return Place::Here,
        KvmKind::Software { .. } => {
            "this KVM interprets kernel code and does not run a stock Linux".to_owned()
        }
        KvmKind::Unusable(error) => chain(&error),
    };
    Place::EmulatedHost { because: Some(because) }
}

/// Decides where a machine goes on that was saved on KVM of this kind, if that is known.
pub(super) fn place_of_snapshot(accel: Accel, saved: Option<&str>) -> Place {
    let own = host::kvm_module();
    match accel {
        Accel::Kvm => return Place::Here,
        Accel::Emulate if on_emulated_host() => return Place::Here,
        Accel::Emulate => return Place::EmulatedHost { because: None },
        Accel::Auto => {}
    }
    let (Some(saved), false) = (saved, on_emulated_host()) else { return Place::Here };
    if own == Some(saved) || matches!(KvmKind::probe(), KvmKind::Hardware { .. }) {
        return Place::Here;
    }
    let own = own.map_or("has none".to_owned(), |own| format!("is {own}"));
    let because = format!("the snapshot needs KVM of the kind {saved}, and that of this host {own}");
    Place::EmulatedHost { because: Some(because) }
}

/// The line that says where the guest runs, and what that means for its isolation.
pub(super) fn on_emulated_host_because(because: &str) -> String {
    format!("running on an emulated host, which is not a boundary against a hostile guest: {because}")
}
