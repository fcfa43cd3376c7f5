//! Tests of stock kernels that a shell uses: with network cards (taps on a bridge, and passt, in a network of
//! the test's own), and with a balloon.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread;

use super::common::network::{in_own_network, ip, passt, socket_for_everyone, tap};
use super::common::{self, eventually};
use super::no_linux;
use super::shell::Shell;

/// Bytes whose checksum shows whether all of them arrived.
const LEN: usize = 1_000_000;

pub(super) fn bytes() -> Vec<u8> {
    (0..LEN as u32).flat_map(|at| [(at.wrapping_mul(2_654_435_761) >> 13) as u8]).collect()
}

/// Serves [`bytes`] to the first HTTP client, receives bytes from the next, and returns those.
pub(super) fn serve_bytes(address: &str) -> thread::JoinHandle<Vec<u8>> {
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
            // The guest has to notice a changed address and a link that goes down.
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
