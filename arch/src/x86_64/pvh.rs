//! The start information of the PVH protocol (Xen, public/arch-x86/hvm/start_info.h, version 1).
//!
//! [`crate::x86_64::load`] writes it for an image that is entered at its PVH entry.

use linux_loader::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{CMDLINE, MemoryKind, PVH_START_INFO, memory_map};
use super::load::Placement;

/// The address of the module list, which follows the start information in its page. The memory map comes
/// next.
const MODULE_LIST: u64 = PVH_START_INFO + 0x80;
const MEMORY_MAP: u64 = PVH_START_INFO + 0x100;
/// The version with a memory map.
const VERSION: u32 = 1;

/// The contents of the start information.
pub(crate) struct StartInfo {
    /// Bytes of RAM.
    pub(crate) ram_bytes: u64,
    /// The address and length of the initrd, all files as one: Linux looks at the first module only.
    pub(crate) initrd: Option<Placement>,
    /// The guest-physical address of the RSDP.
    pub(crate) acpi_rsdp: Option<u64>,
}

impl StartInfo {
    /// Writes the structure, its module list and its memory map.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        let mut info = hvm_start_info {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: VERSION,
            cmdline_paddr: CMDLINE,
            rsdp_paddr: self.acpi_rsdp.unwrap_or(0),
            memmap_paddr: MEMORY_MAP,
            ..Default::default()
        };
        if let Some(initrd) = self.initrd {
            info.nr_modules = 1;
            info.modlist_paddr = MODULE_LIST;
            let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.len, ..Default::default() };
            memory.write_obj(module, GuestAddress(MODULE_LIST))?;
        }
        let places = (MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>());
        for (place, entry) in places.zip(memory_map(self.ram_bytes)) {
            let type_ = match entry.kind {
                MemoryKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
                MemoryKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
            };
            let entry = hvm_memmap_table_entry { addr: entry.start, size: entry.len, type_, reserved: 0 };
            memory.write_obj(entry, GuestAddress(place))?;
            info.memmap_entries = info.memmap_entries.saturating_add(1);
        }
        memory.write_obj(info, GuestAddress(PVH_START_INFO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(info: &StartInfo) -> (GuestMemoryMmap, hvm_start_info) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        info.write(&memory).unwrap();
        let read = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        (memory, read)
    }

    #[test]
    fn start_info_points_at_command_line_map_and_tables() {
        let (memory, info) =
            written(&StartInfo { ram_bytes: 5 << 30, initrd: None, acpi_rsdp: Some(0xe_0000) });
        assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
        assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x2_0000, 0xe_0000));
        assert_eq!(info.memmap_entries, 6);
        let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr + 5 * 24)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (4 << 30, 2 << 30, 1));
    }

    #[test]
    fn initrd_is_the_only_module() {
        let initrd = Placement { start: 0x700_0000, len: 1234 };
        let (memory, info) =
            written(&StartInfo { ram_bytes: 128 << 20, initrd: Some(initrd), acpi_rsdp: None });
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((info.nr_modules, module.paddr, module.size), (1, 0x700_0000, 1234));
        assert_eq!(info.rsdp_paddr, 0);
    }
}
