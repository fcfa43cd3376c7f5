//! The host's end of a console, serial port or virtio: it carries the guest's output out and the input in. It
//! runs on the I/O thread.
//!
//! Neither direction ever blocks. Output that nobody takes is dropped and counted by the [`ConsoleBuffer`];
//! input stays in the host until the device has room.

mod counts;
mod ends;
mod output;
mod pace;
mod pump;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use coracle_devices::backend::chardev::{CharSource, ReadOutcome, Written};
use coracle_devices::backend::console_buffer::{ConsoleBuffer, Drained};
use coracle_devices::backend::console_input::ConsoleInput;
use coracle_devices::event_loop::{Resident, watch};
use coracle_devices::journal;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

pub(crate) use counts::ConsoleCounts;
use ends::ConsoleListener;
pub(crate) use ends::{ConsoleChoice, ConsoleEnds, MachineConsoles};
pub use ends::{ConsoleError, ConsolePipe, ConsoleStreams};
use output::Output;
use pace::Pace;
pub(crate) use pump::Pump;

use crate::gate::Gate;
use crate::terminal::Escape;

/// The commands that a person at the terminal gives to Coracle, and the gate that they act on.
pub(crate) struct Keys {
    escape: Escape,
    gate: Arc<Gate>,
}

impl Keys {
    pub(crate) fn new(gate: Arc<Gate>) -> Keys {
        Keys { escape: Escape::default(), gate }
    }
}

/// The event handler of the console.
pub(crate) struct Console {
    buffer: Arc<ConsoleBuffer>,
    device: Arc<dyn ConsoleInput>,
    output: Option<Output>,
    /// True while the sink accepts nothing: the loop waits until it does.
    output_blocked: bool,
    /// True once the sink is gone for good.
    output_lost: bool,
    pace: Pace,
    input: Option<CharSource>,
    input_watched: bool,
    listener: Option<ConsoleListener>,
    _kept_open: Option<OwnedFd>,
    /// Input that was read and that the device has not taken yet.
    pending: Vec<u8>,
    keys: Option<Keys>,
}

impl Console {
    /// Connects `device` and its output `buffer` to `ends`. With `keys`, Ctrl-A commands in the input are
    /// executed.
    pub(crate) fn new(
        device: Arc<dyn ConsoleInput>,
        buffer: Arc<ConsoleBuffer>,
        ends: ConsoleEnds,
        keys: Option<Keys>,
    ) -> Console {
        // A console without an end has no output that could be paced.
        let has_end = ends.output.is_some() || ends.listener.is_some();
        let pace = if has_end { Pace::new() } else { Pace::default() };
        Console {
            buffer,
            device,
            output: ends.output,
            output_blocked: false,
            output_lost: false,
            pace,
            input: ends.input,
            input_watched: false,
            listener: ends.listener,
            _kept_open: ends.kept_open,
            pending: Vec::new(),
            keys,
        }
    }

    fn write_output(&mut self, ops: &mut EventOps) {
        let Some(sink) = &mut self.output else {
            // With a listener, the output stays buffered for a client that comes late. Without one it is
            // drained: a console that was never connected drops it silently, while one that has lost its sink
            // counts it as lost.
            if self.output_lost {
                self.buffer.discard();
            } else if self.listener.is_none() {
                self.buffer.drain(<[u8]>::len);
            }
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
            self.output_closed(errno, ops);
            return;
        }
        match drained {
            Drained::Blocked => self.watch_output(ops),
            Drained::Empty | Drained::Pending => self.unwatch_output(ops),
        }
    }

    /// Writes the output of an interval. After one without output, or when the sink takes no more, the next
    /// byte is announced by a wake-up again.
    fn write_paced(&mut self, ops: &mut EventOps) {
        if !self.pace.is_running() {
            return;
        }
        let is_quiet = self.buffer.is_empty();
        self.write_output(ops);
        let goes_on = !is_quiet && self.takes_output() && self.pace.go_on();
        if !goes_on && self.pace.stop(&self.buffer) {
            self.write_output(ops);
        }
    }

    fn takes_output(&self) -> bool {
        self.output.is_some() && !self.output_blocked
    }

    fn output_closed(&mut self, errno: i32, ops: &mut EventOps) {
        self.unwatch_output(ops);
        self.output = None;
        if self.listener.is_some() {
            self.hang_up(ops);
        } else {
            journal!(Host Warn, "all further console output is lost: {}", io::Error::from_raw_os_error(errno));
            self.output_lost = true;
            self.buffer.discard();
        }
    }

    /// Accepts the next client of the socket.
    fn accept_client(&mut self, ops: &mut EventOps) {
        let Some(listener) = &self.listener else { return };
        let Some((output, input)) = listener.accept() else { return };
        unwatch(ops, &listener.socket);
        self.output = Some(output);
        self.input = Some(input);
        self.write_output(ops);
        self.read_input(ops);
    }

    /// Drops a client that has hung up, and waits for the next one.
    fn hang_up(&mut self, ops: &mut EventOps) {
        self.unwatch_output(ops);
        self.unwatch_input(ops);
        self.output = None;
        self.input = None;
        if let Some(listener) = &self.listener {
            watch(ops, &listener.socket, CLIENT, EventSet::IN);
        }
    }

    fn watch_output(&mut self, ops: &mut EventOps) {
        let fd = self.output.as_ref().and_then(Output::poll_fd);
        if let Some(fd) = fd.filter(|_| !self.output_blocked) {
            watch(ops, &fd, OUTPUT, EventSet::OUT);
            self.output_blocked = true;
        }
    }

    fn unwatch_output(&mut self, ops: &mut EventOps) {
        let fd = self.output.as_ref().and_then(Output::poll_fd);
        if let Some(fd) = fd.filter(|_| self.output_blocked) {
            unwatch(ops, &fd);
            self.output_blocked = false;
        }
    }

    /// Moves input into the device until the source is empty or the device is full, and then waits for
    /// whichever of them it is.
    fn read_input(&mut self, ops: &mut EventOps) {
        // Each turn takes a bounded number of rounds, so that input cannot starve output.
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
                    if self.listener.is_some() {
                        self.hang_up(ops);
                    }
                    return;
                }
            }
        }
        if self.push_pending() { self.watch_input(ops) } else { self.unwatch_input(ops) }
    }

    fn accept(&mut self, bytes: &[u8]) {
        let Some(keys) = &mut self.keys else {
            self.pending.extend_from_slice(bytes);
            return;
        };
        let asked = keys.escape.filter(bytes, &mut self.pending);
        if asked.end {
            keys.gate.stop();
        }
        if asked.help {
            self.show_help();
        }
    }

    /// Shows the help for the keys. It comes from Coracle and does not count as the guest's output. A
    /// terminal that is not taking output misses it.
    fn show_help(&mut self) {
        if let Some(sink) = &mut self.output {
            sink.write(Escape::HELP);
        }
    }

    /// Pushes pending input into the device; `true` if nothing is left and the device has room for more.
    fn push_pending(&mut self) -> bool {
        let taken = if self.pending.is_empty() { 0 } else { self.device.enqueue_input(&self.pending) };
        self.pending.drain(..taken);
        self.pending.is_empty() && self.device.has_input_room()
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
        watch(ops, self.device.room_event(), ROOM, EventSet::IN);
        self.pace.watch(PACE, ops);
        if let Some(listener) = &self.listener {
            watch(ops, &listener.socket, CLIENT, EventSet::IN);
        }
        self.read_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => {
                let _ = self.buffer.wake_event().read();
                self.write_output(ops);
                if self.takes_output() {
                    self.pace.after_wake(&self.buffer);
                }
            }
            PACE => self.write_paced(ops),
            OUTPUT => self.write_output(ops),
            ROOM => {
                let _ = self.device.room_event().read();
                self.read_input(ops);
            }
            CLIENT => self.accept_client(ops),
            _ => self.read_input(ops),
        }
    }
}

impl Resident for Console {
    fn is_drained(&self) -> bool {
        // What only a later client would take is not waited for, and neither is what nobody can take any
        // more. Without an end, the bytes still have to be dropped, or they would count as lost.
        let is_given_up = self.output.is_none() && (self.listener.is_some() || self.output_lost);
        is_given_up || self.buffer.is_empty()
    }
}

fn unwatch(ops: &mut EventOps, source: &impl AsRawFd) {
    if let Err(error) = ops.remove(Events::empty(source)) {
        journal!(Host Error, "an I/O source cannot be unwatched: {error}");
    }
}

// The sources of events.
const WAKE: u32 = 0;
const OUTPUT: u32 = 1;
const INPUT: u32 = 2;
const ROOM: u32 = 3;
const CLIENT: u32 = 4;
const PACE: u32 = 5;

/// The number of input bytes that are read at a time: the size of a serial port's receive FIFO.
const INPUT_BYTES: usize = 64;
const INPUT_ROUNDS: usize = 16;
