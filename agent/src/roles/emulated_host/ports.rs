//! Finds and opens the virtio-serial ports by their names.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use coracle_agent::protocol::emulated_host::port;
use coracle_agent::relay;

/// The directory in which the `virtio_console` driver lists its ports, each with a file `name`.
const DIRECTORY: &str = "/sys/class/virtio-ports";

/// The time that the ports may take to appear after the driver is loaded. The outer side has a limit of its
/// own, which its user sets and which is usually shorter. This one is for a machine whose outer side has
/// gone.
const APPEAR_LIMIT: Duration = Duration::from_secs(3600);

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The open ports, all non-blocking, each for both directions.
#[derive(Debug)]
pub(super) struct Ports {
    /// Framed messages.
    pub(super) control: File,
    /// stdin, stdout, stderr.
    pub(super) streams: [File; 3],
}

/// The reason why the ports could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortsError {
    #[error("no virtio-serial port named {name} appeared")]
    Missing { name: &'static str },
    #[error("the port {name} cannot be opened")]
    Open { name: &'static str, source: io::Error },
    #[error("the other end of the port {name} is not open")]
    NotConnected { name: &'static str },
}

/// Opens all ports, and waits until the other end of each is open.
pub(super) fn open() -> Result<Ports, PortsError> {
    let deadline = Instant::now() + APPEAR_LIMIT;
    let [stdin, stdout, stderr] = port::STREAMS;
    Ok(Ports {
        control: open_port(port::CONTROL, deadline)?,
        streams: [open_port(stdin, deadline)?, open_port(stdout, deadline)?, open_port(stderr, deadline)?],
    })
}

fn open_port(name: &'static str, deadline: Instant) -> Result<File, PortsError> {
    let device = wait_for(deadline, || device_of(name)).ok_or(PortsError::Missing { name })?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/dev/{device}"))
        .map_err(|source| PortsError::Open { name, source })?;
    // Reads return the end of file until the device has reported that its other end is open.
    wait_for(deadline, || is_connected(&port).then_some(())).ok_or(PortsError::NotConnected { name })?;
    Ok(port)
}

fn device_of(name: &str) -> Option<String> {
    fs::read_dir(DIRECTORY).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim() == name).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

fn is_connected(port: &File) -> bool {
    let mut entries = [relay::poll_entry(port.as_raw_fd(), libc::POLLOUT)];
    relay::poll(&mut entries, 0).is_ok() && entries.iter().all(|entry| entry.revents & libc::POLLHUP == 0)
}

fn wait_for<T>(deadline: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
