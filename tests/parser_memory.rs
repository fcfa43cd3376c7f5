//! What a parser of files takes in memory, against the size of the file: hostile files of each kind, and one limit for
//! all. Every allocation of the thread that parses is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use coracle::config::{RootConfig, RootKind};
use coracle::rootfs::{self, ImageReport, RootError};
use coracle_devices::backend::disk::nameless_file;

/// Counts what each thread has and had at most, and leaves the rest to the system.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    PEAK.set(PEAK.get().max(now));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of this same call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the rules of this same call.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the rules of this same call.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does the work on a file of `len` bytes and holds the memory that it took meanwhile against the limit.
#[track_caller]
fn within_limit<T>(what: &str, len: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    let peak = (PEAK.get() - before) as usize;
    println!("{what}: {peak} bytes for {len} ({:.1} times)", peak as f64 / len as f64);
    let limit = BASE + TIMES * len;
    assert!(peak <= limit, "{what}: {peak} bytes of memory for a file of {len}, and the limit is {limit}");
    result
}

/// What may be used whatever the size of the file, and for each of its bytes.
const BASE: usize = 32 << 20;
const TIMES: usize = 8;

#[test]
fn memory_is_counted() {
    within_limit("as much as may be", 1 << 20, || vec![1_u8; BASE + (1 << 20) * TIMES]);
    let too_much = || within_limit("one byte more", 1 << 20, || vec![1_u8; BASE + (1 << 20) * TIMES + 1]);
    assert!(std::panic::catch_unwind(too_much).is_err());
}

/// A tar in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn member(&mut self, kind: u8, name: &[u8], content: &[u8]) -> &mut Tar {
        self.header(kind, name, content.len(), |_| {});
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn header(&mut self, kind: u8, name: &[u8], size: usize, change: impl FnOnce(&mut [u8])) {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name);
        put(100, b"0000644\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    fn pax(&mut self, kind: u8, records: &[(&str, &[u8])]) -> &mut Tar {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest + 1..).find(|len| len.to_string().len() + rest == *len).unwrap();
            text.extend_from_slice(format!("{len} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.member(kind, b"pax", &text)
    }

    fn files(&mut self, count: usize) -> &mut Tar {
        for number in 0..count {
            self.member(b'0', format!("f{number}").as_bytes(), b"");
        }
        self
    }

    fn end(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

fn file(bytes: &[u8]) -> File {
    let file = nameless_file(&std::env::temp_dir()).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Makes an image of a tar, within the limit.
#[track_caller]
fn image_of(what: &str, tar: &[u8]) -> Result<ImageReport, RootError> {
    let (source, image) = (file(tar), file(b""));
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let root = RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) };
    within_limit(what, tar.len(), || rootfs::write_image(&root, &image))
}

/// Pieces of a sparse file without a byte in them, as many as a header has room for.
fn empty_pieces() -> Vec<u8> {
    let mut map = b"0,0,".repeat(200_000);
    map.pop();
    map
}

/// A member in a folder in a folder and so on, none of which is in the tar.
fn deep_members(count: usize) -> Vec<u8> {
    let mut tar = Tar::default();
    for number in 0..count {
        tar.header(b'0', format!("{number:048}/f").as_bytes(), 0, |header| {
            let unique = format!("{number:07}/");
            header[345..353].copy_from_slice(unique.as_bytes());
            header[353..500].copy_from_slice(&b"a/".repeat(74)[..147]);
        });
    }
    tar.end()
}

fn hostile_tars() -> Vec<(&'static str, Vec<u8>)> {
    let map = empty_pieces();
    let sparse: [(&str, &[u8]); 2] = [("GNU.sparse.map", &map), ("GNU.sparse.realsize", b"0")];
    let mut each = Tar::default();
    for _ in 0..4 {
        each.pax(b'x', &sparse).files(1);
    }
    let names: Vec<_> = (0..30_000).map(|number| format!("SCHILY.xattr.user.{number}")).collect();
    let labels: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let mut labelled = Tar::default();
    let mut same = Tar::default();
    for number in 0..10 {
        labelled.pax(b'x', &labels).member(b'0', format!("f{number}").as_bytes(), b"");
        same.pax(b'x', &labels).member(b'5', b"same", b"");
    }
    let mut in_front = Tar::default();
    let lines = ["250000\n".to_owned(), "0\n".repeat(500_000)].concat();
    in_front.pax(b'x', &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"0")]);
    in_front.member(b'0', b"in-front", lines.as_bytes());
    vec![
        ("sparse map for all files", Tar::default().pax(b'g', &sparse).files(4000).end()),
        ("sparse map for each file", each.end()),
        ("sparse map in front", in_front.end()),
        ("many files", Tar::default().files(20_000).end()),
        ("many folders", deep_members(10_000)),
        ("many attributes", labelled.end()),
        ("one folder again and again", same.end()),
    ]
}

#[test]
fn tars_take_memory_in_proportion_to_their_size() {
    for (what, tar) in hostile_tars() {
        let _ = image_of(what, &tar);
    }
    // An honest one is taken.
    let report = image_of("honest files", &Tar::default().files(20_000).end()).unwrap();
    assert_eq!(report.files, 20_001);
}

#[test]
fn packed_tars_take_memory_in_proportion_to_their_packed_size() {
    for (what, tar) in hostile_tars() {
        for (packing, packed) in packed(&tar) {
            let _ = image_of(&format!("{what}, {packing}"), &packed);
        }
    }
    for (packing, packed) in packed(&Tar::default().files(5_000).end()) {
        let report = image_of(&format!("honest files, {packing}"), &packed).unwrap();
        assert_eq!(report.files, 5_001);
    }
}

/// In every packing that is taken.
fn packed(plain: &[u8]) -> [(&'static str, Vec<u8>); 4] {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest);
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(plain).unwrap();
    [
        ("gzip", gzip.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd),
        ("LZ4", lz4.finish().unwrap()),
    ]
}
