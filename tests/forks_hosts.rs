//! Tests of forks and restored machines whose devices have a program at the other end: network cards and
//! sockets, with bare guests.

mod common;

use std::io::{BufRead, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use common::forks::{Piped, builder};
use coracle::agent::NetworkSettings;
use coracle::config::{NetConfig, VsockConfig};
use coracle::{Fork, Restore, Vm, VmBuilder};

macro_rules! needs_kvm {
    () => {
        if !common::kvm_or_skip() {
            return;
        }
    };
}

/// Answers requests for 10.9.0.1 on the connections to a socket, and checks who asks.
fn answer(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            thread::spawn(move || answer_one(socket.unwrap()));
        }
    });
}

fn answer_one(mut socket: UnixStream) {
    loop {
        let mut len = [0; 4];
        if socket.read_exact(&mut len).is_err() {
            return;
        }
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        if socket.read_exact(&mut frame).is_err() {
            return;
        }
        assert_eq!((frame.len(), &frame[12..14], &frame[38..42]), (42, &[8, 6][..], &[10, 9, 0, 1][..]));
        let asker = frame[22..32].to_vec();
        frame[..6].copy_from_slice(&asker[..6]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[20..32].copy_from_slice(&[0, 2, 2, 0, 0, 0, 0, 9, 10, 9, 0, 1]);
        frame[32..42].copy_from_slice(&asker);
        if socket.write_all(&[&len[..], &frame].concat()).is_err() {
            return;
        }
    }
}

/// Starts a program that answers, and returns its socket.
fn answerer(name: &str) -> PathBuf {
    let path = common::fresh_path(name);
    answer(&path);
    path
}

fn asker(socket: &Path) -> VmBuilder {
    let card = format!("socket={},mac=02:00:00:00:00:01,id=lan", socket.display());
    builder("net-answers").configure(|config| config.nets.push(card.parse().unwrap()))
}

#[track_caller]
fn count(guest: &mut Piped) -> u32 {
    guest.send(b"?");
    let mut line = String::new();
    guest.output.read_line(&mut line).unwrap();
    u32::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}, {:?}", guest.vm.wait()))
}

/// Waits until the guest has had some more answers.
#[track_caller]
fn is_answered(guest: &mut Piped) {
    let before = count(guest);
    common::eventually("the guest gets answers", || count(guest) > before + 2);
}

/// The card is frozen wherever it stands: with a question offered or an answer on its way.
#[test]
fn forks_of_a_machine_with_a_card_have_each_an_end_of_their_own() {
    needs_kvm!();
    let socket = answerer("net-first");
    let mut guest = Piped::start(asker(&socket));
    is_answered(&mut guest);
    for round in 0..10 {
        thread::sleep(Duration::from_micros(round * 113));
        let template = guest.freeze();
        if round == 0 {
            let error = template.fork(1, |_, fork| fork).map(drop).unwrap_err().to_string();
            let card = format!("socket={},mac=02:00:00:00:00:01", socket.display());
            let expected = format!("fork 0: lan: this device was connected to {card}, which is neither");
            assert!(error.starts_with(&expected) && error.contains("net(\"lan\", ..)"), "{error}");
            let other = |_, fork: coracle::Fork| fork.net("lan", "tap=t,mtu=9000".parse().unwrap());
            let error = template.fork(1, other).map(drop).unwrap_err().to_string();
            assert!(error.contains("lan: the guest knows this device with mtu 1500 (none)"), "{error}");
        }
        let ends = [0, 1].map(|index| answerer(&format!("net-{round}-{index}")));
        let forks = template
            .fork(2, |index, fork| fork.console_piped().net("lan", NetConfig::stream(&ends[index])))
            .unwrap();
        let mut forks: Vec<Piped> = forks.into_iter().map(Piped::of).collect();
        forks.iter_mut().for_each(is_answered);
        guest = forks.remove(0);
    }
    guest.send(b"q");
    guest.exits(0);
}

#[test]
fn restored_card_is_connected_as_it_is_named_or_as_it_was() {
    needs_kvm!();
    let (socket, path) = (answerer("net-saved"), common::fresh_path("net-snapshot"));
    let mut guest = Piped::start(asker(&socket));
    is_answered(&mut guest);
    guest.vm.snapshot_to(&path).unwrap();
    is_answered(&mut guest);
    let refused = Vm::restore(&path).start().map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("lan: this device was connected to socket="), "{refused}");
    let other = answerer("net-other");
    let ways: [&dyn Fn(Restore) -> Restore; 2] =
        [&Restore::reopen_recorded, &|restore| restore.net("lan", NetConfig::stream(&other))];
    for way in ways {
        let mut again = Piped::of(way(Vm::restore(&path).console_piped()).start().unwrap());
        is_answered(&mut again);
        again.send(b"q");
        again.exits(0);
    }
    is_answered(&mut guest);
}

/// Returns the address of a guest's card, and whether its configuration has changed.
#[track_caller]
fn address(guest: &mut Piped) -> (String, bool) {
    guest.send(b"?");
    let mut bytes = [0; 7];
    guest.output.read_exact(&mut bytes).unwrap();
    let [a, b, c, d, e, f, is_new] = bytes;
    (format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"), is_new == 1)
}

/// Checks that a driver that starts the card again finds the same address.
#[track_caller]
fn keeps(mut guest: Piped, mac: &str) {
    guest.send(b"d");
    guest.expect(b"!");
    assert_eq!(address(&mut guest), (mac.to_owned(), false));
    guest.send(b"q");
    guest.exits(0);
}

#[test]
fn card_with_another_end_has_an_address_of_its_own() {
    needs_kvm!();
    let (first, other) = (answerer("net-mac-first"), answerer("net-mac-other"));
    let (former, path) = ("02:00:00:00:00:01", common::fresh_path("net-mac-snapshot"));
    let card = format!("socket={},mac={former},id=lan", first.display());
    let builder = builder("net-address").configure(|config| config.nets.push(card.parse().unwrap()));
    let mut guest = Piped::start_marked(builder);
    assert_eq!(address(&mut guest), (former.to_owned(), false));
    guest.vm.snapshot_to(&path).unwrap();
    let template = guest.freeze();
    let net = |options: &str| format!("socket={}{options}", other.display()).parse::<NetConfig>().unwrap();
    let mut seen = vec![former.to_owned()];
    let forks = template.fork(3, |_, fork| fork.console_piped().net("lan", net(""))).unwrap();
    for fork in forks {
        let mut fork = Piped::of(fork);
        let (mac, is_new) = address(&mut fork);
        assert!(is_new && !seen.contains(&mac), "{mac} {seen:?}");
        assert_eq!(u8::from_str_radix(&mac[..2], 16).unwrap() & 3, 2, "local, and one card's: {mac}");
        // The next generation has one of its own, too, and so has a card that keeps its end.
        let template = fork.freeze();
        let same = Piped::fork(&template, Fork::reopen_recorded);
        keeps(same, &mac);
        let mut next = Piped::fork(&template, |fork| fork.net("lan", net("")));
        assert!(![&mac, former].contains(&address(&mut next).0.as_str()));
        seen.push(mac);
    }
    let mut named = Piped::fork(&template, |fork| fork.net("lan", net(",mac=02:00:00:00:00:08")));
    assert_eq!(address(&mut named), ("02:00:00:00:00:08".to_owned(), true));
    keeps(named, "02:00:00:00:00:08");
    let restore = || Vm::restore(&path).console_piped();
    let mut restored = Piped::of(restore().net("lan", net("")).start().unwrap());
    let (mac, is_new) = address(&mut restored);
    assert!(is_new && !seen.contains(&mac), "{mac} {seen:?}");
    keeps(restored, &mac);
    for same in [restore().reopen_recorded(), restore().net("lan", net(",mac=02:00:00:00:00:01"))] {
        let mut same = Piped::of(same.start().unwrap());
        assert_eq!(address(&mut same), (former.to_owned(), false));
        keeps(same, former);
    }
}

#[test]
fn address_for_a_card_is_refused_before_anything_starts() {
    needs_kvm!();
    let socket = answerer("net-address-refused");
    let guest = Piped::start(asker(&socket));
    let template = guest.freeze();
    let refused = |id: &str, settings: NetworkSettings| {
        let adapt = |_, fork: Fork| fork.reopen_recorded().address(id, settings.clone());
        template.fork(2, adapt).map(drop).unwrap_err().to_string()
    };
    let error = refused("net0", NetworkSettings::default());
    assert_eq!(error, "fork 0: there is no device `net0`; the machine has lan (net)");
    let error = refused("lan", NetworkSettings::default());
    assert!(error.starts_with("fork 0: lan: the guest's agent sets its address"), "{error}");
    let interface = Some("eth0".into());
    let error = refused("lan", NetworkSettings { interface, ..NetworkSettings::default() });
    assert!(error.contains("\"eth0\" was named too"), "{error}");
    let dns = vec![[9, 9, 9, 9].into(); 65];
    let error = refused("lan", NetworkSettings { dns, ..NetworkSettings::default() });
    assert_eq!(error, "fork 0: lan: 65 name servers were given, and 64 are allowed; leave some out");
}

/// Sends bytes, of which all come back.
#[track_caller]
fn echo(stream: &mut UnixStream, bytes: &[u8]) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

fn talker() -> VmBuilder {
    builder("vsock-again").configure(|config| config.vsock = Some("cid=3".parse().unwrap()))
}

fn vsock(cid: u32, path: &Path) -> VsockConfig {
    VsockConfig { cid, uds: Some(path.to_owned()), id: None }
}

/// Binds the socket at which the guest of the device at `path` finds port 52 of the host.
fn port_52(path: &Path) -> UnixListener {
    UnixListener::bind(format!("{}_52", path.display())).unwrap()
}

#[test]
fn connections_end_in_forks_and_the_guest_connects_again() {
    needs_kvm!();
    let guest = Piped::start(talker());
    let listener = guest.vm.handle().listen(52).unwrap();
    let mut first = listener.accept().unwrap();
    echo(&mut first, b"the first");
    // Bytes on their way when it is frozen: they end with the connection.
    first.write_all(&[7; 9000]).unwrap();
    let template = guest.freeze();
    let paths = [0, 1].map(|index| common::fresh_path(&format!("v-fork-{index}")));
    let listeners = paths.each_ref().map(|path| port_52(path));
    let forks = template
        .fork(2, |index, fork| fork.console_piped().vsock(vsock(10 + index as u32, &paths[index])))
        .unwrap();
    let mut left = Vec::new();
    let _ = first.read_to_end(&mut left);
    assert!(left.iter().all(|byte| *byte == 7) && left.len() <= 9000);
    for (fork, listener) in forks.into_iter().map(Piped::of).zip(&listeners) {
        let mut stream = listener.accept().unwrap().0;
        echo(&mut stream, &[9; 3000]);
        // Another generation, while bytes are on their way.
        stream.write_all(&[8; 9000]).unwrap();
        let next = common::fresh_path("v-fork-of-fork");
        let own = port_52(&next);
        let template = fork.freeze();
        let error = template.fork(1, |_, fork| fork).map(drop).unwrap_err().to_string();
        assert!(error.contains("vsock0: this device was connected to cid=1") && error.contains("vsock(..)"));
        let fork = template.fork(1, |_, fork| fork.vsock(vsock(3, &next))).unwrap().remove(0);
        let mut stream = own.accept().unwrap().0;
        echo(&mut stream, b"the last");
        drop(stream);
        assert_eq!(fork.wait().exit_code(), 0);
    }
    // Without a socket, every fork has its own device.
    let shared = template.fork(2, |_, fork| fork).unwrap();
    for fork in shared {
        let listener = fork.handle().listen(52).unwrap();
        let mut stream = listener.accept().unwrap();
        echo(&mut stream, b"in this process");
        drop(stream);
        assert_eq!(fork.wait().exit_code(), 0);
    }
}

#[test]
fn connections_end_in_restored_machines_and_stay_in_the_first() {
    needs_kvm!();
    let (socket, path) = (common::fresh_path("v-saved"), common::fresh_path("v-snapshot"));
    let listener = port_52(&socket);
    let guest =
        Piped::start(builder("vsock-again").configure(|config| config.vsock = Some(vsock(7, &socket))));
    let mut first = listener.accept().unwrap().0;
    echo(&mut first, b"before");
    for round in 0..5_u8 {
        first.write_all(&[round; 5000]).unwrap();
        guest.vm.snapshot_to(&path).unwrap();
        let mut back = [0; 5000];
        first.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 5000], "the machine goes on with its connection");
        let refused = Vm::restore(&path).start().map(drop).unwrap_err().to_string();
        assert!(refused.starts_with("vsock0: this device was connected to cid=7,uds=/"), "{refused}");
        // The first machine has the socket.
        let refused = Vm::restore(&path).reopen_recorded().start().map(drop).unwrap_err().to_string();
        assert!(refused.contains("the path is taken"), "{refused}");
        let other = common::fresh_path("v-other");
        let own = port_52(&other);
        let again = Vm::restore(&path).vsock(vsock(9, &other)).start().unwrap();
        let mut stream = own.accept().unwrap().0;
        echo(&mut stream, &[round; 3000]);
        drop(stream);
        assert_eq!(again.wait().exit_code(), 0);
        echo(&mut first, b"still there");
    }
    drop(first);
    guest.exits(0);
    let again = Vm::restore(&path).reopen_recorded().start().unwrap();
    let mut stream = listener.accept().unwrap().0;
    echo(&mut stream, b"as it was");
    drop(stream);
    assert_eq!(again.wait().exit_code(), 0);
}

/// The parent is held wherever its card stands: with a question offered or an answer on its way.
#[test]
fn card_goes_on_in_the_parent_and_its_children_have_ends_of_their_own() {
    needs_kvm!();
    let socket = answerer("net-parent");
    let mut parent = Piped::start(asker(&socket));
    is_answered(&mut parent);
    let error = parent.vm.branch(|fork| fork).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("lan: this device was connected to socket=/"), "{error}");
    for round in 0..10 {
        thread::sleep(Duration::from_micros(round * 113));
        let end = answerer(&format!("net-child-{round}"));
        let child = parent.vm.branch(|fork| fork.console_piped().net("lan", NetConfig::stream(&end)));
        let mut child = Piped::of(child.unwrap());
        is_answered(&mut child);
        is_answered(&mut parent);
        child.send(b"q");
        child.exits(0);
    }
    parent.send(b"q");
    parent.exits(0);
}

#[test]
fn connections_stay_in_the_parent_and_end_in_its_children() {
    needs_kvm!();
    let socket = common::fresh_path("v-parent");
    let listener = port_52(&socket);
    let parent =
        Piped::start(builder("vsock-again").configure(|config| config.vsock = Some(vsock(7, &socket))));
    let mut first = listener.accept().unwrap().0;
    echo(&mut first, b"before");
    let error = parent.vm.branch(|fork| fork).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("vsock0: this device was connected to cid=7,uds=/"), "{error}");
    for round in 0..5_u8 {
        first.write_all(&[round; 5000]).unwrap();
        let other = common::fresh_path("v-child");
        let own = port_52(&other);
        let child = parent.vm.branch(|fork| fork.vsock(vsock(9, &other))).unwrap();
        let mut back = [0; 5000];
        first.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 5000], "the parent goes on with its connection");
        let mut stream = own.accept().unwrap().0;
        echo(&mut stream, &[round; 3000]);
        drop(stream);
        assert_eq!(child.wait().exit_code(), 0);
        echo(&mut first, b"still there");
    }
    drop(first);
    parent.exits(0);
}
