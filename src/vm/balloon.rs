//! A program's calls on the balloon of its machine.

use std::sync::Arc;

use coracle_devices::virtio::balloon::{Balloon, BalloonStatus};

use super::VmHandle;

impl VmHandle {
    /// Asks the guest to give `bytes` of its memory to the host; 0 asks it to take all of it back. The guest
    /// complies in its own time, and only as far as it can spare the memory. Returns `false` if the machine
    /// has no balloon ([`VmConfig::balloon`](crate::config::VmConfig::balloon)).
    pub fn set_balloon(&self, bytes: u64) -> bool {
        self.balloon_device().map(|balloon| balloon.set_target(bytes)).is_some()
    }

    /// Returns how much memory the guest was asked for and how much it has given; `None` if the machine has
    /// no balloon or has ended.
    pub fn balloon(&self) -> Option<BalloonStatus> {
        self.balloon_device().map(|balloon| balloon.status())
    }

    fn balloon_device(&self) -> Option<Arc<Balloon>> {
        self.shared.virtio()?.balloon().cloned()
    }
}
