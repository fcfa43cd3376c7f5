//! ACPI tables of the hardware-reduced kind (ACPI 6.5, 3.11.1): no PM timer, no power-management event block,
//! no SCI; sleep and reset are three 8-bit ports.
//!
//! The builder calls [`write_tables`] once per boot and hands the address of the RSDP to the kernel. All
//! addresses and interrupts come from [`crate::x86_64::layout`], which the code that attaches the devices
//! uses too.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{
    ACPI_TABLES, ACPI_TABLES_END, GENERATION_ID, IOAPIC, LAPIC, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT, VirtioMmio,
};

mod dsdt;

/// The OEM, in the three fields that each table has for it. Kernels only print them.
const OEM_ID: [u8; 6] = *b"CORACL";
const OEM_TABLE_ID: [u8; 8] = *b"CORACLE ";
const OEM_REVISION: u32 = 1;

/// The alignment of each table. Only the RSDP needs it (ACPI 6.5, 5.2.5.1).
const TABLE_ALIGNMENT: usize = 16;
/// Bytes of the header that each table but the RSDP starts with.
const SDT_HEADER_LEN: u32 = 36;

/// The FADT's IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): the machine has a legacy serial port, and no VGA. The
/// bit for a keyboard controller stays clear, since only the reset command of one exists. The bit for an
/// absent CMOS clock is set if the guest is not to use the clock.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The MADT of ACPI 6.5. Its flags have PCAT_COMPAT clear: there are no 8259s that a kernel would have to
/// silence.
const MADT_REVISION: u8 = 6;
const MADT_FLAGS: u32 = 0;
const IOAPIC_ID: u8 = 0;
const FIRST_GSI: u32 = 0;
/// The MADT entry for NMI (ACPI 6.5, 5.2.12.7): type 4, 6 bytes, all CPUs, polarity and trigger of the bus,
/// LINT1.
const NMI_ON_LINT1: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

/// The devices that the tables describe beside the fixed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiConfig<'a> {
    /// Number of vCPUs. Their APIC ids start at 0, and ids above 254 would need x2APIC entries.
    pub cpus: u8,
    /// The virtio devices, in the order in which kernels are to find them.
    pub virtio: &'a [VirtioMmio],
    /// Whether there is a second serial port.
    pub has_com2: bool,
    /// Whether the CMOS clock is announced.
    pub has_rtc: bool,
    /// The generation id of the machine.
    pub generation_id: u128,
}

/// An error of [`write_tables`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// The tables are larger than the area for them.
    #[error("the ACPI tables take {needed} bytes, but only {room} are kept for them")]
    TooLarge {
        /// Bytes of the tables.
        needed: u64,
        /// Bytes of the area.
        room: u64,
    },
    /// Guest memory does not hold the area.
    #[error("cannot write the ACPI tables to guest memory: {0}")]
    Write(GuestMemoryError),
}

impl From<GuestMemoryError> for AcpiError {
    fn from(error: GuestMemoryError) -> AcpiError {
        AcpiError::Write(error)
    }
}

/// Writes all tables to [`ACPI_TABLES`] and returns the address of the RSDP.
///
/// # Errors
/// The area is not RAM, or is too small for the tables.
pub fn write_tables(memory: &GuestMemoryMmap, config: &AcpiConfig<'_>) -> Result<u64, AcpiError> {
    let mut area = Area { bytes: Vec::new() };
    // The RSDP comes first, and points to the table that is written last.
    area.place(&Rsdp::new(OEM_ID, 0));
    let dsdt = area.place(&dsdt::dsdt(config));
    let fadt = area.place(&fadt(dsdt, config.has_rtc));
    let madt = area.place(&madt(config.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place(&xsdt);

    let needed = area.bytes.len() as u64;
    let room = ACPI_TABLES_END.saturating_sub(ACPI_TABLES);
    if needed > room {
        return Err(AcpiError::TooLarge { needed, room });
    }
    memory.write_slice(&area.bytes, GuestAddress(ACPI_TABLES))?;
    write_generation_id(memory, config.generation_id)?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(ACPI_TABLES))?;
    Ok(ACPI_TABLES)
}

/// Writes the machine's generation id to the place that the tables name.
///
/// # Errors
/// The place is not RAM.
pub fn write_generation_id(memory: &GuestMemoryMmap, id: u128) -> Result<(), AcpiError> {
    Ok(memory.write_slice(&id.to_le_bytes(), GuestAddress(GENERATION_ID))?)
}

/// The tables written so far, from [`ACPI_TABLES`] on.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest-physical address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let address = ACPI_TABLES.saturating_add(self.bytes.len() as u64);
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn port_register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64, has_rtc: bool) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // WBINVD works. The two button flags mean that there is neither a fixed power button nor a fixed
        // sleep button.
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        // The clock has no alarm that could wake the machine.
        .flag(Flags::FixRtc);
    let clock = if has_rtc { 0 } else { CMOS_RTC_NOT_PRESENT };
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | clock).into();
    fadt.reset_reg = port_register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port_register(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port_register(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> Sdt {
    let mut body = Vec::new();
    body.extend(LAPIC.to_le_bytes());
    body.extend(MADT_FLAGS.to_le_bytes());
    for id in 0..cpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(IOAPIC_ID, IOAPIC, FIRST_GSI).to_aml_bytes(&mut body);
    body.extend(NMI_ON_LINT1);
    table(*b"APIC", MADT_REVISION, &body)
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, SDT_HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

#[cfg(test)]
mod tests;
