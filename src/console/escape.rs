//! Commands of a person at the terminal: what of the input is for Coracle and not for the guest.

use std::sync::Arc;

use crate::control::{Control, VmEvent};

/// Finds the commands that a person at the terminal gives to Coracle and not to the guest: Ctrl-A, then `x` to end,
/// `h` for help, Ctrl-A for one Ctrl-A to the guest. Anything else after Ctrl-A goes to the guest with it.
pub(crate) struct Escape {
    control: Arc<Control>,
    after_prefix: bool,
}

impl Escape {
    /// Commands act on `control`.
    pub(crate) fn new(control: Arc<Control>) -> Escape {
        Escape { control, after_prefix: false }
    }

    /// Appends to `guest` what is for it. True when help was asked for.
    pub(super) fn filter(&mut self, bytes: &[u8], guest: &mut Vec<u8>) -> bool {
        let mut help = false;
        for &byte in bytes {
            if !std::mem::take(&mut self.after_prefix) {
                match byte {
                    PREFIX => self.after_prefix = true,
                    other => guest.push(other),
                }
                continue;
            }
            match byte {
                b'x' => self.control.post(VmEvent::Stop),
                b'h' => help = true,
                PREFIX => guest.push(PREFIX),
                other => guest.extend_from_slice(&[PREFIX, other]),
            }
        }
        help
    }
}

const PREFIX: u8 = 0x01;
pub(super) const HELP: &[u8] =
    b"\r\nCtrl-A x  end the virtual machine\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{StartLimits, Wake};

    fn filtered(input: &[&[u8]]) -> (Vec<u8>, Arc<Control>) {
        let control = Arc::new(Control::new());
        let mut escape = Escape::new(control.clone());
        let mut guest = Vec::new();
        for bytes in input {
            escape.filter(bytes, &mut guest);
        }
        (guest, control)
    }

    #[test]
    fn plain_input_passes_unchanged() {
        assert_eq!(filtered(&[b"ls -l\r", b"\x03"]).0, b"ls -l\r\x03");
    }

    #[test]
    fn doubled_prefix_sends_one_and_an_unknown_command_passes() {
        assert_eq!(filtered(&[b"a\x01", b"\x01b\x01q"]).0, b"a\x01b\x01q");
    }

    #[test]
    fn prefix_and_h_asks_for_help_and_sends_nothing() {
        let mut escape = Escape::new(Arc::new(Control::new()));
        let mut guest = Vec::new();
        assert!(!escape.filter(b"h\x01", &mut guest));
        assert!(escape.filter(b"h", &mut guest));
        assert_eq!(guest, b"h");
    }

    #[test]
    fn prefix_and_x_stops_also_when_split() {
        let (guest, control) = filtered(&[b"\x01", b"x"]);
        assert!(guest.is_empty());
        assert_eq!(control.wait_event(StartLimits::default(), None), Wake::Ended(VmEvent::Stop));
    }
}
