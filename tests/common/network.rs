//! Networks of a test's own.

use std::io;
use std::process::{Child, Command};
use std::thread;

use super::skip;

/// Runs `test` on a thread that is alone in a new network, and so are the commands that it starts; says why where that is
/// not allowed.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
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

/// Runs `ip` with these words in the network of this thread.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Makes a tap that is up, with an address of the host's.
#[track_caller]
pub fn tap(name: &str, address: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("addr add {address}/24 dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Ends with its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
