//! Initramfs archives: a writer, the modules of a kernel, and the small archive that loads the modules for a
//! machine's devices. The builder calls `loader`; `xtask` uses the rest to make the default guest.

mod built_in;
pub mod check;
mod cpio;
pub mod loader;
mod module_files;
mod module_tree;
#[cfg(test)]
mod samples;

pub use check::InitrdError;
pub use cpio::{Archive, ArchiveError};
pub use loader::LoaderError;
pub use module_tree::{Module, ModuleTree, ModulesError};
