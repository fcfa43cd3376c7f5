//! Rules about a kernel that has nothing to run: no root, no initrd, or no driver for them.

use std::io::Read;
use std::path::Path;

use coracle_arch::regular_file;

use super::{Facts, Hint, Setting, root_file_system};
use crate::diagnosis::INIT_ENDED;

/// There is neither an initrd nor a root device, unless an initrd is built into the kernel.
pub(super) fn no_root(facts: &Facts<'_>) -> Option<Hint> {
    let built_in = facts
        .options
        .and_then(|options| options.value("CONFIG_INITRAMFS_SOURCE"))
        .is_some_and(|list| !list.is_empty());
    let was_given = facts.has_root || facts.is_default_guest || !facts.initrds.is_empty();
    let nothing = !was_given && root(facts).is_none() && !built_in;
    (applies(facts) && nothing).then_some(Hint::NoRoot)
}

/// The kernel reports that it has not unpacked all of its initrd, and goes on with the rest.
pub(super) fn initrd_damaged(facts: &Facts<'_>) -> Option<Hint> {
    let said = facts.unpacking?;
    let reason = said.split_once("); ").map_or(said, |(reason, _)| reason).trim();
    let has_other_rule = ["not configured", "write error"].iter().any(|words| reason.contains(words));
    let is_ram_disk = root(facts).is_some_and(|root| device_name(root).starts_with("ram"));
    (facts.is_linux && facts.gave_up() && !has_other_rule && !is_ram_disk)
        .then(|| Hint::InitrdDamaged { reason: reason.to_owned() })
}

/// The kernel reports that it found no init, and neither a root device nor a part of its initrd is missing.
pub(super) fn no_init(facts: &Facts<'_>) -> Option<Hint> {
    let has_initrd = facts.is_default_guest || !facts.initrds.is_empty();
    let in_initrd = has_initrd && !facts.has_root && root(facts).is_none();
    let said = facts.console_has("No working init found") || facts.console_has("Requested init");
    let passed_over = in_initrd && facts.console_has("Unable to mount root fs");
    let init = if in_initrd { facts.parameters("rdinit").last() } else { facts.parameters("init").last() };
    let init = init.unwrap_or(if in_initrd { "/init" } else { "/sbin/init" }).to_owned();
    let is_explained = initrd_damaged(facts).is_some();
    (applies(facts) && (said || passed_over) && !is_explained).then_some(Hint::NoInit { init, in_initrd })
}

/// The kernel panics when its init ends, and prints the status.
pub(super) fn init_ended(facts: &Facts<'_>) -> Option<Hint> {
    let (_, rest) = facts.panic?.split_once(INIT_ENDED)?;
    let (_, status) = rest.split_once("exitcode=0x")?;
    let digits = status.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    let status = u32::from_str_radix(digits, 16).ok()?;
    facts.is_linux.then_some(Hint::InitEnded { status })
}

/// The root device is of a kind that the machine lacks.
pub(super) fn device(facts: &Facts<'_>) -> Option<Hint> {
    let root = root(facts)?;
    let absent = ABSENT_DEVICES.iter().any(|kind| device_name(root).starts_with(kind));
    let hint = || Hint::RootDevice { root: root.to_owned(), disks: facts.disks };
    let has_other = facts.has_root || !facts.initrds.is_empty();
    (applies(facts) && !has_other && absent && !is_disk(root, facts.disks)).then(hint)
}

/// The root device is of a kind for which the kernel has no driver.
pub(super) fn driver_missing(facts: &Facts<'_>) -> Option<Hint> {
    let root = root(facts)?;
    let (_, options) = DEVICE_OPTIONS.iter().find(|(kind, _)| device_name(root).starts_with(kind))?;
    // A module may come in an initrd, to which Coracle adds those of its own devices. Without one, the driver
    // must be built in.
    let needed =
        if facts.initrds.is_empty() && facts.disks == 0 { Setting::BuiltIn } else { Setting::Module };
    let (option, source) =
        options.iter().find_map(|option| Some((*option, facts.is_not(needed, option)?)))?;
    applies(facts).then(|| Hint::RootDriverMissing { root: root.to_owned(), option, source })
}

/// The kernel could not mount the root device, and its file system is not known to be in the kernel.
pub(super) fn file_system(facts: &Facts<'_>) -> Option<Hint> {
    let root = root(facts)?;
    let failed = facts.panic.is_some_and(|panic| panic.contains("Unable to mount root fs"));
    if !applies(facts) || !failed || facts.has_root || !is_disk(root, facts.disks) {
        return None;
    }
    let letter = device_name(root).strip_prefix("vd")?;
    let [letter] = letter.as_bytes() else { return None };
    let disk = facts.disk_paths.get(usize::from(letter.wrapping_sub(b'a')))?;
    let holds = *root_file_system::find(disk)?;
    let may_be_there = facts.options.is_some() && facts.is_not(Setting::BuiltIn, holds.option).is_none();
    (!may_be_there).then(|| Hint::RootFileSystem { root: root.to_owned(), holds })
}

/// The kernel cannot unpack initrds, or not those in the compression of this one.
pub(super) fn initrd_unsupported(facts: &Facts<'_>) -> Option<Hint> {
    if !applies(facts) || (facts.initrds.is_empty() && !facts.has_root) {
        return None;
    }
    let needed = facts.initrds.iter().filter_map(|path| unpack_option(&head(path)?));
    let (option, source) = std::iter::once("CONFIG_BLK_DEV_INITRD")
        .chain(needed)
        .find_map(|option| Some((option, facts.is_not(Setting::BuiltIn, option)?)))?;
    Some(Hint::InitrdUnsupported { option, source })
}

fn applies(facts: &Facts<'_>) -> bool {
    facts.linux_before_init() && facts.gave_up() && !facts.interpreted
}

fn root<'a>(facts: &'a Facts<'_>) -> Option<&'a str> {
    facts.parameters("root").last()
}

fn device_name(root: &str) -> &str {
    root.strip_prefix("/dev/").unwrap_or(root)
}

/// Returns whether a name, or the beginning of it, is that of one of the machine's virtio disks.
fn is_disk(root: &str, disks: usize) -> bool {
    let letter = device_name(root).strip_prefix("vd").and_then(|rest| rest.bytes().next());
    letter.is_some_and(|letter| usize::from(letter.wrapping_sub(b'a')) < disks)
}

/// Returns the option that a kernel needs to unpack a file with this head (Linux, lib/decompress.c); `None`
/// for a plain archive.
fn unpack_option(head: &[u8]) -> Option<&'static str> {
    PACKINGS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, option)| *option)
}

/// Returns the first bytes of an initrd, if it still exists.
fn head(path: &Path) -> Option<[u8; 6]> {
    let (mut file, _) = regular_file::open(path).ok()?;
    let mut head = [0; 6];
    file.read_exact(&mut head).ok()?;
    Some(head)
}

/// The text before the reason in the line with which Linux stops unpacking (init/initramfs.c,
/// `do_populate_rootfs`). The second is that of a kernel with `CONFIG_BLK_DEV_RAM`.
pub(in crate::diagnosis) const UNPACKING: [&str; 2] =
    ["Initramfs unpacking failed: ", "rootfs image is not initramfs ("];
/// Block devices that a machine without disks cannot have, by the start of their names.
const ABSENT_DEVICES: &[&str] = &["sd", "hd", "sr", "nvme", "mmcblk", "xvd", "vd", "nbd", "md", "dm-"];
/// Options of the kernel that a root device needs, by the start of its name.
const DEVICE_OPTIONS: &[(&str, &[&str])] = &[
    ("vd", &["CONFIG_BLOCK", "CONFIG_VIRTIO_MMIO", "CONFIG_VIRTIO_BLK"]),
    ("ram", &["CONFIG_BLOCK", "CONFIG_BLK_DEV_RAM"]),
];
const PACKINGS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "CONFIG_RD_GZIP"),
    (b"BZh", "CONFIG_RD_BZIP2"),
    (b"\x5d\x00\x00", "CONFIG_RD_LZMA"),
    (b"\xfd7zXZ\x00", "CONFIG_RD_XZ"),
    (b"\x89LZO", "CONFIG_RD_LZO"),
    (b"\x02\x21\x4c\x18", "CONFIG_RD_LZ4"),
    (b"\x28\xb5\x2f\xfd", "CONFIG_RD_ZSTD"),
];
