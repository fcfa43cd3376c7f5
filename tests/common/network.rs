//! Networks for single tests.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::{eventually, skip};

/// Runs `test` on a thread in a new network namespace, which the commands that it starts share. Prints why if
/// that is not permitted.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        // SAFETY: the call only changes the network namespace of this thread.
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

/// Runs `ip` with these arguments in the network of this thread.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Runs `ip` with each of these lines in the network of this thread.
#[track_caller]
pub fn ip_batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip -batch: {lines}");
}

/// Creates a tap and brings it up.
#[track_caller]
pub fn tap(name: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("link set {name} up"));
}

/// Starts passt at `socket` as an unprivileged user, in the network of this thread: the guest is 10.9.0.2,
/// and 10.9.0.1 is the host's loopback interface. Returns `None`, after printing why, if there is no passt.
#[track_caller]
pub fn passt(socket: &Path) -> Option<Running> {
    if !["/usr/bin/passt", "/usr/local/bin/passt"].iter().any(|program| Path::new(program).exists()) {
        skip("there is no passt: apt-get install passt");
        return None;
    }
    // It takes its addresses from an interface with a default route.
    ip("tuntap add up0 mode tap");
    ip("addr add 10.9.0.2/24 dev up0");
    ip("link set up0 up");
    ip("link set lo up");
    ip("route add default via 10.9.0.1 dev up0");
    let mut command = Command::new("passt");
    command.args(["--foreground", "--runas", "65534", "--socket"]).arg(socket);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut passt = Running(child);
    eventually("passt listens", || {
        let ended = passt.0.try_wait().unwrap();
        let mut said = || io::read_to_string(passt.0.stderr.as_mut().unwrap()).unwrap_or_default();
        assert!(ended.is_none(), "passt ended: {ended:?} {}", said());
        socket.exists()
    });
    Some(passt)
}

/// Serves a page of five bytes to the first HTTP client at this port of the loopback interface.
pub fn serve_page(port: u16) -> thread::JoinHandle<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\npage\n").unwrap();
    })
}

/// Returns a path at which an unprivileged user can create a socket, too.
pub fn socket_for_everyone(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("coracle-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    folder.join("socket")
}

/// A process that ends with its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
