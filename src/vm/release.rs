//! Closing what a machine has open on the host, at its end.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::outcome::{EndingKind, HostFailure, Outcome};
use super::platform::Platform;
use super::recipe::Recipe;
use crate::thread::ThreadKind;
use crate::virtio::VirtioDevices;

/// The parts of a machine that have files, sockets and taps open.
type Parts = (Platform, Arc<VirtioDevices>, Option<Arc<Recipe>>);

/// Drops the parts of a machine that has ended, which closes their files. Some file systems wait for a server
/// at a close (NFS, FUSE with FLUSH), perhaps without end. A machine with devices therefore closes them on a
/// thread of its own. After [`CLOSE_LIMIT`], the thread is left to itself, and the ending is a failure of the
/// host, unless it was one before.
pub(super) fn release(parts: Parts, outcome: &mut Outcome) {
    let (_, virtio, _) = &parts;
    if virtio.places().is_empty() {
        return;
    }
    let (alive, ended) = mpsc::channel::<()>();
    let close = move || {
        let _alive = alive;
        drop(parts);
    };
    // A host that starts no more threads has closed them here.
    let Ok(thread) = ThreadKind::Closer.spawn(close) else { return };
    if ended.recv_timeout(CLOSE_LIMIT) != Err(RecvTimeoutError::Timeout) {
        // A panic of the thread has been reported by itself.
        let _ = thread.join();
    } else if outcome.ending.kind() != EndingKind::HostFailed {
        outcome.ending = HostFailure::CloseStuck { limit: CLOSE_LIMIT }.into();
    }
}

/// How long the closes may take together: as long as the requests of a device may.
const CLOSE_LIMIT: Duration = Duration::from_secs(4);
