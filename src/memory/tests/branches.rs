//! RAM that is frozen while its machine runs on.

use super::super::branch::{MAX_FILES, MAX_MAPPINGS};
use super::super::layers::{lay_over, ranges_to_copy};
use super::super::page_map::PageMap;
use super::*;
use std::cell::Cell;
use std::ops::Range;

/// Counts the mappings of this process in the RAM.
fn mappings(ram: &GuestRam) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().map(|line| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap());
    let is_inside = |start: &u64| {
        ram.regions().any(|region| (region.host_address..region.host_address + region.bytes).contains(start))
    };
    starts.filter(is_inside).count()
}

/// Returns the bytes that the newest file has.
fn newest(frozen: &FrozenRam) -> u64 {
    frozen.files().last().map_or(0, |file| file.metadata().unwrap().blocks() * 512)
}

#[test]
fn machine_and_its_children_see_only_their_own_writes() {
    for text in ["5G", "size=5G,memfd"] {
        let parent = ram(text);
        let pages = [0, PAGE, 5 * PAGE, 33 * MIB, 3 * GIB - PAGE, 4 * GIB, 6 * GIB - PAGE];
        write(&parent, pages, 1);
        let addresses: Vec<_> = parent.regions().map(|region| region.host_address).collect();
        let first = GuestRam::private_over(&parent.branch(None, &mut None, &|| false).unwrap()).unwrap();
        for ram in [&parent, &first] {
            has(ram, pages, 1);
            is_zero(ram, [2 * PAGE, 40 * MIB, 5 * GIB]);
        }
        // Over content, in its neighbourhood, and far from any.
        write(&parent, [PAGE, 2 * PAGE, 70 * MIB, 5 * GIB], 2);
        clear(&parent, 33 * MIB);
        write(&first, [PAGE, 70 * MIB], 3);
        let second = GuestRam::private_over(&parent.branch(None, &mut None, &|| false).unwrap()).unwrap();
        write(&parent, [PAGE, 4 * GIB], 4);
        for ram in [&parent, &second] {
            has(ram, [2 * PAGE, 70 * MIB, 5 * GIB], 2);
            has(ram, [0, 5 * PAGE, 3 * GIB - PAGE, 6 * GIB - PAGE], 1);
            is_zero(ram, [33 * MIB]);
        }
        has(&second, [PAGE], 2);
        has(&second, [4 * GIB], 1);
        has(&first, [0, 33 * MIB], 1);
        has(&first, [PAGE, 70 * MIB], 3);
        is_zero(&first, [2 * PAGE, 5 * GIB]);
        // Their RAM is frozen, saved and branched like any other.
        let child = GuestRam::private_over(&first.branch(None, &mut None, &|| false).unwrap()).unwrap();
        let (saved, _) =
            saved(memory(text), |file| parent.branch(None, &mut None, &|| false).unwrap().save(file));
        let frozen = second.freeze().unwrap();
        assert_eq!(parent.regions().map(|region| region.host_address).collect::<Vec<_>>(), addresses);
        drop((parent, first));
        let [saved, second] = [saved, frozen].map(|frozen| GuestRam::private_over(&frozen).unwrap());
        has(&child, [PAGE, 70 * MIB], 3);
        has(&saved, [PAGE, 4 * GIB], 4);
        has(&second, [PAGE], 2);
        for ram in [&saved, &second] {
            has(ram, [70 * MIB, 5 * GIB], 2);
            has(ram, [0, 6 * GIB - PAGE], 1);
            is_zero(ram, [33 * MIB]);
        }
    }
}

#[test]
fn next_branch_copies_what_was_written_since_and_nothing_else() {
    let parent = ram("64M");
    let all = || (0..16 * MIB).step_by(PAGE as usize);
    write(&parent, all(), 1);
    let first = parent.branch(None, &mut None, &|| false).unwrap();
    assert_eq!(newest(&first), 16 * MIB);
    let same = parent.branch(None, &mut None, &|| false).unwrap();
    assert_eq!((same.files().len(), newest(&same)), (1, 16 * MIB));
    has(&parent, all(), 1);
    write(&parent, [0, 8 * MIB, 40 * MIB], 2);
    let second = parent.branch(None, &mut None, &|| false).unwrap();
    assert_eq!((second.files().len(), newest(&second)), (2, 3 * PAGE));
    // A layer that shows nothing any more is closed.
    write(&parent, all(), 3);
    let third = parent.branch(None, &mut None, &|| false).unwrap();
    assert_eq!((third.files().len(), newest(&third)), (2, 16 * MIB));
    assert_eq!(parent.for_devices().kind(), MappingKind::Private);
}

#[test]
fn branch_stops_when_the_machine_is_to_end() {
    let parent = ram("256M");
    write(&parent, (0..128 * MIB).step_by(PAGE as usize), 1);
    let asked = Cell::new(0);
    let is_over = || asked.replace(asked.get() + 1) == 2;
    let error = parent.branch(None, &mut None, &is_over).unwrap_err();
    assert!(matches!(error, MemoryError::Over), "{error}");
    assert_eq!(asked.get(), 3, "once for each window");
    has(&parent, (0..128 * MIB).step_by(PAGE as usize), 1);
    // What was copied is not lost.
    let frozen = parent.branch(None, &mut None, &|| false).unwrap();
    has(&GuestRam::private_over(&frozen).unwrap(), (0..128 * MIB).step_by(PAGE as usize), 1);
}

#[test]
fn branch_of_a_memory_file_copies_nothing_and_leaves_the_file_if_another_process_uses_it() {
    let parent = ram("size=64M,memfd");
    write(&parent, [0, 40 * MIB], 1);
    let (file, elsewhere) = match &*parent.owned.origin() {
        Origin::File(file) => (file.try_clone().unwrap(), map_shared(file, 4096).unwrap()),
        other => panic!("{other:?}"),
    };
    let error = parent.branch(None, &mut None, &|| false).unwrap_err().to_string();
    assert!(error.contains("cannot be sealed"), "{error}");
    assert_eq!(parent.for_devices().kind(), MappingKind::SharedFile);
    write(&parent, [MIB], 2);
    let mut content = vec![0; PAGE as usize];
    file.read_exact_at(&mut content, MIB).unwrap();
    assert!(content == pattern(MIB, 2), "the guest still writes to the file");
    drop(elsewhere);
    let devices = parent.for_devices();
    let frozen = parent.branch(None, &mut None, &|| false).unwrap();
    assert_eq!(devices.kind(), MappingKind::Private);
    assert_eq!(frozen.files()[0].metadata().unwrap().ino(), file.metadata().unwrap().ino());
    has(&parent, [0, 40 * MIB], 1);
    write(&parent, [0], 3);
    has(&GuestRam::private_over(&frozen).unwrap(), [0, 40 * MIB], 1);
}

#[test]
fn long_chain_with_scattered_pages_keeps_few_mappings_and_files() {
    let parent = ram("64M");
    write(&parent, (0..32 * MIB).step_by(PAGE as usize), 1);
    let mut writers = vec![1_u64; (64 * MIB / PAGE) as usize];
    writers[(32 * MIB / PAGE) as usize..].fill(0);
    let mut random = 1_u64;
    for writer in 2..152 {
        if writer % 50 == 0 {
            // Every second page.
            let pages = (0..48 * MIB).step_by(2 * PAGE as usize);
            write(&parent, pages.clone(), writer);
            pages.for_each(|address| writers[(address / PAGE) as usize] = writer);
        }
        for _ in 0..60 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let page = (random >> 33) % (64 * MIB / PAGE);
            write(&parent, [page * PAGE], writer);
            writers[page as usize] = writer;
        }
        // As it is done with a machine, every other time.
        let next = if writer % 2 == 0 { parent.next_layer() } else { None };
        let frozen = parent.branch(next, &mut None, &|| false).unwrap();
        let files = frozen.files().len();
        assert!(files <= MAX_FILES, "{files} files at {writer}");
        let count = mappings(&parent);
        assert!(count <= MAX_MAPPINGS + 24, "{count} mappings at {writer}");
        if writer % 25 == 0 {
            let child = GuestRam::private_over(&frozen).unwrap();
            assert!(mappings(&child) <= MAX_MAPPINGS + 24);
            for (page, writer) in writers.iter().enumerate() {
                let address = page as u64 * PAGE;
                match writer {
                    0 => is_zero(&child, [address]),
                    writer => has(&child, [address], *writer),
                }
            }
        }
    }
}

#[test]
fn both_lists_of_own_pages_agree() {
    let ram = ram("64M");
    write(&ram, (0..8 * MIB).step_by(PAGE as usize), 1);
    ram.branch(None, &mut None, &|| false).unwrap();
    has(&ram, [0, 3 * PAGE], 1);
    is_zero(&ram, [50 * MIB]);
    write(&ram, [PAGE, 2 * PAGE, 7 * PAGE, 8 * MIB - PAGE], 2);
    let mut page_map = PageMap::open().unwrap();
    let mapping = &ram.owned.mappings[0];
    let [scanned, read] = [PageMap::own_pages, PageMap::read_own_pages]
        .map(|list| list(&mut page_map, mapping.address().addr(), 8 << 20).unwrap());
    assert_eq!(scanned, [PAGE..3 * PAGE, 7 * PAGE..8 * PAGE, 8 * MIB - PAGE..8 * MIB]);
    assert_eq!(scanned, read);
}

#[test]
fn pieces_show_the_newest_file_and_are_few() {
    let files: Vec<_> = [(); 40].map(|()| Arc::new(File::open("/dev/null").unwrap())).to_vec();
    const PAGES: u64 = 4096;
    let mut random = 7_u64;
    let mut next = |limit: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % limit
    };
    let mut pieces = Vec::new();
    let mut expected = vec![None; PAGES as usize];
    for (index, file) in files.iter().enumerate() {
        let mut dirty: Vec<Range<u64>> = Vec::new();
        for _ in 0..next(300) {
            let page = next(PAGES);
            dirty.push(page * PAGE..(page + 1 + next(4)).min(PAGES) * PAGE);
        }
        dirty.sort_by_key(|range| range.start);
        dirty.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            last.end = if joins { last.end.max(next.end) } else { last.end };
            joins
        });
        let runs = ranges_to_copy(PAGES * PAGE, &pieces, &dirty, 100);
        assert!(
            dirty.iter().all(|range| runs.iter().any(|run| run.start <= range.start && range.end <= run.end))
        );
        assert!(runs.is_sorted_by(|one, other| one.end < other.start), "{runs:?}");
        for run in &runs {
            expected[(run.start / PAGE) as usize..(run.end / PAGE) as usize].fill(Some(index));
        }
        pieces = lay_over(&pieces, &runs, file);
        assert!(2 * pieces.len() <= 200, "{}", pieces.len());
        let mut shown = vec![None; PAGES as usize];
        for piece in &pieces {
            let index = files.iter().position(|file| Arc::ptr_eq(file, &piece.file));
            let range = (piece.range.start / PAGE) as usize..(piece.range.end / PAGE) as usize;
            assert!(shown[range.clone()].iter().all(Option::is_none) && !range.is_empty());
            shown[range].fill(index);
        }
        assert_eq!(shown, expected);
        assert!(pieces.is_sorted_by(|one, other| one.range.end <= other.range.start));
    }
}
