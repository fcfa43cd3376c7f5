//! Compares the list with docs/machine.md, so that a device, a port or an interrupt that only one of the two
//! has is found, and resets every device by way of the buses.

use std::ops::RangeInclusive;

use coracle_arch::x86_64::layout;
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::event_loop::EventLoop;
use coracle_devices::legacy::event::Event;

use super::super::Platform;
use super::*;
use crate::config::VmConfig;
use crate::gate::Gate;
use crate::kvm::Interrupts;
use crate::virtio::{AttachContext, VirtioDevices};

const MACHINE: &str = include_str!("../../../../docs/machine.md");

/// Creates the platform of a machine with every legacy device and nothing else.
fn platform() -> Platform {
    let interrupts = Arc::new(Interrupts::default());
    let gate = Arc::new(Gate::new());
    let io = EventLoop::new().unwrap().handle();
    let context = AttachContext { interrupts: &interrupts, io, gate: gate.clone() };
    let virtio = VirtioDevices::attach(&VmConfig::default(), &Vec::new(), &context).unwrap();
    let com2 = Arc::new(ConsoleBuffer::new(64).unwrap());
    Platform::new(interrupts.clone(), gate, virtio.windows(), None, 64, Some(&com2)).unwrap()
}

/// Returns the first and second cell of each row in the table under `heading`.
fn rows(heading: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = MACHINE.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let is_row = |line: &&str| {
        let cell = line.strip_prefix("| ").unwrap_or_default();
        cell.starts_with(|first: char| first == '`' || first.is_ascii_digit())
    };
    section
        .lines()
        .filter(is_row)
        .map(|row| {
            let mut cells = row.split('|').skip(1).map(str::trim);
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect()
}

/// Parses the addresses of a first cell: `0x60`, a list of such addresses, or `0xf4` to `0xf7`.
fn addresses(cell: &str) -> Vec<RangeInclusive<u64>> {
    let number =
        |text: &str| u64::from_str_radix(text.trim_matches(['`', ' ']).strip_prefix("0x").unwrap(), 16);
    let range = |part: &str| match part.split_once(" to ") {
        Some((first, last)) => number(first).unwrap()..=number(last).unwrap(),
        None => number(part).unwrap()..=number(part).unwrap(),
    };
    cell.split(", ").map(range).collect()
}

fn holds(window: BusRange, range: &RangeInclusive<u64>) -> bool {
    window.base <= *range.start() && *range.end() < window.base + window.len
}

#[test]
fn ports_are_those_of_the_document() {
    let platform = platform();
    let rows = rows("## Ports");
    let on_ports = || platform.legacy.0.iter().filter(|entry| entry.space == Space::Ports);
    for (cell, text) in &rows {
        for range in addresses(cell) {
            let entry = on_ports().find(|entry| holds(entry.window, &range));
            let entry = entry.unwrap_or_else(|| panic!("{cell}: no device has these ports"));
            assert!(text.contains(entry.name), "{cell} belongs to {}, not to: {text}", entry.name);
        }
    }
    for entry in on_ports() {
        let last = entry.window.base + entry.window.len - 1;
        let is_documented =
            |port| rows.iter().flat_map(|(cell, _)| addresses(cell)).any(|range| range.contains(&port));
        assert!(is_documented(entry.window.base) && is_documented(last), "{} is not documented", entry.name);
    }
}

#[test]
fn addresses_are_those_of_the_document() {
    let platform = platform();
    for entry in platform.legacy.0.iter().filter(|entry| entry.space == Space::Memory) {
        let row = MACHINE.lines().find(|line| line.contains(&format!("`{:#x}`", entry.window.base)));
        assert!(row.is_some_and(|row| row.contains(entry.name)), "{} is not documented", entry.name);
    }
}

#[test]
fn interrupts_are_those_of_the_document() {
    let platform = platform();
    let rows = rows("## Interrupts");
    for entry in &platform.legacy.0 {
        let Some(gsi) = entry.gsi else { continue };
        let row = rows.iter().find(|(cell, _)| *cell == gsi.to_string());
        // The table names the event register by the ACPI device that has its interrupt.
        let name = if entry.name == "event register" { "Generic Event Device" } else { entry.name };
        assert!(
            row.is_some_and(|(_, text)| text.contains(name)),
            "{} is not documented at {gsi}",
            entry.name
        );
    }
}

#[test]
fn two_devices_at_one_interrupt_are_refused() {
    let platform = platform();
    let mut list = platform.legacy;
    for entry in &mut list.0 {
        entry.gsi = entry.gsi.map(|_| layout::COM1_IRQ);
    }
    let error = list.attach(&mut BusBuilder::new(), &mut BusBuilder::new()).unwrap_err();
    assert!(matches!(error, PlatformError::SharedInterrupt { .. }), "{error}");
}

#[test]
fn reset_reaches_every_device_that_keeps_something() {
    let platform = platform();
    let ports = &platform.buses.ports;
    let read = |port: u16| {
        let mut byte = [0];
        ports.read(u64::from(port), &mut byte);
        byte[0]
    };
    let scratch = [layout::COM1_PORT + 7, layout::COM2_PORT + 7];
    let status = layout::I8042_DATA_PORT + 4;
    let select_register = |value: Option<u8>| {
        let address = u64::from(layout::IOAPIC);
        value.inspect(|value| platform.buses.mmio.write(address, &u32::from(*value).to_le_bytes()));
        let mut register = [0; 4];
        platform.buses.mmio.read(address, &mut register);
        u32::from_le_bytes(register)
    };
    let fresh = (scratch.map(read), read(status), select_register(None));
    scratch.iter().for_each(|port| ports.write(u64::from(*port), &[0x5a]));
    while read(status) != 0 {
        read(layout::I8042_DATA_PORT);
    }
    platform.events.raise(Event::PowerButton);
    assert_eq!((scratch.map(read), select_register(Some(1))), ([0x5a; 2], 1));
    platform.reset();
    assert_eq!((scratch.map(read), read(status), select_register(None)), fresh);
    assert_eq!(read(layout::EVENT_PORT), 0);
}
