//! The saved facts about a guest, for the diagnosis of a machine that goes on from a snapshot. The files and
//! devices of its boot are not among them: their paths mean nothing elsewhere, and are not opened.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_devices::state::{SavedState, StateError};
use serde::{Deserialize, Serialize};

use super::{Signs, Subject};

/// Version 1 of the state.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct SubjectState {
    is_linux: bool,
    is_default_guest: bool,
    has_root: bool,
    has_virtio_console: bool,
    /// The number of disks, that of the root included.
    disks: u32,
    /// The whole kernel command line.
    cmdline: String,
    least_mib: u64,
}

impl Subject {
    /// Returns the facts that a restored machine needs.
    pub(crate) fn save(&self) -> SavedState {
        // Complete, so that a new field is either saved or left out on purpose.
        let Self {
            kernel: _,
            symbols: _,
            is_linux,
            is_entry_guessed: _,
            ranges: _,
            cmdline,
            initrds: _,
            disks,
            disk_paths: _,
            has_root,
            is_default_guest,
            has_virtio_console,
            memory_mib: _,
            least_mib,
            is_restored: _,
            signs: _,
        } = self;
        let state = SubjectState {
            is_linux: *is_linux,
            is_default_guest: *is_default_guest,
            has_root: *has_root,
            has_virtio_console: *has_virtio_console,
            disks: u32::try_from(*disks).unwrap_or(u32::MAX),
            cmdline: cmdline.clone(),
            least_mib: *least_mib,
        };
        SavedState::encode(VERSION, &state)
    }

    /// Makes the subject of a machine with `memory_mib` of RAM that goes on from a snapshot. Without a state,
    /// nothing is known about the guest.
    ///
    /// # Errors
    /// The state is not one.
    pub(crate) fn restored(state: Option<&SavedState>, memory_mib: u64) -> Result<Subject, StateError> {
        let state = state.map(|state| state.decode(VERSION)).transpose()?;
        let SubjectState {
            is_linux,
            is_default_guest,
            has_root,
            has_virtio_console,
            disks,
            cmdline,
            least_mib,
        } = state.unwrap_or_default();
        Ok(Subject {
            kernel: None,
            symbols: None,
            is_linux,
            is_entry_guessed: false,
            ranges: Vec::new(),
            cmdline,
            initrds: Vec::<PathBuf>::new(),
            disks: disks as usize,
            disk_paths: Vec::new(),
            has_root,
            is_default_guest,
            has_virtio_console,
            memory_mib,
            least_mib,
            is_restored: true,
            signs: Arc::<Signs>::default(),
        })
    }
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_and_paths_do_not() {
        let state = SubjectState {
            is_linux: true,
            is_default_guest: true,
            has_root: false,
            has_virtio_console: true,
            disks: 3,
            cmdline: "console=ttyS0".to_owned(),
            least_mib: 40,
        };
        let saved = SavedState::encode(VERSION, &state);
        let subject = Subject::restored(Some(&saved), 512).unwrap();
        assert_eq!((subject.kernel.as_deref(), subject.memory_mib), (None, 512));
        assert_eq!(subject.save(), saved);
        assert_eq!(Subject::restored(None, 1).unwrap().save().decode(VERSION), Ok(SubjectState::default()));
    }

    #[test]
    fn version_1_keeps_its_layout() {
        let state =
            SubjectState { is_linux: true, disks: 300, cmdline: "ab".to_owned(), ..Default::default() };
        let saved = SavedState::encode(VERSION, &state);
        assert_eq!(saved, SavedState::from_parts(1, b"\x01\0\0\0\xac\x02\x02ab\0".to_vec()));
    }
}
