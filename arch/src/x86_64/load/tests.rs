//! Tests of loading: real files into real guest memory.
#![allow(clippy::arithmetic_side_effects)]

use vmm_sys_util::tempfile::TempFile;

use super::super::image::samples::{Elf, bzimage, file_with};
use super::super::layout::{GDT, PML4, PVH_START_INFO, RESET_VECTOR, ZERO_PAGE, ram_regions};
use super::*;

const RAM: u64 = 64 * MIB;

fn memory(bytes: u64) -> GuestMemoryMmap {
    let regions: Vec<_> =
        ram_regions(bytes).iter().map(|region| (GuestAddress(region.start), region.len as usize)).collect();
    GuestMemoryMmap::from_ranges(&regions).unwrap()
}

fn image(bytes: &[u8]) -> KernelImage {
    KernelImage::open(file_with(bytes).as_path()).unwrap()
}

fn initrd(bytes: &[u8]) -> InitrdFile {
    InitrdFile::open(file_with(bytes).as_path()).unwrap()
}

fn request(image: &KernelImage) -> LoadRequest<'_> {
    LoadRequest { image, initrds: &[], cmdline: "console=ttyS0", ram_bytes: RAM, acpi_rsdp: Some(0xe_0000) }
}

fn bytes_at(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u32_at(memory: &GuestMemoryMmap, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn bzimage_is_loaded_with_all_tables() {
    let (memory, image) = (memory(RAM), image(&bzimage()));
    let state = load(&memory, &request(&image)).unwrap();
    assert_eq!((state.registers.rip, state.registers.rsi), (0x100_0200, ZERO_PAGE));
    assert_eq!(bytes_at(&memory, 0x100_0000, 4097), [vec![0xcc; 4096], vec![0]].concat());
    assert_eq!(bytes_at(&memory, CMDLINE, 14), b"console=ttyS0\0");
    assert_eq!(u32_at(&memory, ZERO_PAGE + 0x202), 0x5372_6448);
    assert_eq!(u32_at(&memory, ZERO_PAGE + 0x214), 0x100_0000, "code32_start");
    assert_ne!(u32_at(&memory, PML4), 0);
    assert_ne!(u32_at(&memory, GDT + 0x10), 0);
    assert_ne!(u32_at(&memory, RESET_VECTOR), 0);
    assert_eq!(u32_at(&memory, PVH_START_INFO), 0);
}

#[test]
fn pvh_payload_is_loaded_without_page_tables() {
    let (memory, image) = (memory(4 * MIB), image(&Elf::payload().with_pvh_entry(0x20_0010).bytes()));
    let request = LoadRequest { ram_bytes: 4 * MIB, ..request(&image) };
    let state = load(&memory, &request).unwrap();
    assert_eq!((state.registers.rip, state.registers.rbx), (0x20_0010, PVH_START_INFO));
    assert_eq!(bytes_at(&memory, Elf::ADDRESS, 257), [vec![0xf4; 256], vec![0]].concat());
    assert_eq!(u32_at(&memory, PVH_START_INFO), 0x336e_c578);
    assert_eq!(u32_at(&memory, PML4), 0);
}

#[test]
fn initrds_are_joined_padded_and_placed_at_the_end_of_ram() {
    let (memory, image) = (memory(RAM), image(&bzimage()));
    let initrds = [initrd(&[1; 5001]), initrd(&[2; 3])];
    load(&memory, &LoadRequest { initrds: &initrds, ..request(&image) }).unwrap();
    let start = u64::from(u32_at(&memory, ZERO_PAGE + 0x218));
    assert_eq!(start, RAM - 2 * PAGE_SIZE);
    assert_eq!(u32_at(&memory, ZERO_PAGE + 0x21c), 5004 + 4);
    let expected = [vec![1; 5001], vec![0; 3], vec![2; 3], vec![0]].concat();
    assert_eq!(bytes_at(&memory, start, 5008), expected);
}

#[test]
fn initrd_stays_below_the_hole_and_the_kernel_s_reach() {
    let mut bytes = bzimage();
    let image_all = image(&bytes);
    let placed = place_initrd(&image_all, 10 * MIB, 8 << 30).unwrap().unwrap();
    assert_eq!(placed.start, 0x8000_0000 - 10 * MIB, "initrd_addr_max of the image");
    bytes[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
    let placed = place_initrd(&image(&bytes), 10 * MIB, 8 << 30).unwrap().unwrap();
    assert_eq!(placed.start, 0xc000_0000 - 10 * MIB, "the hole");
    bytes[0x22c..0x230].copy_from_slice(&0x13f_ffffu32.to_le_bytes());
    let image = image(&bytes);
    assert_eq!(place_initrd(&image, 2 * MIB, RAM).unwrap().unwrap().start, 0x120_0000, "exactly enough");
    let error = place_initrd(&image, 2 * MIB + 1, RAM).unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { room, .. } if room == 2 * MIB), "{error}");
}

#[test]
fn linux_that_does_not_fit_is_refused_with_the_size_that_works() {
    // 16 MiB + 2 MiB of kernel and the reserve.
    let image = image(&bzimage());
    assert_eq!(minimum_memory_mib(&image, 0), 26);
    assert_eq!(minimum_memory_mib(&image, MIB), 28);
    let error = load(&memory(25 * MIB), &LoadRequest { ram_bytes: 25 * MIB, ..request(&image) }).unwrap_err();
    assert_eq!(error.to_string(), "memory 25M: this kernel needs at least 26M");
    load(&memory(26 * MIB), &LoadRequest { ram_bytes: 26 * MIB, ..request(&image) }).unwrap();
}

#[test]
fn initrd_that_does_not_fit_is_refused_with_the_size_that_works() {
    let image = image(&bzimage());
    let initrds = [initrd(&vec![7; 24 << 20])];
    let error = load(&memory(RAM), &LoadRequest { initrds: &initrds, ..request(&image) }).unwrap_err();
    assert_eq!(error.to_string(), "memory 64M: this kernel with 24M of initrd needs at least 74M");
}

#[test]
fn payload_needs_its_segments_only() {
    let image = image(&Elf::payload().bytes());
    assert_eq!(minimum_memory_mib(&image, 0), 3);
    load(&memory(3 * MIB), &LoadRequest { ram_bytes: 3 * MIB, ..request(&image) }).unwrap();
}

#[test]
fn initrd_larger_than_any_memory_is_refused() {
    let image = image(&bzimage());
    assert!(minimum_memory_mib(&image, u64::MAX) > 1 << 43);
}

#[test]
fn command_line_of_the_limit_is_taken_and_one_byte_more_refused() {
    let (memory, image) = (memory(RAM), image(&bzimage()));
    let line = "x".repeat(2047);
    load(&memory, &LoadRequest { cmdline: &line, ..request(&image) }).unwrap();
    assert_eq!(bytes_at(&memory, CMDLINE + 2046, 2), b"x\0");
    let error = load(&memory, &LoadRequest { cmdline: &"x".repeat(2048), ..request(&image) }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel command line is 2048 bytes long, but this kernel takes at most 2047"
    );
}

#[test]
fn command_line_limit_is_the_image_s_own_within_its_area() {
    let mut bytes = bzimage();
    bytes[0x238..0x23c].copy_from_slice(&255u32.to_le_bytes());
    assert_eq!(cmdline_max(&image(&bytes)), 255);
    bytes[0x238..0x23c].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(cmdline_max(&image(&bytes)), 0xffff);
    assert_eq!(cmdline_max(&image(&Elf::payload().bytes())), 2047);
}

#[test]
fn command_line_with_nul_or_newline_is_refused() {
    for (line, name) in [("a\0b", "NUL"), ("a\nb", "newline")] {
        let error = check_cmdline(line, 2047).unwrap_err();
        assert_eq!(error.to_string(), format!("the kernel command line has a {name} at byte 1; remove it"));
    }
}

#[test]
fn file_that_shrank_is_an_error() {
    let file: TempFile = file_with(&bzimage());
    let image = KernelImage::open(file.as_path()).unwrap();
    file.as_file().set_len(2000).unwrap();
    let error = load(&memory(RAM), &request(&image)).unwrap_err();
    assert!(matches!(error, LoadError::ReadFile { .. }), "{error}");
}

#[test]
fn memory_smaller_than_stated_is_an_error() {
    let image = image(&bzimage());
    let error = load(&memory(8 * MIB), &request(&image)).unwrap_err();
    assert!(matches!(error, LoadError::ReadFile { .. }), "{error}");
}

#[test]
fn two_machines_load_from_one_image_at_the_same_time() {
    let image = image(&bzimage());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let memory = memory(RAM);
                load(&memory, &request(&image)).unwrap();
                assert_eq!(bytes_at(&memory, 0x100_0000, 4096), [0xcc; 4096]);
            });
        }
    });
}
