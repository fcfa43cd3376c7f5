//! Finds the device that `root=` names, mounts it and makes it the root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::options::Options;
use super::overlay;
use crate::{mounts, new_root};

pub(super) const NEW_ROOT: &str = "/coracle/root";

/// How long a device may take to appear, unless the user waits for ever: its driver has been loaded just before.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
const DEVICE_POLL: Duration = Duration::from_millis(5);

/// Why the system cannot be started. Each names the word of the command line that is at fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error("the modules are loaded, but there is no initrd with an /init and no root= on the command line")]
    NoRoot,
    #[error("root={0}: this form is not known here; use /dev/NAME, MAJOR:MINOR or PARTLABEL=NAME")]
    Form(String),
    #[error("root={root}: there is no such device, only: {there}")]
    NoDevice { root: String, there: String },
    #[error("root={root}: it holds no file system that this kernel can mount (tried: {tried})")]
    NoFileSystem { root: String, tried: String },
    #[error("root={root}: cannot mount it as {kind}: {source}")]
    Mount { root: String, kind: String, source: io::Error },
    #[error("cannot {step}: {source}")]
    Switch { step: &'static str, source: io::Error },
    #[error("there is no init program on the root; init= names one")]
    NoInit,
    #[error("cannot start {path:?}: {source}")]
    Init { path: PathBuf, source: io::Error },
}

/// Mounts the root and moves into it. The device file system comes along where the root has a place for it.
pub(super) fn switch(options: &Options) -> Result<(), RootError> {
    let root = options.root.as_deref().ok_or(RootError::NoRoot)?;
    let step = |step| move |source| RootError::Switch { step, source };
    fs::create_dir_all(NEW_ROOT).map_err(step("make a folder for the root"))?;
    let kinds = Kinds::of(options, &fs::read_to_string("/proc/filesystems").unwrap_or_default());
    let source = if kinds.need_no_device { root.into() } else { wait_for(root, options.waits)? };
    if options.has_overlay {
        overlay::mount(|lower| mount(root, &source, &kinds.names, options, lower))?;
    } else {
        mount(root, &source, &kinds.names, options, NEW_ROOT)?;
    }

    let devices = Path::new(NEW_ROOT).join("dev");
    if !devices.is_dir() || mounts::move_mount("/dev".as_ref(), &devices).is_err() {
        mounts::unmount("/dev".as_ref());
    }
    // The system mounts these itself, as after any initramfs that leaves nothing behind.
    mounts::unmount("/proc".as_ref());
    mounts::unmount("/sys".as_ref());
    new_root::enter(NEW_ROOT).map_err(|(step, source)| RootError::Switch { step, source })
}

/// Kinds of file system to try.
#[derive(Debug, PartialEq, Eq)]
struct Kinds {
    names: Vec<String>,
    /// Whether `root=` is not the name of a block device: a 9p or virtiofs tag, or nothing for a tmpfs.
    need_no_device: bool,
}

impl Kinds {
    /// The user's, or all that `/proc/filesystems` lists for block devices.
    fn of(options: &Options, known: &str) -> Self {
        let lines = known.lines().filter_map(|line| line.split_once('\t'));
        if options.kinds.is_empty() {
            let for_devices = lines.filter(|(flag, _)| flag.is_empty());
            return Self {
                names: for_devices.map(|(_, name)| name.to_owned()).collect(),
                need_no_device: false,
            };
        }
        let first = options.kinds.first().map(String::as_str);
        let need_no_device = lines.into_iter().any(|(flag, name)| flag == "nodev" && Some(name) == first);
        Self { names: options.kinds.clone(), need_no_device }
    }
}

/// Mounts the first kind that fits.
fn mount(
    root: &str,
    source: &Path,
    kinds: &[String],
    options: &Options,
    target: &str,
) -> Result<(), RootError> {
    // Silent: a kind that does not fit is no news.
    let (generic, own) = mounts::split_options(&options.flags);
    let flags = generic | libc::MS_SILENT | if options.is_writable { 0 } else { libc::MS_RDONLY };
    for kind in kinds {
        match mounts::mount_with(source, target.as_ref(), kind, flags, &own) {
            Ok(()) => return Ok(()),
            // It holds another kind, or this kernel does not have this one.
            Err(error)
                if kinds.len() > 1 && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {}
            Err(source) => {
                return Err(RootError::Mount { root: root.to_owned(), kind: kind.clone(), source });
            }
        }
    }
    Err(RootError::NoFileSystem { root: root.to_owned(), tried: kinds.join(", ") })
}

/// The device node of `root`, once it is there.
fn wait_for(root: &str, for_ever: bool) -> Result<PathBuf, RootError> {
    let name = DeviceName::of(root).ok_or_else(|| RootError::Form(root.to_owned()))?;
    let start = Instant::now();
    loop {
        if let Some(node) = name.find() {
            return Ok(node);
        }
        if !for_ever && start.elapsed() > DEVICE_LIMIT {
            return Err(RootError::NoDevice { root: root.to_owned(), there: block_devices().join(", ") });
        }
        thread::sleep(DEVICE_POLL);
    }
}

/// The ways in which `root=` can name a device without a look into it.
#[derive(Debug, PartialEq, Eq)]
enum DeviceName {
    Path(PathBuf),
    /// A line of `/sys/class/block/*/uevent`, or of the same file found by number.
    Numbers(u32, u32),
    PartitionLabel(String),
}

impl DeviceName {
    fn of(root: &str) -> Option<Self> {
        if root.starts_with("/dev/") {
            return Some(Self::Path(root.into()));
        }
        if let Some(label) = root.strip_prefix("PARTLABEL=") {
            return Some(Self::PartitionLabel(label.to_owned()));
        }
        let (major, minor) = root.split_once(':')?;
        Some(Self::Numbers(major.parse().ok()?, minor.parse().ok()?))
    }

    fn find(&self) -> Option<PathBuf> {
        let node = match self {
            Self::Path(path) => path.clone(),
            Self::Numbers(major, minor) => {
                let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
                Path::new("/dev").join(event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?)
            }
            Self::PartitionLabel(label) => {
                let wanted = format!("PARTNAME={label}");
                let has_label = |name: &String| {
                    let event = fs::read_to_string(format!("/sys/class/block/{name}/uevent"));
                    event.is_ok_and(|event| event.lines().any(|line| line == wanted))
                };
                Path::new("/dev").join(block_devices().into_iter().find(has_label)?)
            }
        };
        fs::metadata(&node).is_ok().then_some(node)
    }
}

fn block_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "nodev\tsysfs\nnodev\ttmpfs\n\text3\n\text4\nnodev\t9p\n";

    fn kinds(names: &[&str]) -> Kinds {
        let kinds = names.iter().map(|&name| name.to_owned()).collect();
        Kinds::of(&Options { kinds, ..Options::default() }, KNOWN)
    }

    #[test]
    fn kinds_for_devices_are_tried_unless_the_user_names_some() {
        assert_eq!(kinds(&[]), Kinds { names: vec!["ext3".into(), "ext4".into()], need_no_device: false });
        assert_eq!(kinds(&["erofs"]), Kinds { names: vec!["erofs".into()], need_no_device: false });
    }

    #[test]
    fn kinds_without_a_device_take_the_name_as_it_is() {
        assert!(kinds(&["9p"]).need_no_device);
        assert!(!kinds(&["ext4"]).need_no_device);
    }

    #[test]
    fn device_names_are_told_apart() {
        assert_eq!(DeviceName::of("/dev/vda1"), Some(DeviceName::Path("/dev/vda1".into())));
        assert_eq!(DeviceName::of("254:1"), Some(DeviceName::Numbers(254, 1)));
        assert_eq!(DeviceName::of("PARTLABEL=root"), Some(DeviceName::PartitionLabel("root".into())));
        for unknown in ["vda", "UUID=0123", "LABEL=x", "254:", "a:b"] {
            assert_eq!(DeviceName::of(unknown), None, "{unknown}");
        }
    }
}
