//! The parameters of the kernel command line about the root (Linux,
//! Documentation/admin-guide/kernel-parameters.txt).

/// The user's parameters about the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `root=`: the device.
    pub(super) root: Option<String>,
    /// `rootfstype=`: types of file system, the likeliest first; empty for any.
    pub(super) kinds: Vec<String>,
    /// `rootflags=`: options of the file system.
    pub(super) flags: String,
    /// `rw` or `ro`, of which the last one counts. Like the kernel's, the default is read-only.
    pub(super) is_writable: bool,
    /// `rootwait`: whether to wait for the device forever.
    pub(super) waits: bool,
    /// `coracle.overlay`: writes go to memory, and the device is only read.
    pub(super) has_overlay: bool,
    /// `coracle.private`: writes to the device are lost with the machine.
    pub(super) is_scratch: bool,
    /// `init=`: the first program.
    pub(super) init: Option<String>,
}

impl Options {
    /// Returns whether there is a root to mount.
    pub(super) fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Returns whether writes to the root are lost with this machine, because they go to memory or to a copy.
    pub(super) fn is_private(&self) -> bool {
        !self.has_root() || self.has_overlay || self.is_scratch
    }

    /// Reads `/proc/cmdline`. The last of several parameters counts. Those after `--` are for the first
    /// program.
    pub(super) fn from_command_line(line: &str) -> Self {
        let mut options = Self::default();
        for word in words(line).take_while(|word| word != "--") {
            let (name, value) = word.split_once('=').unwrap_or((&word, ""));
            let given = Some(value.to_owned()).filter(|value| !value.is_empty());
            match name {
                "root" => options.root = given,
                "rootfstype" => options.kinds = value.split(',').map(str::to_owned).collect(),
                "rootflags" => value.clone_into(&mut options.flags),
                "init" => options.init = given,
                "rw" => options.is_writable = true,
                "ro" => options.is_writable = false,
                "coracle.overlay" => options.has_overlay = true,
                "coracle.private" => options.is_scratch = true,
                "rootwait" => options.waits = true,
                _ => {}
            }
        }
        options
    }
}

/// Splits a command line into its words. Double quotes join words with spaces.
fn words(line: &str) -> impl Iterator<Item = String> {
    let mut is_quoted = false;
    let pieces = line.trim_end_matches('\n').split(move |character: char| {
        is_quoted ^= character == '"';
        !is_quoted && character.is_ascii_whitespace()
    });
    pieces.filter(|word| !word.is_empty()).map(|word| word.replace('"', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_and_the_last_one_counts() {
        let line = "console=ttyS0 root=/dev/vda root=/dev/vdb1 rootfstype=erofs,ext4 rw rootwait coracle.overlay \
                    coracle.private rootflags=\"noatime,a b\" init=/bin/app panic=-1\n";
        let expected = Options {
            root: Some("/dev/vdb1".into()),
            kinds: vec!["erofs".into(), "ext4".into()],
            flags: "noatime,a b".into(),
            is_writable: true,
            waits: true,
            has_overlay: true,
            is_scratch: true,
            init: Some("/bin/app".into()),
        };
        assert_eq!(Options::from_command_line(line), expected);
    }

    #[test]
    fn nothing_said_is_a_read_only_root_of_any_kind() {
        assert_eq!(Options::from_command_line("quiet rw ro root= xroot=/dev/vda\n"), Options::default());
    }

    #[test]
    fn only_a_device_that_keeps_what_is_written_is_not_private() {
        let is_private = |line| Options::from_command_line(line).is_private();
        assert!(is_private("quiet") && is_private("root=/dev/vda ro coracle.overlay"));
        assert!(is_private("root=/dev/vda rw coracle.private") && !is_private("root=/dev/vda rw"));
    }

    #[test]
    fn words_for_the_first_program_are_not_ours() {
        assert_eq!(Options::from_command_line("quiet -- root=/dev/vda rw"), Options::default());
    }
}
