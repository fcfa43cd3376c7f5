//! A guest in which a test types commands: the default guest, or one whose root is the disk of tools.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coracle::guest_data::GuestData;

use super::common::network::Running;
use super::common::{LIMIT, coracle, skip, wait};
use super::{data, linux};

/// A guest with a shell on its console.
pub(super) struct Shell {
    guest: Running,
    keyboard: ChildStdin,
    said: Arc<Mutex<String>>,
}

impl Shell {
    /// Boots it with a network card, which gets this address and is brought up.
    pub(super) fn boot(net: &str, address: &str) -> Shell {
        let mut shell = Shell::start(&["--net", net]);
        shell.run(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        shell
    }

    /// Starts the default guest with these flags.
    pub(super) fn start(args: &[&str]) -> Shell {
        let mut command = linux(GuestData::GuestVmlinux, "shell");
        command.args(args);
        Shell::on(command)
    }

    /// Starts the stock kernel with these flags and with fio and iperf3 from the disk of tools: see
    /// [`tools`].
    pub(super) fn with_tools(tools: &Path, args: &[&str]) -> Shell {
        let mut command = coracle();
        command
            .args(["run", "--accel", "kvm", "-a", "quiet root=/dev/vda"])
            .arg(data(GuestData::GuestVmlinux));
        command.arg("--disk").arg(format!("path={},ro", tools.display())).args(args);
        Shell::on(command)
    }

    fn on(mut command: Command) -> Shell {
        command.args(["--timeout", "150s"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let keyboard = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        thread::spawn({
            let said = said.clone();
            move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = screen.read(&mut bytes) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            }
        });
        let shell = Shell { guest: Running(child), keyboard, said };
        shell.until("# ");
        shell
    }

    /// Returns how much of the host's RAM it uses, in KiB.
    pub(super) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.guest.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for `words` and returns the output up to their end.
    #[track_caller]
    fn until(&self, words: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut said = self.said.lock().unwrap();
            if let Some(at) = said.find(words) {
                return said.drain(..at + words.len()).collect();
            }
            let so_far = said.clone();
            drop(said);
            assert!(Instant::now() < deadline, "{words:?} is not in {so_far}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command, which has to succeed, and returns its output.
    #[track_caller]
    pub(super) fn run(&mut self, command: &str) -> String {
        // Typed text is echoed, but never matches the awaited text.
        writeln!(self.keyboard, "{command}; printf 'over-%d-so\\n' $?").unwrap();
        let said = self.until("-so\r\n");
        assert!(said.ends_with("over-0-so\r\n"), "{command}: {said}");
        said
    }

    pub(super) fn end(mut self) {
        writeln!(self.keyboard, "exit").unwrap();
        assert_eq!(wait(&mut self.guest.0).code(), Some(0));
    }
}

/// Returns the disk of tools, which `cargo xtask` creates; prints why if it is missing.
pub(super) fn tools() -> Option<PathBuf> {
    let kernel = data(GuestData::GuestVmlinux);
    let disk = kernel.ancestors().nth(2)?.join("tools/tools.ext4");
    if !disk.is_file() {
        skip(&format!("{} is missing: `cargo xtask guest --tools` makes it", disk.display()));
        return None;
    }
    Some(disk)
}
