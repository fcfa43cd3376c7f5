//! Mounts the device that `root=` names and makes it the root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_agent::root_device::RootDevice;

use super::device;
use super::options::Options;
use super::overlay;
use super::superblock::Content;
use crate::{modules, mounts, new_root};

pub(super) const NEW_ROOT: &str = "/coracle/root";

/// The reason why the system cannot be started. Each names the parameter of the command line that is at
/// fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error("the modules are loaded, but there is no initrd with an /init and no root= on the command line")]
    NoRoot,
    #[error("root={0}: this form is not known; write {forms}", forms = RootDevice::FORMS)]
    Form(String),
    #[error("root={root}: there is no such device; there are: {there}")]
    NoDevice { root: String, there: String },
    #[error("root={root}: cannot read the device: {source}")]
    Read { root: String, source: io::Error },
    #[error("root={root}: it has partitions ({table}); name the one with the root: {there}")]
    Partitions { root: String, table: &'static str, there: String },
    #[error("root={root}: it holds no file system, but {what}")]
    Other { root: String, what: &'static str },
    #[error(
        "root={root}: it holds {kind}, for which this kernel has no driver (tried: {tried}); give --modules the \
         directory of its modules"
    )]
    NoDriver { root: String, kind: &'static str, tried: String },
    #[error(
        "root={root}: it holds no file system that is known here (tried: {tried}); rootfstype= names its kind"
    )]
    NoFileSystem { root: String, tried: String },
    #[error("root={root}: cannot mount it as {kind}{held}: {source}")]
    Mount { root: String, kind: String, held: String, source: io::Error },
    #[error("cannot {step}: {source}")]
    Switch { step: &'static str, source: io::Error },
    #[error("there is no init program on the root; init= names one")]
    NoInit,
    #[error("cannot start {path:?}: {source}")]
    Init { path: PathBuf, source: io::Error },
}

/// Mounts the root and moves into it. The device file system comes along if the root has a directory for it.
pub(super) fn switch(options: &Options) -> Result<(), RootError> {
    let root = options.root.as_deref().ok_or(RootError::NoRoot)?;
    let step = |step| move |source| RootError::Switch { step, source };
    fs::create_dir_all(NEW_ROOT).map_err(step("make a directory for the root"))?;
    options.kinds.iter().for_each(|kind| modules::load_file_system(kind));
    let (source, content) = if needs_no_device(options, &known()) {
        (root.into(), Content::Unknown)
    } else {
        found(root, options)?
    };
    let kinds = kinds(options, &content);
    let attempt = Attempt { root, source: &source, content: &content, kinds: &kinds, options };
    if options.has_overlay {
        overlay::mount(|lower| attempt.mount(lower))?;
    } else {
        attempt.mount(NEW_ROOT)?;
    }

    let devices = Path::new(NEW_ROOT).join("dev");
    if !devices.is_dir() || mounts::move_mount("/dev".as_ref(), &devices).is_err() {
        mounts::unmount("/dev".as_ref());
    }
    // The system mounts these itself, as after any initramfs that leaves nothing mounted.
    mounts::unmount("/proc".as_ref());
    mounts::unmount("/sys".as_ref());
    new_root::enter(NEW_ROOT).map_err(|(step, source)| RootError::Switch { step, source })
}

/// Returns the device of the root, and its content.
fn found(root: &str, options: &Options) -> Result<(PathBuf, Content), RootError> {
    let root = || root.to_owned();
    let device = RootDevice::parse(&root()).ok_or_else(|| RootError::Form(root()))?;
    let node = device::wait_for(&device, options.waits)
        .ok_or_else(|| RootError::NoDevice { root: root(), there: device::listed() })?;
    let content = Content::of(&node).map_err(|source| RootError::Read { root: root(), source })?;
    if !options.kinds.is_empty() {
        return Ok((node, content));
    }
    match content {
        Content::Other(what) => Err(RootError::Other { root: root(), what }),
        Content::Partitions(table) => {
            let there = device::partitions_of(&node);
            if there.is_empty() {
                return Ok((node, content));
            }
            Err(RootError::Partitions { root: root(), table, there: there.join(", ") })
        }
        Content::FileSystem(_) | Content::Unknown => Ok((node, content)),
    }
}

/// Returns the file systems that the kernel can mount, in the form of `/proc/filesystems` (`proc(5)`).
fn known() -> String {
    fs::read_to_string("/proc/filesystems").unwrap_or_default()
}

/// Returns whether `root=` is not the name of a block device: a 9p or virtiofs tag, or nothing for a tmpfs.
fn needs_no_device(options: &Options, known: &str) -> bool {
    let first = options.kinds.first().map(String::as_str);
    let mut lines = known.lines().filter_map(|line| line.split_once('\t'));
    lines.any(|(flag, name)| flag == "nodev" && Some(name) == first)
}

/// Returns the types of file system to try: the user's, or else the superblock's, or else all that the kernel
/// has for devices.
fn kinds(options: &Options, content: &Content) -> Vec<String> {
    if !options.kinds.is_empty() {
        return options.kinds.clone();
    }
    if let Content::FileSystem(found) = content {
        modules::load_file_system(found.kind);
        // If ext4 is not built in, its older drivers may be.
        let older: &[&str] = if found.kind == "ext4" { &["ext3", "ext2"] } else { &[] };
        return std::iter::once(&found.kind).chain(older).map(|&kind| kind.to_owned()).collect();
    }
    for_devices(&known())
}

fn for_devices(known: &str) -> Vec<String> {
    let lines = known.lines().filter_map(|line| line.split_once('\t'));
    lines.filter(|(flag, _)| flag.is_empty()).map(|(_, name)| name.to_owned()).collect()
}

/// A file system to mount.
struct Attempt<'a> {
    root: &'a str,
    source: &'a Path,
    content: &'a Content,
    kinds: &'a [String],
    options: &'a Options,
}

impl Attempt<'_> {
    /// Mounts the first type that fits.
    fn mount(&self, target: &str) -> Result<(), RootError> {
        let Self { source, kinds, options, .. } = *self;
        let (generic, own) = mounts::split_options(&options.flags);
        // A type that does not fit is not an error. If the device's superblock names the type, the kernel's
        // error is reported.
        let silent = if matches!(self.content, Content::FileSystem(_)) { 0 } else { libc::MS_SILENT };
        let flags = generic | silent | if options.is_writable { 0 } else { libc::MS_RDONLY };
        for kind in kinds {
            match mounts::mount_with(source, target.as_ref(), kind, flags, &own) {
                Ok(()) => return Ok(()),
                // This kernel lacks this type.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                // The device holds another type.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !self.is_certain(kind) => {}
                Err(source) => return Err(self.failed(kind, source)),
            }
        }
        Err(self.without_driver())
    }

    /// Returns whether no other type is worth trying.
    fn is_certain(&self, kind: &str) -> bool {
        let is_held = matches!(self.content, Content::FileSystem(found) if found.kind == kind);
        is_held || self.kinds.len() == 1
    }

    fn failed(&self, kind: &str, source: io::Error) -> RootError {
        let held = match self.content {
            Content::FileSystem(found) if found.kind == kind => ", which its superblock says".to_owned(),
            Content::FileSystem(found) => format!(", but it holds {}", found.kind),
            Content::Other(what) => format!(", but it holds {what}"),
            Content::Partitions(table) => format!(", but it has partitions ({table})"),
            Content::Unknown => String::new(),
        };
        RootError::Mount { root: self.root.to_owned(), kind: kind.to_owned(), held, source }
    }

    fn without_driver(&self) -> RootError {
        let (root, tried) = (self.root.to_owned(), self.kinds.join(", "));
        match self.content {
            Content::FileSystem(found) if self.kinds.iter().any(|kind| kind == found.kind) => {
                RootError::NoDriver { root, kind: found.kind, tried }
            }
            _ => RootError::NoFileSystem { root, tried },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::superblock::Superblock;

    const KNOWN: &str = "nodev\tsysfs\nnodev\ttmpfs\n\text3\n\text4\nnodev\t9p\n";

    fn options(kinds: &[&str]) -> Options {
        Options { kinds: kinds.iter().map(|&name| name.to_owned()).collect(), ..Options::default() }
    }

    fn holding(kind: &'static str) -> Content {
        Content::FileSystem(Superblock { kind, uuid: None, label: None })
    }

    #[test]
    fn kinds_are_the_user_s_else_the_superblock_s_else_the_kernel_s() {
        assert_eq!(kinds(&options(&["erofs"]), &holding("ext4")), ["erofs"]);
        assert_eq!(kinds(&options(&[]), &holding("ext4")), ["ext4", "ext3", "ext2"]);
        assert_eq!(kinds(&options(&[]), &holding("xfs")), ["xfs"]);
        assert_eq!(for_devices(KNOWN), ["ext3", "ext4"]);
    }

    #[test]
    fn kinds_without_a_device_take_the_name_as_it_is() {
        assert!(needs_no_device(&options(&["9p"]), KNOWN));
        assert!(!needs_no_device(&options(&["ext4"]), KNOWN) && !needs_no_device(&options(&[]), KNOWN));
    }

    /// Returns the error if nothing can be mounted: tests have no such device.
    fn said(kinds: &[&str], content: &Content) -> String {
        let options = options(kinds);
        let kinds = super::kinds(&options, content);
        let source = Path::new("/dev/none");
        let attempt = Attempt { root: "/dev/vda", source, content, kinds: &kinds, options: &options };
        attempt.without_driver().to_string()
    }

    #[test]
    fn missing_driver_is_named_with_what_was_tried_and_the_fix() {
        let text = said(&[], &holding("xfs"));
        for words in ["root=/dev/vda: it holds xfs, ", "give --modules", "(tried: xfs)"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = said(&["erofs", "squashfs"], &holding("xfs"));
        assert!(text.contains("(tried: erofs, squashfs); rootfstype= names"), "{text}");
    }

    #[test]
    fn kind_that_is_not_on_the_device_is_told_with_the_one_that_is() {
        let (options, source) = (options(&["xfs"]), Path::new("/dev/none"));
        let kinds = ["xfs".to_owned()];
        let content = holding("ext4");
        let attempt =
            Attempt { root: "LABEL=x", source, content: &content, kinds: &kinds, options: &options };
        let error = attempt.failed("xfs", io::Error::from_raw_os_error(libc::EINVAL)).to_string();
        assert!(
            error.starts_with("root=LABEL=x: cannot mount it as xfs, but it holds ext4: Invalid"),
            "{error}"
        );
    }
}
