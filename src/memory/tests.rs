//! Guest RAM, frozen RAM and its forks, with real memory files.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use vm_memory::Bytes;

use super::frozen::MAX_PARTS;
use super::*;

mod branches;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn memory(text: &str) -> MemoryConfig {
    text.parse().unwrap()
}

fn ram(text: &str) -> GuestRam {
    GuestRam::new(memory(text), 0).unwrap()
}

/// Returns the content of a page that says where it is, and who wrote it.
fn pattern(address: u64, writer: u64) -> Vec<u8> {
    let word = (address / PAGE + 1) << 8 | writer;
    word.to_ne_bytes().repeat(PAGE as usize / 8)
}

fn write(ram: &GuestRam, addresses: impl IntoIterator<Item = u64>, writer: u64) {
    for address in addresses {
        ram.mmap().write_slice(&pattern(address, writer), GuestAddress(address)).unwrap();
    }
}

fn clear(ram: &GuestRam, address: u64) {
    ram.mmap().write_slice(&[0; PAGE as usize], GuestAddress(address)).unwrap();
}

fn page(ram: &GuestRam, address: u64) -> Vec<u8> {
    let mut bytes = vec![1; PAGE as usize];
    ram.mmap().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[track_caller]
fn has(ram: &GuestRam, addresses: impl IntoIterator<Item = u64>, writer: u64) {
    for address in addresses {
        assert!(page(ram, address) == pattern(address, writer), "{address:#x} by {writer}");
    }
}

#[track_caller]
fn is_zero(ram: &GuestRam, addresses: impl IntoIterator<Item = u64>) {
    for address in addresses {
        assert!(page(ram, address).iter().all(|byte| *byte == 0), "{address:#x}");
    }
}

/// Returns the only file of frozen RAM.
fn file(frozen: &FrozenRam) -> &File {
    let [file] = frozen.files() else { panic!("{:?}", frozen.files()) };
    file
}

/// Returns the offsets of the pages of a frozen file that are not holes.
fn data(frozen: &FrozenRam) -> Vec<u64> {
    let mut rest = 0..frozen.memory().bytes();
    let mut pages = Vec::new();
    while let Some(data) = next_data(file(frozen), &rest).unwrap() {
        rest.start = data.end;
        pages.extend(data.step_by(PAGE as usize));
    }
    pages
}

/// Returns the first and the last MiB of each part of a region.
fn parts(frozen: &FrozenRam, region: usize) -> Vec<(u64, u64)> {
    let pieces = frozen.regions()[region].pieces.iter();
    pieces.map(|piece| (piece.range.start / MIB, piece.range.end / MIB)).collect()
}

fn bytes_of(frozen: &FrozenRam) -> u64 {
    file(frozen).metadata().unwrap().blocks() * 512
}

#[test]
fn mapping_of_any_length_is_aligned() {
    // The kernel itself aligns multiples of 2 MiB, and nothing else.
    for pages in [512, 513, 768, 4096] {
        // All at once, so that few can lie well by chance.
        let mappings: Vec<Mapping> =
            (0..8).map(|_| Mapping::small_pages(pages * 4096, Source::Anonymous).unwrap()).collect();
        for mut mapping in mappings {
            assert_eq!(mapping.address().align_offset(HUGE_PAGE), 0, "{pages}");
            let all = 0..mapping.bytes();
            assert!(mapping.content(&all).unwrap().iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn ram_is_aligned_for_huge_pages_and_holds_what_is_written() {
    for text in ["5G", "size=5G,memfd"] {
        let ram = ram(text);
        for region in ram.regions() {
            assert_eq!(region.host_address % HUGE_PAGE as u64, 0);
        }
        assert_eq!(ram.regions().map(|region| region.bytes).sum::<u64>(), 5 << 30);
        let last = ram.regions().last().unwrap();
        let address = GuestAddress(last.guest_address + last.bytes - 8);
        ram.mmap().write_obj(0x1122_3344_5566_7788_u64, address).unwrap();
        assert_eq!(ram.mmap().read_obj::<u64>(address).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(ram.mmap().read_obj::<u64>(GuestAddress(0)).unwrap(), 0, "regions do not share pages");
    }
}

#[test]
fn huge_pages_are_reserved_or_the_error_says_how_to_have_more() {
    let wanted = memory("size=1T,hugepages=2M");
    let error = GuestRam::new(wanted, 0).unwrap_err().to_string();
    assert!(error.contains("524288 huge pages of 2M") && error.contains("nr_hugepages"), "{error}");
    match GuestRam::new(memory("size=4M,hugepages=2M"), 0) {
        Ok(ram) => ram.mmap().write_obj(1u64, GuestAddress(3 << 20)).unwrap(),
        Err(error) => assert!(error.to_string().contains("it takes 2 huge pages of 2M"), "{error}"),
    }
}

/// Pages on both sides of the hole, and their offsets in the file.
const TOUCHED: [(u64, u64); 9] = [
    (0, 0),
    (PAGE, PAGE),
    (5 * PAGE, 5 * PAGE),
    (2 * MIB - PAGE, 2 * MIB - PAGE),
    (33 * MIB, 33 * MIB),
    (GIB + 7 * PAGE, GIB + 7 * PAGE),
    (3 * GIB - PAGE, 3 * GIB - PAGE),
    (4 * GIB, 3 * GIB),
    (6 * GIB - PAGE, 5 * GIB - PAGE),
];

#[test]
fn frozen_file_has_the_pages_with_content_and_no_others() {
    let addresses = || TOUCHED.map(|(address, _)| address);
    for text in ["5G", "size=5G,memfd"] {
        let ram = ram(text);
        write(&ram, addresses(), 1);
        // Touched, and zero again or from the start.
        for address in [9 * PAGE, 65 * MIB] {
            write(&ram, [address], 1);
            clear(&ram, address);
        }
        is_zero(&ram, [11 * PAGE, 4 * GIB + 9 * MIB]);

        let frozen = ram.freeze().unwrap();
        let mut content = vec![0; PAGE as usize];
        for (address, offset) in TOUCHED {
            file(&frozen).read_exact_at(&mut content, offset).unwrap();
            assert!(content == pattern(address, 1), "{text}: {address:#x}");
        }
        let fork = GuestRam::private_over(&frozen).unwrap();
        has(&fork, addresses(), 1);
        is_zero(&fork, [9 * PAGE, 65 * MIB, 11 * PAGE, 4 * GIB + 9 * MIB]);
        assert!(fork.regions().all(|region| region.host_address % HUGE_PAGE as u64 == 0));
        if text == "5G" {
            // The zeroes that the fork has read may be pages of the file now, and are none of the copy.
            let copy = GuestRam::private_over(&frozen).unwrap().freeze().unwrap();
            assert_eq!(data(&copy), TOUCHED.map(|(_, offset)| offset));
        }
    }
}

#[test]
fn template_takes_the_memory_of_its_content_and_forks_add_none_outside_of_it() {
    let ram = ram("128M");
    let addresses = || (16 * MIB..24 * MIB).step_by(PAGE as usize);
    write(&ram, addresses(), 1);
    let frozen = ram.freeze().unwrap();
    assert_eq!((bytes_of(&frozen), parts(&frozen, 0)), (8 * MIB, vec![(16, 24)]));
    let fork = GuestRam::private_over(&frozen).unwrap();
    write(&fork, [0, 24 * MIB], 2);
    is_zero(&fork, [127 * MIB]);
    write(&fork, addresses(), 2);
    assert_eq!(bytes_of(&frozen), 8 * MIB);
}

/// A memory file that the guest used stays the same file.
#[test]
fn memory_file_is_frozen_without_a_copy() {
    let ram = ram("size=64M,memfd");
    write(&ram, [0, 40 * MIB], 1);
    let before = match &*ram.owned.origin() {
        Origin::File(file) => file.metadata().unwrap(),
        other => panic!("{other:?}"),
    };
    let frozen = ram.freeze().unwrap();
    let after = file(&frozen).metadata().unwrap();
    assert_eq!((after.ino(), after.blocks()), (before.ino(), before.blocks()));
}

#[test]
fn forks_see_only_their_own_writes() {
    for text in ["64M", "size=64M,memfd"] {
        let ram = ram(text);
        // In the file: 0, 1 and 32 MiB. Not in the file: 16 MiB.
        write(&ram, [0, MIB, 32 * MIB], 1);
        let frozen = ram.freeze().unwrap();
        let [one, two, idle] = [(); 3].map(|()| GuestRam::private_over(&frozen).unwrap());
        for (fork, writer) in [(&one, 2), (&two, 3)] {
            write(fork, [0, PAGE, 16 * MIB, 32 * MIB], writer);
        }
        for (fork, writer) in [(&one, 2), (&two, 3)] {
            has(fork, [0, PAGE, 16 * MIB, 32 * MIB], writer);
            has(fork, [MIB], 1);
        }
        let late = GuestRam::private_over(&frozen).unwrap();
        for fork in [&idle, &late] {
            has(fork, [0, MIB, 32 * MIB], 1);
            is_zero(fork, [PAGE, 16 * MIB]);
        }
        drop((one, two, frozen));
        has(&idle, [0, MIB, 32 * MIB], 1);
    }
}

#[test]
fn sealed_file_refuses_every_change() {
    for text in ["64M", "size=64M,memfd"] {
        let ram = ram(text);
        write(&ram, [0], 1);
        let frozen = ram.freeze().unwrap();
        let file = file(&frozen);
        let fails =
            |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
        fails(file.write_all_at(b"x", 0));
        fails(file.write_all_at(b"x", 64 * MIB));
        fails(file.set_len(63 * MIB));
        fails(file.set_len(65 * MIB));
        let fd = file.as_raw_fd();
        let result = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call changes nothing but the file.
        fails(result(unsafe { libc::fallocate(fd, punch, 0, 4096) }));
        // SAFETY: as above.
        fails(result(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }));
        fails(map_shared(file, 4096).map(drop));
        // SAFETY: the call changes nothing.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        let all = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        assert_eq!(seals, all);

        let fork = GuestRam::private_over(&frozen).unwrap();
        let address = fork.regions().next().unwrap().host_address as *mut libc::c_void;
        // SAFETY: the page is part of the fork's RAM.
        assert_eq!(unsafe { libc::madvise(address, 4096, libc::MADV_REMOVE) }, -1);
        has(&fork, [0], 1);
    }
}

/// Maps a file as another process would, for writing.
fn map_shared(file: &File, bytes: usize) -> io::Result<Mapping> {
    Mapping::small_pages(bytes, Source::SharedFile { file, offset: 0 })
}

#[test]
fn fork_of_a_fork_has_what_both_have_written() {
    for text in ["5G", "size=5G,memfd"] {
        let base = ram(text);
        write(&base, [0, PAGE, 2 * PAGE, 40 * MIB, 80 * MIB, 4 * GIB], 1);
        let first = base.freeze().unwrap();
        let fork = GuestRam::private_over(&first).unwrap();
        // Over content, over a hole in a part of the file, and outside of the parts; and content cleared.
        let written = [PAGE, 7 * PAGE, 3 * GIB - PAGE, 4 * GIB, 6 * GIB - PAGE];
        write(&fork, written, 2);
        clear(&fork, 2 * PAGE);
        // Reading is not writing.
        has(&fork, [0, 40 * MIB], 1);
        is_zero(&fork, [8 * PAGE]);
        let second = fork.freeze().unwrap();
        let expected = [0, PAGE, 7 * PAGE, 40 * MIB, 80 * MIB, 3 * GIB - PAGE, 3 * GIB, 5 * GIB - PAGE];
        assert_eq!(data(&second), expected, "{text}");
        let unchanged = GuestRam::private_over(&first).unwrap();
        has(&unchanged, [0, PAGE, 2 * PAGE, 40 * MIB, 4 * GIB], 1);
        drop((first, unchanged));

        let fork = GuestRam::private_over(&second).unwrap();
        write(&fork, [40 * MIB], 3);
        let third = fork.freeze().unwrap();
        drop(second);
        let fork = GuestRam::private_over(&third).unwrap();
        has(&fork, [0, 80 * MIB], 1);
        has(&fork, written, 2);
        has(&fork, [40 * MIB], 3);
        is_zero(&fork, [2 * PAGE]);
    }
}

#[test]
fn parts_of_a_region_leave_out_its_largest_holes() {
    let parts_of = |touched: &[u64]| {
        let ram = ram("256M");
        write(&ram, touched.iter().map(|mib| mib * MIB), 1);
        parts(&ram.freeze().unwrap(), 0)
    };
    assert_eq!(parts_of(&[]), []);
    assert_eq!(parts_of(&[0]), [(0, 2)]);
    assert_eq!(parts_of(&[255]), [(254, 256)]);
    assert_eq!(parts_of(&[1, 2, 3, 9]), [(0, 4), (8, 10)]);
    // Nine holes: those of 2 MiB between 20 and 30 are not among the seven largest.
    let touched = [0, 20, 24, 28, 40, 60, 80, 100, 130, 190];
    let expected = [(0, 2), (20, 30), (40, 42), (60, 62), (80, 82), (100, 102), (130, 132), (190, 192)];
    assert_eq!((parts_of(&touched), expected.len()), (expected.to_vec(), MAX_PARTS));
}

#[test]
fn last_part_of_an_odd_size_ends_with_the_ram() {
    for text in ["67M", "size=67M,memfd"] {
        let ram = ram(text);
        write(&ram, [67 * MIB - PAGE], 1);
        let frozen = ram.freeze().unwrap();
        assert_eq!(parts(&frozen, 0), [(66, 67)]);
        has(&GuestRam::private_over(&frozen).unwrap(), [67 * MIB - PAGE], 1);
    }
}

#[test]
fn devices_learn_how_pages_return_to_the_host() {
    assert_eq!(ram("4M").for_devices().kind(), MappingKind::Private);
    for text in ["4M", "size=4M,memfd"] {
        let frozen = ram(text).freeze().unwrap();
        let fork = GuestRam::private_over(&frozen).unwrap();
        assert_eq!(fork.for_devices().kind(), MappingKind::Private, "{text}");
    }
    assert_eq!(ram("size=4M,memfd").for_devices().kind(), MappingKind::SharedFile);
}

/// Runs the test of this name in a process of its own, because it counts or limits what belongs to the whole
/// process. Returns false if it has run there.
fn is_alone(test: &str) -> bool {
    const CHILD: &str = "CORACLE_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let test = format!("memory::tests::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// Returns the number of mappings of this process, and its private dirty memory in KiB.
fn held() -> (usize, u64) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let dirty = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    (maps, dirty.trim().trim_end_matches(" kB").parse().unwrap())
}

#[test]
fn many_forks_cost_little() {
    if !is_alone("many_forks_cost_little") {
        return;
    }
    let ram = ram("128M");
    write(&ram, (0..8 * MIB).step_by(PAGE as usize), 1);
    write(&ram, [100 * MIB], 1);
    let (_, before) = held();
    assert!(before >= 8 << 10, "{before} KiB");
    let frozen = ram.freeze().unwrap();
    let (_, frozen_kib) = held();
    assert!(frozen_kib <= before - (8 << 10) + 512, "{frozen_kib} KiB, and {before} before");

    let mut forks = Vec::with_capacity(64);
    for count in 1..=64 {
        let (maps, _) = held();
        let fork = GuestRam::private_over(&frozen).unwrap();
        // Two parts of the file, and the anonymous memory after each; neighbours of the same kind may merge.
        let added = held().0 - maps;
        assert!((3..=4).contains(&added), "{added} mappings of fork {count}");
        for address in (0..8 * MIB).step_by(PAGE as usize) {
            fork.mmap().read_obj::<u64>(GuestAddress(address)).unwrap();
        }
        write(&fork, [0, 100 * MIB], 2);
        forks.push(fork);
    }
    let (_, dirty) = held();
    // Two pages each, and what the allocator needs.
    assert!(dirty - frozen_kib <= 64 * (8 + 8) + 512, "{dirty} KiB, and {frozen_kib} without forks");
    assert_eq!(bytes_of(&frozen), 8 * MIB + PAGE);
}

#[test]
fn mappings_of_a_fork_do_not_depend_on_its_size() {
    if !is_alone("mappings_of_a_fork_do_not_depend_on_its_size") {
        return;
    }
    let ram = ram("64G");
    for start in [0, 4 * GIB] {
        write(&ram, (start..start + 2 * GIB).step_by(32 << 20), 1);
    }
    let frozen = ram.freeze().unwrap();
    let (maps, _) = held();
    let fork = GuestRam::private_over(&frozen).unwrap();
    let added = held().0 - maps;
    assert!(added <= 2 * (2 * MAX_PARTS + 1), "{added}");
    has(&fork, (0..2 * GIB).step_by(32 << 20), 1);
}

/// Limits a resource of this process until the guard is dropped.
struct Limit(libc::__rlimit_resource_t, libc::rlimit);

impl Limit {
    fn new(resource: libc::__rlimit_resource_t, most: u64) -> Limit {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure has room for the answer.
        assert_eq!(unsafe { libc::getrlimit(resource, &raw mut before) }, 0);
        let limit = libc::rlimit { rlim_cur: most, ..before };
        // SAFETY: the structure is valid.
        assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
        Limit(resource, before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: the structure is valid.
        unsafe { libc::setrlimit(self.0, &raw const self.1) };
    }
}

/// Lets this process open `more` files and no others.
fn limit_descriptors(more: usize) -> Limit {
    // A new descriptor has the lowest free number.
    let mut files: Vec<File> = (0..=more).map(|_| File::open("/dev/null").unwrap()).collect();
    let first_refused = files.pop().unwrap().as_raw_fd();
    Limit::new(libc::RLIMIT_NOFILE, first_refused as u64)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn virtual_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns RAM of 512 MiB with some content.
fn some(text: &str) -> GuestRam {
    let ram = ram(&format!("size=512M{text}"));
    write(&ram, [0], 1);
    ram
}

#[test]
fn errors_leave_nothing_behind() {
    if !is_alone("errors_leave_nothing_behind") {
        return;
    }
    let over = |frozen: &FrozenRam| GuestRam::private_over(frozen).unwrap();
    // What the process keeps after its first use is not the cost of an error.
    drop(over(&over(&some("").freeze().unwrap()).freeze().unwrap()));
    let before = (descriptors(), virtual_kib());
    let check = |name: &str, error: MemoryError, words: &str| {
        assert!(format!("{error:?}").starts_with(name), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("512M"), "{text}");
        let after = (descriptors(), virtual_kib());
        assert_eq!(after.0, before.0, "{name}");
        assert!(after.1 < before.1 + (64 << 10), "{name}: {after:?} {before:?}");
    };
    for origin in ["", "of a fork"] {
        let some = || if origin.is_empty() { some("") } else { over(&some("").freeze().unwrap()) };
        let cases = [(0, "TouchedPages", "/proc/self/pagemap"), (1, "Freeze", "Too many open files")];
        for (more, name, words) in cases {
            let (ram, limit) = (some(), limit_descriptors(more));
            let error = ram.freeze().unwrap_err();
            drop(limit);
            check(name, error, words);
        }

        let ram = some();
        let user = ram.for_devices();
        let error = ram.freeze().unwrap_err();
        drop(user);
        check("InUse", error, "cannot be frozen while");
    }
    let ram = some(",memfd");
    let elsewhere = match &*ram.owned.origin() {
        Origin::File(file) => map_shared(file, 4096).unwrap(),
        other => panic!("{other:?}"),
    };
    let error = ram.freeze().unwrap_err();
    drop(elsewhere);
    check("Seal", error, "cannot be sealed");

    let frozen = some("").freeze().unwrap();
    let limit = Limit::new(libc::RLIMIT_AS, (before.1 + (256 << 10)) << 10);
    let error = GuestRam::private_over(&frozen).unwrap_err();
    drop((limit, frozen));
    check("MapFork", error, "Cannot allocate memory");

    // Pages of the usual size in place of reserved ones, which a host seldom has.
    let (mappings, origin) = map(memory("512M")).unwrap();
    let ram = GuestRam::of(memory("size=512M,hugepages=2M"), mappings, origin).unwrap();
    check("FrozenHugePages", ram.freeze().unwrap_err(), "use memory without them");
    assert!(FrozenRam::check(memory("size=2G,hugepages=1G")).is_err());
    assert!(FrozenRam::check(memory("size=2G,memfd")).is_ok() && FrozenRam::check(memory("2G")).is_ok());
}

/// Saves RAM to a file on disk, and uses that as frozen RAM.
fn saved(memory: MemoryConfig, save: impl FnOnce(&File) -> Result<Parts, SaveError>) -> (FrozenRam, Parts) {
    let file = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    // What follows the RAM is not part of it.
    file.write_all_at(&[0xee; 100], memory.bytes()).unwrap();
    let parts = save(&file).unwrap();
    let mut end = [0; 100];
    file.read_exact_at(&mut end, memory.bytes()).unwrap();
    assert_eq!(end, [0xee; 100]);
    (FrozenRam::of_file(memory, file, parts.clone()).unwrap(), parts)
}

type Parts = Vec<Vec<std::ops::Range<u64>>>;

#[test]
fn saved_ram_comes_back_and_stays_as_it_was() {
    for text in ["5G", "size=5G,memfd"] {
        let ram = ram(text);
        let pages = [0, 5 * PAGE, 100 * MIB, 3 * GIB - PAGE, 4 * GIB, 6 * GIB - PAGE];
        write(&ram, pages, 1);
        clear(&ram, 200 * MIB);
        let (frozen, parts) = saved(memory(text), |file| ram.save(file));
        has(&ram, pages, 1);
        let (low, high) = (&parts[0], &parts[1]);
        assert_eq!(*low, [0..2 * MIB, 100 * MIB..102 * MIB, 3 * GIB - 2 * MIB..3 * GIB], "{text}");
        assert_eq!(*high, [0..2 * MIB, 2 * GIB - 2 * MIB..2 * GIB], "{text}");
        let blocks = file(&frozen).metadata().unwrap().blocks() * 512;
        assert!(blocks <= 16 * PAGE, "{blocks} bytes for {} pages", pages.len());
        let fork = GuestRam::private_over(&frozen).unwrap();
        has(&fork, pages, 1);
        is_zero(&fork, [PAGE, 99 * MIB, 200 * MIB, GIB, 5 * GIB]);
        // A second generation, with pages of both.
        write(&fork, [5 * PAGE, 7 * MIB], 2);
        clear(&fork, 100 * MIB);
        let (second, _) = saved(memory(text), |file| fork.save(file));
        let (third, _) = saved(memory(text), |file| fork.freeze().unwrap().save(file));
        for frozen in [second, third] {
            let fork = GuestRam::private_over(&frozen).unwrap();
            has(&fork, [5 * PAGE, 7 * MIB], 2);
            has(&fork, [0, 3 * GIB - PAGE, 4 * GIB], 1);
            is_zero(&fork, [100 * MIB]);
        }
        let again = GuestRam::private_over(&frozen).unwrap();
        has(&again, pages, 1);
    }
}

#[test]
fn parts_that_the_ram_cannot_have_are_refused() {
    let file = || nameless_file::create_in_memory(c"parts", 0).unwrap();
    let of = |parts: Parts| FrozenRam::of_file(memory("5M"), file(), parts).is_some();
    let one = |start, end| of(vec![vec![start * MIB..end * MIB]]);
    assert!(one(0, 2) && one(2, 5) && one(4, 5) && of(vec![Vec::new()]));
    assert!(!one(0, 6) && !one(0, 1) && !one(2, 2) && !one(4, 2) && !one(5, 5) && !one(1, 5));
    assert!(!of(Vec::new()) && !of(vec![Vec::new(), Vec::new()]));
    assert!(of(vec![vec![0..2 * MIB, 2 * MIB..4 * MIB]]), "without a hole between them");
    assert!(!of(vec![vec![2 * MIB..4 * MIB, 0..2 * MIB]]) && !of(vec![vec![0..4 * MIB, 2 * MIB..5 * MIB]]));
    assert!(!of(vec![vec![0..1 << 63]]) && !of(vec![vec![0..u64::MAX - PAGE]]));
    let many = |count: u64| {
        let parts = (0..count).map(|part| part * 4 * MIB..part * 4 * MIB + 2 * MIB);
        FrozenRam::of_file(memory("1G"), file(), vec![parts.collect()]).is_some()
    };
    assert!(many(MAX_PARTS as u64) && !many(MAX_PARTS as u64 + 1));
}
