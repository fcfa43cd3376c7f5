//! The DSDT: the devices that a kernel cannot find by itself, and the methods that they need.
//!
//! [`super::write_tables`] calls this. A machine with hardware-reduced ACPI has no fixed power button. The
//! button is a device (PNP0C0C), and the Generic Event Device (ACPI 6.5, 5.6.9) announces that it was
//! pressed: on its interrupt, the guest reads the event register at [`crate::x86_64::layout::EVENT_PORT`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Store,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, bytes_of, table};
use crate::x86_64::layout::{
    COM1_IRQ, COM1_PORT, COM1_PORTS, COM2_IRQ, COM2_PORT, EVENT_IRQ, EVENT_NEW_GENERATION, EVENT_PORT,
    EVENT_POWER_BUTTON, GENERATION_ID, PVPANIC_PORT, RTC_IRQ, RTC_PORT, RTC_PORTS, SLEEP_TYPE_S5,
    VIRTIO_MMIO_LEN, VirtioMmio,
};

/// Builds the whole table.
pub(super) fn dsdt(config: &AcpiConfig<'_>) -> Sdt {
    let AcpiConfig { cpus: _, virtio, has_com2, has_rtc, generation_id: _ } = *config;
    let s5: Vec<u8> = bytes_of(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    ));
    let serial = legacy_device("_SB_.COM1", "PNP0501", (COM1_PORT, COM1_PORTS), COM1_IRQ);
    let second = || legacy_device("_SB_.COM2", "PNP0501", (COM2_PORT, COM1_PORTS), COM2_IRQ);
    let second = if has_com2 { second() } else { Vec::new() };
    let clock = || legacy_device("_SB_.RTC0", "PNP0B00", (RTC_PORT, RTC_PORTS), RTC_IRQ);
    let clock = if has_rtc { clock() } else { Vec::new() };
    let generation = generation_device();
    let fixed = [s5, serial, second, clock, power_button(), generation, event_device(), pvpanic()].concat();
    let virtio = (0..).zip(virtio).flat_map(|(number, place)| virtio_device(number, *place));
    table(*b"DSDT", DSDT_REVISION, &[fixed, virtio.collect()].concat())
}

/// Builds a device with ports and one interrupt, which is edge-triggered and active high as on the ISA bus.
fn legacy_device(path: &str, id: &str, (port, ports): (u16, u16), irq: u32) -> Vec<u8> {
    let ports = IO::new(port, port, 1, ports.to_le_bytes()[0]);
    let interrupt = edge(irq);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let resources = Name::new("_CRS".into(), &resources);
    device(path, &EISAName::new(id), &[&resources])
}

fn power_button() -> Vec<u8> {
    device(POWER_BUTTON, &EISAName::new("PNP0C0C"), &[])
}

/// Builds the device that says where the machine's generation id is. Linux looks for its `_HID`, and Windows
/// for its `_CID`. The address is a package of its lower and its upper half.
fn generation_device() -> Vec<u8> {
    let (kind, name) = ("VM_Gen_Counter", "VM_Gen_Counter");
    let kind = Name::new("_CID".into(), &kind);
    let name = Name::new("_DDN".into(), &name);
    // It lies below 4 GiB.
    let address = Package::new(vec![&GENERATION_ADDRESS, &aml::ZERO]);
    let address = Name::new("ADDR".into(), &address);
    device(GENERATION, &"VMGENCTR", &[&kind, &name, &address])
}

/// Builds the Generic Event Device. Its method `_EVT` gets the number of the interrupt, of which there is
/// only one. It reads the event register, which clears it, and notifies the devices whose bits were set.
fn event_device() -> Vec<u8> {
    let interrupt = edge(EVENT_IRQ);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let resources = Name::new("_CRS".into(), &resources);
    let region = OpRegion::new(EVENT_REGION.into(), OpRegionSpace::SystemIO, &EVENT_PORT, &aml::ONE);
    let register = Field::new(
        EVENT_REGION.into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let (events, register_value) = (Local(0), Path::new("EVTS"));
    let read = Store::new(&events, &register_value);
    let is_pressed = And::new(&aml::ZERO, &events, &EVENT_POWER_BUTTON);
    let button: Path = POWER_BUTTON.into();
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let notify_button = If::new(&is_pressed, vec![&notify]);
    let is_new = And::new(&aml::ZERO, &events, &EVENT_NEW_GENERATION);
    let generation: Path = GENERATION.into();
    let notify = Notify::new(&generation, &GENERATION_CHANGED);
    let notify_generation = If::new(&is_new, vec![&notify]);
    let on_event = Method::new("_EVT".into(), 1, true, vec![&read, &notify_generation, &notify_button]);
    device("_SB_.GED0", &"ACPI0013", &[&resources, &region, &register, &on_event])
}

/// Builds the pvpanic device (QEMU, `docs/specs/pvpanic.rst`). Kernels find it by this id and take its port
/// from `_CRS`.
fn pvpanic() -> Vec<u8> {
    let port = IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    let resources = Name::new("_CRS".into(), &resources);
    device("_SB_.PEVT", &"QEMU0001", &[&resources])
}

/// Builds a virtio-mmio device with the id that Linux's driver and UEFI firmware look for.
fn virtio_device(number: u8, place: VirtioMmio) -> Vec<u8> {
    let VirtioMmio { base, gsi } = place;
    // The MMIO hole lies below 4 GiB.
    let window = Memory32Fixed::new(true, base as u32, VIRTIO_MMIO_LEN);
    let interrupt = edge(gsi);
    let resources = ResourceTemplate::new(vec![&window, &interrupt]);
    let resources = Name::new("_CRS".into(), &resources);
    let path = format!("_SB_.VR{number:02X}");
    numbered_device(&path, &"LNRO0005", number, &[&resources])
}

/// Builds a device that is the only one of its kind. `more` is what it has beside identity and status.
fn device(path: &str, id: &dyn Aml, more: &[&dyn Aml]) -> Vec<u8> {
    numbered_device(path, id, 0, more)
}

/// Builds one of several devices of a kind.
fn numbered_device(path: &str, id: &dyn Aml, number: u8, more: &[&dyn Aml]) -> Vec<u8> {
    let id = Name::new("_HID".into(), id);
    let number = Name::new("_UID".into(), &number);
    let status = Name::new("_STA".into(), &STATUS_WORKING);
    let mut children: Vec<&dyn Aml> = vec![&id, &number, &status];
    children.extend(more);
    bytes_of(&Device::new(path.into(), children))
}

/// Builds an interrupt that no other device shares: edge-triggered, active high.
fn edge(irq: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, irq)
}

/// The DSDT of ACPI 2.0 and later, whose integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// `_STA` (ACPI 6.5, 6.3.7): present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;
/// The notification of a power button that was pressed (ACPI 6.5, 4.8.2.2.1.1).
const BUTTON_PRESSED: u8 = 0x80;
/// An absolute path: AML does not search the enclosing scopes for a name of two segments.
const POWER_BUTTON: &str = "\\_SB_.PWRB";
const GENERATION: &str = "\\_SB_.VGEN";
const GENERATION_ADDRESS: u32 = GENERATION_ID as u32;
/// The notification of a generation id that has changed.
const GENERATION_CHANGED: u8 = 0x80;
const EVENT_REGION: &str = "EREG";
