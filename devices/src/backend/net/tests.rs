//! Opening network back ends: success, and each reason for an error.

use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::testing::{Interface, in_own_network, ip};
use super::*;

fn reason<T>(result: Result<T, NetOpenError>) -> String {
    match result {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn existing_tap_is_opened_and_a_missing_one_is_not_made() {
    in_own_network(|| {
        let _interface = Interface::new("tap0");
        let tap = Tap::open("tap0").unwrap();
        assert_eq!(reason(Tap::open("tap0")), "another program uses it");
        drop(tap);
        Tap::open("tap0").unwrap();
        for name in ["tap1", "", "much-too-long-for-an-interface"] {
            assert!(reason(Tap::open(name)).starts_with("there is no such interface"), "{name}");
        }
    });
}

#[test]
fn interfaces_of_other_kinds_are_refused() {
    in_own_network(|| {
        ip("tuntap add tun0 mode tun");
        ip("tuntap add many0 mode tap multi_queue");
        for name in ["tun0", "many0", "lo"] {
            assert!(reason(Tap::open(name)).starts_with("it is not a tap"), "{name}");
        }
    });
}

#[test]
fn inherited_tap_works_with_headers_only() {
    in_own_network(|| {
        let _interface = Interface::new("tap0");
        let tap = Tap::open("tap0").unwrap();
        assert_eq!(adopt(tap.interest(false).descriptor).unwrap().possible_offloads(), Offloads::ALL);
        drop(tap);
        let bare = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        assert_eq!(reason(adopt(bare.as_raw_fd())), "it is neither a tap nor a unix stream socket");
    });
}

#[test]
fn inherited_sockets_have_to_be_unix_streams() {
    let (one, _other) = UnixStream::pair().unwrap();
    assert_eq!(adopt(one.as_raw_fd()).unwrap().possible_offloads(), Offloads::default());
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for descriptor in [datagram.as_raw_fd(), udp.as_raw_fd(), file.as_raw_fd()] {
        assert_eq!(reason(adopt(descriptor)), "it is neither a tap nor a unix stream socket");
    }
    for closed in [-1, 1_000_000] {
        assert!(reason(adopt(closed)).starts_with("no descriptor of this number"));
    }
}

#[test]
fn socket_without_a_listener_is_refused_and_a_full_one_is_not_waited_for() {
    let folder = std::env::temp_dir().join(format!("coracle-net-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    Stream::connect(&path).unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        match Stream::connect(&path) {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100_000);
    };
    assert_eq!(full.to_string(), "it cannot be connected to: Resource temporarily unavailable (os error 11)");
    drop((listener, waiting));
    let refused = reason(Stream::connect(&path));
    assert_eq!(refused, "it cannot be connected to: Connection refused (os error 111)");
    std::fs::remove_dir_all(&folder).unwrap();
    for path in [folder.join("socket"), folder.join("x".repeat(200)), "/dev/null".into()] {
        let refused = reason(Stream::connect(&path));
        assert!(refused.starts_with("it cannot be connected to: "), "{}: {refused}", path.display());
    }
}

#[test]
fn frames_that_arrive_in_pieces_or_together_are_separated() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(ours);
    assert_eq!(stream.receive(&[]).unwrap(), Received::Nothing);
    for byte in [0, 0, 0, 20] {
        peer.write_all(&[byte]).unwrap();
        assert_eq!(stream.receive(&[]).unwrap(), Received::Nothing);
    }
    peer.write_all(&[7; 19]).unwrap();
    assert_eq!(stream.receive(&[]).unwrap(), Received::Nothing);
    peer.write_all(&[&[8, 0, 0, 0, 14][..], &[9; 14], &[0, 0, 0, 15], &[10; 15], &[0, 0]].concat()).unwrap();
    assert_eq!(stream.receive(&[]).unwrap(), Received::Frame(HEADER_LEN + 20));
    assert_eq!(stream.overflow(), [&[7; 19][..], &[8]].concat());
    for (len, byte) in [(14, 9), (15, 10)] {
        assert_eq!(stream.receive(&[]).unwrap(), Received::Frame(HEADER_LEN + len));
        assert_eq!(stream.overflow(), vec![byte; len as usize]);
    }
    drop(peer);
    assert!(matches!(stream.receive(&[]), Err(LinkLost::Closed)));
}
