//! A kernel image of any format, told apart by content: opened, unpacked, and loaded into guest memory.

use std::io::Read;
use std::path::Path;

use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_arch::x86_64::layout::ram_regions;
use coracle_arch::x86_64::load::{LoadRequest, load};
use coracle_image::kernel_image::unpack;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// `data` is the image. One that is accepted lies in its file, and is loaded or refused, and so is the kernel
/// that is packed in it.
pub fn kernel_image(data: &[u8]) {
    let Ok(image) = KernelImage::from_bytes(Path::new("fuzzed"), data.to_vec()) else { return };
    check_and_load(&image, data);
    let Ok(mut file) = unpack(&image) else { return };
    let mut unpacked = Vec::new();
    file.read_to_end(&mut unpacked).unwrap();
    if let Ok(kernel) = KernelImage::from_file(Path::new("unpacked"), file) {
        check_and_load(&kernel, &unpacked);
    }
}

/// Loads into a small machine without and a larger one with an initrd.
fn check_and_load(image: &KernelImage, data: &[u8]) {
    for segment in image.segments() {
        let file_end = segment.file_offset.checked_add(segment.file_len).unwrap();
        assert!(file_end <= data.len() as u64, "{segment:?} ends after the file");
        let end = segment.address.checked_add(segment.memory_len.max(segment.file_len)).unwrap();
        assert!(end <= image.memory_end(), "{segment:?} ends after {:#x}", image.memory_end());
    }
    let initrd = InitrdFile::from_bytes(Path::new("initrd"), data.to_vec()).unwrap();
    for (mib, initrds) in [(2, &[][..]), (128, std::slice::from_ref(&initrd))] {
        let ram_bytes = mib << 20;
        // A new mapping for each input, because loading relies on zeros; only pages that are touched cost
        // anything.
        let memory = memory(ram_bytes);
        let acpi_rsdp = Some(0xe_0000);
        let request = LoadRequest { image, initrds, cmdline: "console=ttyS0", ram_bytes, acpi_rsdp };
        if load(&memory, &request).is_ok() {
            assert!(image.memory_end() <= ram_bytes, "loaded past the end of memory");
        }
    }
}

fn memory(bytes: u64) -> GuestMemoryMmap {
    let regions = ram_regions(bytes);
    let ranges: Vec<_> =
        regions.iter().map(|region| (GuestAddress(region.start), region.len as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}
