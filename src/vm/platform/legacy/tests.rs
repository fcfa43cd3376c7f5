//! Compares the list with docs/machine.md, so that a device, a port or an interrupt that only one of the two
//! has is found. Resets, saves and restores every device by way of the buses.

use std::ops::RangeInclusive;
use std::sync::Mutex;

use coracle_arch::x86_64::layout;
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::event_loop::EventLoop;
use coracle_devices::irq::{MsiMessage, MsiSink};
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

/// Devices that keep nothing, whatever the guest does.
const WITHOUT_STATE: [&str; 3] = ["debug exit", "pvpanic", "ACPI"];

/// Keeps the data of the messages that were sent, and counts changes of routes.
#[derive(Default)]
struct Messages {
    sent: Mutex<Vec<u32>>,
    routes: Mutex<Vec<u8>>,
}

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        self.sent.lock().unwrap().push(message.data);
    }

    fn route_changed(&self, pin: u8, _message: Option<MsiMessage>) {
        self.routes.lock().unwrap().push(pin);
    }
}

/// Creates a platform without virtio devices whose messages are kept.
fn platform_with_messages() -> (Platform, Arc<Messages>) {
    let messages = Arc::new(Messages::default());
    let com2 = Arc::new(ConsoleBuffer::new(64).unwrap());
    let platform = Platform::new(messages.clone(), Arc::new(Gate::new()), [], None, 64, Some(&com2));
    (platform.unwrap(), messages)
}

/// Uses every device that keeps something. COM1, COM2 and the event register have an interrupt that the guest
/// has not served, with vectors 0x30 + input.
fn use_devices(platform: &Platform) {
    let ports = &platform.buses.ports;
    let io_apic = |offset: u64, value: u32| {
        platform.buses.mmio.write(u64::from(layout::IOAPIC) + offset, &value.to_le_bytes());
    };
    for gsi in [layout::EVENT_IRQ, layout::COM1_IRQ, layout::COM2_IRQ] {
        io_apic(0, 0x10 + 2 * gsi);
        io_apic(0x10, 0x30 + gsi);
    }
    for port in [layout::COM1_PORT, layout::COM2_PORT] {
        // The interrupt for received data, the line and the scratch register.
        [(1, 0x01), (3, 0x1b), (7, 0x5a)]
            .iter()
            .for_each(|(offset, value)| ports.write(u64::from(port) + offset, &[*value]));
    }
    let com2 = platform.com2.as_ref().unwrap();
    assert_eq!([&platform.serial, &com2.port].map(|port| port.enqueue_input(b"typed")), [5, 5]);
    platform.events.raise(Event::PowerButton);
    ports.write(u64::from(layout::RTC_PORT), &[0x35, 0x36]);
    ports.read(u64::from(layout::I8042_DATA_PORT), &mut [0]);
    ports.write(u64::from(layout::BOOT_MARK_PORT), &[1]);
}

/// Reads each register of each device in each width.
fn registers(platform: &Platform) -> Vec<[u8; 4]> {
    let read = |entry: &LegacyEntry, offset: u64, width: usize| {
        let bus = match entry.space {
            Space::Ports => &platform.buses.ports,
            Space::Memory => &platform.buses.mmio,
        };
        let mut data = [0xaa; 4];
        bus.read(entry.window.base + offset, &mut data[..width]);
        data
    };
    // The registers of the I/O APIC lie in the first bytes of its page.
    let offsets = |entry: &LegacyEntry| 0..entry.window.len.min(0x20);
    let of_entry =
        |entry| offsets(entry).flat_map(move |offset| [1, 2, 4].map(|width| read(entry, offset, width)));
    platform.legacy.0.iter().flat_map(of_entry).collect()
}

fn owned(states: Vec<(&'static str, SavedState)>) -> Vec<(String, SavedState)> {
    states.into_iter().map(|(name, state)| (name.to_owned(), state)).collect()
}

/// A device that is new in the list belongs into `use_devices`, or into the list of devices without state.
#[test]
fn every_device_of_the_list_is_saved() {
    let (platform, _) = platform_with_messages();
    let first = platform.save();
    use_devices(&platform);
    let used = platform.save();
    assert_eq!(used.len(), platform.legacy.0.len());
    for ((entry, (_, first)), (name, used)) in platform.legacy.0.iter().zip(&first).zip(&used) {
        assert_eq!(entry.name, *name);
        assert_eq!(first == used, WITHOUT_STATE.contains(name), "{name}: {used:?}");
    }
}

#[test]
fn restored_devices_read_alike_and_interrupt_through_the_restored_io_apic() {
    let (source, sent) = platform_with_messages();
    use_devices(&source);
    let (target, messages) = platform_with_messages();
    assert_eq!(target.restore(&owned(source.save())), Ok(()));
    assert_eq!(target.save(), source.save());
    let sent = std::mem::take(&mut *sent.sent.lock().unwrap());
    let mut again = std::mem::take(&mut *messages.sent.lock().unwrap());
    again.sort_unstable();
    let mut expected = [layout::COM1_IRQ, layout::COM2_IRQ, layout::EVENT_IRQ].map(|gsi| 0x30 + gsi);
    expected.sort_unstable();
    assert_eq!(
        again, expected,
        "each interrupt that was not served comes again once; the source sent {sent:?}"
    );
    assert_eq!(registers(&target), registers(&source));
    assert_eq!(target.save(), source.save(), "reading has had the same effects");
    assert!(target.signs.init_was_seen());
}

#[test]
fn order_of_the_states_does_not_matter() {
    let (source, _) = platform_with_messages();
    use_devices(&source);
    let mut states = owned(source.save());
    states.reverse();
    let (target, messages) = platform_with_messages();
    assert_eq!(target.restore(&states), Ok(()));
    assert_eq!(target.save(), source.save());
    assert_eq!(messages.sent.lock().unwrap().len(), 3);
}

/// Restores `states` and returns the error, after a check that no device has changed and that neither an
/// interrupt nor a route has come.
fn refused(states: &[(String, SavedState)]) -> String {
    let (target, messages) = platform_with_messages();
    use_devices(&target);
    messages.sent.lock().unwrap().clear();
    messages.routes.lock().unwrap().clear();
    let before = target.save();
    let error = target.restore(states).unwrap_err().to_string();
    assert_eq!(target.save(), before, "{error}");
    assert!(
        messages.sent.lock().unwrap().is_empty() && messages.routes.lock().unwrap().is_empty(),
        "{error}"
    );
    error
}

#[test]
fn missing_second_and_unknown_states_are_refused_by_name() {
    let states = owned(platform_with_messages().0.save());
    for (index, (name, state)) in states.iter().enumerate() {
        let mut fewer = states.clone();
        fewer.remove(index);
        let missing = format!("the state of {name} is missing;");
        assert!(refused(&fewer).starts_with(&missing), "{}", refused(&fewer));
        let twice = [&states[..], &[(name.clone(), state.clone())]].concat();
        assert_eq!(refused(&twice), format!("{name} has two states; it takes one"));
    }
    let unknown = [&states[..], &[("COM3".to_owned(), states[0].1.clone())]].concat();
    assert_eq!(refused(&unknown), "there is a state of a device 'COM3', which this machine does not have");
}

#[test]
fn one_bad_state_leaves_every_device_as_it_is() {
    let states = owned(platform_with_messages().0.save());
    for index in 0..states.len() {
        let mut damaged = states.clone();
        damaged[index].1 = SavedState::encode(9, &());
        let expected =
            format!("{}: its state has version 9; this build reads versions from 1 to 1", states[index].0);
        assert_eq!(refused(&damaged), expected);
    }
}

#[test]
fn restored_devices_of_another_machine_are_refused_where_they_differ() {
    let alone =
        Platform::new(Arc::new(Messages::default()), Arc::new(Gate::new()), [], None, 64, None).unwrap();
    assert!(refused(&owned(alone.save())).starts_with("the state of COM2 is missing"));
    let states = owned(platform_with_messages().0.save());
    assert!(alone.restore(&states).unwrap_err().to_string().contains("'COM2'"));
    let more =
        Platform::new(Arc::new(Messages::default()), Arc::new(Gate::new()), [], Some(20), 64, None).unwrap();
    let error = alone.restore(&owned(more.save())).unwrap_err().to_string();
    assert!(error.starts_with("I/O APIC: field `last` is 0x14: always "), "{error}");
}
