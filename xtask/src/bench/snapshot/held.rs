//! The memory of this process, with the RAM of its guests apart.

use std::fs;

use anyhow::{Context, Result};

/// Memory of this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Private memory, without guest RAM.
    pub(super) private_kib: u64,
    /// Guest RAM that belongs to no template.
    pub(super) ram_kib: u64,
    pub(super) page_tables_kib: u64,
}

impl Held {
    pub(super) fn now() -> Result<Held> {
        let status = fs::read_to_string("/proc/self/status")?;
        let tables = status.lines().find_map(|line| kib(line, "VmPTE:")).context("no VmPTE")?;
        Ok(Held { page_tables_kib: tables, ..Held::of_mappings(&fs::read_to_string("/proc/self/smaps")?) })
    }

    /// Adds up the mappings of `smaps` (proc_pid_smaps(5)). RAM is the memory file of the template, or
    /// advised for huge pages, as nothing else in this process is.
    fn of_mappings(smaps: &str) -> Held {
        let mut held = Held::default();
        let (mut is_file, mut private, mut anonymous) = (false, 0, 0);
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                // The last line of a mapping.
                if is_file || flags.split_whitespace().any(|flag| flag == "hg") {
                    held.ram_kib += anonymous;
                } else {
                    held.private_kib += private;
                }
                (is_file, private, anonymous) = (false, 0, 0);
                continue;
            }
            is_file |= line.contains("/memfd:coracle-template");
            private += kib(line, "Private_Clean:").or_else(|| kib(line, "Private_Dirty:")).unwrap_or(0);
            anonymous += kib(line, "Anonymous:").unwrap_or(0);
        }
        held
    }
}

fn kib(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_other_memory() {
        let smaps = "\
7f00-7f01 rw-p 00000000 00:01 5 /memfd:coracle-template (deleted)
Private_Clean:      64 kB
Private_Dirty:      12 kB
Anonymous:          12 kB
VmFlags: rd wr mr mw me
7f01-7f02 rw-p 00000000 00:00 0
Private_Dirty:      2048 kB
Anonymous:          2048 kB
VmFlags: rd wr mr mw me hg
7f03-7f04 rw-p 00000000 00:00 0
Private_Clean:       4 kB
Private_Dirty:       8 kB
Anonymous:           8 kB
VmFlags: rd wr mr mw me
";
        assert_eq!(Held::of_mappings(smaps), Held { private_kib: 12, ram_kib: 2060, page_tables_kib: 0 });
    }
}
