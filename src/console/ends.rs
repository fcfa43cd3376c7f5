//! Opening the host's ends of the consoles.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, fs, ptr};

use coracle_arch::field::SERIAL;
use coracle_devices::backend::chardev::{CharError, CharSink, CharSource};
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::backend::unix_socket::{self, SocketFile};

use super::Pump;
use super::output::{LimitedFile, Output};
use crate::config::{ConsoleDevice, SerialConfig, SerialFile, VmConfig};
use crate::terminal::standard_input;

/// The descriptors to which a program connects the console, overriding the configuration.
#[derive(Debug, Default)]
pub struct ConsoleStreams {
    /// The source of input; `None` for a console without input.
    pub input: Option<OwnedFd>,
    /// The destination of output; `None` to count and drop it.
    pub output: Option<OwnedFd>,
}

/// The program's end of a console, requested with
/// [`VmBuilder::console_piped`](crate::VmBuilder::console_piped).
#[derive(Debug)]
pub struct ConsolePipe {
    /// The guest's output; the pipe reaches its end when the machine ends. Output that is not read in time is
    /// dropped and counted.
    pub output: PipeReader,
    /// The guest's input.
    pub input: PipeWriter,
}

/// Whether, and how, a program connects the console itself.
#[derive(Clone, Default)]
pub(crate) enum ConsoleChoice {
    /// Connected as configured.
    #[default]
    Configured,
    /// Connected to the program's own descriptors.
    Streams(Arc<ConsoleStreams>),
    /// Connected to pipes, which are created with each machine.
    Piped,
    /// Connected to the program's own writer, which the first machine takes.
    Writer(Arc<Mutex<Option<Box<dyn Write + Send>>>>),
}

impl fmt::Debug for ConsoleChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConsoleChoice::Configured => "Configured",
            ConsoleChoice::Streams(_) => "Streams",
            ConsoleChoice::Piped => "Piped",
            ConsoleChoice::Writer(_) => "Writer",
        })
    }
}

impl ConsoleChoice {
    /// Opens the host's ends of all consoles of a machine.
    pub(crate) fn open_all(&self, config: &VmConfig) -> Result<MachineConsoles, ConsoleError> {
        if config.console == ConsoleDevice::Serial {
            return Ok(MachineConsoles { serial: self.open(&config.serial)?, virtio: None });
        }
        let mut serial = ConsoleEnds::open(&config.serial)?;
        if config.serial == SerialConfig::Stdio && matches!(self, ConsoleChoice::Configured) {
            // Both consoles share the output, but input can go to only one.
            serial.input = None;
        }
        Ok(MachineConsoles { serial, virtio: Some(self.open(&SerialConfig::Stdio)?) })
    }

    /// Returns how many bytes of the serial port may be buffered. A program's writer may examine what it
    /// takes, and so be late.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            ConsoleChoice::Writer(_) => WRITER_CAPACITY,
            _ => ConsoleBuffer::DEFAULT_CAPACITY,
        }
    }

    /// Opens the chosen end, or the one that `config` names.
    fn open(&self, config: &SerialConfig) -> Result<ConsoleEnds, ConsoleError> {
        match self {
            ConsoleChoice::Configured => ConsoleEnds::open(config),
            ConsoleChoice::Streams(streams) => ConsoleEnds::of_streams(streams),
            ConsoleChoice::Piped => ConsoleEnds::piped(),
            ConsoleChoice::Writer(writer) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
                ConsoleEnds::of_writer(writer.ok_or(ConsoleError::WriterTaken)?)
            }
        }
    }
}

/// The opened ends of all consoles of a machine.
pub(crate) struct MachineConsoles {
    /// The serial port.
    pub serial: ConsoleEnds,
    /// The virtio console, if the machine has one.
    pub virtio: Option<ConsoleEnds>,
}

impl MachineConsoles {
    /// Takes the thread that feeds the program's own writer, or the other ends of its pipes. A program is
    /// connected to one console only.
    pub(crate) fn take_program_ends(&mut self) -> (Option<Pump>, Option<ConsolePipe>) {
        let ends = self.virtio.as_mut().unwrap_or(&mut self.serial);
        (ends.pump.take(), ends.pipe.take())
    }
}

/// The opened end of a console.
#[derive(Default)]
pub(crate) struct ConsoleEnds {
    pub(super) output: Option<Output>,
    pub(super) input: Option<CharSource>,
    pub(super) listener: Option<ConsoleListener>,
    /// The slave side of a pseudo-terminal. It stays open, so that programs can open and close the terminal
    /// without hanging it up.
    pub(super) kept_open: Option<OwnedFd>,
    /// The other ends of the pipes, until the program takes them.
    pub(crate) pipe: Option<ConsolePipe>,
    /// The thread that feeds the program's own writer.
    pump: Option<Pump>,
    /// The path at which programs find the console, if it differs from the configured one.
    path: Option<PathBuf>,
}

/// A socket whose clients get the console one after the other. Its file is removed with it.
pub(super) struct ConsoleListener {
    pub(super) socket: UnixListener,
    _file: SocketFile,
}

/// Why a console cannot be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// The output file cannot be opened.
    #[error("{SERIAL} {}: the file cannot be opened for writing: {source}", SerialConfig::File(path.clone().into()))]
    File {
        /// The configured path.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The socket cannot be created.
    #[error(
        "{SERIAL} {}: the socket cannot be made; the path must be free: {source}",
        SerialConfig::Socket(path.clone())
    )]
    Socket {
        /// The configured path.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The host cannot provide a pseudo-terminal.
    #[error("{SERIAL} pty: the host gives no pseudo-terminal: {0}")]
    Pty(io::Error),
    /// The program's writer is already in use: it cannot serve two machines.
    #[error(
        "the console's writer serves the first machine that this builder has built; give the next one its own"
    )]
    WriterTaken,
    /// The host cannot provide a pipe.
    #[error("the host cannot provide a pipe for the console: {0}")]
    Pipe(io::Error),
    /// The host cannot provide the pipe or the thread for a writer.
    #[error("the host cannot provide a pipe or thread for the console's writer: {0}")]
    Writer(io::Error),
    /// A descriptor cannot be used for a console.
    #[error("the console {connection} cannot be used: {source}")]
    Descriptor {
        /// The name of the connection.
        connection: &'static str,
        /// Why the descriptor cannot be used.
        r#source: CharError,
    },
}

impl ConsoleEnds {
    /// Opens the end that `config` names. If standard input is closed, the console has no input.
    fn open(config: &SerialConfig) -> Result<ConsoleEnds, ConsoleError> {
        match config {
            SerialConfig::Null => Ok(ConsoleEnds::default()),
            SerialConfig::Stdio => {
                // A program that was started without input (`<&-`, or stdin open for writing only) has a
                // console without input.
                let input = CharSource::new(standard_input()).ok();
                Ok(ConsoleEnds {
                    output: Some(sink("stdio", io::stdout())?),
                    input,
                    ..ConsoleEnds::default()
                })
            }
            SerialConfig::File(SerialFile { path, limit }) => {
                let file = LimitedFile::create(path, *limit);
                let file = file.map_err(|source| ConsoleError::File { path: path.clone(), source })?;
                let file = file.map_err(|source| ConsoleError::Descriptor { connection: "file", source })?;
                Ok(ConsoleEnds { output: Some(file), ..ConsoleEnds::default() })
            }
            SerialConfig::Socket(path) => {
                let listener = ConsoleListener::bind(path);
                let listener =
                    listener.map_err(|source| ConsoleError::Socket { path: path.clone(), source })?;
                Ok(ConsoleEnds { listener: Some(listener), ..ConsoleEnds::default() })
            }
            SerialConfig::Pty => {
                let Pty { ours, theirs, path } = Pty::open().map_err(ConsoleError::Pty)?;
                let input = CharSource::new(ours.as_fd());
                let input = input.map_err(|source| ConsoleError::Descriptor { connection: "pty", source })?;
                Ok(ConsoleEnds {
                    output: Some(sink("pty", ours)?),
                    input: Some(input),
                    kept_open: Some(theirs),
                    path: Some(path),
                    ..ConsoleEnds::default()
                })
            }
        }
    }

    /// Uses the program's own descriptors.
    pub(crate) fn of_streams(streams: &ConsoleStreams) -> Result<ConsoleEnds, ConsoleError> {
        let input = streams.input.as_ref().map(|fd| CharSource::new(fd.as_fd())).transpose();
        let input =
            input.map_err(|source| ConsoleError::Descriptor { connection: "of the program", source })?;
        let output = streams.output.as_ref().map(|fd| sink("of the program", fd)).transpose()?;
        Ok(ConsoleEnds { output, input, ..ConsoleEnds::default() })
    }

    /// Creates pipes whose other ends the program gets.
    fn piped() -> Result<ConsoleEnds, ConsoleError> {
        let (input, typed) = io::pipe().map_err(ConsoleError::Pipe)?;
        let (printed, output) = io::pipe().map_err(ConsoleError::Pipe)?;
        let streams = ConsoleStreams { input: Some(input.into()), output: Some(output.into()) };
        let pipe = Some(ConsolePipe { output: printed, input: typed });
        Ok(ConsoleEnds { pipe, ..ConsoleEnds::of_streams(&streams)? })
    }

    /// Feeds the program's own writer.
    fn of_writer(writer: Box<dyn Write + Send>) -> Result<ConsoleEnds, ConsoleError> {
        let (pump, output) = Pump::start(writer).map_err(ConsoleError::Writer)?;
        Ok(ConsoleEnds {
            output: Some(sink("of the program", output)?),
            pump: Some(pump),
            ..ConsoleEnds::default()
        })
    }

    /// Returns the path of the pseudo-terminal that programs open for this console.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl ConsoleListener {
    fn bind(path: &Path) -> io::Result<ConsoleListener> {
        // The socket's permissions admit its owner only, as a console can control the machine.
        let (socket, _file) = unix_socket::listen(path)?;
        Ok(ConsoleListener { socket, _file })
    }

    /// Accepts the next client, if one waits, and returns both directions of its connection.
    pub(super) fn accept(&self) -> Option<(Output, CharSource)> {
        let (client, _) = self.socket.accept().ok()?;
        let output = Output::Descriptor(CharSink::new(client.as_fd()).ok()?);
        Some((output, CharSource::new(client.as_fd()).ok()?))
    }
}

/// A pseudo-terminal in raw mode.
struct Pty {
    ours: OwnedFd,
    theirs: OwnedFd,
    path: PathBuf,
}

impl Pty {
    fn open() -> io::Result<Pty> {
        let (mut ours, mut theirs) = (-1, -1);
        let mut mode = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: an all-zero mode is valid; cfmakeraw only clears and sets flags in it.
        unsafe { libc::cfmakeraw(mode.as_mut_ptr()) };
        // SAFETY: both results have room, the mode is valid, and null asks for neither a name nor a size.
        if unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), mode.as_ptr(), ptr::null()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: openpty has just created the descriptor, so nobody else owns it.
        let ours = unsafe { OwnedFd::from_raw_fd(ours) };
        // SAFETY: as above.
        let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
        for fd in [&ours, &theirs] {
            // SAFETY: the descriptor is open.
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let path = fs::read_link(format!("/proc/self/fd/{}", theirs.as_raw_fd()))?;
        Ok(Pty { ours, theirs, path })
    }
}

fn sink(connection: &'static str, fd: impl AsFd) -> Result<Output, ConsoleError> {
    let sink = CharSink::new(fd.as_fd()).map_err(|source| ConsoleError::Descriptor { connection, source })?;
    Ok(Output::Descriptor(sink))
}

/// The number of bytes that may be buffered for a program's writer: far more than a kernel prints while the
/// writer's thread waits for a CPU of a busy host.
const WRITER_CAPACITY: usize = 1 << 20;
