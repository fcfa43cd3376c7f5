//! The kernel command line that a guest gets when the user says nothing else.

/// The words that suit this machine and its outcome contract:
/// - `console=ttyS0`: the machine's console is COM1;
/// - `panic=-1`: a panic resets at once, which is how it is told from a hang;
/// - `pci=off`: there is no PCI bus, and each look for one is an exit;
/// - `8250.nr_uarts=1`: one serial port, not four to probe;
/// - `cryptomgr.notests`: a stock kernel would test its ciphers at every boot.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 pci=off 8250.nr_uarts=1 cryptomgr.notests";

/// The default command line and `words` after it.
pub fn default_cmdline_with<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = DEFAULT_CMDLINE.to_owned();
    for word in words.into_iter().map(str::trim).filter(|word| !word.is_empty()) {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// Whether a kernel command line says where the guest's root is: `root=` with a value, before what is for the first
/// program (Linux, Documentation/admin-guide/kernel-parameters.txt).
pub fn names_root(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().take_while(|word| *word != "--");
    words.any(|word| word.strip_prefix("root=").is_some_and(|root| !root.is_empty()))
}

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
        for line in ["quiet", "root=", "xroot=/dev/vda", "rootfstype=ext4", "quiet -- root=/dev/vda"] {
            assert!(!names_root(line), "{line}");
        }
    }
}
