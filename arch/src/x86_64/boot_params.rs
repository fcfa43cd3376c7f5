//! The zero page of the Linux boot protocol (Linux, Documentation/arch/x86/zero-page.rst and boot.rst).
//!
//! [`crate::x86_64::load`] writes it for each image that is entered at its 64-bit entry, Linux or not.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{CMDLINE, MemoryKind, ZERO_PAGE, memory_map};
use super::load::Placement;

/// `type_of_loader` of a boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// The magic numbers `boot_flag` and `header`, by which kernels and tools recognise the structure.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The version that an ELF image gets, which has no header of its own: protocol 2.15, loaded high, aligned to
/// 2 MiB.
const ELF_PROTOCOL: u16 = 0x020f;
const LOADED_HIGH: u8 = 1 << 0;
const ELF_ALIGNMENT: u32 = 0x20_0000;
/// e820 types (ACPI 6.5, table 15.6).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The contents of the zero page.
pub(crate) struct ZeroPage<'a> {
    /// The header of a bzImage; an ELF image has none.
    pub(crate) header: Option<&'a setup_header>,
    /// The guest-physical address of the kernel.
    pub(crate) kernel: u64,
    /// Bytes of RAM.
    pub(crate) ram_bytes: u64,
    /// Bytes of the command line, without its NUL.
    pub(crate) cmdline_len: u32,
    /// The address and length of the initrd, all files as one.
    pub(crate) initrd: Option<Placement>,
    /// The guest-physical address of the RSDP.
    pub(crate) acpi_rsdp: Option<u64>,
}

impl ZeroPage<'_> {
    /// Writes the page to [`ZERO_PAGE`](crate::x86_64::layout::ZERO_PAGE).
    pub(crate) fn write(&self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        memory.write_obj(self.contents(), GuestAddress(ZERO_PAGE))
    }

    fn contents(&self) -> boot_params {
        let mut header = self.header.copied().unwrap_or_else(|| self.elf_header());
        header.type_of_loader = UNDEFINED_LOADER;
        (header.code32_start, _) = halves(self.kernel);
        let mut page = boot_params { acpi_rsdp_addr: self.acpi_rsdp.unwrap_or(0), ..Default::default() };
        (header.cmd_line_ptr, page.ext_cmd_line_ptr) = halves(CMDLINE);
        if let Some(initrd) = self.initrd {
            (header.ramdisk_image, page.ext_ramdisk_image) = halves(initrd.start);
            (header.ramdisk_size, page.ext_ramdisk_size) = halves(initrd.len);
        }
        page.hdr = header;

        let mut table = page.e820_table;
        for (slot, entry) in table.iter_mut().zip(memory_map(self.ram_bytes)) {
            let kind = match entry.kind {
                MemoryKind::Ram => E820_RAM,
                MemoryKind::Reserved => E820_RESERVED,
            };
            *slot = boot_e820_entry { addr: entry.start, size: entry.len, r#type: kind };
            page.e820_entries = page.e820_entries.saturating_add(1);
        }
        page.e820_table = table;
        page
    }

    fn elf_header(&self) -> setup_header {
        setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: ELF_PROTOCOL,
            loadflags: LOADED_HIGH,
            kernel_alignment: ELF_ALIGNMENT,
            cmdline_size: self.cmdline_len,
            ..setup_header::default()
        }
    }
}

/// Splits a number into its lower and its upper 32 bits, which the zero page keeps apart.
fn halves(number: u64) -> (u32, u32) {
    ((number & u64::from(u32::MAX)) as u32, (number >> 32) as u32)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn written(page: &ZeroPage<'_>) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        page.write(&memory).unwrap();
        memory
    }

    fn u32_of(memory: &GuestMemoryMmap, offset: u64) -> u32 {
        memory.read_obj(GuestAddress(ZERO_PAGE + offset)).unwrap()
    }

    const PLAIN: ZeroPage<'static> = ZeroPage {
        header: None,
        kernel: 0x100_0000,
        ram_bytes: 128 << 20,
        cmdline_len: 11,
        initrd: None,
        acpi_rsdp: Some(0xe_0000),
    };

    #[test]
    fn elf_image_gets_a_header_with_the_documented_offsets() {
        let memory = written(&PLAIN);
        assert_eq!(u32_of(&memory, 0x70), 0xe_0000, "acpi_rsdp_addr");
        assert_eq!(u32_of(&memory, 0x1fe) & 0xffff, 0xaa55, "boot_flag");
        assert_eq!(u32_of(&memory, 0x202), 0x5372_6448, "header");
        assert_eq!(u32_of(&memory, 0x210) & 0xff, 0xff, "type_of_loader");
        assert_eq!(u32_of(&memory, 0x214), 0x100_0000, "code32_start");
        assert_eq!(u32_of(&memory, 0x218), 0, "ramdisk_image");
        assert_eq!(u32_of(&memory, 0x228), 0x2_0000, "cmd_line_ptr");
    }

    #[test]
    fn e820_table_lists_the_memory_map() {
        let memory = written(&PLAIN);
        assert_eq!(u32_of(&memory, 0x1e8) & 0xff, 5);
        let entry = |index: u64| {
            let at = 0x2d0 + index * 20;
            (u32_of(&memory, at), u32_of(&memory, at + 8), u32_of(&memory, at + 16))
        };
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(2), (0xe_0000, 0x2_0000, 2));
        assert_eq!(entry(3), (0x10_0000, 0x7f0_0000, 1));
        assert_eq!(entry(5), (0, 0, 0));
    }

    #[test]
    fn initrd_above_4_gib_uses_the_ext_fields() {
        let initrd = Placement { start: 0x1_2345_6000, len: 0x2_0000_0010 };
        let memory = written(&ZeroPage { initrd: Some(initrd), ..PLAIN });
        assert_eq!((u32_of(&memory, 0x218), u32_of(&memory, 0xc0)), (0x2345_6000, 1));
        assert_eq!((u32_of(&memory, 0x21c), u32_of(&memory, 0xc4)), (0x10, 2));
    }

    #[test]
    fn bzimage_header_is_kept_but_for_the_loader_fields() {
        let header = setup_header { version: 0x020d, root_dev: 0x0801, init_size: 77, ..Default::default() };
        let memory = written(&ZeroPage { header: Some(&header), ..PLAIN });
        assert_eq!(u32_of(&memory, 0x206) & 0xffff, 0x020d);
        assert_eq!(u32_of(&memory, 0x1fc) & 0xffff, 0x0801);
        assert_eq!(u32_of(&memory, 0x260), 77);
        assert_eq!(u32_of(&memory, 0x210) & 0xff, 0xff);
    }
}
