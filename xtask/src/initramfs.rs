//! The initramfs of the default guest and of the emulated host: the agent as `/init`, and what it needs.

use anyhow::Result;
use coracle_image::initramfs::{Archive, Module};

/// The content of an initramfs.
#[derive(Debug)]
pub(crate) struct Initramfs<'a> {
    /// The role of the agent, `guest` or `host`, which goes to `/etc/coracle/role`.
    pub(crate) role: &'a str,
    /// The kernel's release, as printed by `uname -r`.
    pub(crate) release: &'a str,
    /// The agent: a static executable.
    pub(crate) agent: Vec<u8>,
    /// A static busybox, if the role has one.
    pub(crate) busybox: Option<Vec<u8>>,
    /// Kernel modules in the order in which the agent is to load them.
    pub(crate) modules: Vec<Module>,
}

impl Initramfs<'_> {
    /// Builds the archive.
    ///
    /// # Errors
    /// A file is too large for the archive.
    pub(crate) fn build(self) -> Result<Vec<u8>> {
        let Self { role, release, agent, busybox, modules } = self;
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.character_device("/dev/console", 0o600, 5, 1);
        archive.character_device("/dev/null", 0o666, 1, 3);
        archive.file("/init", 0o755, agent);
        archive.file("/etc/coracle/role", 0o644, format!("{role}\n").into_bytes());
        if let Some(busybox) = busybox {
            archive.file("/bin/busybox", 0o755, busybox);
            archive.symlink("/bin/sh", "busybox");
        }
        let mut load_order = String::new();
        for module in modules {
            let path = format!("/lib/modules/{release}/{}", module.path);
            load_order.push_str(&path);
            load_order.push('\n');
            archive.file(&path, 0o644, module.object);
        }
        archive.file("/etc/coracle/modules", 0o644, load_order.into_bytes());
        Ok(archive.finish()?)
    }
}

/// Directories on which the agent mounts file systems, and those that programs expect.
const FOLDERS: [&str; 8] = ["/bin", "/dev", "/etc", "/newroot", "/proc", "/run", "/sys", "/tmp"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_file_lists_full_paths_in_load_order() {
        let module = |path: &str| Module { path: path.to_owned(), object: b"object".to_vec() };
        let archive = Initramfs {
            role: "host",
            release: "6.1.0-1",
            agent: b"agent".to_vec(),
            busybox: None,
            modules: vec![module("kernel/z.ko"), module("kernel/a.ko")],
        };
        let archive = String::from_utf8_lossy(&archive.build().unwrap()).into_owned();
        assert!(archive.contains("/lib/modules/6.1.0-1/kernel/z.ko\n/lib/modules/6.1.0-1/kernel/a.ko\n"));
        assert!(archive.contains("host\n"));
        assert!(!archive.contains("busybox"));
    }
}
