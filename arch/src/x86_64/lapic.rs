//! The local APIC's two interrupt pins, as a PC's firmware wires them.

use std::ffi::c_char;

/// Bytes of a local APIC's register page, as KVM_GET_LAPIC and KVM_SET_LAPIC exchange it.
pub const LAPIC_PAGE_LEN: usize = 1024;

/// Offsets of the local vector table entries of both pins (Intel SDM volume 3A, table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery mode (bits 10:8) and mask (bit 16) of such an entry (Intel SDM volume 3A, 11.5.1).
const DELIVERY_MODE: u32 = 0b111 << 8;
const MASKED: u32 = 1 << 16;
const EXTINT: u32 = 0b111 << 8;
const NMI: u32 = 0b100 << 8;

/// Sets LINT0 to external interrupts and LINT1 to NMI, both unmasked: the virtual wire mode (MultiProcessor
/// Specification 1.4, 3.6.2.2) that kernels expect at boot. All other registers keep their values.
pub fn set_virtual_wire(page: &mut [c_char; LAPIC_PAGE_LEN]) {
    set_delivery_mode(page, LVT_LINT0, EXTINT);
    set_delivery_mode(page, LVT_LINT1, NMI);
}

fn set_delivery_mode(page: &mut [c_char; LAPIC_PAGE_LEN], offset: usize, mode: u32) {
    // Both offsets lie inside the page.
    let Some(register) = page.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<4>()) else { return };
    let value = u32::from_le_bytes(register.map(c_char::cast_unsigned)) & !(DELIVERY_MODE | MASKED) | mode;
    *register = value.to_le_bytes().map(u8::cast_signed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(page: &[c_char; LAPIC_PAGE_LEN], offset: usize) -> u32 {
        u32::from_le_bytes(page[offset..].first_chunk().unwrap().map(c_char::cast_unsigned))
    }

    #[test]
    fn pins_get_their_modes_and_keep_their_other_bits() {
        let mut page = [-1; LAPIC_PAGE_LEN];
        set_virtual_wire(&mut page);
        assert_eq!(register(&page, LVT_LINT0), 0xfffe_ffff);
        assert_eq!(register(&page, LVT_LINT1), 0xfffe_fcff);
        let changed = page.iter().filter(|byte| **byte != -1).count();
        assert_eq!(changed, 3, "one byte of LINT0 and two of LINT1 change");
    }

    #[test]
    fn masked_pins_after_reset_are_unmasked() {
        let mut page = [0; LAPIC_PAGE_LEN];
        page[LVT_LINT0 + 2] = 1;
        page[LVT_LINT1 + 2] = 1;
        set_virtual_wire(&mut page);
        assert_eq!(register(&page, LVT_LINT0), 0x700);
        assert_eq!(register(&page, LVT_LINT1), 0x400);
    }
}
