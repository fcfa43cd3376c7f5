//! The machine's power button, as the kernel's `button` and `evdev` modules show it: key presses on an input
//! device.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

const INPUT_DEVICES: &str = "/dev/input";

/// From `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// The size of `struct input_event` of `linux/input.h`: time, type, code, value.
const EVENT_BYTES: usize = size_of::<libc::input_event>();

/// All input devices. Only a power button sends the power key.
#[derive(Debug)]
pub(crate) struct PowerButton {
    devices: Vec<File>,
}

impl PowerButton {
    /// Opens the input devices. Presses from here on are seen. On a machine without input devices, the button
    /// is never pressed.
    pub(crate) fn open() -> Self {
        let entries = fs::read_dir(INPUT_DEVICES).into_iter().flatten().flatten();
        let open = |path| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
        let is_event = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("event");
        let devices =
            entries.filter(|entry| is_event(&entry.file_name())).filter_map(|entry| open(entry.path()));
        Self { devices: devices.collect() }
    }

    /// Returns the entries to poll.
    pub(crate) fn poll_entries(&self) -> impl Iterator<Item = libc::pollfd> {
        self.devices.iter().map(|device| libc::pollfd {
            fd: device.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
    }

    /// Reads pending events and returns whether the button was pressed. A device that has gone is dropped.
    pub(crate) fn is_pressed(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain_mut(|device| {
            let mut events = [0; 16 * EVENT_BYTES];
            loop {
                match device.read(&mut events) {
                    Ok(0) => return false,
                    Ok(count) => {
                        pressed |=
                            events.get(..count).unwrap_or_default().chunks_exact(EVENT_BYTES).any(is_press);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        pressed
    }
}

/// Returns whether a record of [`EVENT_BYTES`] is a press of the power key. Its last eight bytes are type,
/// code and value.
fn is_press(record: &[u8]) -> bool {
    let Some((_, &[type0, type1, code0, code1, value @ ..])) = record.split_last_chunk::<8>() else {
        return false;
    };
    let (kind, code) = (u16::from_ne_bytes([type0, type1]), u16::from_ne_bytes([code0, code1]));
    (kind, code, i32::from_ne_bytes(value)) == (EV_KEY, KEY_POWER, PRESSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let time = [0; EVENT_BYTES - 8];
        [&time[..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        assert!(is_press(&record(EV_KEY, KEY_POWER, 1)));
        for (kind, code, value) in
            [(EV_KEY, KEY_POWER, 0), (EV_KEY, 28, 1), (0, KEY_POWER, 1), (EV_KEY, 116, 2)]
        {
            assert!(!is_press(&record(kind, code, value)), "{kind} {code} {value}");
        }
        assert!(!is_press(&[1, 2, 3]));
    }

    #[test]
    fn machine_without_input_devices_has_a_button_that_nobody_presses() {
        let mut button = PowerButton { devices: Vec::new() };
        assert!(!button.is_pressed());
        assert_eq!(button.poll_entries().count(), 0);
    }
}
