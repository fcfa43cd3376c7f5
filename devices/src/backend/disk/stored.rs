//! Overlays in files of their own, apart from a running machine: written from the layers of a disk, and read
//! again as one layer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::frozen::FrozenLayer;
use super::overlay::cluster_shift;

impl FrozenLayer {
    /// Makes a layer of a file in which the blocks have the offsets that they have on a disk of `capacity`
    /// bytes. `present` has a bit for each cluster, the first in bit 0; clusters past its end are not in the
    /// layer. Returns `None` if there is a bit for a cluster that the disk does not have.
    pub fn of_file(file: Arc<File>, present: &[u8], capacity: u64) -> Option<FrozenLayer> {
        let clusters = clusters(capacity);
        let words = usize::try_from(clusters.div_ceil(64)).ok()?;
        let unused = present.last().map_or(0, |last| last.leading_zeros());
        let used = (present.len() as u64).checked_mul(8)?.checked_sub(unused.into())?;
        if used > clusters || present.len() > words.checked_mul(8)? {
            return None;
        }
        let mut bits = present.chunks(8).map(|bytes| {
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            u64::from_le_bytes(word)
        });
        let present = (0..words).map(|_| bits.next().unwrap_or_default()).collect();
        Some(FrozenLayer { file, present })
    }

    /// Writes what the layers of a disk of `capacity` bytes, the newest first, have together to `file`, which
    /// is empty. Zeroes without storage stay so. Returns the bits that [`of_file`](Self::of_file) takes.
    ///
    /// # Errors
    /// The host cannot read a layer, or write to the file.
    pub fn store(layers: &[Arc<FrozenLayer>], capacity: u64, file: &File) -> io::Result<Vec<u8>> {
        file.set_len(capacity)?;
        let shift = cluster_shift(capacity);
        let end_of = |cluster: u64| cluster.checked_shl(shift).unwrap_or(u64::MAX).min(capacity);
        let owner = |cluster: u64| layers.iter().position(|layer| layer.has(cluster));
        let (count, mut cluster) = (clusters(capacity), 0);
        let mut present = vec![0_u8; usize::try_from(count.div_ceil(8)).unwrap_or_default()];
        while cluster < count {
            let layer = owner(cluster);
            let first = cluster;
            while cluster < count && owner(cluster) == layer {
                let byte = usize::try_from(cluster >> 3).ok().and_then(|byte| present.get_mut(byte));
                if let (Some(byte), true) = (byte, layer.is_some()) {
                    *byte |= 1 << (cluster & 7);
                }
                cluster = cluster.saturating_add(1);
            }
            if let Some(layer) = layer.and_then(|layer| layers.get(layer)) {
                copy_data(&layer.file, end_of(first), end_of(cluster), file)?;
            }
        }
        let used = present.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        present.truncate(used);
        Ok(present)
    }
}

/// Copies a range of a file, apart from its holes, to the same place of another one.
///
/// # Errors
/// The host cannot read or write.
pub fn copy_data(from: &File, start: u64, end: u64, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = start;
    while let Some(data) = seek(from, at, libc::SEEK_DATA)?.filter(|data| *data < end) {
        let data_end = seek(from, data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        at = data;
        while at < data_end {
            let count = data_end.saturating_sub(at).min(COPY_BYTES as u64);
            let piece = buffer.get_mut(..count as usize).unwrap_or_default();
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at = at.saturating_add(count);
        }
    }
    Ok(())
}

/// Returns the offset of the next data or hole at or after `at`; `None` if there is none.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let at = libc::off_t::try_from(at).map_err(|_| super::out_of_range())?;
    // SAFETY: the call takes numbers and an open descriptor. Nobody reads at the file's own offset.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

fn clusters(capacity: u64) -> u64 {
    capacity.div_ceil(1 << cluster_shift(capacity))
}

/// The bytes of one copy: few calls, and little memory.
const COPY_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use coracle_arch::nameless_file;

    use super::*;

    fn file() -> File {
        nameless_file::create_in_memory(c"layer", 0).unwrap()
    }

    /// A layer with these clusters, filled with `byte`.
    fn layer(clusters: &[u64], byte: u8, capacity: u64) -> Arc<FrozenLayer> {
        let file = file();
        file.set_len(capacity).unwrap();
        let mut present = vec![0; (capacity as usize >> 12).div_ceil(8)];
        for cluster in clusters {
            let end = (cluster * 4096 + 4096).min(capacity);
            file.write_all_at(&vec![byte; (end - cluster * 4096) as usize], cluster * 4096).unwrap();
            present[*cluster as usize / 8] |= 1 << (cluster % 8);
        }
        Arc::new(FrozenLayer::of_file(Arc::new(file), &present, capacity).unwrap())
    }

    #[test]
    fn newest_layer_wins_and_holes_stay_holes() {
        let capacity = 100 * 4096 + 512;
        let layers = [layer(&[3, 99], 1, capacity), layer(&[2, 3, 64], 2, capacity)];
        let stored = file();
        let present = FrozenLayer::store(&layers, capacity, &stored).unwrap();
        assert_eq!(present, [12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8]);
        assert_eq!(
            (stored.metadata().unwrap().len(), stored.metadata().unwrap().blocks()),
            (capacity, 4 * 8)
        );
        let read = FrozenLayer::of_file(Arc::new(stored), &present, capacity).unwrap();
        for (cluster, byte) in [(2, 2), (3, 1), (64, 2), (99, 1)] {
            let mut bytes = [0; 4096];
            read.file.read_exact_at(&mut bytes, cluster * 4096).unwrap();
            assert!(read.has(cluster) && bytes == [byte; 4096], "{cluster}");
        }
        assert_eq!((0..101).filter(|cluster| read.has(*cluster)).count(), 4);
        // The last cluster is not whole.
        let tail = layer(&[], 0, capacity);
        let mut present = vec![0; 12];
        present.push(16);
        let whole = Arc::new(FrozenLayer::of_file(tail.file.clone(), &present, capacity).unwrap());
        assert_eq!(FrozenLayer::store(&[whole], capacity, &file()).unwrap(), present);
        assert!(FrozenLayer::store(&[], capacity, &file()).unwrap().is_empty());
    }

    #[test]
    fn bits_past_the_end_are_refused() {
        let of = |present: &[u8]| FrozenLayer::of_file(Arc::new(file()), present, 9 * 4096).is_some();
        assert!(of(&[]) && of(&[255]) && of(&[255, 1]));
        assert!(!of(&[0, 2]) && !of(&[0, 1, 1]) && !of(&[0; 9]) && !of(&[0; 1 << 16]));
    }
}
