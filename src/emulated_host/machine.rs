//! QEMU, the machine's emulator: its command line, its sockets, its log, its end.
//!
//! Every port of the machine is one end of a socket pair that QEMU inherits, so that no path, no listening
//! socket and no other user is involved. QEMU dies with the thread that started it.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use coracle_agent::protocol::emulated_host::{ROOT_TAG, SYSTEM_DIRECTORY, SYSTEM_TAG, port};
use coracle_agent::relay;
use coracle_devices::journal;
use coracle_image::guest_data::{self, HostData};

use super::confine::Confinement;
use super::error::{EmulatedHostError, LastWords};
use super::log::Tail;
use super::{EmulatedHostArgs, signals};

const QEMU: &str = "qemu-system-x86_64";

/// The largest default number of vCPUs. More vCPUs boot slower, and emulated ones are only as fast as the
/// CPUs below them.
const MAX_DEFAULT_CPUS: usize = 4;

/// The largest default memory in MiB: enough for a few guests of a test. The default is at most a third of
/// the host's memory.
const MAX_DEFAULT_MEMORY_MIB: u64 = 3072;

/// The smallest default memory in MiB: the kernel, its modules and small programs need about this much.
const MIN_DEFAULT_MEMORY_MIB: u64 = 512;

/// The kernel command line.
/// - `panic=-1`: a kernel that panics restarts at once, which ends QEMU (`-no-reboot`).
/// - `mitigations=off`: an emulated CPU does not speculate, and the guards cost every system call and every
///   VM exit.
/// - `tsc=reliable`: the emulated TSC follows the host's clock. A kernel that doubts it reads the time from
///   the far slower HPET.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable";

/// The emulated CPU. With `erms` and `fsrm`, Linux copies and clears memory by bytes (`rep movsb`,
/// `rep stosb`), which hardware turns into wide moves; TCG emulates each byte. Without them, it moves 8 bytes
/// at a time, and a stock kernel boots in 0.6 times the time.
const CPU: &str = "max,+svm,+npt,-erms,-fsrm";

/// The time that QEMU may take to end once its ports are closed.
const LAST_MOMENTS: Duration = Duration::from_secs(3);

/// The size of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MachineSize {
    pub(super) cpus: u64,
    pub(super) memory_mib: u64,
}

impl MachineSize {
    /// Returns the size that the arguments ask for, or the default for this host.
    pub(super) fn of(args: &EmulatedHostArgs) -> Self {
        let host_cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let default_cpus = host_cpus.min(MAX_DEFAULT_CPUS) as u64;
        let default_memory = (host_memory_mib() / 3).clamp(MIN_DEFAULT_MEMORY_MIB, MAX_DEFAULT_MEMORY_MIB);
        Self {
            cpus: args.cpus.map_or(default_cpus, u64::from),
            memory_mib: args.memory_mib.unwrap_or(default_memory),
        }
    }
}

/// A running QEMU and this process's ends of its ports. Dropping it ends QEMU.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    /// The control port.
    pub(super) control: UnixStream,
    /// stdin, stdout and stderr.
    pub(super) streams: [UnixStream; 3],
    logs: [Log; 2],
}

/// A stream of which only the last lines matter: the serial console, or QEMU's stderr.
#[derive(Debug)]
struct Log {
    socket: UnixStream,
    open: bool,
    tail: Tail,
}

impl Machine {
    /// Starts QEMU. If `writable` is given, QEMU can change no other files of the caller's.
    ///
    /// # Errors
    /// QEMU, the kernel or the initramfs is missing, or a system call failed.
    pub(super) fn start(size: MachineSize, writable: Option<&[PathBuf]>) -> Result<Self, EmulatedHostError> {
        let HostData { kernel, initramfs } = guest_data::find_host()?;
        let writable = writable.map(resolved).transpose().map_err(local("find a file"))?;
        let confinement = writable.as_deref().map(Confinement::to).transpose();
        let confinement = confinement.map_err(local("confine QEMU"))?.flatten();
        if confinement.is_none() && writable.as_ref().is_some_and(|writable| !writable.is_empty()) {
            journal!(Host Warn,
                "this kernel has no Landlock: the emulated host can change every file that you can, not only those \
                 that options write"
            );
        }
        let make_pair = || pair().map_err(|source| EmulatedHostError::Local { step: "make sockets", source });
        let (control, inner_control) = make_pair()?;
        let (stdin, inner_stdin) = make_pair()?;
        let (stdout, inner_stdout) = make_pair()?;
        let (stderr, inner_stderr) = make_pair()?;
        let (console, inner_console) = make_pair()?;
        let (errors, inner_errors) = make_pair()?;

        let mut command = Command::new(QEMU);
        command
            .args(machine_arguments(size, writable.as_deref()))
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs);
        command.args(["-append", KERNEL_COMMAND_LINE]);
        command.args(["-serial", "chardev:console"]);
        command.args(chardev("console", &inner_console));
        let ports = [&inner_control, &inner_stdin, &inner_stdout, &inner_stderr];
        let [name_0, name_1, name_2] = port::STREAMS;
        for (name, socket) in [port::CONTROL, name_0, name_1, name_2].into_iter().zip(ports) {
            command.args(chardev(name, socket));
            command.args(["-device".to_owned(), format!("virtserialport,chardev={name},name={name}")]);
        }
        let inherited = [ports.map(AsRawFd::as_raw_fd).as_slice(), &[inner_console.as_raw_fd()]].concat();
        let output = OwnedFd::from(inner_errors);
        let copy =
            output.try_clone().map_err(|source| EmulatedHostError::Local { step: "make sockets", source })?;
        command.stdin(Stdio::null()).stdout(copy).stderr(output);
        let parent = std::process::id();
        // SAFETY: the closure makes only system calls on data that was made before the fork.
        unsafe { command.pre_exec(move || prepare_process(&inherited, parent, confinement.as_ref())) };
        let qemu = command.spawn().map_err(start_error)?;
        Ok(Self {
            qemu,
            control,
            streams: [stdin, stdout, stderr],
            logs: [Log::new(console), Log::new(errors)],
        })
    }

    /// Returns the entries to poll for the logs.
    pub(super) fn log_entries(&self) -> [libc::pollfd; 2] {
        self.logs
            .each_ref()
            .map(|log| relay::poll_entry(if log.open { log.socket.as_raw_fd() } else { -1 }, libc::POLLIN))
    }

    /// Reads the pending bytes of the logs.
    pub(super) fn read_logs(&mut self) {
        self.logs.iter_mut().for_each(Log::read);
    }

    /// Waits for a QEMU that has closed its ports, and kills it if it goes on. Returns its status and the
    /// last lines.
    pub(super) fn end(mut self) -> io::Result<(ExitStatus, LastWords)> {
        let deadline = Instant::now() + LAST_MOMENTS;
        while self.qemu.try_wait()?.is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        // A QEMU that has ended by itself is not affected, and its status shows how.
        self.qemu.kill()?;
        let status = self.qemu.wait()?;
        self.read_logs();
        let [console, errors] = &self.logs;
        Ok((status, LastWords { console: console.tail.lines(), qemu: errors.tail.lines() }))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if QEMU was already waited for.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Log {
    fn new(socket: UnixStream) -> Self {
        Self { socket, open: true, tail: Tail::default() }
    }

    fn read(&mut self) {
        let mut bytes = [0; 4096];
        while self.open {
            match self.socket.read(&mut bytes) {
                Ok(0) => self.open = false,
                Ok(count) => self.tail.push(bytes.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.open = false,
            }
        }
    }
}

/// Resolves the symbolic links in paths.
fn resolved(paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    paths.iter().map(fs::canonicalize).collect()
}

fn local(step: &'static str) -> impl FnOnce(io::Error) -> EmulatedHostError {
    move |source| EmulatedHostError::Local { step, source }
}

/// Returns QEMU's arguments. The machine has no devices but those named here, and no display. The caller's
/// files are 9p shares, which are read-only if nothing in them may be changed.
fn machine_arguments(size: MachineSize, writable: Option<&[PathBuf]>) -> Vec<String> {
    let MachineSize { cpus, memory_mib } = size;
    let fixed = "-M q35 -accel tcg,thread=multi -nodefaults -no-user-config -display none -no-reboot \
                 -device virtio-serial-pci \
                 -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let mut arguments: Vec<String> = fixed.split_ascii_whitespace().map(str::to_owned).collect();
    arguments.extend(["-cpu", CPU].map(str::to_owned));
    // If the caller has none, or a link in its place, the first share serves it.
    let system = fs::symlink_metadata(SYSTEM_DIRECTORY).is_ok_and(|found| found.is_dir());
    let system = system.then_some((SYSTEM_TAG, SYSTEM_DIRECTORY));
    for (tag, path) in [(ROOT_TAG, "/")].into_iter().chain(system) {
        let is_read_only =
            writable.is_some_and(|paths| !paths.iter().any(|written| written.starts_with(path)));
        let mode = if is_read_only { ",readonly=on" } else { "" };
        let share = format!("local,id={tag},path={path},security_model=none,multidevs=remap{mode}");
        arguments.extend(["-fsdev".to_owned(), share]);
        arguments.extend(["-device".to_owned(), format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    arguments.extend(["-smp".to_owned(), cpus.to_string(), "-m".to_owned(), format!("{memory_mib}M")]);
    arguments
}

/// Returns the first line of `qemu-system-x86_64 --version`.
pub(super) fn qemu_version() -> Result<String, EmulatedHostError> {
    let output = Command::new(QEMU).arg("--version").stdin(Stdio::null()).output().map_err(start_error)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or(QEMU).to_owned())
}

fn start_error(source: io::Error) -> EmulatedHostError {
    match source.kind() {
        ErrorKind::NotFound => EmulatedHostError::NoQemu,
        _ => EmulatedHostError::Local { step: "start qemu-system-x86_64", source },
    }
}

fn chardev(id: &str, socket: &UnixStream) -> [String; 2] {
    ["-chardev".to_owned(), format!("socket,id={id},fd={}", socket.as_raw_fd())]
}

/// Makes a pair of this process's end, which is non-blocking, and QEMU's.
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (outer, inner) = UnixStream::pair()?;
    outer.set_nonblocking(true)?;
    Ok((outer, inner))
}

/// Prepares the new process between fork and exec of QEMU.
fn prepare_process(inherited: &[RawFd], parent: u32, confinement: Option<&Confinement>) -> io::Result<()> {
    // SAFETY: asks for a signal at the parent thread's end; no memory is involved.
    checked(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: asks for a number; no memory is involved.
    let parent_now = unsafe { libc::getppid() };
    if u32::try_from(parent_now) != Ok(parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // A session of its own: Ctrl-C at the caller's terminal is for the command, not for QEMU.
    // SAFETY: makes the calling process a session leader; no memory is involved.
    checked(unsafe { libc::setsid() })?;
    for fd in inherited {
        // SAFETY: lets an open descriptor live through exec; no memory is involved.
        checked(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
    }
    // Limits that are meant for the command would end QEMU instead, for example at a write to a share past
    // RLIMIT_FSIZE.
    for resource in [libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE] {
        raise_limit(resource)?;
    }
    let none = signals::empty_set();
    // SAFETY: reads the set it is given; the old mask is not asked for.
    checked(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })?;
    confinement.map_or(Ok(()), Confinement::apply)
}

fn raise_limit(resource: libc::__rlimit_resource_t) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the structure it is given.
    checked(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads the structure it is given.
    checked(unsafe { libc::setrlimit(resource, &raw const limit) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn host_memory_mib() -> u64 {
    // SAFETY: asks for a number; no memory is involved.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: asks for a number; no memory is involved.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGE_SIZE) };
    let bytes = u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(page_size).unwrap_or(0));
    bytes >> 20
}
