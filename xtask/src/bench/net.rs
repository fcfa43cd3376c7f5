//! Frames per second between a bare guest and a tap, in each direction, under Coracle and under QEMU's
//! microvm with the same ELF file in turn, and the limit: what this process achieves with the same tap
//! itself. Frames for the guest come from one thread that sends as many as the tap's queue takes, in all
//! three cases. The limit is measured next to a thread that spins as the guest's vCPU does, so that a machine
//! with two CPUs has three busy threads in each case.
//!
//! The taps are in a network namespace of the bench's own, which needs root.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coracle_payload::Payload;

use super::life::read_first_byte;
use super::process_time::wait_cpu_time;
use super::statistics::Samples;
use super::worker::Worker;
use crate::workspace::Workspace;
use crate::{process, setup, static_build};

/// A kind of load.
pub(super) struct Load {
    name: &'static str,
    pub(super) payload: &'static str,
    /// The length of a frame, in bytes.
    len: usize,
    /// The number of frames that the payload counts.
    pub(super) frames: u32,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    FromGuest,
    ToGuest,
}

pub(super) const LOADS: [Load; 6] = [
    Load { name: "tx   60 B", payload: "net-send-60", len: 60, frames: 1_000_000, way: Way::FromGuest },
    Load { name: "tx 1514 B", payload: "net-send-1514", len: 1514, frames: 1_000_000, way: Way::FromGuest },
    Load { name: "tx  65 kB", payload: "net-send-64k", len: 65_000, frames: 100_000, way: Way::FromGuest },
    Load { name: "rx   60 B", payload: "net-receive-60", len: 60, frames: 500_000, way: Way::ToGuest },
    Load { name: "rx 1514 B", payload: "net-receive-1514", len: 1514, frames: 500_000, way: Way::ToGuest },
    Load { name: "rx  65 kB", payload: "net-receive-64k", len: 65_000, frames: 50_000, way: Way::ToGuest },
];

/// The results of one side.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) times: Samples,
    cpu: Samples,
}

/// Measures and prints the table.
///
/// # Errors
/// The network or a guest cannot be set up.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    setup::make_ready()?;
    let coracle = static_build::coracle(workspace)?;
    let folder = workspace.target.join("payloads");
    fs::create_dir_all(&folder)?;
    enter_network()?;
    let cpus = thread::available_parallelism()?;
    println!(
        "Median of {runs} runs; limit: this process on the same tap; {cpus} CPUs; exits of the vCPU for each 1,000 \
         frames\n"
    );
    println!(
        "{:10} {:>12} {:>9} {:>12} {:>8} {:>12} {:>8} {:>7} {:>9}",
        "", "limit", "", "coracle", "exits", "QEMU", "", "ratio", "CPU/frame"
    );
    for load in &LOADS {
        measure_load(load, &coracle, &folder, runs)?;
    }
    Ok(())
}

/// Moves this thread, and those that it starts, to a network of their own, in which there is a tap.
///
/// # Errors
/// The user is not root.
pub(super) fn enter_network() -> Result<()> {
    // SAFETY: the call only changes the network namespace of this thread and its children.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        bail!("a network of the bench's own needs root: {}", io::Error::last_os_error());
    }
    ip("tuntap add tap0 mode tap")?;
    ip("link set tap0 addrgenmode none mtu 65521 up")
}

fn measure_load(load: &Load, coracle: &Path, folder: &Path, runs: u32) -> Result<()> {
    let payload = Payload::named(load.payload).with_context(|| format!("no payload {}", load.payload))?;
    let path = folder.join(format!("{}.elf", load.payload));
    fs::write(&path, payload.elf())?;
    let outcome = folder.join("net.json");
    let has_qemu = process::exists(QEMU);
    let (mut ours, mut theirs, mut limit) = (Results::default(), Results::default(), Results::default());
    for _ in 0..runs {
        limit.times.push(on_the_tap(load)?);
        measure(load, &mut coracle_command(coracle, &path, &outcome), &mut ours)?;
        if has_qemu {
            measure(load, &mut qemu_command(&path), &mut theirs)?;
        }
    }
    let rate = |results: &Results| f64::from(load.frames) / results.times.median_ms() / 1e3;
    let bytes = |results: &Results| rate(results) * load.len as f64 / 1e3;
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&outcome)?)?;
    let exits = report.get("exits").and_then(serde_json::Value::as_object);
    let exits: u64 = exits.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    println!(
        "{:10} {:8.3} M/s {:4.1} GB/s {:8.3} M/s {:8.2} {:8.3} M/s {:4.1} GB/s {:6.2} {:6.2} us",
        load.name,
        rate(&limit),
        bytes(&limit),
        rate(&ours),
        exits as f64 * 1e3 / f64::from(load.frames),
        if has_qemu { rate(&theirs) } else { 0.0 },
        if has_qemu { bytes(&theirs) } else { 0.0 },
        if has_qemu { rate(&ours) / rate(&theirs) } else { 0.0 },
        ours.cpu.median_ms() * 1e3 / f64::from(load.frames),
    );
    Ok(())
}

/// Runs a guest, and measures from the byte that it prints to its end.
pub(super) fn measure(load: &Load, command: &mut Command, results: &mut Results) -> Result<()> {
    let _flood = (load.way == Way::ToGuest).then(|| Flood::start(load.len)).transpose()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", process::line(command)))?;
    let mut stdout = child.stdout.take().context("the child's stdout")?;
    read_first_byte(&mut stdout, command)?;
    let start = Instant::now();
    // The pipe ends with the child.
    stdout.read_to_end(&mut Vec::new())?;
    results.times.push(start.elapsed());
    results.cpu.push(wait_cpu_time(&child)?);
    Ok(())
}

/// Measures what one thread achieves with the tap: the load without a guest.
fn on_the_tap(load: &Load) -> Result<Duration> {
    let mut tap = open_tap()?;
    let flood = (load.way == Way::ToGuest).then(|| Flood::start(load.len)).transpose()?;
    let _guest = Worker::start(std::hint::spin_loop);
    let mut frame = [&[0; HEADER][..], &frame(load.len)].concat();
    let start = Instant::now();
    for _ in 0..load.frames {
        match load.way {
            Way::FromGuest => drop(io::Write::write(&mut tap, &frame)?),
            Way::ToGuest => drop(tap.read(&mut frame)?),
        }
    }
    let elapsed = start.elapsed();
    drop(flood);
    Ok(elapsed)
}

/// Sends frames to the tap, and yields the CPU while its queue is full.
struct Flood {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Flood {
    fn start(len: usize) -> Result<Worker> {
        let flood = Flood { socket: packet_socket()?, frame: frame(len) };
        Ok(Worker::start(move || flood.send_some()))
    }

    fn send_some(&self) {
        let mut part =
            libc::iovec { iov_base: self.frame.as_ptr().cast_mut().cast(), iov_len: self.frame.len() };
        // SAFETY: all fields are numbers or pointers, for which zero is a valid value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; FRAMES_PER_CALL];
        // SAFETY: each message has one part, the frame, which the call only reads.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), FRAMES_PER_CALL as u32, 0)
        };
        if sent != FRAMES_PER_CALL as i32 {
            thread::sleep(UNTIL_THERE_IS_ROOM);
        }
    }
}

fn coracle_command(coracle: &Path, payload: &Path, outcome: &Path) -> Command {
    let mut command = Command::new(coracle);
    command.args(["run", "--accel", "kvm", "--memory", "64M", "--net", "tap=tap0", "--outcome"]);
    command.arg(outcome).arg(payload);
    command
}

fn qemu_command(payload: &Path) -> Command {
    let mut command = Command::new(QEMU);
    let machine = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off";
    command.args(["-M", machine, "-cpu", "host,arch-capabilities=off", "-m", "64M", "-nodefaults"]);
    command.args(["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-global", "virtio-mmio.force-legacy=false"]);
    command.args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"]);
    command.args(["-device", "virtio-net-device,netdev=net"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(payload);
    command
}

/// Opens the tap as a virtual machine monitor does.
fn open_tap() -> Result<File> {
    let tap =
        File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(PathBuf::from(TUN))?;
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(TAP.to_bytes()).for_each(|(place, byte)| *place = *byte as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let len = HEADER as libc::c_int;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    let attached = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let sized = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    ensure!(attached == 0 && sized == 0, "the tap cannot be opened: {}", io::Error::last_os_error());
    Ok(tap)
}

/// Creates a socket whose frames leave through the tap.
fn packet_socket() -> Result<OwnedFd> {
    // SAFETY: the call takes numbers and returns a new descriptor.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "no packet socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // SAFETY: the name is nul-terminated.
    address.sll_ifindex = unsafe { libc::if_nametoindex(TAP.as_ptr()) } as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address is valid for `len` bytes.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    ensure!(bound == 0, "the packet socket cannot be bound: {}", io::Error::last_os_error());
    // Bypasses the queueing discipline: a full queue is then an error, and not a silent loss.
    let yes: libc::c_int = 1;
    // SAFETY: the option takes one int.
    let bypasses = unsafe {
        let (option, len) = (libc::PACKET_QDISC_BYPASS, size_of::<libc::c_int>() as u32);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const yes).cast(), len)
    };
    ensure!(
        bypasses == 0,
        "the packet socket cannot bypass the queueing discipline: {}",
        io::Error::last_os_error()
    );
    Ok(socket)
}

/// Creates a frame of a protocol that the kernel ignores.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    frame.resize(len, 0);
    frame
}

fn ip(words: &str) -> Result<()> {
    process::capture(Command::new("ip").args(words.split_whitespace())).map(drop)
}

const QEMU: &str = "qemu-system-x86_64";
const TUN: &str = "/dev/net/tun";
const TAP: &std::ffi::CStr = c"tap0";
/// Few enough to notice a full queue soon, and enough to make the call cheap.
const FRAMES_PER_CALL: usize = 16;
/// Much shorter than the time in which a queue of 1,000 frames drains.
const UNTIL_THERE_IS_ROOM: Duration = Duration::from_micros(100);
/// The length of a frame's virtio header, in bytes.
const HEADER: usize = 12;
