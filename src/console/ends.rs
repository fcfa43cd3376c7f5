//! Opening what the consoles are connected to.

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

/// What a program connects the console to, in place of what the configuration says.
#[derive(Debug, Default)]
pub struct ConsoleStreams {
    /// Where input comes from; without it there is none.
    pub input: Option<OwnedFd>,
    /// Where output goes; without it, it is counted and dropped.
    pub output: Option<OwnedFd>,
}

/// The program's side of a console that was asked for with
/// [`VmBuilder::console_piped`](crate::VmBuilder::console_piped).
#[derive(Debug)]
pub struct ConsolePipe {
    /// What the guest prints; it ends with the machine. What is not read for long is dropped and counted.
    pub output: PipeReader,
    /// What the guest reads.
    pub input: PipeWriter,
}

/// Whether a program connects the console itself.
#[derive(Clone, Default)]
pub(crate) enum ConsoleChoice {
    /// No: the configuration says what it is connected to.
    #[default]
    Configured,
    /// To descriptors of its own.
    Streams(Arc<ConsoleStreams>),
    /// To pipes that are made with each machine.
    Piped,
    /// To a writer of its own, which the first machine takes.
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
    /// Opens the ends of all consoles of a machine.
    pub(crate) fn open_all(&self, config: &VmConfig) -> Result<MachineConsoles, ConsoleError> {
        if config.console == ConsoleDevice::Serial {
            return Ok(MachineConsoles { serial: self.open(&config.serial)?, virtio: None });
        }
        let mut serial = ConsoleEnds::open(&config.serial)?;
        if config.serial == SerialConfig::Stdio && matches!(self, ConsoleChoice::Configured) {
            // Both print there; what is typed is for one.
            serial.input = None;
        }
        Ok(MachineConsoles { serial, virtio: Some(self.open(&SerialConfig::Stdio)?) })
    }

    /// How many bytes of the serial port may wait to be taken. A writer of the program's looks at what it
    /// takes, and may be late.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            ConsoleChoice::Writer(_) => WRITER_CAPACITY,
            _ => ConsoleBuffer::DEFAULT_CAPACITY,
        }
    }

    /// Opens what was chosen, or what `config` names.
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

/// What the consoles of a machine are connected to, opened.
pub(crate) struct MachineConsoles {
    /// The serial port.
    pub serial: ConsoleEnds,
    /// The virtio console, in a machine that has one.
    pub virtio: Option<ConsoleEnds>,
}

impl MachineConsoles {
    /// The thread behind a writer of the program's own, or the other ends of its pipes. A program has one
    /// console only.
    pub(crate) fn take_program_ends(&mut self) -> (Option<Pump>, Option<ConsolePipe>) {
        let ends = self.virtio.as_mut().unwrap_or(&mut self.serial);
        (ends.pump.take(), ends.pipe.take())
    }
}

/// What a console is connected to, opened.
#[derive(Default)]
pub(crate) struct ConsoleEnds {
    pub(super) output: Option<Output>,
    pub(super) input: Option<CharSource>,
    pub(super) listener: Option<ConsoleListener>,
    /// The other side of a pseudo-terminal, which stays open so that programs can come and go.
    pub(super) kept_open: Option<OwnedFd>,
    /// The other ends of the pipes, until the program takes them.
    pub(crate) pipe: Option<ConsolePipe>,
    /// The thread behind a writer of the program's own.
    pump: Option<Pump>,
    /// Where others find the console, when that is not what the user named.
    path: Option<PathBuf>,
}

/// A socket at which one client after the other has the console. Its file goes with it.
pub(super) struct ConsoleListener {
    pub(super) socket: UnixListener,
    _file: SocketFile,
}

/// Why a console cannot be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// The file for the output cannot be made.
    #[error("{SERIAL} file={}: the file cannot be opened for writing: {source}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// What the system said.
        r#source: io::Error,
    },
    /// The socket cannot be made.
    #[error("{SERIAL} socket={}: the socket cannot be made; the path must be free: {source}", path.display())]
    Socket {
        /// As given.
        path: PathBuf,
        /// What the system said.
        r#source: io::Error,
    },
    /// There is no pseudo-terminal to be had.
    #[error("{SERIAL} pty: the host gives no pseudo-terminal: {0}")]
    Pty(io::Error),
    /// One writer cannot serve two machines.
    #[error(
        "the console's writer serves the first machine that this builder has built; give the next one its own"
    )]
    WriterTaken,
    /// There is no pipe.
    #[error("the host gives no pipe for the console: {0}")]
    Pipe(io::Error),
    /// There is no pipe or thread for a writer.
    #[error("the host gives no pipe or thread for the console's writer: {0}")]
    Writer(io::Error),
    /// A descriptor cannot serve.
    #[error("the console {connection} cannot be used: {source}")]
    Descriptor {
        /// What it connects the console to.
        connection: &'static str,
        /// Why the descriptor cannot be used.
        r#source: CharError,
    },
}

impl ConsoleEnds {
    /// Opens what `config` names. A standard input that is closed counts as one without input.
    fn open(config: &SerialConfig) -> Result<ConsoleEnds, ConsoleError> {
        match config {
            SerialConfig::Null => Ok(ConsoleEnds::default()),
            SerialConfig::Stdio => {
                // A program started without input (`<&-`, or stdin open for writing only) has a silent
                // console.
                let input = CharSource::new(io::stdin().as_fd()).ok();
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

    /// The program's own descriptors.
    pub(crate) fn of_streams(streams: &ConsoleStreams) -> Result<ConsoleEnds, ConsoleError> {
        let input = streams.input.as_ref().map(|fd| CharSource::new(fd.as_fd())).transpose();
        let input =
            input.map_err(|source| ConsoleError::Descriptor { connection: "of the program", source })?;
        let output = streams.output.as_ref().map(|fd| sink("of the program", fd)).transpose()?;
        Ok(ConsoleEnds { output, input, ..ConsoleEnds::default() })
    }

    /// Pipes whose other ends are the program's.
    fn piped() -> Result<ConsoleEnds, ConsoleError> {
        let (input, typed) = io::pipe().map_err(ConsoleError::Pipe)?;
        let (printed, output) = io::pipe().map_err(ConsoleError::Pipe)?;
        let streams = ConsoleStreams { input: Some(input.into()), output: Some(output.into()) };
        let pipe = Some(ConsolePipe { output: printed, input: typed });
        Ok(ConsoleEnds { pipe, ..ConsoleEnds::of_streams(&streams)? })
    }

    /// The program's own writer.
    fn of_writer(writer: Box<dyn Write + Send>) -> Result<ConsoleEnds, ConsoleError> {
        let (pump, output) = Pump::start(writer).map_err(ConsoleError::Writer)?;
        Ok(ConsoleEnds {
            output: Some(sink("of the program", output)?),
            pump: Some(pump),
            ..ConsoleEnds::default()
        })
    }

    /// The pseudo-terminal to open for this console.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl ConsoleListener {
    fn bind(path: &Path) -> io::Result<ConsoleListener> {
        // The console of a machine is for its owner.
        let (socket, _file) = unix_socket::listen(path)?;
        Ok(ConsoleListener { socket, _file })
    }

    /// The next client, if one waits: both directions of its connection.
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
        // SAFETY: zeroed is a valid mode; cfmakeraw clears and sets flags of it.
        unsafe { libc::cfmakeraw(mode.as_mut_ptr()) };
        // SAFETY: both results have room, the mode is valid, and neither name nor size is given.
        if unsafe { libc::openpty(&mut ours, &mut theirs, ptr::null_mut(), mode.as_ptr(), ptr::null()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
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

/// Far more than a kernel prints while a thread of a busy host waits for a CPU.
const WRITER_CAPACITY: usize = 1 << 20;
