//! Guests that break the rules: their packets are answered with a reset or dropped, and other connections
//! keep working.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::packet::{Header, Op};
use super::super::{KEPT_BACK, MAX_CONNECTIONS};
use super::guest::{self, Guest, header};
use super::{device, device_with_socket};
use crate::virtio::listener::PRIVILEGED_PORTS;
use crate::virtio::testing::{BUFFERS, Buffer, HIGH_RAM};

const PACKET: u64 = BUFFERS + (2 << 20);

/// Returns whether a connection still works.
#[track_caller]
fn assert_works(guest: &mut Guest, host: &mut (impl Read + Write)) {
    guest.packets_of(Op::Reset);
    guest.send_data(1000, 52, b"hello");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 5);
    host.write_all(b"you").unwrap();
    assert_eq!(guest.next_of(Op::Data).1, b"you");
    assert!(!guest.machine.needs_reset());
}

#[test]
fn header_may_be_cut_at_every_byte() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    let packet = [&Header { len: 5, ..guest::header(Op::Data, 1000, 52) }.to_bytes()[..], b"hello"].concat();
    for cut in 1..packet.len() as u64 {
        guest.machine.put(PACKET, &packet[..cut as usize]);
        guest.machine.put(HIGH_RAM, &packet[cut as usize..]);
        let rest = packet.len() as u32 - cut as u32;
        guest.send_buffers(&[Buffer::readable(PACKET, cut as u32), Buffer::readable(HIGH_RAM, rest)]);
        let mut said = [0; 5];
        host.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello", "cut at {cut}");
    }
    // In 14 pieces, as many as the ring holds, with receive buffers that are cut as well.
    guest.machine.put(PACKET, &packet);
    let pieces: Vec<Buffer> = (0..12).map(|piece| Buffer::readable(PACKET + piece * 4, 4)).collect();
    guest.send_buffers(&[&pieces[..], &[Buffer::readable(PACKET + 48, 1)]].concat());
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 5);
}

#[test]
fn receive_buffers_may_be_cut_and_small_ones_are_given_back_empty() {
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    guest.connect(1000, 52);
    let mut host = listener.accept().unwrap();
    guest.restart_without_buffers();
    guest.send(&guest::header(Op::Request, 1000, 52), &[]);
    assert!(host.read(&mut [0; 1]).is_ok());
    for len in [0, 1, 43, 44] {
        let head = guest.rings[0].offer(&[Buffer::writable(PACKET, len)]);
        guest.machine.kick(0);
        assert_eq!(guest.rings[0].completed(), Some((head.into(), 0)), "{len} bytes");
    }
    let pieces: Vec<Buffer> = (0..15).map(|piece| Buffer::writable(PACKET + piece * 16, 3)).collect();
    guest.rings[0].offer(&pieces);
    guest.machine.kick(0);
    assert_eq!(guest.rings[0].completed().map(|(_, len)| len), Some(44));
    let gathered: Vec<u8> = (0..15).flat_map(|piece| guest.machine.bytes(PACKET + piece * 16, 3)).collect();
    assert_eq!(Header::from_bytes(gathered[..44].try_into().unwrap()).op, Op::Response as u16);
}

#[test]
fn packets_without_a_whole_header_are_dropped() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    for len in [0, 1, 43] {
        guest.send_buffers(&[Buffer::readable(PACKET, len)]);
    }
    guest.send_buffers(&[Buffer::writable(PACKET, 44)]);
    assert_eq!(guest.packets_of(Op::Reset).len(), 0);
    assert_works(&mut guest, &mut host);
}

#[test]
fn false_length_ends_the_connection_and_reads_nothing_else() {
    for len in [6, 44, 0xffff, u32::MAX] {
        let (mut guest, mut host) = Guest::connected(1000, 52);
        guest.send(&Header { len, ..guest::header(Op::Data, 1000, 52) }, b"hello");
        guest.next_of(Op::Reset);
        assert_eq!(host.read(&mut [0; 9]).unwrap(), 0, "{len}");
        assert_eq!(guest.connections(), 0);
    }
    // Fewer bytes than the packet has: the rest is not data.
    let (mut guest, mut host) = Guest::connected(1000, 52);
    guest.send(&Header { len: 2, ..guest::header(Op::Data, 1000, 52) }, b"hello");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 2);
}

#[test]
fn unknown_operations_are_answered_with_a_reset_and_foreign_senders_not_at_all() {
    let (mut guest, mut host) = Guest::connected(1000, 52);
    let good = guest::header(Op::Data, 2000, 53);
    let wrong = [
        Header { op: 0, ..good },
        Header { op: 8, ..good },
        Header { op: u16::MAX, ..good },
        Header { kind: 0, ..good },
        Header { kind: 2, ..good },
        Header { dst_cid: 0, ..good },
        Header { dst_cid: 3, ..good },
        Header { dst_cid: u64::MAX, ..good },
        good,
        guest::header(Op::Response, 2000, 53),
        guest::header(Op::Shutdown, 2000, 53),
        guest::header(Op::CreditUpdate, 2000, 53),
        guest::header(Op::CreditRequest, 2000, 53),
        guest::header(Op::Request, 2000, 53),
    ];
    for header in wrong {
        guest.send(&header, &[]);
        let (reset, _) = guest.next_of(Op::Reset);
        assert_eq!((reset.src_cid, reset.src_port, reset.dst_port), (header.dst_cid, 53, 2000), "{header:?}");
    }
    for header in [
        Header { src_cid: 2, ..good },
        Header { src_cid: 4, ..good },
        Header { src_cid: 3 | 1 << 32, ..good },
        guest::header(Op::Reset, 2000, 53),
    ] {
        guest.send(&header, &[]);
        assert_eq!(guest.packets_of(Op::Reset).len(), 0, "{header:?}");
    }
    assert_works(&mut guest, &mut host);
}

#[test]
fn packets_out_of_turn_end_the_connection() {
    for op in [Op::Request, Op::Response] {
        let (mut guest, mut host) = Guest::connected(1000, 52);
        guest.send(&guest::header(op, 1000, 52), &[]);
        guest.next_of(Op::Reset);
        assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    }
    let (mut guest, mut host) = Guest::connected(1000, 52);
    guest.send(&Header { flags: super::NO_MORE_SENT, ..guest::header(Op::Shutdown, 1000, 52) }, &[]);
    guest.send(&Header { len: 1, ..guest::header(Op::Data, 1000, 52) }, b"x");
    guest.next_of(Op::Reset);
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn data_before_the_answer_ends_a_connection_of_the_host() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock);
    let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.next_of(Op::Request);
    guest.send(&Header { len: 3, ..guest::header(Op::Data, 7, request.src_port) }, b"OK\n");
    guest.next_of(Op::Reset);
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn guest_that_sends_more_than_its_window_is_cut_off() {
    let (mut guest, host) = Guest::connected(1000, 52);
    let mut sent = 0_u32;
    // More bytes than socket and window hold together.
    while guest.connections() == 1 {
        assert!(sent < 16 << 20);
        guest.send(&Header { len: 4096, ..guest::header(Op::Data, 1000, 52) }, &[0; 4096]);
        sent += 4096;
        assert!(guest.backlog() <= 128 << 10);
    }
    guest.next_of(Op::Reset);
    drop(host);
}

#[test]
fn false_buffer_sizes_harm_no_other_connection() {
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    guest.connect(1000, 52);
    let mut good = listener.accept().unwrap();
    guest.connect(1001, 52);
    let mut other = listener.accept().unwrap();
    for (buf_alloc, fwd_cnt) in
        [(0, 0), (0, u32::MAX), (u32::MAX, 0), (u32::MAX, u32::MAX), (1, 1 << 31), (u32::MAX, 1 << 31)]
    {
        let lie = Header { buf_alloc, fwd_cnt, ..guest::header(Op::CreditUpdate, 1001, 52) };
        guest.send(&lie, &[]);
        other.write_all(b"x").unwrap();
        guest.settle();
        assert_works(&mut guest, &mut good);
    }
    // Ten thousand requests for credit do not pile up as answers.
    for _ in 0..10_000 {
        guest.send(&Header { buf_alloc: 0, ..guest::header(Op::CreditRequest, 1001, 52) }, &[]);
    }
    assert_works(&mut guest, &mut good);
}

#[test]
fn ten_thousand_connections_leave_512_and_a_bounded_backlog() {
    raise_descriptor_limit();
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    guest.connect(1000, 52);
    let mut good = listener.accept().unwrap();
    let mut accepted = Vec::new();
    for port in 2000..12_000 {
        guest.send(&guest::header(Op::Request, port, 52), &[]);
        guest.settle();
        while let Some(stream) = listener.accept_within(std::time::Duration::ZERO).unwrap() {
            accepted.push(stream);
        }
    }
    assert_eq!((guest.connections(), accepted.len()), (512, 511));
    assert_works(&mut guest, &mut good);
    // Nobody reads, so each connection fills up.
    for port in 2000..2511 {
        while guest.credit(port, 52) >= 4096 {
            guest.send_data(port, 52, &[0; 4096]);
        }
    }
    assert!((4 << 20..8 << 20).contains(&guest.backlog()), "{}", guest.backlog());
    assert_works(&mut guest, &mut good);
    accepted.clear();
    guest.settle_until(|guest| guest.backlog() == 0);
    for port in 2000..2511 {
        guest.send(&guest::header(Op::Reset, port, 52), &[]);
    }
    assert_eq!(guest.connections(), 1);
    // The wide windows are available again.
    guest.connect(20_000, 52);
    assert_eq!(guest.credit(20_000, 52), 128 << 10);
}

#[test]
fn privileged_listener_refuses_unprivileged_ports_and_is_not_locked_out() {
    let vsock = device();
    let agent = vsock.switchboard().listen_privileged(1024).unwrap();
    let other = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock);
    for port in [PRIVILEGED_PORTS, PRIVILEGED_PORTS + 1, u32::MAX] {
        guest.send(&header(Op::Request, port, 1024), &[]);
        guest.next_of(Op::Reset);
    }
    assert!(agent.accept_within(Duration::ZERO).unwrap().is_none());
    raise_descriptor_limit();
    let mut others = Vec::new();
    for port in 2000..2000 + MAX_CONNECTIONS as u32 {
        guest.connect(port, 52);
        others.push(other.accept().unwrap());
    }
    guest.send(&header(Op::Request, 1999, 52), &[]);
    guest.next_of(Op::Reset);
    let mut agents = Vec::new();
    for port in (0..KEPT_BACK as u32).map(|number| PRIVILEGED_PORTS - 1 - number) {
        guest.connect(port, 1024);
        agents.push(agent.accept().unwrap());
    }
    guest.send(&header(Op::Request, 1, 1024), &[]);
    guest.next_of(Op::Reset);
    assert_eq!(guest.connections(), MAX_CONNECTIONS + KEPT_BACK);
    // Bytes flow, and a connection that becomes free is available to an agent only.
    agents[0].write_all(b"x").unwrap();
    assert_eq!(guest.next_of(Op::Data).1, b"x");
    guest.send(&header(Op::Reset, PRIVILEGED_PORTS - 1, 1024), &[]);
    guest.send(&header(Op::Request, 1999, 52), &[]);
    guest.next_of(Op::Reset);
    guest.connect(2, 1024);
}

#[test]
fn guest_that_takes_no_answers_waits_until_it_takes_them() {
    let vsock = device();
    let mut guest = Guest::new(vsock);
    guest.restart_without_buffers();
    let mut sent = 0;
    let header = guest::header(Op::Request, 1000, 52);
    guest.machine.put(PACKET, &header.to_bytes());
    loop {
        guest.rings[1].offer(&[Buffer::readable(PACKET, 44)]);
        guest.machine.kick(1);
        if guest.rings[1].completed().is_none() {
            break;
        }
        sent += 1;
        assert!(sent <= 256, "its packets pile up");
    }
    assert_eq!(sent, 256);
    guest.offer_buffers();
    guest.machine.settle();
    assert!(guest.rings[1].completed().is_some(), "the guest's packets are served again");
    let mut answers = 0;
    guest.settle_until(|guest| {
        answers += guest.packets_of(Op::Reset).len();
        answers == 257
    });
}

#[test]
fn random_packets_are_survived() {
    let (vsock, path, _folder) = device_with_socket();
    let listener = vsock.switchboard().listen(52).unwrap();
    let _other = vsock.switchboard().listen(53).unwrap();
    let mut guest = Guest::new(vsock);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let mut clients = Vec::new();
    for round in 0..20_000 {
        let len = [0, 0, 5, 3000, 5000][random(5) as usize];
        let header = Header {
            src_cid: 3 + u64::from(random(50) == 0),
            dst_cid: 2 + u64::from(random(50) == 0),
            len: if random(30) == 0 { random(1 << 32) as u32 } else { len },
            kind: 1 + u16::from(random(50) == 0),
            op: random(9) as u16,
            flags: random(4) as u32,
            buf_alloc: [0, 100, 65536, u32::MAX][random(4) as usize],
            fwd_cnt: [0, 0, 3, random(1 << 32) as u32][random(4) as usize],
            ..guest::header(
                Op::Data,
                1000 + random(4) as u32,
                [52, 53, 1 << 30, (1 << 30) + 1][random(4) as usize],
            )
        };
        guest.send(&header, &vec![0; len as usize]);
        if round % 100 == 0 {
            let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let _ = client.write_all(b"CONNECT 1000\nhello");
            clients.push(client);
            clients.drain(..clients.len().saturating_sub(8));
            drop(listener.accept_within(std::time::Duration::ZERO));
            guest.settle();
        }
        assert!(guest.backlog() < 8 << 20 && guest.connections() <= 512);
    }
    assert!(!guest.machine.needs_reset());
    guest.restart();
    while listener.accept_within(std::time::Duration::ZERO).unwrap().is_some() {}
    guest.connect(1000, 52);
    assert_works(&mut guest, &mut listener.accept().unwrap());
}

/// Raises the limit of descriptors: both ends of 512 connections are more than a process may have open by
/// default.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the result has space for the limit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(4096));
    // SAFETY: the limit is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// A connection that ends before the guest has taken its answer leaves nothing behind.
#[test]
fn connections_that_come_and_go_without_a_buffer_leave_nothing() {
    let vsock = device();
    let listener = vsock.switchboard().listen(52).unwrap();
    let mut guest = Guest::new(vsock.clone());
    guest.restart_without_buffers();
    for _ in 0..2000 {
        guest.send(&guest::header(Op::Request, 1000, 52), &[]);
        drop(listener.accept().unwrap());
        guest.send(&guest::header(Op::Reset, 1000, 52), &[]);
        vsock.assert_bounded();
        assert_eq!(guest.connections(), 0);
    }
    guest.offer_buffers();
    guest.connect(1000, 52);
    let mut good = listener.accept().unwrap();
    assert_works(&mut guest, &mut good);
}

/// Clients of the host try again and again, while the guest takes none of their requests, or a few.
#[test]
fn retries_of_the_host_leave_nothing_that_the_guest_does_not_know() {
    let (vsock, path, _folder) = device_with_socket();
    let mut guest = Guest::new(vsock.clone());
    for buffers in [0, 3] {
        guest.restart_without_buffers();
        for index in 0..buffers {
            guest.rings[0].offer(&[Buffer::writable(BUFFERS + index * 4096, 4096)]);
        }
        for _ in 0..40 {
            let clients: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
            clients.iter().for_each(|mut client| client.write_all(b"CONNECT 9\n").unwrap());
            guest.machine.settle();
            drop(clients);
            guest.machine.settle();
            (0..10).for_each(|_| guest.tick_uncollected());
            vsock.assert_bounded();
        }
        assert_eq!(guest.connections(), 0);
        assert!(guest.resets() <= buffers as usize, "{} resets", guest.resets());
    }
}
