//! Initramfs archives: a writer, the modules of a kernel, and the small archive that loads the modules which
//! a machine's devices need. The builder calls `loader`; `xtask` makes the default guest with the rest.

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
