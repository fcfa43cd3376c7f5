//! A private network for a test, with a tap whose host side the test plays.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `test` on a thread with a network namespace of its own, or reports why that is not allowed.
pub(crate) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        // SAFETY: the call changes what this thread sees, and nothing else.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            skip(&format!("no network of its own: {}", io::Error::last_os_error()));
        } else if !std::path::Path::new("/dev/net/tun").exists() {
            skip("there is no /dev/net/tun");
        } else {
            test();
        }
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn skip(why: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// Runs `ip` with these arguments in the network of this thread.
#[track_caller]
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Waits until an interface takes frames. The kernel drops them until it has noticed, some time later, that a
/// program has opened the tap.
pub(crate) fn wait_until_up(name: &str) {
    let is_up = || {
        let output = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("state UP")
    };
    let start = Instant::now();
    while !is_up() {
        assert!(start.elapsed() < Duration::from_secs(30), "{name} does not come up");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The kernel's side of an interface: all frames that go in or out.
pub(crate) struct Interface(OwnedFd);

impl Interface {
    /// Makes a tap, sets it up, and opens its kernel's side.
    pub(crate) fn new(name: &str) -> Self {
        ip(&format!("tuntap add {name} mode tap"));
        // Without this, the kernel would send frames of its own.
        ip(&format!("link set {name} addrgenmode none mtu 9000 up"));
        Self::open(name)
    }

    fn open(name: &str) -> Self {
        let protocol = u16::to_be(PROTOCOL);
        // SAFETY: the call takes numbers, and makes a new descriptor.
        let socket = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol))
        };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all fields are numbers, for which zero is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: the name ends with a zero.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address is valid for `len` bytes.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    /// Sends a frame to the guest. Returns false if the interface does not take it.
    pub(crate) fn send(&self, frame: &[u8]) -> bool {
        // SAFETY: the pointer and the length are those of a slice.
        unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) >= 0 }
    }

    /// Returns the next frame of the test's protocol, if there is one.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let (start, room) = (frame.as_mut_ptr().cast(), frame.len());
        // SAFETY: the pointer and the length are those of a slice.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), start, room, libc::MSG_DONTWAIT) };
        frame.truncate(usize::try_from(len).ok()?);
        Some(frame)
    }
}

/// Returns a frame of `len` bytes from one invented address to another, of a protocol that no kernel answers.
pub(crate) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(PROTOCOL.to_be_bytes());
    let rest = (0..len.saturating_sub(frame.len())).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed));
    frame.extend(rest.collect::<Vec<u8>>());
    frame
}

/// An EtherType for local experimental use (IEEE 802).
const PROTOCOL: u16 = 0x88b5;
