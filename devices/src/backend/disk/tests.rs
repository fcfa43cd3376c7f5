//! Disks on real files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coracle_arch::nameless_file;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::memory::GuestMemory;
use crate::virtio::testing::memory;

const DISK: u64 = 64 << 10;
const IN_MEMORY: &str = "/dev/shm";

struct Scratch {
    folder: TempDir,
    memory: GuestMemory,
}

impl Scratch {
    fn new() -> Self {
        Self { folder: TempDir::new_in("/var/tmp".as_ref()).unwrap(), memory: memory() }
    }

    /// A directory with space for overlays, however full the disk of the machine is.
    fn in_memory() -> Self {
        Self { folder: TempDir::new_in(IN_MEMORY.as_ref()).unwrap(), memory: memory() }
    }

    /// A file whose bytes show their offset.
    fn disk(&self) -> PathBuf {
        let path = self.folder.as_path().join("disk.img");
        fs::write(&path, content()).unwrap();
        path
    }

    fn write(&self, disk: &dyn DiskBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.mmap().write_slice(data, GuestAddress(0)).unwrap();
        disk.write(offset, &self.spans(data.len()))
    }

    fn read(&self, disk: &dyn DiskBackend, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.memory.mmap().write_slice(&vec![0xee; len], GuestAddress(0)).unwrap();
        disk.read(offset, &self.spans(len))?;
        let mut data = vec![0; len];
        self.memory.mmap().read_slice(&mut data, GuestAddress(0)).unwrap();
        Ok(data)
    }

    /// `len` bytes from address 0 in three pieces.
    fn spans(&self, len: usize) -> Vec<Span> {
        let cuts = [0, len / 3, len / 2, len];
        let piece = |cut: &[usize]| self.memory.span(cut[0] as u64, (cut[1] - cut[0]) as u32).unwrap();
        cuts.windows(2).map(piece).filter(|span| span.len() > 0).collect()
    }
}

fn content() -> Vec<u8> {
    (0..DISK).map(|at| (at / 512 + at) as u8).collect()
}

fn layer(folder: &Path) -> OverlayLayer<'_> {
    OverlayLayer { file: nameless_file::create_in(folder).unwrap(), folder }
}

fn overlay(scratch: &Scratch, size: OverlaySize) -> Overlay {
    Overlay::open(&scratch.disk(), layer(scratch.folder.as_path()), size).unwrap()
}

#[test]
fn raw_disk_is_the_file_byte_for_byte() {
    let scratch = Scratch::new();
    let path = scratch.disk();
    let disk = RawDisk::open(&path, FileLock::Exclusive).unwrap();
    assert_eq!((disk.capacity(), disk.is_read_only()), (DISK, false));
    assert_eq!(scratch.read(&disk, 512, 4096).unwrap(), content()[512..4608]);
    scratch.write(&disk, DISK - 1024, &[7; 1024]).unwrap();
    disk.flush().unwrap();
    let file = fs::read(&path).unwrap();
    assert!(
        file[..DISK as usize - 1024] == content()[..DISK as usize - 1024]
            && file[DISK as usize - 1024..] == [7; 1024]
    );
}

#[test]
fn ranges_past_the_end_are_refused_by_the_back_end_too() {
    let scratch = Scratch::new();
    let raw = RawDisk::open(&scratch.disk(), FileLock::Exclusive).unwrap();
    let cow = overlay(&Scratch::new(), OverlaySize::Unlimited);
    for disk in [&raw as &dyn DiskBackend, &cow] {
        for offset in [DISK - 511, DISK, u64::MAX - 100, u64::MAX] {
            assert!(scratch.write(disk, offset, &[1; 512]).is_err());
            assert!(scratch.read(disk, offset, 512).is_err());
            assert!(disk.discard(offset, 512).is_err() && disk.write_zeroes(offset, 512, true).is_err());
        }
        assert!(disk.write_zeroes(0, u64::MAX, false).is_err());
    }
    assert_eq!(raw.capacity(), fs::metadata(scratch.folder.as_path().join("disk.img")).unwrap().len());
}

#[test]
fn read_only_disk_refuses_every_change() {
    let scratch = Scratch::new();
    let disk = RawDisk::open(&scratch.disk(), FileLock::Shared).unwrap();
    assert!(disk.is_read_only());
    assert!(scratch.write(&disk, 0, &[1; 512]).is_err());
    assert!(disk.discard(0, 512).is_err() && disk.write_zeroes(0, 512, false).is_err());
    disk.flush().unwrap();
    assert_eq!(fs::read(scratch.folder.as_path().join("disk.img")).unwrap(), content());
}

#[test]
fn file_that_was_cut_is_not_made_longer() {
    let scratch = Scratch::new();
    let path = scratch.disk();
    let disk = RawDisk::open(&path, FileLock::Exclusive).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    for offset in [4096, 3584, DISK - 1024] {
        assert_eq!(
            scratch.write(&disk, offset, &[1; 1024]).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(scratch.read(&disk, offset, 1024).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(disk.write_zeroes(offset, 1024, false).is_err());
    }
    scratch.write(&disk, 0, &[1; 1024]).unwrap();
    assert_eq!((disk.capacity(), fs::metadata(&path).unwrap().len()), (DISK, 4096));
}

#[test]
fn zeroes_and_holes_read_as_zero_and_free_blocks() {
    let scratch = Scratch::new();
    let path = scratch.disk();
    let disk = RawDisk::open(&path, FileLock::Exclusive).unwrap();
    let before = fs::metadata(&path).unwrap().blocks();
    disk.write_zeroes(512, 1024, false).unwrap();
    disk.write_zeroes(8192, 16384, true).unwrap();
    disk.discard(32768, 16384).unwrap();
    disk.write_zeroes(0, 0, true).unwrap();
    let mut expected = content();
    expected[512..1536].fill(0);
    expected[8192..24576].fill(0);
    let file = fs::read(&path).unwrap();
    assert!(file[..32768] == expected[..32768] && file[49152..] == expected[49152..]);
    assert!(fs::metadata(&path).unwrap().blocks() < before, "the file system has freed some");
}

#[test]
fn second_writer_is_refused_and_readers_share() {
    let scratch = Scratch::new();
    let path = scratch.disk();
    let writer = RawDisk::open(&path, FileLock::Exclusive).unwrap();
    for lock in [FileLock::Exclusive, FileLock::Shared] {
        let error = RawDisk::open(&path, lock).unwrap_err();
        assert!(matches!(error, DiskOpenError::Busy { .. }), "{error}");
    }
    drop(writer);
    let _reader = RawDisk::open(&path, FileLock::Shared).unwrap();
    let _another = Overlay::open(&path, layer(scratch.folder.as_path()), OverlaySize::Unlimited).unwrap();
    assert!(matches!(RawDisk::open(&path, FileLock::Exclusive), Err(DiskOpenError::Busy { writes: true })));
}

#[test]
fn files_that_cannot_be_a_disk_are_refused() {
    let scratch = Scratch::new();
    let file = |name: &str, len: u64| {
        let path = scratch.folder.as_path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    };
    let open = |path: PathBuf| RawDisk::open(&path, FileLock::Shared).unwrap_err();
    for (path, len) in [(file("empty", 0), 0), (file("odd", 513), 513)] {
        assert!(matches!(open(path), DiskOpenError::Length { len: said } if said == len));
    }
    assert!(matches!(open("/no/such/disk".into()), DiskOpenError::Open { .. }));
    assert!(matches!(open("/tmp".into()), DiskOpenError::Kind));
    assert!(matches!(open("/dev/zero".into()), DiskOpenError::Kind));
    let fifo = scratch.folder.as_path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(open(fifo), DiskOpenError::Kind));
}

#[test]
fn overlay_keeps_the_file_unchanged_and_shows_the_writes() {
    let scratch = Scratch::in_memory();
    let disk = overlay(&scratch, OverlaySize::Bytes(DISK));
    assert!(!disk.is_read_only());
    assert!(scratch.read(&disk, 0, DISK as usize).unwrap() == content());
    let mut expected = content();
    for (offset, len) in [(512, 512), (4096, 4096), (8000, 10_000), (DISK - 512, 512), (0, 1)] {
        scratch.write(&disk, offset, &vec![0xab; len]).unwrap();
        expected[offset as usize..offset as usize + len].fill(0xab);
        assert!(scratch.read(&disk, 0, DISK as usize).unwrap() == expected, "after {len} at {offset}");
    }
    disk.write_zeroes(20_000, 9_000, true).unwrap();
    expected[20_000..29_000].fill(0);
    assert!(scratch.read(&disk, 0, DISK as usize).unwrap() == expected);
    disk.flush().unwrap();
    assert!(fs::read(scratch.folder.as_path().join("disk.img")).unwrap() == content());
    let names = fs::read_dir(scratch.folder.as_path()).unwrap().count();
    assert_eq!(names, 1, "the overlay has no name");
}

#[test]
fn overlay_is_full_at_its_limit_and_its_clusters_can_be_rewritten() {
    let scratch = Scratch::in_memory();
    let disk = overlay(&scratch, OverlaySize::Bytes(8192));
    scratch.write(&disk, 0, &[1; 512]).unwrap();
    scratch.write(&disk, 40_960, &[2; 512]).unwrap();
    let full = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::ENOSPC);
    assert!(
        full(scratch.write(&disk, 8192, &[3; 512])) && full(disk.write_zeroes(12_288, 512, true).map(drop))
    );
    scratch.write(&disk, 1024, &[4; 512]).unwrap();
    let mut expected = content();
    expected[..512].fill(1);
    expected[1024..1536].fill(4);
    expected[40_960..41_472].fill(2);
    assert!(scratch.read(&disk, 0, DISK as usize).unwrap() == expected);
}

#[test]
fn overlay_in_memory_needs_a_limit() {
    let scratch = Scratch::new();
    let path = scratch.disk();
    let error = Overlay::open(&path, layer(IN_MEMORY.as_ref()), OverlaySize::Unlimited).unwrap_err();
    assert!(matches!(error, OverlayError::InMemory { .. }), "{error}");
    Overlay::open(&path, layer(IN_MEMORY.as_ref()), OverlaySize::Bytes(1 << 20)).unwrap();
    let read_only = OverlayLayer { file: File::open(&path).unwrap(), folder: scratch.folder.as_path() };
    let error = Overlay::open(&path, read_only, OverlaySize::Unlimited).unwrap_err();
    assert!(matches!(error, OverlayError::Layer { .. }), "{error}");
}

/// Opens a disk that goes on from the content of `disk`.
fn next(scratch: &Scratch, disk: &dyn DiskBackend, size: OverlaySize) -> Box<dyn DiskBackend> {
    let frozen = disk.freeze().unwrap();
    frozen.open(|| Ok(layer(scratch.folder.as_path())), size).unwrap()
}

#[test]
fn disks_go_on_from_an_overlay_each_by_itself() {
    let scratch = Scratch::in_memory();
    let size = OverlaySize::Bytes(8192);
    let first = overlay(&scratch, size);
    scratch.write(&first, 512, &[1; 512]).unwrap();
    scratch.write(&first, 8192, &[1; 4096]).unwrap();
    let [second, third] = [(); 2].map(|()| next(&scratch, &first, size));
    scratch.write(&*second, 1024, &[2; 512]).unwrap();
    second.write_zeroes(8192, 1024, true).unwrap();
    let fourth = next(&scratch, &*second, size);
    scratch.write(&*fourth, 0, &[4; 512]).unwrap();
    scratch.write(&*fourth, 40_960, &[4; 512]).unwrap();
    let error = scratch.write(&*fourth, 20_480, &[4; 512]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "each layer has the limit for itself");
    let written = |ranges: &[(usize, usize, u8)]| {
        let mut expected = content();
        ranges.iter().for_each(|(start, end, value)| expected[*start..*end].fill(*value));
        expected
    };
    let one = [(512, 1024, 1), (8192, 12_288, 1)];
    let two = [&one[..], &[(1024, 1536, 2), (8192, 9216, 0)]].concat();
    let four = [&two[..], &[(0, 512, 4), (40_960, 41_472, 4)]].concat();
    let all = |disk: &dyn DiskBackend| scratch.read(disk, 0, DISK as usize).unwrap();
    assert!(all(&first) == written(&one) && all(&*third) == written(&one));
    assert!(all(&*second) == written(&two) && all(&*fourth) == written(&four));
    drop((first, second, third));
    assert!(all(&*fourth) == written(&four), "the layers below stay as long as they are needed");
    assert!(fs::read(scratch.folder.as_path().join("disk.img")).unwrap() == content());
}

#[test]
fn disk_that_goes_on_beside_another_has_a_new_layer_if_the_old_one_was_written_to() {
    let scratch = Scratch::in_memory();
    let size = OverlaySize::Bytes(4096);
    let disk = overlay(&scratch, size);
    let branch = || disk.branch(layer(scratch.folder.as_path()), size).unwrap().unwrap();
    let open = |frozen: FrozenDisk| frozen.open(|| Ok(layer(scratch.folder.as_path())), size).unwrap();
    let before = open(branch());
    scratch.write(&disk, 0, &[1; 512]).unwrap();
    let [first, same] = [open(branch()), open(branch())];
    // The limit is that of each layer.
    scratch.write(&disk, 8192, &[2; 512]).unwrap();
    scratch.write(&*first, 0, &[3; 512]).unwrap();
    let byte = |disk: &dyn DiskBackend, offset| scratch.read(disk, offset, 1).unwrap()[0];
    let original = content();
    assert_eq!((byte(&disk, 0), byte(&disk, 8192)), (1, 2));
    assert_eq!((byte(&*first, 0), byte(&*first, 8192)), (3, original[8192]));
    assert_eq!((byte(&*same, 0), byte(&*same, 8192)), (1, original[8192]));
    assert_eq!(byte(&*before, 0), original[0]);
    // More often than there can be layers, if nothing is written.
    (0..100).for_each(|_| drop(branch()));
}

#[test]
fn read_only_disks_share_their_file_and_its_lock() {
    let scratch = Scratch::in_memory();
    let path = scratch.disk();
    let disk = RawDisk::open(&path, FileLock::Shared).unwrap();
    let frozen = disk.freeze().unwrap();
    drop(disk);
    assert!(matches!(RawDisk::open(&path, FileLock::Exclusive), Err(DiskOpenError::Busy { .. })));
    // Another file of this name is another disk.
    fs::rename(&path, scratch.folder.as_path().join("moved")).unwrap();
    fs::write(&path, [0; 512]).unwrap();
    let disk = frozen.open(|| panic!("it needs no layer"), OverlaySize::Unlimited).unwrap();
    assert_eq!((disk.capacity(), disk.is_read_only()), (DISK, true));
    assert!(scratch.read(&*disk, 0, DISK as usize).unwrap() == content());
    assert!(scratch.write(&*disk, 0, &[1; 512]).is_err() && disk.descriptor().is_some());
}

#[test]
fn disk_that_others_could_not_go_on_from_is_refused() {
    let scratch = Scratch::in_memory();
    let raw = RawDisk::open(&scratch.disk(), FileLock::Exclusive).unwrap();
    assert!(raw.can_be_continued() && raw.freeze().is_none(), "by its file alone");
    drop(raw);
    let mut disk: Box<dyn DiskBackend> = Box::new(overlay(&scratch, OverlaySize::Bytes(DISK)));
    // A layer that was never written to does not count.
    disk = next(&scratch, &*disk, OverlaySize::Bytes(DISK));
    scratch.write(&*disk, DISK - 512, &content()[DISK as usize - 512..]).unwrap();
    for generation in 0..64 {
        assert!(disk.can_be_continued(), "{generation}");
        disk = next(&scratch, &*disk, OverlaySize::Bytes(DISK));
        scratch.write(&*disk, generation * 512, &[0xcc; 512]).unwrap();
    }
    assert!(!disk.can_be_continued() && disk.freeze().is_none());
    let expected = [vec![0xcc; 32 << 10], content().split_off(32 << 10)].concat();
    assert!(scratch.read(&*disk, 0, DISK as usize).unwrap() == expected);
}

proptest! {
    /// Compares the overlay with a plain array, with clusters that are written, cleared and discarded in any
    /// order, and with others that go on from it.
    #[test]
    fn overlay_agrees_with_an_array(
        steps in proptest::collection::vec((0..12_u8, 0..DISK / 512, 1..40_u64, any::<u8>()), 1..60),
    ) {
        let scratch = Scratch::in_memory();
        let mut disk: Box<dyn DiskBackend> = Box::new(overlay(&scratch, OverlaySize::Bytes(DISK)));
        let mut expected = content();
        let mut before = Vec::new();
        for (kind, sector, sectors, value) in steps {
            let (offset, len) = (sector * 512, sectors.min(DISK / 512 - sector) * 512);
            let range = offset as usize..(offset + len) as usize;
            match kind {
                0..4 => {
                    scratch.write(&*disk, offset, &vec![value; len as usize]).unwrap();
                    expected[range].fill(value);
                }
                4..7 => {
                    disk.write_zeroes(offset, len, value % 2 == 0).unwrap();
                    expected[range].fill(0);
                }
                7 => {
                    let other = next(&scratch, &*disk, OverlaySize::Bytes(DISK));
                    before.push((std::mem::replace(&mut disk, other), expected.clone()));
                }
                _ => prop_assert!(scratch.read(&*disk, offset, len as usize).unwrap() == expected[range]),
            }
        }
        before.push((disk, expected));
        for (disk, expected) in before {
            prop_assert!(scratch.read(&*disk, 0, DISK as usize).unwrap() == expected);
        }
    }
}
