//! What of a source its root does not have, for one line of warning.

use std::fmt;
use std::path::{Path, PathBuf};

/// Counts of what was not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sockets, which mean nothing without their program.
    pub sockets: u64,
    /// Folders on which something else is mounted: they are there, and empty.
    pub mounts: u64,
    /// Files and the insides of folders that cannot be read.
    pub unreadable: u64,
    /// The first of these.
    pub first_unreadable: Option<PathBuf>,
    /// Extended attributes that cannot be read or have no place in the image.
    pub xattrs: u64,
    /// Members of a tar that are no files.
    pub members: u64,
    /// Files that became shorter while they were read, which end in zeroes.
    pub shortened: u64,
}

impl LeftOut {
    /// Whether everything was kept.
    pub fn is_nothing(&self) -> bool {
        *self == LeftOut::default()
    }

    pub(super) fn unreadable(&mut self, path: &Path) {
        self.unreadable = self.unreadable.saturating_add(1);
        self.first_unreadable.get_or_insert_with(|| path.to_owned());
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unreadable = match &self.first_unreadable {
            Some(path) => format!("that you may not read left out (the first is {})", path.display()),
            None => String::new(),
        };
        let parts = [
            (self.sockets, "socket", "left out"),
            (self.mounts, "folder", "left empty, with something else mounted on it"),
            (self.unreadable, "file", unreadable.as_str()),
            (self.xattrs, "extended attribute", "not kept"),
            (self.members, "member", "of an unknown kind left out"),
            (self.shortened, "file", "cut short while it was read"),
        ];
        let mut separator = "";
        for (count, what, how) in parts.into_iter().filter(|(count, ..)| *count > 0) {
            let plural = if count == 1 { "" } else { "s" };
            write!(f, "{separator}{count} {what}{plural} {how}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_left_out_is_told_in_one_line() {
        let mut left_out = LeftOut { sockets: 3, xattrs: 1, ..LeftOut::default() };
        assert_eq!(left_out.to_string(), "3 sockets left out, 1 extended attribute not kept");
        left_out = LeftOut::default();
        assert!(left_out.is_nothing());
        left_out.unreadable(Path::new("etc/shadow"));
        left_out.unreadable(Path::new("root"));
        assert_eq!(left_out.to_string(), "2 files that you may not read left out (the first is etc/shadow)");
    }
}
