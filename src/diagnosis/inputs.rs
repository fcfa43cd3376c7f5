//! The parsers of a diagnosis for files and guest memory, without a guest. The fuzz target and the test that
//! measures memory call them, and nothing else does.

use std::ops::Range;
use std::path::Path;

use coracle_arch::x86_64::input_file::{FileRole, InputFile};
use vm_memory::GuestMemoryMmap;

use super::Function;
use super::kconfig::KernelConfig;
use super::symbols::SymbolFile;

/// Returns the functions at addresses of the kernel in an ELF file. The list is empty if the file has none.
pub fn functions(kernel: &Path, addresses: &[u64]) -> Vec<Option<Function>> {
    let file = InputFile::open(FileRole::Kernel, kernel).ok();
    file.and_then(|file| SymbolFile::of(&file)).map(|file| file.functions_at(addresses)).unwrap_or_default()
}

/// Returns the value of an option of the kernel at `path` that lies in `range` of memory.
pub fn option(ram: &GuestMemoryMmap, range: Range<u64>, path: &Path, option: &str) -> Option<String> {
    let config = KernelConfig::find(ram, std::slice::from_ref(&range), path)?;
    config.value(option).map(str::to_owned)
}
