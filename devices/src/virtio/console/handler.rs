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

/// The handler of all queues.
///
/// A Linux driver spins until its output has been taken, so that a reader who is behind may hold it up for a
/// short time only: from then on output is dropped and counted, until the reader takes some again.
pub(super) struct ConsoleHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    port: Arc<ConsolePort>,
    /// Output that waits for room.
    held: Option<Chain>,
    /// Rings when it has waited long enough. A host without timers drops at once.
    patience: Option<TimerFd>,
    /// The reader has not taken anything for that long.
    is_dropping: bool,
    is_quiet: bool,
    telling: Telling,
    stream: Option<StreamQueues>,
}

/// How the driver is told of the terminal's size, and, with control queues, when it takes input.
enum Telling {
    /// Input goes where there are buffers, and nobody is told of a size.
    Nothing,
    /// As before, and a size is told by an interrupt.
    Interrupt(VirtioIrq),
    /// By control messages.
    Control(Box<ControlQueues>, Arc<Mutex<Dialogue>>),
}

impl ConsoleHandler {
    /// A handler for a driver without control queues, which is not told of a size.
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue, port: Arc<ConsolePort>) -> Self {
        transmit.limit_bytes(MOST_BYTES);
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
            telling: Telling::Nothing,
            stream: None,
        }
    }

    /// The driver has control queues.
    pub(super) fn converse(&mut self, control: ControlQueues, dialogue: Arc<Mutex<Dialogue>>) {
        self.telling = Telling::Control(Box::new(control), dialogue);
    }

    /// There is a stream port, too.
    pub(super) fn carry(&mut self, stream: StreamQueues) {
        self.stream = Some(stream);
    }

    /// The driver reads the size in the configuration space when it is interrupted.
    pub(super) fn tell_size_by(&mut self, irq: VirtioIrq) {
        self.telling = Telling::Interrupt(irq);
    }

    /// Takes output until there is no more, or no room for it.
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
                // The doorbell stays quiet: room or the end of patience come first.
                self.transmit.announce();
                return Ok(());
            }
            self.transmit.complete(chain, 0);
        }
    }

    /// Moves output to the host, as far as there is room. Without patience all of it goes, room or not.
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
            // Without a buffer, the doorbell tells when there is one.
            let Some(mut chain) = self.receive.pop()? else { return self.receive.finish() };
            let room = usize::try_from(chain.writable.len()).unwrap_or(PIECE).min(PIECE);
            let count = self.port.take_input(piece.get_mut(..room).unwrap_or_default());
            let written = chain.writable.write(piece.get(..count).unwrap_or_default());
            self.receive.complete(chain, written as u32);
        }
        // The doorbell stays quiet while there is nothing to give.
        self.receive.announce();
        Ok(())
    }

    /// Whether the driver is ready for input.
    fn is_wanted(&self) -> bool {
        match &self.telling {
            Telling::Nothing | Telling::Interrupt(_) => true,
            Telling::Control(_, dialogue) => lock(dialogue).is_open(),
        }
    }

    /// Talks with the driver, which may then be ready for what waits.
    fn serve_control(&mut self) -> Result<(), RingError> {
        let Telling::Control(control, dialogue) = &mut self.telling else { return Ok(()) };
        if self.is_quiet {
            return Ok(());
        }
        control.serve(&mut lock(dialogue), self.port.size(), self.stream.as_mut())?;
        self.serve_receive()
    }

    /// Moves the bytes of the stream port.
    fn serve_stream(&mut self) -> Result<(), RingError> {
        let (Some(stream), Telling::Control(control, dialogue)) = (&mut self.stream, &mut self.telling)
        else {
            return Ok(());
        };
        if self.is_quiet {
            return Ok(());
        }
        let mut dialogue = lock(dialogue);
        dialogue.stream_host(stream.serve()?);
        control.tell(&mut dialogue, self.port.size())
    }

    /// There is input, or the terminal has another size.
    fn heed_host(&mut self) -> Result<(), RingError> {
        let _ = self.port.arrived().read();
        if !self.port.take_resized() {
            return self.serve_receive();
        }
        match &self.telling {
            Telling::Nothing => {}
            Telling::Interrupt(irq) => irq.config(),
            Telling::Control(_, dialogue) => lock(dialogue).resize(),
        }
        self.serve_control()?;
        self.serve_receive()
    }

    /// The reader has taken something.
    fn has_room(&mut self) {
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
            // Told of once each time, without the need to read it.
            watch(sources, patience, PATIENCE_OVER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
        if let Telling::Control(control, _) = &self.telling {
            watch_doorbell(sources, &control.receive, CONTROL);
            watch_doorbell(sources, &control.transmit, CONTROL);
        }
        if let Some(stream) = &self.stream {
            watch_doorbell(sources, &stream.receive, STREAM);
            watch_doorbell(sources, &stream.transmit, STREAM);
            watch(sources, stream.events(), STREAM, EventSet::IN | EventSet::EDGE_TRIGGERED);
            // What came while nobody watched is not told of again.
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
                self.has_room();
                self.serve_transmit()
            }
            PATIENCE_OVER => {
                // One that came with room at once is of no account.
                self.is_dropping |= self.held.is_some();
                self.serve_transmit()
            }
            // What is held goes first.
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
            if let Telling::Control(control, _) = &self.telling {
                control.transmit.ring();
            }
            if let Some(stream) = &self.stream {
                stream.transmit.ring();
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let mut queues = vec![self.receive, self.transmit];
        if let Telling::Control(control, _) = self.telling {
            queues.extend([control.receive, control.transmit]);
        }
        if let Some(stream) = self.stream {
            queues.extend([stream.receive, stream.transmit]);
        }
        queues
    }
}

/// What an event is about.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const ARRIVED: u32 = 2;
const ROOM: u32 = 3;
const PATIENCE_OVER: u32 = 4;
const CONTROL: u32 = 5;
const STREAM: u32 = 6;

/// Twice what Linux sends at once. A longer piece would be long work when it is dropped.
const MOST_BYTES: u64 = 64 << 10;
/// Bytes are moved on the stack in pieces of this size.
const PIECE: usize = 4096;
/// How long a reader may be behind before the guest goes on without it.
const PATIENCE: Duration = Duration::from_secs(1);
