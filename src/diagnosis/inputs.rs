//! What a diagnosis reads of files and of a guest's memory, for the fuzz target and for the test that measures
//! memory: the ways into `symbols` and `kconfig` without a guest. Nothing else calls it.

use std::ops::Range;
use std::path::Path;

use vm_memory::GuestMemoryMmap;

use super::Function;
use super::kconfig::KernelConfig;
use super::symbols::SymbolFile;

/// The functions at addresses of the kernel in an ELF file; nothing where the file tells nothing.
pub fn functions(kernel: &Path, addresses: &[u64]) -> Vec<Option<Function>> {
    SymbolFile::of(kernel).map(|file| file.functions_at(addresses)).unwrap_or_default()
}

/// The value of an option of the kernel at `path` that lies in `range` of memory.
pub fn option(ram: &GuestMemoryMmap, range: Range<u64>, path: &Path, option: &str) -> Option<String> {
    let config = KernelConfig::find(ram, std::slice::from_ref(&range), path)?;
    config.value(option).map(str::to_owned)
}
