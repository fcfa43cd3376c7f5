//! A kernel image of any format, told apart by content, and its loading into guest memory.

use std::io::Write;

use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_arch::x86_64::layout::ram_regions;
use coracle_arch::x86_64::load::{LoadRequest, load};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

/// `data` is the image. One that is accepted lies in its file, and is loaded with and without an initrd into a small
/// and a larger machine, or refused.
pub fn kernel_image(data: &[u8]) {
    let file = TempFile::new_in("/dev/shm".as_ref()).or_else(|_| TempFile::new()).unwrap();
    file.as_file().write_all(data).unwrap();
    let Ok(image) = KernelImage::open(file.as_path()) else { return };
    for segment in image.segments() {
        let file_end = segment.file_offset.checked_add(segment.file_len).unwrap();
        assert!(file_end <= data.len() as u64, "{segment:?} ends after the file");
        let end = segment.address.checked_add(segment.memory_len.max(segment.file_len)).unwrap();
        assert!(end <= image.memory_end(), "{segment:?} ends after {:#x}", image.memory_end());
    }
    let initrd = InitrdFile::open(file.as_path()).unwrap();
    for (mib, initrds) in [(2, &[][..]), (128, std::slice::from_ref(&initrd))] {
        let ram_bytes = mib << 20;
        // Mapped anew each time, since loading counts on zeros; only what is touched costs anything.
        let memory = memory(ram_bytes);
        let request = LoadRequest {
            image: &image,
            initrds,
            cmdline: "console=ttyS0",
            ram_bytes,
            acpi_rsdp: Some(0xe_0000),
        };
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
