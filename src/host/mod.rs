//! The host's ability to run guests, and a program's way to a host that runs Linux guests.

mod ensure;
mod inside;
mod kvm_kind;

pub use crate::emulated_host::{EmulatedHostError, LastWords, ShareProblem};
pub use crate::kvm::module as kvm_module;
pub use ensure::{EnsureKvmError, KvmPolicy, ensure_kvm};
pub(crate) use inside::boot_time;
pub use inside::on_emulated_host;
pub use kvm_kind::{KvmKind, check_kvm, hides_xsave};
