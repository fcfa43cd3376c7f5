//! Templates: a machine that stands still for good, and the machines that go on from there.
//!
//! ```text
//! Vm::freeze:      hold the vCPUs -> save the states -> end the machine -> its RAM becomes a sealed file
//! Template::fork:  a virtual machine of KVM over a private mapping of that file -> restore the states -> run
//! Vm::to_template: hold the vCPUs -> save the states, copy the new pages to a sealed file -> run on over it
//! Vm::branch:      one fork of such a template
//! ```
//!
//! A fork costs the pages that it writes. The states are plain data (`MachineState`), so that they can also
//! be written to files, those of a snapshot, and a template be made of them in another process:
//!
//! ```text
//! VmHandle::snapshot_to:  hold the vCPUs -> save the states, copy the RAM -> run on; finish the files
//! Template::save_to:      the same files from a template
//! Template::load:         check the files -> a template whose RAM is the file
//! Vm::restore:            one fork of such a template
//! VmHandle::snapshot_over: hold the vCPUs -> save the states, branch the RAM -> run on; write the changes
//! ```

mod alone;
mod branch;
mod chain;
mod check;
mod devices;
mod error;
mod fork;
mod freeze;
mod host;
mod identity;
mod increment;
mod restore;
mod save;
mod sections;
mod state;
mod time;
mod virtio;

use std::sync::Arc;

pub use alone::{read_manifest, read_state, show_state};
pub use check::{RecordedDevice, SnapshotInfo, check, info};
pub use error::SnapshotError;
pub use fork::Fork;
pub(super) use freeze::Freezing;
pub use increment::merge;
pub use restore::Restore;
pub use save::check_free;
pub use time::GuestTime;

use self::state::MachineState;
use super::outcome::SnapshotOrigin;
use super::recipe::Recipe;
use crate::config::VmConfig;
use crate::diagnosis::Subject;
use crate::kvm::Kvm;
use crate::memory::FrozenRam;
use crate::virtio::TemplateDevice;

/// The state of a machine at one moment, from which other machines go on. Cheap to clone. It holds the pages
/// of the guest's memory that were ever touched, and the files of its disks with their locks, until it and
/// the last of its forks are dropped.
#[derive(Clone)]
pub struct Template {
    parts: Arc<TemplateParts>,
}

/// The parts that all forks share, none of which ever changes.
struct TemplateParts {
    config: VmConfig,
    state: MachineState,
    ram: FrozenRam,
    /// The virtio devices in their order.
    devices: Vec<TemplateDevice>,
    /// The snapshot of which it was made, if it was not a machine of this process.
    origin: Option<SnapshotOrigin>,
    subject: Subject,
    /// The ingredients of the next guest, if forks survive a reset.
    recipe: Option<Arc<Recipe>>,
    kvm: Kvm,
}

impl Template {
    /// Returns the configuration of the machine that became the template.
    pub fn config(&self) -> &VmConfig {
        &self.parts.config
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("config", &self.parts.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod virtio_tests;
