//! The kernel command line that a guest gets by default.

/// The parameters that suit this machine and its outcomes:
/// - `console=ttyS0`: the machine's console is COM1;
/// - `panic=-1`: a panic resets the machine at once, which distinguishes it from a hang;
/// - `pci=off`: there is no PCI bus, and each probe for one is an exit;
/// - `initcall_blacklist=pci_arch_init`: with `pci=off` this step of Linux does nothing but report the
///   missing bus as an error, which even `quiet` shows (`arch/x86/pci/init.c`);
/// - `8250.nr_uarts=1`: one serial port, instead of four to probe;
/// - `cryptomgr.notests`: a stock kernel would test its ciphers at every boot.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 pci=off initcall_blacklist=pci_arch_init 8250.nr_uarts=1 \
     cryptomgr.notests";

/// Returns the default command line with `words` appended.
pub fn default_cmdline_with<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = DEFAULT_CMDLINE.to_owned();
    for word in words.into_iter().map(str::trim).filter(|word| !word.is_empty()) {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// Returns whether a kernel command line names the guest's root: `root=` with a value, before the arguments
/// of init (Linux, Documentation/admin-guide/kernel-parameters.txt).
pub fn names_root(line: &str) -> bool {
    root_device(line).is_some()
}

/// Returns the device that `root=` names; the last one counts.
pub(crate) fn root_device(line: &str) -> Option<&str> {
    value_of(line, "root=")
}

/// Returns whether `rootfstype=` names types of file system, some of which need no device.
pub(crate) fn names_file_systems(line: &str) -> bool {
    value_of(line, "rootfstype=").is_some()
}

/// Returns the last value of a kernel parameter, without the quotes around it; `None` for an empty value.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let words =
        line.split_ascii_whitespace().map(|word| word.trim_matches('"')).take_while(|word| *word != "--");
    words.filter_map(|word| word.strip_prefix(key)).last().filter(|value| !value.is_empty())
}

/// Returns the possible file systems of the root that a command line names: those of `rootfstype=`, or else
/// the usual ones of a root. Empty if the command line names no root.
pub(crate) fn root_file_systems(line: &str) -> Vec<&str> {
    if !names_root(line) {
        return Vec::new();
    }
    match value_of(line, "rootfstype=") {
        Some(kinds) => kinds.split(',').filter(|kind| is_file_system(kind)).collect(),
        None => ROOT_FILE_SYSTEMS.to_vec(),
    }
}

/// Returns whether this can be the name of a file system, and so of its module's file.
fn is_file_system(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=32).contains(&name.len()) && name.bytes().all(fits)
}

/// The usual file systems of a root. The modules of all of them take some 13 MB of a guest until it has
/// mounted its root.
const ROOT_FILE_SYSTEMS: [&str; 6] = ["ext4", "xfs", "btrfs", "erofs", "squashfs", "f2fs"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_after_the_default_and_empty_ones_add_nothing() {
        assert_eq!(default_cmdline_with(["quiet", "", " ro "]), format!("{DEFAULT_CMDLINE} quiet ro"));
        assert_eq!(default_cmdline_with([]), DEFAULT_CMDLINE);
    }

    #[test]
    fn root_is_named_by_a_word_for_the_kernel() {
        assert!(names_root("quiet root=/dev/vda rw") && names_root("root=PARTLABEL=x"));
        assert_eq!(root_device("root=/dev/vda \"root=LABEL=my root\" -- root=/dev/vdb"), Some("LABEL=my"));
        for line in ["quiet", "root=", "xroot=/dev/vda", "rootfstype=ext4", "quiet -- root=/dev/vda"] {
            assert!(!names_root(line), "{line}");
        }
    }

    #[test]
    fn file_systems_are_those_that_are_named_else_the_usual_ones() {
        assert_eq!(root_file_systems("rootfstype=ext4 quiet"), [""; 0]);
        assert_eq!(root_file_systems("root=/dev/vda rootfstype="), ROOT_FILE_SYSTEMS);
        assert_eq!(root_file_systems("root=/dev/vda rootfstype=a rootfstype=xfs,ext3"), ["xfs", "ext3"]);
        assert_eq!(root_file_systems("root=/dev/vda rootfstype=../x,,a/b"), [""; 0]);
    }
}
