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

/// Lets time pass for a timer that counts down: in one-shot mode it stops at 0, and a periodic timer is due.
/// A deadline timer follows the time-stamp counter. Each count of KVM's timer takes a nanosecond, times the
/// divisor.
pub fn pass_time(page: &mut [u8], nanoseconds: u64) {
    let register = |page: &[u8], offset: usize| {
        let bytes = page.get(offset..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let divide = register(page, DIVIDE);
    // Bits 3, 1 and 0 are one number (Intel SDM volume 3A, figure 11-10).
    let shift = ((divide & 3 | divide >> 1 & 4).wrapping_add(1)) & 7;
    let passed = u32::try_from(nanoseconds >> shift).unwrap_or(u32::MAX);
    let (count, mode) = (register(page, CURRENT_COUNT), register(page, LVT_TIMER) & TIMER_MODE);
    let left = match mode {
        0 => count.saturating_sub(passed),
        PERIODIC => count.saturating_sub(passed).max(1),
        _ => return,
    };
    if count > 0
        && let Some(register) = page.get_mut(CURRENT_COUNT..).and_then(|rest| rest.first_chunk_mut::<4>())
    {
        *register = left.to_le_bytes();
    }
}

/// Returns whether the page is that of a timer in one-shot mode that was started and has expired.
pub fn has_expired_timer(page: &[c_char; LAPIC_PAGE_LEN]) -> bool {
    let register = |offset: usize| {
        let bytes = page.get(offset..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(bytes.map(c_char::cast_unsigned)))
    };
    let is_one_shot = register(LVT_TIMER) & TIMER_MODE == 0;
    is_one_shot && register(INITIAL_COUNT) != 0 && register(CURRENT_COUNT) == 0
}

/// Stops the timer of a page: its initial count becomes 0 (Intel SDM volume 3A, 11.5.4).
pub fn stop_timer(page: &mut [u8]) {
    if let Some(register) = page.get_mut(INITIAL_COUNT..INITIAL_COUNT + 4) {
        register.fill(0);
    }
}

const LVT_TIMER: usize = 0x320;
/// The mode of the timer: 0 is one-shot.
const TIMER_MODE: u32 = 0b11 << 17;
const PERIODIC: u32 = 1 << 17;
const DIVIDE: usize = 0x3e0;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_for_timers_that_count_down() {
        let left = |mode: u32, divide: u32, count: u32, nanoseconds: u64| {
            let mut page = [0; LAPIC_PAGE_LEN];
            for (offset, value) in [(LVT_TIMER, mode << 17), (DIVIDE, divide), (CURRENT_COUNT, count)] {
                page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            }
            pass_time(&mut page, nanoseconds);
            u32::from_le_bytes(*page[CURRENT_COUNT..].first_chunk().unwrap())
        };
        // By 1, 2, 16 and 128.
        for (divide, by) in [(0xb, 1), (0, 2), (3, 16), (0xa, 128)] {
            assert_eq!(left(0, divide, 1000, 10 * by), 990, "{by}");
        }
        assert_eq!((left(0, 0xb, 1000, 1000), left(0, 0xb, 1000, u64::MAX)), (0, 0));
        assert_eq!((left(1, 0xb, 1000, 999), left(1, 0xb, 1000, u64::MAX), left(1, 0xb, 0, 5)), (1, 1, 0));
        assert_eq!((left(2, 0xb, 1000, 10), left(3, 0xb, 1000, 10)), (1000, 1000));
        pass_time(&mut [], 1);
    }

    #[test]
    fn only_a_one_shot_timer_that_was_started_can_have_expired() {
        let expired = |mode: u32, initial: u32, current: u32| {
            let mut page = [0; LAPIC_PAGE_LEN];
            for (offset, value) in
                [(LVT_TIMER, mode << 17 | 0x30), (INITIAL_COUNT, initial), (CURRENT_COUNT, current)]
            {
                page[offset..offset + 4].copy_from_slice(&value.to_le_bytes().map(u8::cast_signed));
            }
            let is_expired = has_expired_timer(&page);
            let mut stopped = page.map(c_char::cast_unsigned);
            stop_timer(&mut stopped);
            assert!(!has_expired_timer(&stopped.map(u8::cast_signed)));
            is_expired
        };
        assert!(expired(0, 1, 0) && expired(0, u32::MAX, 0));
        assert!(!expired(0, 0, 0) && !expired(0, 5, 1) && !expired(1, 5, 0) && !expired(2, 5, 0));
    }

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
