//! The socket device through its rings, with real sockets on the host's side.

pub(super) mod guest;
mod hostile;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_sys_util::tempdir::TempDir;

use super::packet::{BOTH_WAYS, Header, NO_MORE_RECEIVED, NO_MORE_SENT, Op};
use super::{ConnectError, HostSocketError, Vsock, VsockError};
use crate::virtio::listener::ListenError;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Usual, conform};
use guest::{Guest, numbered};

pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn device() -> Arc<Vsock> {
    Arc::new(Vsock::new(3, None).unwrap())
}

/// Makes a device with a socket, and the directory that the socket is in.
fn device_with_socket() -> (Arc<Vsock>, PathBuf, TempDir) {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("v.sock");
    (Arc::new(Vsock::new(3, Some(&path)).unwrap()), path, folder)
}

#[test]
fn conforms() {
    // A reset of a connection that does not exist is taken and has no answer.
    let prepare = |machine: &Machine| {
        let header = guest::header(Op::Reset, 1000, 1000);
        machine.put(BUFFERS, &header.to_bytes());
    };
    let usual = Usual { queue: 1, prepare, buffers: vec![Buffer::readable(BUFFERS, 44)] };
    conform(&|| device(), &usual);
}

#[test]
fn guest_reads_its_address() {
    let guest = Guest::new(device());
    assert_eq!((guest.machine.read(0x100), guest.machine.read(0x104)), (3, 0));
}

#[test]
fn guest_connects_to_this_program_and_both_talk() {
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    guest.connect(1000, 52);
    let mut host = listener.accept().unwrap();
    guest.send_data(1000, 52, b"from the guest");
    let mut said = [0; 14];
    host.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, bytes) = guest.next_of(Op::Data);
    assert_eq!((header.src_cid, header.src_port, header.dst_cid, header.dst_port), (2, 52, 3, 1000));
    assert_eq!(bytes, b"from the host");
}

#[test]
fn program_connects_to_the_guest() {
    let vsock = device();
    let mut guest = Guest::new(vsock.clone());
    let caller = thread::spawn(move || vsock.switchboard().connect(7, LIMIT));
    let (request, _) = guest.next_of(Op::Request);
    assert_eq!((request.dst_port, request.src_cid, request.dst_cid), (7, 2, 3));
    guest.send(&guest::header(Op::Response, 7, request.src_port), &[]);
    let mut host = caller.join().unwrap().unwrap();
    host.write_all(b"x").unwrap();
    assert_eq!(guest.next_of(Op::Data).1, b"x");
    guest.send_data(7, request.src_port, b"y");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 1);
}

#[test]
fn refusal_by_the_guest_is_an_error_of_its_own() {
    let vsock = device();
    let mut guest = Guest::new(vsock.clone());
    let switchboard = vsock.switchboard().clone();
    let caller = thread::spawn(move || switchboard.connect(7, LIMIT));
    let (request, _) = guest.next_of(Op::Request);
    guest.send(&guest::header(Op::Reset, 7, request.src_port), &[]);
    assert!(matches!(caller.join().unwrap(), Err(ConnectError::Refused { port: 7 })));
    let switchboard = vsock.switchboard().clone();
    let caller = thread::spawn(move || switchboard.connect(8, Duration::from_millis(500)));
    let (request, _) = guest.next_of(Op::Request);
    assert!(matches!(caller.join().unwrap(), Err(ConnectError::NoAnswer { .. })));
    // A guest that answers later is told that it is too late.
    guest.send(&guest::header(Op::Response, 8, request.src_port), &[]);
    guest.next_of(Op::Reset);
    vsock.close();
    assert!(matches!(vsock.switchboard().connect(7, LIMIT), Err(ConnectError::Ended { .. })));
}

#[test]
fn client_of_the_socket_sends_connect_and_reads_ok() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 52\nhello").unwrap();
    let (request, _) = guest.next_of(Op::Request);
    assert_eq!(request.dst_port, 52);
    guest.send(&guest::header(Op::Response, 52, request.src_port), &[]);
    let mut said = [0; 64];
    let count = client.read(&mut said).unwrap();
    assert_eq!(said[..count], *format!("OK {}\n", request.src_port).as_bytes());
    assert_eq!(guest.next_of(Op::Data).1, b"hello", "bytes after the line go to the guest");
}

#[test]
fn client_whose_port_the_guest_refuses_sees_the_end() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    let (request, _) = guest.next_of(Op::Request);
    guest.send(&guest::header(Op::Reset, 52, request.src_port), &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    let mut rude = UnixStream::connect(&path).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    guest.settle();
    let _ = rude.read(&mut [0; 8]).map_or(0, |count| count);
    assert_eq!(rude.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn silent_client_and_guest_that_does_not_answer_are_given_up() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock.clone());
    let mut silent = UnixStream::connect(&path).unwrap();
    let mut waiting = UnixStream::connect(&path).unwrap();
    waiting.write_all(b"CONNECT 9\n").unwrap();
    guest.next_of(Op::Request);
    (0..10).for_each(|_| guest.tick());
    guest.next_of(Op::Reset);
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(waiting.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn clients_that_come_before_the_driver_wait_for_it() {
    let (vsock, path, _folder) = device_with_socket();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 9\n").unwrap();
    let switchboard = vsock.switchboard().clone();
    let caller = thread::spawn(move || switchboard.connect(10, LIMIT));
    let mut guest = Guest::new(vsock);
    for _ in 0..2 {
        let (request, _) = guest.next_of(Op::Request);
        guest.send(&guest::header(Op::Response, request.dst_port, request.src_port), &[]);
    }
    assert!(caller.join().unwrap().is_ok());
    assert!(client.read(&mut [0; 8]).unwrap() > 0);
}

#[test]
fn guest_reaches_the_socket_named_after_its_port() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock);
    let name = format!("{}_80", path.display());
    guest.send(&guest::header(Op::Request, 1000, 80), &[]);
    assert_eq!(guest.next_of(Op::Reset).0.src_port, 80, "nobody listens");
    let listener = UnixListener::bind(name).unwrap();
    guest.connect(1000, 80);
    let (mut host, _) = listener.accept().unwrap();
    guest.send_data(1000, 80, b"hello");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 5);
}

#[test]
fn host_that_does_not_read_stops_the_guest_at_its_window_and_gets_every_byte_later() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    let data = numbered(1 << 20);
    let mut sent = 0;
    while let Some(piece) = data.get(sent..sent + 4000).filter(|_| guest.credit(1000, 52) >= 4000) {
        guest.send_data(1000, 52, piece);
        sent += 4000;
    }
    assert!(sent < data.len(), "the window is limited");
    assert!(guest.backlog() > 64 << 10 && guest.backlog() <= 128 << 10, "{}", guest.backlog());
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        all
    });
    while sent < data.len() {
        let piece = (data.len() - sent).min(4000);
        if guest.credit(1000, 52) as usize >= piece {
            guest.send_data(1000, 52, &data[sent..sent + piece]);
            sent += piece;
        } else {
            guest.settle();
        }
    }
    guest.send(&Header { flags: BOTH_WAYS, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    guest.settle_until(|guest| guest.backlog() == 0);
    assert!(reader.join().unwrap() == data, "nothing is lost, nothing comes twice");
}

#[test]
fn guest_without_room_gets_what_fits_and_the_rest_later() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    let data = numbered(100_000);
    let writer = thread::spawn({
        let data = data.clone();
        move || host.write_all(&data).unwrap()
    });
    let mut all = Vec::new();
    let mut room = guest::ROOM;
    while all.len() < data.len() {
        while all.len() < room as usize && all.len() < data.len() {
            all.extend(guest.next_of(Op::Data).1);
        }
        assert!(all.len() <= room as usize);
        assert_eq!(guest.packets_of(Op::Data), Vec::<Vec<u8>>::new(), "there is no room for more");
        // Odd sizes, so that pieces are cut everywhere.
        room += 1237;
        let update =
            Header { buf_alloc: 1237, fwd_cnt: room - 1237, ..guest::header(Op::CreditUpdate, 1000, 52) };
        guest.send(&update, &[]);
    }
    writer.join().unwrap();
    assert!(all == data);
}

#[test]
fn each_side_may_end_its_direction_and_still_receive() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    guest.send_data(1000, 52, b"last words");
    guest.send(&Header { flags: NO_MORE_SENT, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.next_of(Op::Data).1, b"answer");
    drop(host);
    let mut flags = 0;
    while flags & NO_MORE_SENT == 0 {
        flags |= guest.next_of(Op::Shutdown).0.flags;
    }
    guest.send(&Header { flags: BOTH_WAYS, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    guest.next_of(Op::Reset);
    assert_eq!(guest.connections(), 0);

    let (mut guest, mut host) = Guest::connected(1000, 52);
    host.write_all(b"request").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.next_of(Op::Data).1, b"request");
    assert_eq!(guest.next_of(Op::Shutdown).0.flags, NO_MORE_SENT);
    guest.send_data(1000, 52, b"answer");
    guest.send(&Header { flags: BOTH_WAYS, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    guest.next_of(Op::Reset);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"answer");
}

#[test]
fn guest_that_takes_no_more_is_an_error_to_a_host_that_writes() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    guest.send(&Header { flags: NO_MORE_RECEIVED, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send_data(1000, 52, b"still");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 5);
}

#[test]
fn host_that_has_gone_ends_both_ways_and_a_guest_that_ignores_it_is_given_up() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    host.write_all(b"bye").unwrap();
    drop(host);
    assert_eq!(guest.next_of(Op::Data).1, b"bye", "bytes sent before come first");
    guest.send_data(1000, 52, b"into the void");
    let mut flags = 0;
    while flags != BOTH_WAYS {
        flags |= guest.next_of(Op::Shutdown).0.flags;
    }
    (0..9).for_each(|_| guest.tick());
    assert_eq!(guest.packets_of(Op::Reset), Vec::<Vec<u8>>::new());
    guest.tick();
    guest.next_of(Op::Reset);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn stuck_host_holds_up_nobody_else() {
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    guest.connect(1, 52);
    let stuck = listener.accept().unwrap();
    while guest.credit(1, 52) >= 4000 {
        guest.send_data(1, 52, &[0; 4000]);
    }
    guest.connect(2, 52);
    let mut other = listener.accept().unwrap();
    for _ in 0..100 {
        guest.send_data(2, 52, b"hello");
        assert_eq!(other.read(&mut [0; 9]).unwrap(), 5);
        other.write_all(b"hello").unwrap();
        assert_eq!(guest.next_of(Op::Data).1, b"hello");
    }
    drop(stuck);
}

#[test]
fn connections_survive_a_pause_and_end_with_a_reset() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    guest.machine.transport.pause().unwrap();
    host.write_all(b"meanwhile").unwrap();
    guest.machine.settle();
    guest.machine.transport.resume();
    assert_eq!(guest.next_of(Op::Data).1, b"meanwhile");
    guest.send_data(1000, 52, b"again");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 5);
    guest.restart();
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn listener_is_alone_on_its_port_and_is_informed_of_the_end() {
    let vsock = device();
    let listener = vsock.switchboard().listen(5).unwrap();
    assert!(matches!(vsock.switchboard().listen(5), Err(ListenError::Taken { port: 5 })));
    assert!(listener.accept_within(Duration::ZERO).unwrap().is_none());
    drop(listener);
    let listener = vsock.switchboard().listen(5).unwrap();
    let waiting = thread::spawn(move || listener.accept().unwrap_err().kind());
    vsock.close();
    assert_eq!(waiting.join().unwrap(), std::io::ErrorKind::ConnectionAborted);
    assert!(matches!(vsock.switchboard().listen(5), Err(ListenError::Ended { port: 5 })));
}

#[test]
fn socket_needs_a_free_short_path_and_its_file_goes_with_it() {
    let (vsock, path, folder) = device_with_socket();
    let taken = Vsock::new(3, Some(&path)).unwrap_err();
    assert!(matches!(taken, VsockError::Socket(HostSocketError::Taken)), "{taken}");
    vsock.close();
    assert!(!path.exists());
    let long = folder.as_path().join("x".repeat(100));
    let error = Vsock::new(3, Some(&long)).unwrap_err();
    assert!(matches!(error, VsockError::Socket(HostSocketError::TooLong { .. })), "{error}");
    let nowhere = Vsock::new(3, Some(&folder.as_path().join("no/s"))).unwrap_err();
    assert!(matches!(nowhere, VsockError::Socket(HostSocketError::Bind(_))), "{nowhere}");
}

#[test]
fn host_gets_the_bytes_in_flight_at_the_end_of_the_machine() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    let mut sent = 0;
    while guest.credit(1000, 52) >= 4000 {
        guest.send_data(1000, 52, &[7; 4000]);
        sent += 4000;
    }
    assert!(guest.backlog() > 0);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        all.len()
    });
    guest.vsock.close();
    assert_eq!(reader.join().unwrap(), sent);
}
