//! Tests of the memory that a parser of files uses, relative to the size of the file: hostile files of each
//! kind, and one limit for all. Every allocation of the thread that parses is counted.

#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;
#[path = "parser_memory/packed.rs"]
mod packed;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use coracle::KernelImage;
use coracle::config::{RootConfig, RootKind};
use coracle_arch::nameless_file;
use coracle_image::initramfs::ModuleTree;
use coracle_image::kernel_image;
use coracle_image::rootfs::{self, ImageReport, RootError};
use coracle_payload::Payload;
use vmm_sys_util::tempdir::TempDir;

/// Counts the current and peak memory of each thread, and leaves the rest to the system's allocator.
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

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of the same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of the same method.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller upholds the contract of the same method.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller upholds the contract of the same method.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does the work on a file of `len` bytes and compares its peak memory with the limit.
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

/// The memory that may be used for any file, and for each of its bytes.
const BASE: usize = 32 << 20;
const TIMES: usize = 8;

#[test]
fn memory_is_counted() {
    within_limit("as much as may be", 1 << 20, || vec![1_u8; BASE + (1 << 20) * TIMES]);
    let too_much = || within_limit("one byte more", 1 << 20, || vec![1_u8; BASE + (1 << 20) * TIMES + 1]);
    assert!(std::panic::catch_unwind(too_much).is_err());
}

/// A tar under construction.
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
    let file = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Creates an image from a tar, within the limit.
#[track_caller]
fn image_of(what: &str, tar: &[u8]) -> Result<ImageReport, RootError> {
    let (source, image) = (file(tar), file(b""));
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    let root = RootConfig { kind: Some(RootKind::Tar), ..RootConfig::new(path) };
    within_limit(what, tar.len(), || rootfs::write_image(&root, &image))
}

/// Returns empty pieces of a sparse file, as many as a header has room for.
fn empty_pieces() -> Vec<u8> {
    let mut map = b"0,0,".repeat(200_000);
    map.pop();
    map
}

/// Returns a member in deeply nested directories, none of which is in the tar.
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
    for number in 0..3 {
        labelled.pax(b'x', &labels).member(b'0', format!("f{number}").as_bytes(), b"");
        same.pax(b'x', &labels).member(b'5', b"same", b"");
    }
    let mut in_front = Tar::default();
    let lines = ["250000\n".to_owned(), "0\n".repeat(500_000)].concat();
    in_front.pax(b'x', &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"0")]);
    in_front.member(b'0', b"in-front", lines.as_bytes());
    vec![
        ("sparse map for all files", Tar::default().pax(b'g', &sparse).files(200).end()),
        ("sparse map for each file", each.end()),
        ("sparse map in front", in_front.end()),
        ("many files", Tar::default().files(5_000).end()),
        ("many folders", deep_members(3_000)),
        ("many attributes", labelled.end()),
        ("one folder again and again", same.end()),
    ]
}

#[test]
fn tars_take_memory_in_proportion_to_their_size() {
    for (what, tar) in hostile_tars() {
        let _ = image_of(what, &tar);
    }
    // A valid file is accepted.
    let report = image_of("honest files", &Tar::default().files(20_000).end()).unwrap();
    assert_eq!(report.files, 20_001);
}

#[test]
fn packed_tars_take_memory_in_proportion_to_their_packed_size() {
    for (what, tar) in hostile_tars() {
        for (packing, packed) in packed::usual(&tar) {
            let _ = image_of(&format!("{what}, {packing}"), &packed);
        }
    }
    for (packing, packed) in packed::usual(&Tar::default().files(5_000).end()) {
        let report = image_of(&format!("honest files, {packing}"), &packed).unwrap();
        assert_eq!(report.files, 5_001);
    }
    // Highly compressed data to all of which later data may refer.
    let zeroes = vec![0; 50 << 20];
    for len in [50 << 20, 15 << 20] {
        let tar = Tar::default().member(b'0', b"zeroes", &zeroes[..len]).end();
        for (packing, packed) in packed::greedy_tars(&tar) {
            image_of(&format!("{len} bytes in {packing}"), &packed).unwrap();
        }
    }
}

/// Returns a list of many copies of a text, in the syntax of JSON and TOML.
fn list(text: &str, len: usize) -> String {
    let item = format!("{text},");
    item.repeat(len / item.len()).trim_end_matches(',').to_owned()
}

#[test]
fn config_files_take_memory_in_proportion_to_their_size() {
    const LEN: usize = 260_000;
    for (what, text) in [
        ("initrds", format!("{{\"initrds\": [{}]}}", list("\"\"", LEN))),
        ("words", format!("{{\"append\": [{}]}}", list("\"a\"", LEN))),
        ("disks", format!("{{\"disks\": [{}]}}", list("\"a\"", LEN))),
        ("nets", format!("{{\"nets\": [{}]}}", list("\"none\"", LEN))),
        ("one word", format!("{{\"cmdline\": \"{}\"}}", "\\n".repeat(LEN / 2))),
        ("one key", format!("{{\"{}\": 1}}", "k".repeat(LEN))),
        ("brackets", "[".repeat(LEN)),
        ("line breaks", "\n".repeat(LEN)),
    ] {
        within_limit(&format!("config, {what}"), text.len(), || fuzz::config_file(text.as_bytes()));
    }
}

/// Fills a suite with lines, each made from its number.
fn numbered(line: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for number in 0.. {
        let line = line(number);
        if text.len() + line.len() > SUITE_LEN {
            break;
        }
        text.push_str(&line);
    }
    text
}

/// Slightly less than the maximum size of a suite.
const SUITE_LEN: usize = 130_000;

#[test]
fn suites_take_memory_in_proportion_to_their_size() {
    const LEN: usize = SUITE_LEN;
    let case = "[[case]]\nname = \"x\"\n";
    let times: String = (1..5000).map(|number| format!("\"{number}s\",")).collect();
    for (what, text) in [
        ("cases", numbered(|number| format!("[[case]]\nname=\"{number}\"\n"))),
        ("cases without a name", "[[case]]\n".repeat(LEN / 9)),
        ("keys", numbered(|number| format!("a{number}=1\n"))),
        ("numbers", format!("[defaults]\nexpect = [{}]\n{case}", list("1", LEN))),
        ("tables", format!("[matrix]\ncpus = [{}]\n{case}", list("{a=1}", LEN))),
        ("empty tables", format!("[matrix]\ncpus = [{}]\n{case}", list("{}", LEN))),
        ("tables of one case", format!("[[case]]\nname = \"x\"\ncommand = [{}]\n", list("{a={}}", LEN))),
        ("folders", numbered(|number| format!("[{number}]\n"))),
        ("a key in a key", format!("{}a = 1\n", "a.".repeat(LEN / 2))),
        ("brackets", format!("a = {}", "[".repeat(LEN))),
        (
            "a matrix",
            format!(
                "[defaults]\ncommand = [\"{}\"]\n[matrix]\ntimeout = [{times}]\n{case}",
                "a".repeat(5000)
            ),
        ),
        (
            "a product",
            format!(
                "[matrix]\n{}{case}",
                ["cpus", "memory", "kernel", "timeout", "rng"]
                    .map(|key| format!("{key} = [{}]\n", list("1", 9000)))
                    .concat()
            ),
        ),
        (
            "patterns",
            format!(
                "[[case]]\nname = \"x\"\nexpect = [{}]\n",
                numbered(|n| format!("\"{n}(x{{99}}){{99}}\","))
            ),
        ),
        ("a pattern", "[[case]]\nname = \"x\"\nexpect = [\"((x{999}){999}){999}\"]\n".to_owned()),
    ] {
        within_limit(&format!("suite, {what}"), text.len(), || fuzz::suite_toml(text.as_bytes()));
    }
}

#[test]
fn kernels_take_memory_in_proportion_to_their_size() {
    let zeroes = vec![0; 64 << 20];
    for (len, fits) in [(zeroes.len(), false), (16 << 20, true)] {
        for (packing, mut payload) in packed::greedy_kernels(&zeroes[..len]) {
            if packing != "gzip" {
                payload.extend_from_slice(&(len as u32).to_le_bytes());
            }
            let mut image = Payload::named("exit-7").unwrap().bzimage(&payload);
            image[0x260..0x264].copy_from_slice(&(1_u32 << 30).to_le_bytes());
            let kernel = file(&image);
            let path = format!("/proc/self/fd/{}", kernel.as_raw_fd());
            let unpacked = within_limit(&format!("bzImage, {len} bytes in {packing}"), image.len(), || {
                kernel_image::unpack(&KernelImage::open(path.as_ref()).unwrap()).map(drop)
            });
            assert!(
                unpacked.is_ok() == fits || packing.contains("a small window"),
                "{packing}: {unpacked:?}"
            );
        }
    }
    // An ELF file with the maximum number of headers, each a note of the maximum length.
    let mut elf = Payload::named("exit-7").unwrap().elf();
    elf[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    elf.resize(1 << 20, 4);
    within_limit("ELF, headers", elf.len(), || fuzz::kernel_image(&elf));
}

#[test]
fn what_a_diagnosis_reads_takes_memory_in_proportion_to_its_size() {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[40..48].copy_from_slice(&64_u64.to_le_bytes());
    elf[58..62].copy_from_slice(&[64, 0, 0xff, 0xff]);
    // Sections that are symbol tables of 64 MiB, each with its names in itself.
    let mut section = [0; 64];
    section[4] = 2;
    section[32..40].copy_from_slice(&(64_u64 << 20).to_le_bytes());
    section[56] = 24;
    elf.extend(section.repeat(2000));
    within_limit("symbols", elf.len(), || fuzz::diagnosis_inputs(&elf));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&vec![b'\n'; 20 << 20]).unwrap();
    let options = [&b"IKCFG_ST"[..], &gzip.finish().unwrap()].concat();
    within_limit("options", options.len(), || fuzz::diagnosis_inputs(&options));
    let marks = b"IKCFG_ST".repeat(60_000);
    within_limit("options, marks", marks.len(), || fuzz::diagnosis_inputs(&marks));
}

#[test]
fn results_in_tap_take_memory_in_proportion_to_their_text() {
    const LEN: usize = 500_000;
    for (what, text) in [
        ("results", "ok\n".repeat(LEN / 3)),
        ("one line", format!("ok 1 - {}\n", "x".repeat(LEN))),
        ("documents", "TAP version 13\n1..0\n".repeat(LEN / 20)),
        ("levels", (0..700).map(|level| format!("{}ok\n", " ".repeat(level * 2))).collect()),
        ("escapes", "\x1b[".repeat(LEN / 2)),
    ] {
        // The first byte is the size of the pieces in which the data comes.
        let text = format!("@TAP version 14\n{text}");
        within_limit(&format!("TAP, {what}"), text.len(), || fuzz::tap_stream(text.as_bytes()));
    }
}

#[test]
fn modules_take_memory_in_proportion_to_their_size() {
    let folder = TempDir::new().unwrap();
    let folder = folder.as_path();
    std::fs::write(folder.join("modules.builtin"), "").unwrap();
    let names: String = (0..60_000).map(|number| format!("{number:x}.ko:\n")).collect();
    for (what, list) in [("modules.dep", names), ("modules.dep, one name", "a.ko:\n".repeat(500_000))] {
        std::fs::write(folder.join("modules.dep"), &list).unwrap();
        within_limit(what, list.len(), || ModuleTree::open(folder).map(drop)).unwrap();
    }
    std::fs::write(folder.join("modules.dep"), "a.ko.xz:\n").unwrap();
    for len in [40 << 20, 15 << 20] {
        for (packing, packed) in packed::greedy_kernels(&vec![0; len]) {
            std::fs::write(folder.join("a.ko.xz"), &packed).unwrap();
            let mut tree = ModuleTree::open(folder).unwrap();
            let what = format!("module, {len} bytes in {packing}");
            let found = within_limit(&what, packed.len(), || tree.closure(&["a"]).map(drop));
            assert!(found.is_err(), "{packing}");
        }
    }
}

/// Makes the file `state` of a snapshot with these sections, whose checksums match.
fn snapshot_state(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let with_checksum = |mut header: Vec<u8>| {
        header.extend(crc32fast::hash(&header).to_le_bytes());
        header
    };
    let mut header = b"CORASTAT\x01\0\0\0\x3e\0".to_vec();
    header.extend((sections.len() as u16).to_le_bytes());
    header.extend([0; 20]);
    let mut file = with_checksum(header);
    for (name, content) in sections {
        let mut header = name.as_bytes().to_vec();
        header.resize(24, 0);
        // Version 1, and required.
        header.extend([1, 0, 1, 0]);
        header.extend((content.len() as u32).to_le_bytes());
        header.extend(crc32fast::hash(content).to_le_bytes());
        file.extend(with_checksum(header));
        file.extend_from_slice(content);
    }
    file
}

/// Encodes a length as postcard does.
fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[test]
fn states_of_snapshots_take_memory_in_proportion_to_their_size() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/snapshot_state/counter");
    let real = std::fs::read(corpus).unwrap();
    let mut sections = Vec::new();
    let mut rest = &real[40..];
    while let Some((header, content)) = rest.split_first_chunk::<40>() {
        let name = String::from_utf8_lossy(&header[..24]).trim_end_matches('\0').to_owned();
        let len = u32::from_le_bytes(header[28..32].try_into().unwrap()) as usize;
        sections.push((name, content[..len].to_vec()));
        rest = &content[len..];
    }
    let list = |count: usize, entry: &[u8]| [varint(count), entry.repeat(count)].concat();
    for (name, content) in [
        // A vCPU with as many leaves of CPUID as fit, 7 bytes each and 28 in memory, and without a state.
        ("vcpus", [varint(1), list((8 << 20) / 7 - 1, &[0; 7])].concat()),
        ("vcpus", varint(usize::MAX >> 1)),
        ("legacy", list((64 << 10) / 3 - 2, &[0; 3])),
        ("ram", list(1300, &[1, 0, 0])),
        ("weather", vec![0; 15 << 20]),
    ] {
        let mut hostile = sections.clone();
        hostile.retain(|(other, _)| other != name);
        hostile.push((name.to_owned(), content));
        let file: Vec<(&str, &[u8])> =
            hostile.iter().map(|(name, content)| (&name[..], &content[..])).collect();
        let file = snapshot_state(&file);
        let result = within_limit(name, file.len(), || coracle::fuzzing::read_state(&file, 1, 16));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
}
