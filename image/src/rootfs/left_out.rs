//! The files and attributes of a source that its root lacks, for a warning in one line.

use std::fmt;
use std::path::{Path, PathBuf};

/// The numbers of things that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sockets, which are useless without their program.
    pub sockets: u64,
    /// Directories on which another file system is mounted: they are there, but empty.
    pub mounts: u64,
    /// Files and contents of directories that cannot be read.
    pub unreadable: u64,
    /// The path of the first of these.
    pub first_unreadable: Option<PathBuf>,
    /// Extended attributes that cannot be read or stored in the image.
    pub xattrs: u64,
    /// Members of a tar that are not files.
    pub members: u64,
    /// Files that became shorter while they were read; zeroes replace the rest.
    pub shortened: u64,
}

impl LeftOut {
    /// Returns whether nothing was left out.
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
