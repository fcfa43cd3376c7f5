//! What this host can run, and the way of a program to a host that runs Linux guests.

mod ensure;
mod kvm_kind;

pub use ensure::{EnsureKvmError, KvmPolicy, ensure_kvm};
pub use kvm_kind::{KvmKind, check_kvm, hides_xsave};
