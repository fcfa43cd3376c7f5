//! The devices of forks and of restored machines: their connections to the host.

use super::{Fork, Restore, Template};
use crate::config::{DiskConfig, NetConfig};
use crate::virtio::{DeviceInfo, Repointed};

impl Fork {
    /// Returns the choices that have been made.
    pub(in crate::vm) fn repointed_mut(&mut self) -> &mut Repointed {
        &mut self.repointed
    }

    /// Gives the disk with this id another file. The guest keeps what it knows of the disk: its size, its
    /// serial number, its number of queues, and whether it is read-only. Those in `disk` count for nothing,
    /// except that the size has to be the same, and that `disk` has to be read-only if the disk is.
    ///
    /// If both are copy-on-write, the writes of the first machine's guest lie over the new file, which is
    /// then a copy of the first one. Otherwise the new file has the whole content: for a guest that uses the
    /// disk, that of the moment at which the machine's state was saved.
    #[must_use]
    pub fn disk(mut self, id: &str, disk: DiskConfig) -> Fork {
        self.repointed.disk(id, disk);
        self
    }

    /// Gives the network card with this id another end on the host, and an address of its own: that of `net`,
    /// or else a new random one that is locally administered. The guest's agent sets it on the interface that
    /// has the former one, before it does anything else; without an agent, the guest goes on with the former
    /// address. The card keeps its MTU, so `net` has none, or the same.
    #[must_use]
    pub fn net(mut self, id: &str, net: NetConfig) -> Fork {
        self.repointed.net(id, net);
        self
    }

    /// Connects each device that has not been named as that of the first machine was:
    /// [`DeviceInfo::recorded`]. Only for the recorded paths and names of a snapshot that you trust, and for
    /// one machine at a time.
    #[must_use]
    pub fn reopen_recorded(mut self) -> Fork {
        self.repointed.reopen_recorded();
        self
    }

    /// Accepts that the file of the disk with this id has changed since the machine's state was saved. A
    /// guest that has the disk mounted finds a file system that is not the one that it knows, and can destroy
    /// it.
    #[must_use]
    pub fn disk_changed_ok(mut self, id: &str) -> Fork {
        self.repointed.disk_changed_ok(id);
        self
    }
}

impl Restore {
    /// Gives the disk with this id this file: see [`Fork::disk`].
    #[must_use]
    pub fn disk(self, id: &str, disk: DiskConfig) -> Restore {
        self.with(|settings| settings.disk(id, disk))
    }

    /// Gives the network card with this id this end on the host: see [`Fork::net`].
    #[must_use]
    pub fn net(self, id: &str, net: NetConfig) -> Restore {
        self.with(|settings| settings.net(id, net))
    }

    /// Connects each device that has not been named as that of the first machine was: see
    /// [`Fork::reopen_recorded`].
    #[must_use]
    pub fn reopen_recorded(self) -> Restore {
        self.with(Fork::reopen_recorded)
    }

    /// Accepts that the file of a disk has changed: see [`Fork::disk_changed_ok`].
    #[must_use]
    pub fn disk_changed_ok(self, id: &str) -> Restore {
        self.with(|settings| settings.disk_changed_ok(id))
    }
}

impl Template {
    /// Returns the virtio devices, in the order in which the guest has found them.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.parts.devices.iter().map(crate::virtio::TemplateDevice::info).collect()
    }
}
