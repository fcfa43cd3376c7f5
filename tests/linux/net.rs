//! Stock kernels that are used by a shell: with network cards (taps on a bridge, and passt, in a network of the test's
//! own), and with a balloon.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use coracle::guest_data::GuestData;

use super::common::network::{Running, in_own_network, ip, passt, socket_for_everyone, tap};
use super::common::{self, eventually, wait};
use super::{linux, no_linux};

/// A guest with a shell on its console.
struct Shell {
    guest: Running,
    keyboard: ChildStdin,
    said: Arc<Mutex<String>>,
}

impl Shell {
    /// Boots it with a card, which gets this address and is up.
    fn boot(net: &str, address: &str) -> Shell {
        let mut shell = Shell::start(&["--net", net]);
        shell.run(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        shell
    }

    fn start(args: &[&str]) -> Shell {
        let mut command = linux(GuestData::GuestVmlinux, "shell");
        command.args(["--timeout", "150s"]).args(args);
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

    /// KiB of RAM that it has of the host's.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.guest.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[track_caller]
    fn until(&self, words: &str) -> String {
        let mut before = String::new();
        eventually(words, || {
            let mut said = self.said.lock().unwrap();
            let Some(at) = said.find(words) else { return false };
            before = said.drain(..at + words.len()).collect();
            true
        });
        before
    }

    /// Runs a command, which has to succeed, and gives what it said.
    #[track_caller]
    fn run(&mut self, command: &str) -> String {
        // What is typed shows, too, but never as what is waited for.
        writeln!(self.keyboard, "{command}; echo over-$?").unwrap();
        let said = self.until("over-0");
        assert!(!said.contains("over-1"), "{command}: {said}");
        said
    }

    fn end(mut self) {
        writeln!(self.keyboard, "exit").unwrap();
        assert_eq!(wait(&mut self.guest.0).code(), Some(0));
    }
}

/// Bytes whose sum tells whether all came through.
const LEN: usize = 1_000_000;

fn bytes() -> Vec<u8> {
    (0..LEN as u32).flat_map(|at| [(at.wrapping_mul(2_654_435_761) >> 13) as u8]).collect()
}

/// Gives [`bytes`] to the first who asks by HTTP, and takes bytes from the next; gives those back.
fn serve_bytes(address: &str) -> thread::JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let (mut download, _) = listener.accept().unwrap();
        let mut request = BufReader::new(download.try_clone().unwrap());
        let mut line = String::new();
        while request.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
        download.write_all(&[head.as_bytes(), &bytes()].concat()).unwrap();
        drop((download, request));
        let (mut upload, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        upload.read_to_end(&mut got).unwrap();
        got
    })
}

/// Downloads [`bytes`] into the guest and sends them back.
#[track_caller]
fn there_and_back(guest: &mut Shell, host: &str, port: u16, server: thread::JoinHandle<Vec<u8>>) {
    guest.run(&format!("wget -q -O /tmp/bytes http://{host}:{port}/"));
    guest.run(&format!("nc {host} {port} < /tmp/bytes"));
    assert!(server.join().unwrap() == bytes(), "1 MB came through");
}

#[test]
fn two_guests_on_taps_ping_each_other_and_exchange_bytes_with_the_host() {
    needs_linux!();
    in_own_network(|| {
        ip("link add br0 type bridge");
        ip("addr add 10.9.0.254/24 dev br0");
        ip("link set br0 up");
        for name in ["tap0", "tap1"] {
            tap(name);
            ip(&format!("link set {name} master br0"));
        }
        let other = thread::scope(|scope| {
            let other = scope.spawn(|| Shell::boot("tap=tap1", "10.9.0.2"));
            let mut guest = Shell::boot("tap=tap0,mac=02:00:00:00:00:07", "10.9.0.1");
            let other = other.join().unwrap();
            assert!(guest.run("cat /sys/class/net/eth0/address").contains("02:00:00:00:00:07"));
            guest.run("ping -c 2 10.9.0.2");
            let server = serve_bytes("10.9.0.254:8000");
            there_and_back(&mut guest, "10.9.0.254", 8000, server);
            // A changed address and a link that goes away are the guest's to see.
            guest.run(
                "ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:08 && ip link set eth0 up",
            );
            guest.run("ping -c 1 10.9.0.254");
            ip("link del tap0");
            guest.run("for i in 1 2 3 4 5; do grep 0 /sys/class/net/eth0/carrier && break; sleep 1; done");
            guest.end();
            other
        });
        other.end();
    });
}

#[test]
fn guest_downloads_through_passt_without_privilege() {
    needs_linux!();
    in_own_network(|| {
        let socket = socket_for_everyone("passt-linux");
        let Some(_passt) = passt(&socket) else { return };
        let mut guest = Shell::boot(&format!("socket={}", socket.display()), "10.9.0.2");
        guest.run("ip route add default via 10.9.0.1");
        let server = serve_bytes("127.0.0.1:8000");
        there_and_back(&mut guest, "10.9.0.1", 8000, server);
        guest.end();
        let _ = std::fs::remove_dir_all(socket.parent().unwrap());
    });
}

#[test]
fn memory_that_the_guest_frees_returns_to_the_host() {
    needs_linux!();
    let mut guest = Shell::start(&["--balloon", "--memory", "384M"]);
    guest.run("dd if=/dev/zero of=/tmp/full bs=1M count=160 2> /dev/null");
    let full = guest.resident();
    guest.run("rm /tmp/full");
    eventually("memory returns", || guest.resident() + (100 << 10) <= full);
    guest.end();
}
