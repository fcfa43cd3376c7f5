use super::*;
use crate::testing::{MsiLog, sweep};

fn machine() -> (IoApic, Arc<MsiLog>) {
    let log = Arc::new(MsiLog::default());
    (IoApic::new(log.clone(), 23), log)
}

fn read(apic: &IoApic, index: u32) -> u32 {
    let mut data = [0; 4];
    apic.write(SELECT, &index.to_le_bytes());
    apic.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn write(apic: &IoApic, index: u32, value: u32) {
    apic.write(SELECT, &index.to_le_bytes());
    apic.write(WINDOW, &value.to_le_bytes());
}

/// Writes an entry the way Linux does: the half with the mask bit last.
fn write_entry(apic: &IoApic, pin: u32, entry: u64) {
    write(apic, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(apic, 0x10 + 2 * pin, entry as u32);
}

#[test]
fn identification_registers_read_as_documented() {
    let (apic, _) = machine();
    assert_eq!(read(&apic, 1), 0x0017_0020);
    write(&apic, 0, 0xffff_ffff);
    assert_eq!(read(&apic, 0), 0x0f00_0000);
    assert_eq!(read(&apic, 2), 0x0f00_0000);
    write(&apic, 1, 0);
    write(&apic, 2, 0);
    assert_eq!(read(&apic, 1), 0x0017_0020);
    assert_eq!(read(&apic, 2), 0x0f00_0000);
}

#[test]
fn inputs_after_the_last_one_do_not_exist() {
    let log = Arc::new(MsiLog::default());
    let apic = IoApic::new(log.clone(), 9);
    assert_eq!(read(&apic, 1), 0x0009_0020);
    assert!(apic.line(9).is_some() && apic.line(10).is_none());
    write_entry(&apic, 9, 0x0000_0030);
    assert_eq!(read(&apic, 0x10 + 2 * 9), 0x30);
    write_entry(&apic, 10, 0x0000_0030);
    for index in 0x10 + 2 * 10..0x40 {
        assert_eq!(read(&apic, index), u32::MAX, "index {index:#x}");
    }
    assert_eq!(log.routes.lock().unwrap().len(), 1, "one input has a route");
    let most = IoApic::new(log, u8::MAX);
    assert_eq!(read(&most, 1), 0x0017_0020);
    assert!(most.line(23).is_some() && most.line(24).is_none());
}

#[test]
fn entries_start_masked_and_keep_only_writable_bits() {
    let (apic, _) = machine();
    for pin in 0..24 {
        assert_eq!(read(&apic, 0x10 + 2 * pin), 0x0001_0000);
        assert_eq!(read(&apic, 0x11 + 2 * pin), 0);
        write_entry(&apic, pin, u64::MAX);
        assert_eq!(read(&apic, 0x10 + 2 * pin), 0x0001_afff);
        assert_eq!(read(&apic, 0x11 + 2 * pin), 0xff00_0000);
    }
}

#[test]
fn undefined_indices_read_all_ones_and_ignore_writes() {
    let (apic, log) = machine();
    for index in (3..0x10).chain(0x40..0x100) {
        write(&apic, index, 0x30);
        assert_eq!(read(&apic, index), u32::MAX, "index {index:#x}");
    }
    assert!(log.routes.lock().unwrap().is_empty());
}

#[test]
fn only_32_bit_accesses_at_register_offsets_count() {
    let (apic, log) = machine();
    apic.write(SELECT, &0x10_u32.to_le_bytes());
    for width in [1, 2, 8] {
        apic.write(SELECT, &[0; 8][..width]);
        apic.write(WINDOW, &[0x30; 8][..width]);
        let mut data = [0; 8];
        apic.read(WINDOW, &mut data[..width]);
        assert_eq!(data[..width], [0xff; 8][..width]);
    }
    for offset in (0..IoApic::WINDOW_LEN).filter(|offset| ![SELECT, WINDOW].contains(offset)) {
        apic.write(offset, &[0x30; 4]);
        let mut data = [0; 4];
        apic.read(offset, &mut data);
        assert_eq!(data, [0xff; 4], "offset {offset:#x}");
    }
    let mut selected = [0; 4];
    apic.read(SELECT, &mut selected);
    assert_eq!(selected, [0x10, 0, 0, 0]);
    assert!(log.routes.lock().unwrap().is_empty());
}

#[test]
fn pulse_of_an_unmasked_entry_sends_its_message() {
    let (apic, log) = machine();
    let line = apic.line(4).unwrap();
    write_entry(&apic, 4, (3 << 56) | 0x24);
    line.pulse();
    line.pulse();
    let message = MsiMessage { address: 0xfee0_3000, data: 0x24 };
    assert_eq!(*log.sent.lock().unwrap(), [message, message]);
}

#[test]
fn pulse_while_masked_is_dropped() {
    let (apic, log) = machine();
    let line = apic.line(4).unwrap();
    line.pulse();
    write_entry(&apic, 4, 0x1_0030);
    line.pulse();
    write_entry(&apic, 4, 0x0030);
    assert!(log.sent.lock().unwrap().is_empty());
    line.pulse();
    assert_eq!(log.sent.lock().unwrap().len(), 1);
}

#[test]
fn logical_lowest_priority_sets_mode_and_hint() {
    let message = message_of((0x81 << 56) | (1 << 11) | (1 << 8) | 0x55).unwrap();
    assert_eq!(message, MsiMessage { address: 0xfee8_100c, data: 0x155 });
    let physical = message_of((0x01 << 56) | (1 << 8) | 0x55).unwrap();
    assert_eq!(physical, MsiMessage { address: 0xfee0_1000, data: 0x155 });
}

#[test]
fn level_entries_send_every_pulse_without_an_eoi() {
    let (apic, log) = machine();
    write_entry(&apic, 23, (1 << 15) | (1 << 13) | 0x40);
    let line = apic.line(23).unwrap();
    line.pulse();
    line.pulse();
    let message = MsiMessage { address: 0xfee0_0000, data: 0xc040 };
    assert_eq!(*log.sent.lock().unwrap(), [message, message]);
    assert_eq!(read(&apic, 0x10 + 46), 0xa040, "remote IRR stays clear");
}

#[test]
fn reserved_modes_and_exception_vectors_send_nothing() {
    for mode in [3_u64, 6, 7] {
        assert_eq!(message_of((mode << 8) | 0x30), None);
    }
    for vector in 0..16 {
        assert_eq!(message_of(vector), None);
        assert_eq!(message_of((1 << 8) | vector), None);
    }
    assert_eq!(message_of(4 << 8), Some(MsiMessage { address: 0xfee0_0000, data: 0x400 }), "NMI");
}

#[test]
fn route_changes_are_reported_once_and_in_order() {
    let (apic, log) = machine();
    write_entry(&apic, 9, (2 << 56) | 0x31);
    write_entry(&apic, 9, (2 << 56) | 0x31);
    write(&apic, 0x10 + 18, 0x1_0031);
    write(&apic, 0x10 + 18, 0x1_0032);
    let unmasked = MsiMessage { address: 0xfee0_2000, data: 0x31 };
    assert_eq!(*log.routes.lock().unwrap(), [(9, Some(unmasked)), (9, None)]);
}

#[test]
fn reset_masks_every_input_and_reports_the_routes_it_removes() {
    let (apic, log) = machine();
    write(&apic, 0, 0x0f00_0000);
    write_entry(&apic, 4, 0x34);
    log.routes.lock().unwrap().clear();
    apic.reset();
    assert_eq!(*log.routes.lock().unwrap(), [(4, None)]);
    assert_eq!((read(&apic, 0), read(&apic, 0x18), read(&apic, 0x19)), (0, 0x1_0000, 0));
    apic.line(4).unwrap().pulse();
    assert!(log.sent.lock().unwrap().is_empty());
}

#[test]
fn there_are_exactly_24_lines() {
    let (apic, _) = machine();
    assert!((0..24).all(|pin| apic.line(pin).is_some()));
    assert!((24..=u8::MAX).all(|pin| apic.line(pin).is_none()));
}

#[test]
fn any_access_is_survived() {
    let (apic, _) = machine();
    for index in 0..=u8::MAX {
        apic.write(SELECT, &[index, 0xff, 0xff, 0xff]);
        sweep(&apic, 0x60);
    }
}
