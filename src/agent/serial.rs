//! The second serial port, for guests without sockets: its two ends on the host.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::event_loop::EventLoop;
use coracle_devices::legacy::serial::SerialPort;

use crate::config::{AgentConfig, VmConfig};
use crate::console::{Console, ConsoleEnds, ConsoleStreams};

/// A second serial port, and the output of its guest.
pub(crate) struct AgentSerial {
    pub(crate) port: Arc<SerialPort>,
    pub(crate) output: Arc<ConsoleBuffer>,
}

/// Returns a buffer for the output of the guest of `config` on a second serial port, if it has one.
pub(crate) fn serial_console(config: &VmConfig) -> io::Result<Option<Arc<ConsoleBuffer>>> {
    let wanted = config.agent.as_ref().is_some_and(AgentConfig::needs_serial);
    wanted.then(|| ConsoleBuffer::new(CAPACITY).map(Arc::new)).transpose()
}

/// Connects the port to the I/O thread. Returns the agent's end of the line.
pub(crate) fn connect_serial(serial: &AgentSerial, event_loop: &mut EventLoop) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let streams =
        ConsoleStreams { input: Some(theirs.try_clone()?.into()), output: Some(OwnedFd::from(theirs)) };
    let ends = ConsoleEnds::of_streams(&streams).map_err(io::Error::other)?;
    let handler = Console::new(serial.port.clone(), serial.output.clone(), ends, None);
    event_loop.add_resident(Box::new(handler));
    Ok(ours.into())
}

/// The capacity of the line in bytes. A guest writes a byte in some microseconds, and the other end always
/// reads: it is enough for a very busy host. Bytes that do not fit are lost, which the agent's protocol
/// notices.
const CAPACITY: usize = 1 << 20;
