//! The mounts, devices and files that programs expect in a system whose first process is the agent. They are
//! those that the OCI runtime specification gives a container ("Default Filesystems", "Default Devices", "Dev
//! symbolic links"), and those that runc and Docker add.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use crate::mounts::{Mount, is_in_memory};
use crate::network;
use crate::report::report;

/// Whether files may be added to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootFiles {
    /// The files belong to this machine alone: missing ones are added, and existing ones stay visible.
    Private,
    /// The files outlive the machine, so none is added.
    Kept,
}

/// Adds the mounts, devices and files that the system lacks.
pub(crate) fn furnish(files: RootFiles) {
    KERNEL_MOUNTS.iter().for_each(Mount::make_or_report);
    let stays = |mount: &&Mount<'_>| {
        mount.kind == "tmpfs" && holds_files(mount.target) && (files == RootFiles::Private)
    };
    MOUNTS.iter().filter(|mount| !stays(mount)).for_each(Mount::make_or_report);
    // Some kernels lack these.
    for mount in &OPTIONAL {
        let _ = mount.make_with_directory();
    }
    // The device file system is in memory. A directory that only has its name may hold a user's files.
    if is_in_memory(DEVICES.target) {
        DEVICE_LINKS.iter().for_each(|(target, link)| add(link, symlink(target, link)));
        if Path::new(KERNEL_CORE).exists() {
            add("/dev/core", symlink(KERNEL_CORE, "/dev/core"));
        }
    }
    let name = host_name();
    if files == RootFiles::Private {
        add_files(&name);
    }
    network::bring_up_loopback();
}

/// Sets the host name: the one in `/etc/hostname`, or else the present one, or else Coracle's. Returns it.
fn host_name() -> String {
    let running = fs::read_to_string(RUNNING_NAME).unwrap_or_default();
    let running = Some(running.trim()).filter(|name| !NO_NAMES.contains(name));
    let in_file = || name_in_file(NAME_FILE.as_ref());
    let name = in_file().or(running.map(str::to_owned)).unwrap_or_else(|| OWN_NAME.to_owned());
    if running != Some(&name)
        && let Err(error) = fs::write(RUNNING_NAME, &name)
    {
        report(&format!("cannot set the host name: {error}"));
    }
    name
}

/// Returns the first line that is not a comment (`hostname(5)`), if it is a valid host name.
fn name_in_file(path: &Path) -> Option<String> {
    // Reading anything but a regular file could block.
    fs::metadata(path).ok().filter(Metadata::is_file)?;
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    let name = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (name.len() <= MAX_NAME && name.bytes().all(is_name)).then(|| name.to_owned())
}

/// Adds missing files. An existing name of any kind is left alone, and so is a dangling link.
fn add_files(name: &str) {
    for (folder, mode) in DIRECTORIES {
        add(folder, DirBuilder::new().mode(mode).create(folder));
    }
    let hosts = format!("{LOOPBACK_NAMES}127.0.1.1\t{name}\n");
    for (path, content) in [("/etc/hosts", hosts.as_str()), ("/etc/passwd", USERS), ("/etc/group", GROUPS)] {
        add(path, add_file(path.as_ref(), content));
    }
    add(MOUNT_TABLE, symlink("../proc/self/mounts", MOUNT_TABLE));
}

/// Adds a file. An empty file counts as missing: `docker export` leaves one where a container has a mount.
fn add_file(path: &Path, content: &str) -> io::Result<()> {
    let is_empty = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0);
    let mut file = OpenOptions::new().write(true).create_new(!is_empty).mode(0o644).open(path)?;
    file.write_all(content.as_bytes())
}

/// Reports what could not be added. An existing file is not an error.
fn add(what: &str, added: io::Result<()>) {
    match added {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            report(&format!("cannot make {what}: {error}"));
        }
        Ok(()) | Err(_) => {}
    }
}

fn holds_files(folder: &str) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

pub(crate) const DEVICES: Mount<'static> =
    Mount { source: "dev", target: "/dev", kind: "devtmpfs", options: "nosuid,mode=755" };

/// The mounts that nearly every program needs.
pub(crate) const KERNEL_MOUNTS: [Mount<'static>; 3] = [
    DEVICES,
    Mount { source: "proc", target: "/proc", kind: "proc", options: "nosuid,noexec,nodev" },
    Mount { source: "sys", target: "/sys", kind: "sysfs", options: "nosuid,noexec,nodev" },
];

const MOUNTS: [Mount<'static>; 4] = [
    Mount {
        source: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        options: "nosuid,noexec,gid=5,mode=620,ptmxmode=666",
    },
    Mount { source: "shm", target: "/dev/shm", kind: "tmpfs", options: "nosuid,nodev,mode=1777" },
    Mount { source: "tmp", target: "/tmp", kind: "tmpfs", options: "mode=1777" },
    Mount { source: "run", target: "/run", kind: "tmpfs", options: "nosuid,nodev,mode=755" },
];

const OPTIONAL: [Mount<'static>; 2] = [
    Mount { source: "mqueue", target: "/dev/mqueue", kind: "mqueue", options: "nosuid,noexec,nodev" },
    Mount { source: "cgroup2", target: "/sys/fs/cgroup", kind: "cgroup2", options: "nosuid,noexec,nodev" },
];

/// Targets and names of links.
pub(crate) const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const KERNEL_CORE: &str = "/proc/kcore";

/// Directories for the files, and the home of root.
const DIRECTORIES: [(&str, u32); 2] = [("/etc", 0o755), ("/root", 0o700)];

const LOOPBACK_NAMES: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
/// The group file. The group of terminals has the number that [`MOUNTS`] gives them.
const GROUPS: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
const MOUNT_TABLE: &str = "/etc/mtab";

const NAME_FILE: &str = "/etc/hostname";
const RUNNING_NAME: &str = "/proc/sys/kernel/hostname";
/// Names of a kernel whose host name was not set (Linux, init/Kconfig: DEFAULT_HOSTNAME).
const NO_NAMES: [&str; 3] = ["", "(none)", "localhost"];
const OWN_NAME: &str = "coracle";
/// `HOST_NAME_MAX` (`limits.h`).
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("coracle-furnish-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn host_name_is_the_first_line_that_can_be_one() {
        let folder = folder("name");
        let path = folder.join("hostname");
        let name = |text: &str| {
            fs::write(&path, text).unwrap();
            name_in_file(&path)
        };
        assert_eq!(name("# a comment\n\n web-1.example \nnext\n"), Some("web-1.example".into()));
        for text in ["", "# only\n", "two words\n", "a\tb", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(name(text), None, "{text}");
        }
        assert_eq!(name_in_file(&folder), None, "a folder is not a file");
        assert_eq!(name_in_file(Path::new("/dev/zero")), None, "nor is a device");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_that_are_missing_or_empty_are_added_and_others_stay() {
        let folder = folder("files");
        let path = |name: &str| folder.join(name);
        fs::write(path("empty"), "").unwrap();
        fs::write(path("full"), "theirs").unwrap();
        symlink("nowhere", path("link")).unwrap();
        for name in ["missing", "empty"] {
            add_file(&path(name), "ours").unwrap();
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "ours");
        }
        for name in ["full", "link"] {
            let error = add_file(&path(name), "ours").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
        }
        assert_eq!(fs::read_to_string(path("full")).unwrap(), "theirs");
        assert!(!path("nowhere").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
