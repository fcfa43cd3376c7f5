//! Serves the queues of a console.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::control::{ControlQueues, Dialogue};
use super::port::ConsolePort;
use super::stream::StreamQueues;
use crate::event_loop::watch;
use crate::lock;
use crate::virtio::queue::{Chain, RingError, VirtQueue};
use crate::virtio::{QueueHandler, VirtioIrq, watch_doorbell};

/// The handler of all queues of a console.
///
/// A Linux driver spins until its output has been taken. So a slow reader may delay it for a short time only;
/// after that, output is dropped and counted until the reader takes some again.
pub(super) struct ConsoleHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    port: Arc<ConsolePort>,
    /// Output that waits for space in the buffer.
    held: Option<Chain>,
    /// Fires when output has waited long enough. Without a timer the handler drops at once, since it could
    /// not wait.
    patience: Option<TimerFd>,
    /// Whether output is dropped, because the reader has taken nothing for that long.
    is_dropping: bool,
    is_quiet: bool,
    size_report: SizeReport,
    stream: Option<StreamQueues>,
}

/// How the driver learns the terminal's size, and how the device learns when the driver takes input.
enum SizeReport {
    /// Input goes to any buffer, and the driver does not learn a size.
    Nothing,
    /// Input goes to any buffer, and an interrupt reports a new size.
    Interrupt(VirtioIrq),
    /// By control messages.
    Control(Box<ControlQueues>, Arc<Mutex<Dialogue>>),
}

impl ConsoleHandler {
    /// Makes a handler for a driver without control queues that does not learn a size.
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue, port: Arc<ConsolePort>) -> Self {
        transmit.limit_bytes(MAX_BYTES);
        let patience = TimerFd::new().ok();
        let is_dropping = patience.is_none();
        Self {
            receive,
            transmit,
            port,
            held: None,
            patience,
            is_dropping,
            is_quiet: false,
            size_report: SizeReport::Nothing,
            stream: None,
        }
    }

    /// Uses control queues.
    pub(super) fn converse(&mut self, control: ControlQueues, dialogue: Arc<Mutex<Dialogue>>) {
        self.size_report = SizeReport::Control(Box::new(control), dialogue);
    }

    /// Adds a stream port.
    pub(super) fn carry(&mut self, stream: StreamQueues) {
        self.stream = Some(stream);
    }

    /// Uses an interrupt for a new size, which the driver then reads in the configuration space.
    pub(super) fn report_size_by(&mut self, irq: VirtioIrq) {
        self.size_report = SizeReport::Interrupt(irq);
    }

    /// Takes output until there is no more, or no space for it.
    fn serve_transmit(&mut self) -> Result<(), RingError> {
        self.transmit.begin();
        loop {
            let chain = match self.held.take() {
                Some(chain) => Some(chain),
                None if self.is_quiet => None,
                None => self.transmit.pop()?,
            };
            let Some(mut chain) = chain else { return self.transmit.finish() };
            self.print(&mut chain);
            if !chain.readable.is_empty() {
                self.held = Some(chain);
                // The doorbell stays quiet: the event for space, or the timer, comes first.
                self.transmit.announce();
                return Ok(());
            }
            self.transmit.complete(chain, 0);
        }
    }

    /// Moves output to the host, as far as there is space. While the handler drops or is quiet, it takes all
    /// of it; the buffer counts what it cannot hold.
    fn print(&mut self, chain: &mut Chain) {
        let output = self.port.output();
        let mut piece = [0; PIECE];
        while !chain.readable.is_empty() {
            let room = output.room();
            if room == 0 && !self.is_dropping && !self.is_quiet {
                if self.patience.as_mut().is_some_and(|timer| timer.reset(PATIENCE, None).is_ok()) {
                    return;
                }
                self.is_dropping = true;
            }
            let most = if room == 0 { PIECE } else { room.min(PIECE) };
            let count = chain.readable.read(piece.get_mut(..most).unwrap_or_default());
            output.push(piece.get(..count).unwrap_or_default());
        }
    }

    /// Gives the guest its input, as far as it has buffers.
    fn serve_receive(&mut self) -> Result<(), RingError> {
        self.receive.begin();
        let mut piece = [0; PIECE];
        while self.is_wanted() && self.port.has_input() && !self.is_quiet {
            // Without a buffer, the doorbell rings when there is one.
            let Some(mut chain) = self.receive.pop()? else { return self.receive.finish() };
            let room = usize::try_from(chain.writable.len()).unwrap_or(PIECE).min(PIECE);
            let count = self.port.take_input(piece.get_mut(..room).unwrap_or_default());
            let written = chain.writable.write(piece.get(..count).unwrap_or_default());
            self.receive.complete(chain, written as u32);
        }
        // The doorbell stays quiet while there is nothing to deliver.
        self.receive.announce();
        Ok(())
    }

    /// Returns whether the driver is ready for input.
    fn is_wanted(&self) -> bool {
        match &self.size_report {
            SizeReport::Nothing | SizeReport::Interrupt(_) => true,
            SizeReport::Control(_, dialogue) => lock(dialogue).is_open(),
        }
    }

    /// Exchanges control messages with the driver, which may then be ready for input that waits.
    fn serve_control(&mut self) -> Result<(), RingError> {
        let SizeReport::Control(control, dialogue) = &mut self.size_report else { return Ok(()) };
        if self.is_quiet {
            return Ok(());
        }
        control.serve(&mut lock(dialogue), self.port.size(), self.stream.as_mut())?;
        self.serve_receive()
    }

    /// Moves the bytes of the stream port.
    fn serve_stream(&mut self) -> Result<(), RingError> {
        let (Some(stream), SizeReport::Control(control, dialogue)) =
            (&mut self.stream, &mut self.size_report)
        else {
            return Ok(());
        };
        if self.is_quiet {
            return Ok(());
        }
        let mut dialogue = lock(dialogue);
        dialogue.stream_host(stream.serve()?);
        control.announce(&mut dialogue, self.port.size())
    }

    /// Handles the host's signal: there is input, or the terminal has a new size.
    fn heed_host(&mut self) -> Result<(), RingError> {
        let _ = self.port.arrived().read();
        if !self.port.take_resized() {
            return self.serve_receive();
        }
        match &self.size_report {
            SizeReport::Nothing => {}
            SizeReport::Interrupt(irq) => irq.config(),
            SizeReport::Control(_, dialogue) => lock(dialogue).resize(),
        }
        self.serve_control()?;
        self.serve_receive()
    }

    /// Stops dropping, because the reader has taken something.
    fn stop_dropping(&mut self) {
        let _ = self.port.output().room_event().read();
        if let Some(patience) = &mut self.patience {
            self.is_dropping = patience.clear().is_err();
        }
    }
}

impl QueueHandler for ConsoleHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, &self.receive, RECEIVE);
        watch_doorbell(sources, &self.transmit, TRANSMIT);
        watch(sources, self.port.arrived(), ARRIVED, EventSet::IN);
        watch(sources, self.port.output().room_event(), ROOM, EventSet::IN);
        if let Some(patience) = &self.patience {
            // The watch is edge-triggered, so each expiry gives one event although nobody reads the timer.
            watch(sources, patience, PATIENCE_OVER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
        if let SizeReport::Control(control, _) = &self.size_report {
            watch_doorbell(sources, &control.receive, CONTROL);
            watch_doorbell(sources, &control.transmit, CONTROL);
        }
        if let Some(stream) = &self.stream {
            watch_doorbell(sources, &stream.receive, STREAM);
            watch_doorbell(sources, &stream.transmit, STREAM);
            watch(sources, stream.events(), STREAM, EventSet::IN | EventSet::EDGE_TRIGGERED);
            // Bytes that came while nobody watched give no event again.
            stream.transmit.ring();
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        match event.data() {
            ARRIVED => self.heed_host(),
            CONTROL => {
                self.serve_control()?;
                self.serve_stream()
            }
            STREAM => self.serve_stream(),
            RECEIVE => self.serve_receive(),
            ROOM => {
                self.stop_dropping();
                self.serve_transmit()
            }
            PATIENCE_OVER => {
                // If the buffer got space at the same moment, no output is held and the expiry has no effect.
                self.is_dropping |= self.held.is_some();
                self.serve_transmit()
            }
            // Held output goes first.
            _ if self.held.is_some() => Ok(()),
            _ => self.serve_transmit(),
        }
    }

    fn quiesce(&mut self, quiet: bool) {
        self.is_quiet = quiet;
        if let Some(mut chain) = self.held.take().filter(|_| quiet) {
            self.print(&mut chain);
            self.transmit.complete(chain, 0);
            self.transmit.announce();
        }
        if !quiet {
            self.transmit.ring();
            self.receive.ring();
            if let SizeReport::Control(control, _) = &self.size_report {
                control.transmit.ring();
            }
            if let Some(stream) = &self.stream {
                stream.transmit.ring();
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let mut queues = vec![self.receive, self.transmit];
        if let SizeReport::Control(control, _) = self.size_report {
            queues.extend([control.receive, control.transmit]);
        }
        if let Some(stream) = self.stream {
            queues.extend([stream.receive, stream.transmit]);
        }
        queues
    }
}

/// The event data that distinguish the sources.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const ARRIVED: u32 = 2;
const ROOM: u32 = 3;
const PATIENCE_OVER: u32 = 4;
const CONTROL: u32 = 5;
const STREAM: u32 = 6;

/// The longest chain in bytes: twice what Linux sends at once. A longer one would take long when it is
/// dropped.
const MAX_BYTES: u64 = 64 << 10;
/// The size of the pieces, on the stack, in which bytes are moved.
const PIECE: usize = 4096;
/// How long a slow reader may delay the guest.
const PATIENCE: Duration = Duration::from_secs(1);
