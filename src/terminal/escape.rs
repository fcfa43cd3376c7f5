//! Ctrl-A commands: separates a person's input for Coracle from that for the guest. The console of a machine
//! calls this, and so does the command that gives a terminal to a program in the guest.

/// Finds the commands of a person at the terminal: Ctrl-A and then `x` to end, `h` for help, or Ctrl-A to
/// send one Ctrl-A to the guest. Anything else after Ctrl-A goes to the guest together with it.
#[derive(Debug, Default)]
pub struct Escape {
    after_prefix: bool,
}

/// The commands in a piece of input.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Whether the machine is to end. Later input is dropped.
    pub end: bool,
    /// Whether to show the help, [`Escape::HELP`].
    pub help: bool,
}

impl Escape {
    /// The help for Ctrl-A h, for a terminal in raw mode.
    pub const HELP: &[u8] =
        b"\r\nCtrl-A x  end the virtual machine\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n";

    /// Appends the guest's input to `guest`, and returns the commands. A command may be split between two
    /// calls.
    pub fn filter(&mut self, bytes: &[u8], guest: &mut Vec<u8>) -> Asked {
        let mut asked = Asked::default();
        for &byte in bytes {
            if !std::mem::take(&mut self.after_prefix) {
                match byte {
                    PREFIX => self.after_prefix = true,
                    other => guest.push(other),
                }
                continue;
            }
            match byte {
                b'x' => return Asked { end: true, ..asked },
                b'h' => asked.help = true,
                PREFIX => guest.push(PREFIX),
                other => guest.extend_from_slice(&[PREFIX, other]),
            }
        }
        asked
    }
}

/// Ctrl-A.
const PREFIX: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the guest's part of these pieces, and the commands of the last one.
    fn filtered(input: &[&[u8]]) -> (Vec<u8>, Asked) {
        let mut escape = Escape::default();
        let mut guest = Vec::new();
        let asked = input.iter().map(|bytes| escape.filter(bytes, &mut guest)).last();
        (guest, asked.unwrap_or_default())
    }

    #[test]
    fn plain_input_passes_unchanged() {
        assert_eq!(filtered(&[b"ls -l\r", b"\x03"]), (b"ls -l\r\x03".to_vec(), Asked::default()));
    }

    #[test]
    fn doubled_prefix_sends_one_and_an_unknown_command_passes() {
        assert_eq!(filtered(&[b"a\x01", b"\x01b\x01q"]), (b"a\x01b\x01q".to_vec(), Asked::default()));
    }

    #[test]
    fn prefix_and_h_asks_for_help_and_sends_nothing() {
        let help = Asked { help: true, end: false };
        assert_eq!(filtered(&[b"h\x01"]), (b"h".to_vec(), Asked::default()));
        assert_eq!(filtered(&[b"h\x01", b"h"]), (b"h".to_vec(), help));
    }

    #[test]
    fn prefix_and_x_ends_also_when_split_and_nothing_follows() {
        let end = Asked { end: true, help: false };
        assert_eq!(filtered(&[b"\x01", b"x"]), (Vec::new(), end));
        assert_eq!(filtered(&[b"a\x01xb"]), (b"a".to_vec(), end));
    }
}
