//! The transports to the host, which the parameter `coracle.agent=` of the kernel command line names.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use coracle_agent::protocol::agent::PORT_NAME;
use coracle_agent::relay::set_non_blocking;

/// A transport to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A port of the host, which has the address 2 (`vsock(7)`).
    Vsock(u32),
    /// The port of a virtio console device with the name [`PORT_NAME`].
    Console,
    /// A serial line. The value is the name of its device.
    Serial(String),
    /// A descriptor that this process inherited.
    Descriptor(i32),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    /// A non-blocking descriptor.
    pub(super) file: File,
    /// Whether the line does not show that the other end comes or goes.
    pub(super) is_silent: bool,
}

impl Line {
    /// Drops bytes of a serial line that have not been sent: they are for a host that stayed behind, and it
    /// may take a second to send them.
    pub(super) fn drop_output(&self) {
        // SAFETY: the call takes numbers only. It fails on other lines than serial ones, which is fine.
        unsafe { libc::tcflush(self.file.as_raw_fd(), libc::TCOFLUSH) };
    }
}

impl Transport {
    /// The transport if the host names none.
    pub(crate) const DEFAULT: Self = Self::Vsock(coracle_agent::protocol::agent::VSOCK_PORT);

    /// Returns the transport that the kernel command line names. The last parameter counts.
    pub(crate) fn from_command_line(line: &str) -> Option<Self> {
        let words = line.split_ascii_whitespace().take_while(|word| *word != "--");
        words.filter_map(|word| word.strip_prefix("coracle.agent=")).last().and_then(Self::parse)
    }

    /// Parses `vsock:PORT`, `console`, `fd:NUMBER`, or the name of a serial device such as `ttyS1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some(("vsock", port)) => port.parse().ok().map(Self::Vsock),
            Some(("fd", number)) => number.parse().ok().filter(|number| *number > 2).map(Self::Descriptor),
            Some(_) => None,
            None if text == "console" => Some(Self::Console),
            None => text.starts_with("tty").then(|| Self::Serial(text.to_owned())),
        }
        .filter(|transport| !transport.is_path())
    }

    /// Returns whether there is one connection and no other after it.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self, Self::Descriptor(_))
    }

    pub(super) fn open(&self) -> io::Result<Line> {
        let (file, is_silent) = match self {
            Self::Vsock(port) => (connect(*port)?, false),
            Self::Console => (open_device(&port_device()?)?, true),
            Self::Serial(name) => {
                let file = open_device(&PathBuf::from("/dev").join(name))?;
                make_raw(&file)?;
                (file, true)
            }
            Self::Descriptor(number) => {
                // SAFETY: sets a flag of a descriptor; no memory is involved.
                let set = unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) };
                if set < 0 {
                    return Err(io::Error::last_os_error());
                }
                // It is taken once: the process that started this one has named it for this.
                (owned(*number)?, false)
            }
        };
        set_non_blocking(&file)?;
        Ok(Line { file, is_silent })
    }

    /// Returns whether a serial device's name has a `/`, with which it could lead out of `/dev`.
    fn is_path(&self) -> bool {
        matches!(self, Self::Serial(name) if name.contains('/'))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "cannot connect to vsock port {port} of the host"),
            Self::Console => write!(f, "cannot open the console port {PORT_NAME}"),
            Self::Serial(name) => write!(f, "cannot open /dev/{name}"),
            Self::Descriptor(number) => write!(f, "cannot use the descriptor {number}"),
        }
    }
}

fn connect(port: u32) -> io::Result<File> {
    // SAFETY: the call takes numbers only.
    let socket = owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    bind_privileged(&socket)?;
    let (address, length) = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address lives through the call and has this size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Binds the socket to a free privileged port: the host accepts the agent only from such a port.
fn bind_privileged(socket: &File) -> io::Result<()> {
    for port in (1..=MAX_PRIVILEGED_PORT).rev() {
        let (address, length) = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the address lives through the call and has this size.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: an all-zero address is valid: it is plain data.
    let zeroes: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let family = libc::AF_VSOCK as libc::sa_family_t;
    let address = libc::sockaddr_vm { svm_family: family, svm_port: port, svm_cid: cid, ..zeroes };
    (address, size_of::<libc::sockaddr_vm>() as libc::socklen_t)
}

fn open_device(path: &PathBuf) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Returns the device of the agent's console port.
fn port_device() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Makes the line raw, so that each byte passes both ways, and drops old bytes.
fn make_raw(file: &File) -> io::Result<()> {
    // SAFETY: an all-zero termios is valid: it is plain data.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: fills the structure it is given.
    if unsafe { libc::tcgetattr(file.as_raw_fd(), &raw mut modes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: changes the structure it is given.
    unsafe { libc::cfmakeraw(&raw mut modes) };
    modes.c_cflag = (modes.c_cflag & !libc::CBAUD) | libc::B115200 | libc::CLOCAL;
    // SAFETY: reads the structure it is given.
    if unsafe { libc::tcsetattr(file.as_raw_fd(), libc::TCSAFLUSH, &raw const modes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn owned(fd: libc::c_int) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// The largest port for which Linux wants CAP_NET_BIND_SERVICE (`LAST_RESERVED_PORT` of its
/// `net/vmw_vsock/af_vsock.c`).
const MAX_PRIVILEGED_PORT: u32 = 1023;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_word_of_the_command_line_names_the_way() {
        let line = "quiet coracle.agent=ttyS1 coracle.agent=vsock:1024 -- coracle.agent=console\n";
        assert_eq!(Transport::from_command_line(line), Some(Transport::Vsock(1024)));
        assert_eq!(Transport::from_command_line("quiet"), None);
    }

    #[test]
    fn other_words_are_no_way() {
        for word in ["", "vsock", "vsock:", "vsock:x", "fd:0", "fd:2", "tcp:1", "hvc", "tty/../sda"] {
            assert_eq!(Transport::parse(word), None, "{word}");
        }
        assert_eq!(Transport::parse("console"), Some(Transport::Console));
        assert_eq!(Transport::parse("fd:3"), Some(Transport::Descriptor(3)));
        assert_eq!(Transport::parse("ttyS1"), Some(Transport::Serial("ttyS1".into())));
    }
}
