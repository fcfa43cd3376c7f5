//! The host's end of the serial port: what the guest prints goes out, what is typed goes in. Runs on the I/O thread.
//!
//! Neither direction ever blocks. Output that nobody takes is dropped and counted by the [`ConsoleBuffer`]; input
//! waits in the host until the UART's FIFO has room.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_devices::backend::chardev::{CharError, CharSink, CharSource, ReadOutcome, Written};
use coracle_devices::backend::console_buffer::{ConsoleBuffer, Drained};
use coracle_devices::legacy::serial::SerialPort;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::config::SerialConfig;
use crate::control::{Control, VmEvent};
use crate::io_loop::{IoHandler, watch};

/// What the serial port is connected to, opened.
#[derive(Default)]
pub(crate) struct ConsoleEnds {
    output: Option<CharSink>,
    input: Option<CharSource>,
}

/// Why a console cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file for the output cannot be made.
    #[error("--serial file={}: the file cannot be opened for writing", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A descriptor cannot serve.
    #[error("--serial {serial}: it cannot be used")]
    Descriptor {
        /// Which.
        serial: &'static str,
        /// Why.
        source: CharError,
    },
}

impl ConsoleEnds {
    /// Opens what `config` names. Standard streams that are closed count as nothing.
    pub(crate) fn open(config: &SerialConfig) -> Result<ConsoleEnds, ConsoleError> {
        match config {
            SerialConfig::Null => Ok(ConsoleEnds::default()),
            SerialConfig::Stdio => {
                let output = CharSink::new(io::stdout().as_fd());
                let output = output.map_err(|source| ConsoleError::Descriptor { serial: "stdio", source })?;
                // A program started without input (`<&-`, or stdin open for writing only) has a silent console.
                Ok(ConsoleEnds { output: Some(output), input: CharSource::new(io::stdin().as_fd()).ok() })
            }
            SerialConfig::File(path) => {
                let file =
                    create(path).map_err(|source| ConsoleError::File { path: path.clone(), source })?;
                let output = CharSink::new(file.as_fd());
                let output = output.map_err(|source| ConsoleError::Descriptor { serial: "file", source })?;
                Ok(ConsoleEnds { output: Some(output), input: None })
            }
        }
    }
}

/// A FIFO that nobody reads is an error, and not a wait.
fn create(path: &PathBuf) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)
}

/// The event handler of the console.
pub(crate) struct Console {
    buffer: Arc<ConsoleBuffer>,
    serial: Arc<SerialPort>,
    output: Option<CharSink>,
    /// The sink is behind: the loop waits until it takes more.
    output_blocked: bool,
    input: Option<CharSource>,
    input_watched: bool,
    /// Typed, and not yet in the UART's FIFO.
    pending: Vec<u8>,
    escape: Option<Escape>,
}

impl Console {
    /// Connects `serial` and its output `buffer` to `ends`. With `escape`, Ctrl-A commands in the input are obeyed.
    pub(crate) fn new(
        serial: Arc<SerialPort>,
        buffer: Arc<ConsoleBuffer>,
        ends: ConsoleEnds,
        escape: Option<Escape>,
    ) -> Console {
        Console {
            buffer,
            serial,
            output: ends.output,
            output_blocked: false,
            input: ends.input,
            input_watched: false,
            pending: Vec::new(),
            escape,
        }
    }

    fn write_output(&mut self, ops: &mut EventOps) {
        let Some(sink) = &self.output else {
            self.buffer.drain(<[u8]>::len);
            return;
        };
        let mut closed = None;
        let drained = self.buffer.drain(|bytes| match sink.write(bytes) {
            Written::Wrote(count) => count,
            Written::WouldBlock => 0,
            Written::Closed { errno } => {
                closed = Some(errno);
                0
            }
        });
        if let Some(errno) = closed {
            log::warn!("console output is lost from here on: {}", io::Error::from_raw_os_error(errno));
            self.unwatch_output(ops);
            self.output = None;
            self.buffer.discard();
            return;
        }
        match drained {
            Drained::Blocked => self.watch_output(ops),
            Drained::Empty | Drained::Pending => self.unwatch_output(ops),
        }
    }

    fn watch_output(&mut self, ops: &mut EventOps) {
        let fd = self.output.as_ref().and_then(CharSink::poll_fd);
        if let Some(fd) = fd.filter(|_| !self.output_blocked) {
            watch(ops, &fd, OUTPUT, EventSet::OUT);
            self.output_blocked = true;
        }
    }

    fn unwatch_output(&mut self, ops: &mut EventOps) {
        let fd = self.output.as_ref().and_then(CharSink::poll_fd);
        if let Some(fd) = fd.filter(|_| self.output_blocked) {
            unwatch(ops, &fd);
            self.output_blocked = false;
        }
    }

    /// Moves input into the UART until one of the two has had enough, and waits for the right one then.
    fn read_input(&mut self, ops: &mut EventOps) {
        // One turn takes a bounded number of rounds, so that output is not starved.
        for _ in 0..INPUT_ROUNDS {
            if !self.push_pending() || self.input.is_none() {
                break;
            }
            let mut bytes = [0; INPUT_BYTES];
            let source = self.input.as_ref();
            match source.map_or(ReadOutcome::EndOfInput, |source| source.read(&mut bytes)) {
                ReadOutcome::Read(count) => self.accept(bytes.get(..count).unwrap_or_default()),
                ReadOutcome::WouldBlock => break,
                ReadOutcome::EndOfInput | ReadOutcome::Closed { .. } => {
                    self.unwatch_input(ops);
                    self.input = None;
                }
            }
        }
        if self.push_pending() { self.watch_input(ops) } else { self.unwatch_input(ops) }
    }

    fn accept(&mut self, bytes: &[u8]) {
        match &mut self.escape {
            None => self.pending.extend_from_slice(bytes),
            Some(escape) => {
                if escape.filter(bytes, &mut self.pending) {
                    self.show_help();
                }
            }
        }
    }

    /// The help is Coracle's: it does not count as the guest's output. A terminal that is behind misses it.
    fn show_help(&self) {
        if let Some(sink) = &self.output {
            sink.write(HELP);
        }
    }

    /// True when nothing is left and the UART has room for more.
    fn push_pending(&mut self) -> bool {
        let taken = if self.pending.is_empty() { 0 } else { self.serial.enqueue_input(&self.pending) };
        self.pending.drain(..taken);
        self.pending.is_empty() && self.serial.has_input_room()
    }

    fn watch_input(&mut self, ops: &mut EventOps) {
        let Some(source) = self.input.as_ref().filter(|_| !self.input_watched) else { return };
        if let Some(fd) = source.poll_fd() {
            watch(ops, &fd, INPUT, EventSet::IN);
            self.input_watched = true;
        }
    }

    fn unwatch_input(&mut self, ops: &mut EventOps) {
        let fd = self.input.as_ref().and_then(CharSource::poll_fd);
        if let Some(fd) = fd.filter(|_| self.input_watched) {
            unwatch(ops, &fd);
            self.input_watched = false;
        }
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.buffer.wake_event(), WAKE, EventSet::IN);
        if self.input.is_some() {
            watch(ops, self.serial.room_event(), ROOM, EventSet::IN);
            self.read_input(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => {
                let _ = self.buffer.wake_event().read();
                self.write_output(ops);
            }
            OUTPUT => self.write_output(ops),
            ROOM => {
                let _ = self.serial.room_event().read();
                self.read_input(ops);
            }
            _ => self.read_input(ops),
        }
    }
}

impl IoHandler for Console {
    fn is_drained(&self) -> bool {
        self.output.is_none() || self.buffer.is_empty()
    }
}

fn unwatch(ops: &mut EventOps, source: &impl AsRawFd) {
    if let Err(error) = ops.remove(Events::empty(source)) {
        log::error!("an I/O source cannot be unwatched: {error}");
    }
}

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
    fn filter(&mut self, bytes: &[u8], guest: &mut Vec<u8>) -> bool {
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
const HELP: &[u8] =
    b"\r\nCtrl-A x  end the virtual machine\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n";

// What an event is about.
const WAKE: u32 = 0;
const OUTPUT: u32 = 1;
const INPUT: u32 = 2;
const ROOM: u32 = 3;

/// The length of the UART's receive FIFO.
const INPUT_BYTES: usize = 64;
const INPUT_ROUNDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(control.wait_event(None), VmEvent::Stop);
    }
}
