//! Model-specific registers that a PC's firmware would have set before it starts a kernel.

/// IA32_MISC_ENABLE (Intel SDM volume 4, table 2-2) and its bit for fast string operations, without which
/// Linux avoids its string instructions on Intel CPUs.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1 << 0;

/// IA32_MTRR_DEF_TYPE (Intel SDM volume 3A, 11.11.2.1): MTRRs on, everything write-back. With MTRRs off, a
/// kernel that reads them would treat all memory as uncached.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// Returns numbers and values. The page attribute table and the system call registers keep their values after
/// reset.
pub(crate) fn boot_msrs() -> Vec<(u32, u64)> {
    vec![(IA32_MISC_ENABLE, FAST_STRINGS), (IA32_MTRR_DEF_TYPE, MTRR_ENABLED | WRITE_BACK)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_strings_are_fast() {
        assert_eq!(boot_msrs(), [(0x1a0, 1), (0x2ff, 0x806)]);
    }
}
