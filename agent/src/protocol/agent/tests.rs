//! Both ends against each other, and against an end that breaks the rules.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod restored;

fn info() -> AgentInfo {
    AgentInfo { kernel: "6.1.0".into(), place: Place::FirstProcess, kills_groups: true }
}

/// Two sessions, and bytes that cross in pieces.
struct Pair {
    host: HostSession,
    agent: AgentSession,
    piece: usize,
}

impl Pair {
    fn new(piece: usize) -> Pair {
        Pair { host: HostSession::default(), agent: AgentSession::new(7, info()), piece }
    }

    fn ready() -> Pair {
        let mut pair = Pair::new(4096);
        pair.cross();
        assert_eq!(pair.host.next_event(), Some(HostEvent::Ready(info())));
        pair
    }

    /// Lets everything cross, both ways, until nothing is left.
    fn cross(&mut self) {
        while !(self.host.output().is_empty() && self.agent.output().is_empty()) {
            let count = self.host.output().len().min(self.piece);
            self.agent.receive(&self.host.output()[..count]).unwrap();
            self.host.sent(count);
            let count = self.agent.output().len().min(self.piece);
            self.host.receive(&self.agent.output()[..count]).unwrap();
            self.agent.sent(count);
        }
    }

    fn exec(&mut self, stdin: bool) -> u32 {
        let request = ExecRequest { argv: vec!["cat".into()], stdin, ..ExecRequest::default() };
        let channel = self.host.open(Request::Exec(Box::new(request.clone()))).unwrap();
        self.cross();
        assert_eq!(
            self.agent.next_event(),
            Some(AgentEvent::Open(channel, Request::Exec(Box::new(request))))
        );
        self.agent.answer(channel, &AgentMessage::Started { pid: 9 });
        channel
    }

    fn host_events(&mut self) -> Vec<HostEvent> {
        self.cross();
        std::iter::from_fn(|| self.host.next_event()).collect()
    }

    /// The host's answer to a message that no valid agent sends.
    fn host_gets(&mut self, channel: u32, message: &AgentMessage) -> Result<(), SessionError> {
        self.cross();
        self.host.receive(&message.to_frame(channel))
    }
}

fn requests() -> Vec<Request> {
    let exec = ExecRequest {
        argv: vec!["sh".into(), "-c".into(), "".into()],
        env: vec![("A".into(), "b=c".into())],
        clear_env: true,
        cwd: Some("/tmp".into()),
        user: Some("web:video".into()),
        terminal: Some(WindowSize { rows: 24, columns: 80 }),
        stdin: true,
        limits: ExecLimits::default(),
    };
    let limits = ExecLimits {
        kill_tree: true,
        processes: Some(9),
        memory: Some(u64::MAX),
        cpu_percent: None,
        resources: vec![ResourceLimit { resource: 7, value: 3 }],
    };
    let address = ([10, 0, 0, 2].into(), 24, Some([10, 0, 0, 1].into()));
    let network = NetworkRequest {
        interface: Some("eth0".into()),
        address: Some(address),
        dns: vec![[9, 9, 9, 9].into()],
        limit: Duration::from_millis(1500),
    };
    vec![
        Request::Exec(Box::default()),
        Request::Exec(Box::new(exec.clone())),
        Request::Exec(Box::new(ExecRequest { limits, ..exec })),
        Request::Put(PutRequest { path: "/a".into(), mode: None }),
        Request::Put(PutRequest { path: "/a".into(), mode: Some(0o755) }),
        Request::Get("/b".into()),
        Request::List("/".into()),
        Request::Stat { path: "/c".into(), follow: true },
        Request::ReadLink("/d".into()),
        Request::Path(PathRequest::MakeDirectory { path: "/e".into(), mode: 0o700, parents: true }),
        Request::Path(PathRequest::Remove { path: "/f".into(), all: false }),
        Request::Path(PathRequest::Rename { from: "/g".into(), to: "/h".into() }),
        Request::Path(PathRequest::Link { target: "../i".into(), path: "/j".into() }),
        Request::SetClock(Duration::new(1, 999_999_999)),
        Request::Network(network.clone()),
        Request::Network(NetworkRequest { interface: None, address: None, ..network }),
        Request::Shutdown(Power::Off),
        Request::Shutdown(Power::Restart),
        Request::Identify(Box::new(IdentityRequest {
            hostname: Some("w1".into()),
            machine_id: "0123456789abcdef".repeat(2),
            seed: vec![9; 64],
            time: Duration::new(5, 6),
            env: vec![("A".into(), "b".into())],
            cards: cards(),
        })),
        Request::Processes,
        Request::Attach(AttachRequest { id: 3, stdin: true, terminal: false }),
        Request::BranchPoint { any_user: true },
    ]
}

fn cards() -> Vec<CardIdentity> {
    let limit = Duration::from_secs(1);
    let network = NetworkRequest {
        interface: None,
        address: Some(([10, 9, 0, 2].into(), 24, None)),
        dns: vec![[9, 9, 9, 9].into(); CardIdentity::MAX_DNS],
        limit,
    };
    let card = CardIdentity { former: [2, 0, 0, 0, 0, 7], mac: [2, 0, 0, 0, 0, 8], network: None };
    let by_dhcp = NetworkRequest { address: None, dns: Vec::new(), ..network.clone() };
    let networks = [None, Some(network), Some(by_dhcp)];
    networks.into_iter().map(|network| CardIdentity { network, ..card.clone() }).collect()
}

fn host_messages() -> Vec<HostMessage> {
    let streams = [
        HostMessage::Data(Stream::Stdin, vec![0; 3]),
        HostMessage::End(Stream::Stdin),
        HostMessage::Window(Stream::Stderr, u32::MAX),
        HostMessage::Signal(15),
        HostMessage::Resize(WindowSize { rows: 1, columns: 2 }),
        HostMessage::Close,
    ];
    requests().into_iter().map(HostMessage::Open).chain(streams).collect()
}

fn agent_messages() -> Vec<AgentMessage> {
    let network = NetworkInfo {
        interface: "eth0".into(),
        address: [1, 2, 3, 4].into(),
        prefix: 8,
        gateway: None,
        dns: vec![[8, 8, 8, 8].into(), [9, 9, 9, 9].into()],
    };
    vec![
        AgentMessage::Ready(info()),
        AgentMessage::Started { pid: 1 },
        AgentMessage::Exited(Ending::Code(255)),
        AgentMessage::Exited(Ending::Signal(9)),
        AgentMessage::File(FileInfo { mode: 0o644, size: u64::MAX }),
        AgentMessage::Network(network),
        AgentMessage::Processes(vec![
            ProcessInfo { has_stdin: true, ..ProcessInfo::new(1, 2, "sh".into()) },
            ProcessInfo { has_terminal: true, has_ended: true, ..ProcessInfo::new(3, 4, "".into()) },
        ]),
        AgentMessage::Done,
        AgentMessage::Failed(Failure { step: Step::Power, subject: "x".into(), errno: 1 }),
        AgentMessage::Data(Stream::Stdout, vec![7; MAX_DATA]),
        AgentMessage::End(Stream::Stderr),
        AgentMessage::Window(Stream::Stdin, 1),
        AgentMessage::Closed,
    ]
}

fn content(frame: &[u8]) -> &[u8] {
    let (header, content) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_le_bytes(*header) as usize, content.len());
    content
}

#[test]
fn every_message_crosses_unchanged_and_none_that_is_cut() {
    for message in host_messages() {
        let frame = message.to_frame(3);
        assert_eq!(HostMessage::parse(content(&frame)), Ok((3, message.clone())));
        if !matches!(message, HostMessage::Data(..)) {
            for length in 0..content(&frame).len() {
                assert!(
                    HostMessage::parse(&content(&frame)[..length]).is_err(),
                    "{message:?} cut at {length}"
                );
            }
        }
    }
    for message in agent_messages() {
        let frame = message.to_frame(u32::MAX);
        assert_eq!(AgentMessage::parse(content(&frame)), Ok((u32::MAX, message)));
    }
}

#[test]
fn entries_of_a_folder_cross_in_any_pieces() {
    let entry = |name: &str, kind| DirEntry {
        name: name.into(),
        kind,
        mode: 0o1777,
        uid: 1,
        gid: 2,
        size: 3,
        modified: -1,
    };
    let entries = [entry("a", FileKind::File), entry("b\n\u{e9}", FileKind::Socket)];
    let bytes: Vec<u8> = entries.iter().flat_map(DirEntry::to_frame).collect();
    for piece in [1, 7, bytes.len()] {
        let mut reader = EntryReader::default();
        let read: Vec<_> = bytes.chunks(piece).flat_map(|piece| reader.push(piece).unwrap()).collect();
        assert_eq!(read, entries);
    }
    assert!(EntryReader::default().push(&[0xff; 8]).is_err());
}

#[test]
fn greeting_is_found_behind_whatever_the_line_held() {
    for piece in [1, 5, 100] {
        let mut pair = Pair::new(piece);
        for junk in [b"Linux version 6.1\n".as_slice(), &[0; 70_000], &[0xff; 100], &MAGIC[..11]] {
            pair.host.receive(junk).unwrap();
            pair.agent.receive(junk).unwrap();
        }
        assert_eq!(pair.host_events(), [HostEvent::Ready(info())]);
    }
}

#[test]
fn agent_that_greets_again_before_it_is_answered_is_answered_once_for_all() {
    let mut pair = Pair::new(4096);
    pair.agent.greet();
    pair.agent.greet();
    assert_eq!(pair.host_events(), [HostEvent::Ready(info())]);
    pair.exec(false);
}

#[test]
fn answer_to_an_earlier_greeting_is_not_taken() {
    let mut agent = AgentSession::new(2, info());
    let greetings = [Hello::new(1).to_bytes(), Hello::new(1).to_bytes(), Hello::new(2).to_bytes()].concat();
    for byte in &greetings[..greetings.len() - 1] {
        agent.receive(&[*byte]).unwrap();
        assert!(!agent.is_open() || agent.output().len() == Hello::LEN);
    }
    agent.receive(&greetings[greetings.len() - 1..]).unwrap();
    assert!(agent.is_open());
}

#[test]
fn older_version_is_refused_by_both_and_a_newer_one_has_to_speak_ours() {
    let hello = |version| Hello { version, token: 7 }.to_bytes();
    let refused = Err(SessionError::Version { theirs: 0 });
    assert_eq!(HostSession::default().receive(&hello(0)), refused);
    assert_eq!(AgentSession::new(7, info()).receive(&hello(0)), refused);
    assert_eq!(HostSession::default().receive(&hello(VERSION + 1)), Ok(()));
    assert_eq!(AgentSession::new(7, info()).receive(&hello(OLDEST_VERSION)), Ok(()));
}

#[test]
fn agent_of_an_older_version_is_asked_for_what_it_knows_and_nothing_else() {
    let mut host = HostSession::default();
    host.receive(&Hello { version: OLDEST_VERSION, token: 7 }.to_bytes()).unwrap();
    host.receive(&AgentMessage::Ready(info()).to_frame(0)).unwrap();
    let sent = host.output().len();
    for request in requests() {
        let (needed, result) = (request.version(), host.open(request.clone()));
        if needed > OLDEST_VERSION {
            assert_eq!(result, Err(OpenError::Version { theirs: OLDEST_VERSION, needed }), "{request:?}");
        } else {
            result.unwrap();
        }
    }
    // What was sent is what that version has always had: the kinds 1 to 7.
    let mut frames = &host.output()[sent..];
    while let Some((length, rest)) = frames.split_first_chunk::<4>() {
        assert!((1..=7).contains(&rest[0]), "kind {}", rest[0]);
        frames = &rest[u32::from_le_bytes(*length) as usize..];
    }
}

#[test]
fn agent_that_starts_again_in_a_session_ends_it() {
    let mut pair = Pair::ready();
    pair.exec(false);
    pair.cross();
    assert_eq!(pair.host.receive(&Hello::new(8).to_bytes()), Err(SessionError::Restarted));
}

#[test]
fn command_s_streams_and_end_cross() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    assert_eq!(pair.host.send(channel, b"in"), 2);
    pair.host.end_input(channel);
    pair.host.end_input(channel);
    pair.cross();
    assert_eq!(pair.agent.next_event(), Some(AgentEvent::Data(channel, b"in".to_vec())));
    assert_eq!(pair.agent.next_event(), Some(AgentEvent::End(channel)));
    pair.agent.send(channel, Stream::Stdout, b"out");
    pair.agent.end(channel, Stream::Stdout);
    pair.agent.end(channel, Stream::Stdout);
    pair.agent.answer(channel, &AgentMessage::Exited(Ending::Code(0)));
    pair.agent.closed(channel);
    let messages = [
        AgentMessage::Started { pid: 9 },
        AgentMessage::Data(Stream::Stdout, b"out".to_vec()),
        AgentMessage::End(Stream::Stdout),
        AgentMessage::Exited(Ending::Code(0)),
        AgentMessage::Closed,
    ];
    assert_eq!(pair.host_events(), messages.map(|message| HostEvent::Message(channel, message)));
}

#[test]
fn stream_stops_at_its_window_and_others_go_on() {
    let mut pair = Pair::ready();
    let (slow, quick) = (pair.exec(true), pair.exec(true));
    let flood = vec![1; MAX_WINDOW as usize];
    assert_eq!(pair.host.send(slow, &flood), INITIAL_WINDOW as usize);
    assert_eq!(pair.host.send(slow, b"x"), 0);
    assert_eq!(pair.host.send(quick, b"x"), 1);
    pair.cross();
    // The agent's reader takes some, which is granted again.
    pair.agent.taken(slow, INITIAL_WINDOW as usize / 4);
    pair.cross();
    assert_eq!(pair.host.credit(slow), INITIAL_WINDOW as usize / 4);

    while pair.agent.credit(slow, Stream::Stdout) > 0 {
        let room = pair.agent.credit(slow, Stream::Stdout);
        pair.agent.send(slow, Stream::Stdout, &flood[..room]);
    }
    assert_eq!(pair.agent.credit(quick, Stream::Stdout), MAX_DATA);
    pair.cross();
    pair.host.taken(slow, Stream::Stdout, INITIAL_WINDOW as usize);
    pair.cross();
    assert_eq!(pair.agent.credit(slow, Stream::Stdout), MAX_DATA);
}

#[test]
fn closed_channel_is_quiet_until_its_end_and_its_number_is_not_used_again_soon() {
    let mut pair = Pair::ready();
    let channel = pair.exec(false);
    pair.host_events();
    pair.agent.send(channel, Stream::Stdout, b"late");
    pair.host.close(channel);
    pair.host.signal(channel, 9);
    assert_eq!(pair.host_events(), []);
    assert_eq!(pair.agent.next_event(), Some(AgentEvent::Close(channel)));
    assert_eq!(pair.agent.next_event(), None);
    pair.agent.closed(channel);
    assert_eq!(pair.host_events(), [HostEvent::Message(channel, AgentMessage::Closed)]);
    assert!(pair.exec(false) > channel);
}

#[test]
fn host_s_words_on_a_channel_that_has_ended_meanwhile_are_dropped() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    pair.cross();
    pair.agent.answer(channel, &AgentMessage::Exited(Ending::Code(0)));
    pair.agent.closed(channel);
    pair.host.send(channel, b"late");
    pair.host.resize(channel, WindowSize { rows: 1, columns: 1 });
    pair.cross();
    assert_eq!(pair.agent.next_event(), None);
}

#[test]
fn input_that_nobody_reads_any_more_is_refused() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    pair.agent.refuse_input(channel);
    pair.cross();
    assert_eq!(pair.host.send(channel, b"x"), 0);
}

#[test]
fn channels_and_requests_are_bounded() {
    let mut pair = Pair::ready();
    let long = Request::Get("x".repeat(MAX_HOST_FRAME).into());
    assert!(matches!(pair.host.open(long), Err(OpenError::TooLong { .. })));
    let channels: Vec<u32> = (0..MAX_CHANNELS).map(|_| pair.exec(false)).collect();
    assert_eq!(pair.host.open(Request::Get("/x".into())), Err(OpenError::TooMany));
    // A host that does not count is told.
    pair.cross();
    pair.agent.receive(&HostMessage::Open(Request::Get("/x".into())).to_frame(u32::MAX)).unwrap();
    assert_eq!(pair.agent.next_event(), None);
    assert!(!pair.agent.output().is_empty());
    assert_eq!(channels.len(), MAX_CHANNELS);
}

#[test]
fn agent_that_breaks_a_rule_is_an_error() {
    let data = |count| AgentMessage::Data(Stream::Stdout, vec![0; count]);
    let mut pair = Pair::ready();
    let channel = pair.exec(false);
    let other = pair.host.open(Request::Put(PutRequest::default())).unwrap();
    assert_eq!(pair.host_gets(99, &data(1)), Err(SessionError::Channel { channel: 99 }));
    let twice = SessionError::Unexpected { channel, what: "started" };
    assert_eq!(pair.host_gets(channel, &AgentMessage::Started { pid: 1 }), Err(twice));
    let wrong = SessionError::Unexpected { channel, what: "done" };
    assert_eq!(pair.host_gets(channel, &AgentMessage::Done), Err(wrong));
    let early = SessionError::Unexpected { channel, what: "closed" };
    assert_eq!(pair.host_gets(channel, &AgentMessage::Closed), Err(early));
    let no_stream = SessionError::NoStream { channel: other, stream: Stream::Stdout };
    assert_eq!(pair.host_gets(other, &data(1)), Err(no_stream));
    let grant = SessionError::Grant { channel: other, stream: Stream::Stdin };
    assert_eq!(pair.host_gets(other, &AgentMessage::Window(Stream::Stdin, MAX_WINDOW)), Err(grant));
    for _ in 0..INITIAL_WINDOW as usize / MAX_DATA {
        pair.host_gets(channel, &data(MAX_DATA)).unwrap();
    }
    let overrun = SessionError::Overrun { channel, stream: Stream::Stdout, count: 1, allowed: 0 };
    assert_eq!(pair.host_gets(channel, &data(1)), Err(overrun));
    pair.host_gets(channel, &AgentMessage::End(Stream::Stdout)).unwrap();
    let ended = SessionError::NoStream { channel, stream: Stream::Stdout };
    assert_eq!(pair.host_gets(channel, &AgentMessage::End(Stream::Stdout)), Err(ended));
}

#[test]
fn session_that_does_not_begin_with_ready_is_an_error() {
    let mut host = HostSession::default();
    host.receive(&Hello::new(1).to_bytes()).unwrap();
    assert_eq!(host.receive(&AgentMessage::Done.to_frame(1)), Err(SessionError::NotReady));
}

#[test]
fn agent_that_greets_without_end_and_never_reads_is_an_error() {
    let mut host = HostSession::default();
    let ends = (0..1000_u64).any(|token| host.receive(&Hello::new(token).to_bytes()).is_err());
    assert!(ends && host.output().len() <= 100 * Hello::LEN);
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_understood(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok((channel, message)) = HostMessage::parse(&bytes) {
            let frame = message.to_frame(channel);
            prop_assert_eq!(content(&frame), &bytes[..]);
        }
        if let Ok((channel, message)) = AgentMessage::parse(&bytes) {
            let frame = message.to_frame(channel);
            prop_assert_eq!(content(&frame), &bytes[..]);
        }
        let _ = EntryReader::default().push(&bytes);
    }

    #[test]
    fn streams_arrive_whole_in_any_pieces(
        data in proptest::collection::vec(any::<u8>(), 0..2000),
        piece in 1..300_usize,
        write in 1..500_usize,
    ) {
        let mut pair = Pair::ready();
        pair.piece = piece;
        let channel = pair.exec(true);
        let mut received = Vec::new();
        for part in data.chunks(write) {
            prop_assert_eq!(pair.host.send(channel, part), part.len());
            pair.cross();
            while let Some(AgentEvent::Data(_, bytes)) = pair.agent.next_event() {
                received.extend(bytes);
            }
        }
        prop_assert_eq!(received, data);
    }
}

#[test]
fn agent_that_does_not_read_is_owed_no_more_than_a_bound() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    pair.host_events();
    // It grants all that can be granted, and reads nothing of what then comes.
    pair.host_gets(channel, &AgentMessage::Window(Stream::Stdin, MAX_WINDOW - INITIAL_WINDOW)).unwrap();
    let input = vec![7; MAX_WINDOW as usize];
    let sent = pair.host.send(channel, &input);
    assert!(sent < input.len() && pair.host.is_clogged());
    assert_eq!(pair.host.send(channel, &input), 0);
    let waiting = pair.host.output().len();
    assert!(waiting < MAX_WAITING + MAX_WAITING / 100, "{waiting}");
    assert!(matches!(pair.host.open(Request::Get("/".into())), Err(OpenError::Clogged { .. })));
    // A reader takes everything: the grants wait with the rest, and bytes beyond the last one break the
    // session.
    let piece = AgentMessage::Data(Stream::Stdout, vec![7; MAX_DATA]).to_frame(channel);
    let mut taken = 0;
    while taken < INITIAL_WINDOW as usize {
        pair.host.receive(&piece).unwrap();
        pair.host.taken(channel, Stream::Stdout, MAX_DATA);
        taken += MAX_DATA;
    }
    assert_eq!(pair.host.output().len(), waiting);
    assert!(matches!(pair.host.receive(&piece), Err(SessionError::Overrun { .. })));
    // When it reads, it is told of the window, and all goes on.
    pair.host.sent(waiting);
    let window = HostMessage::Window(Stream::Stdout, INITIAL_WINDOW).to_frame(channel);
    assert_eq!(pair.host.output(), window);
    pair.host.receive(&piece).unwrap();
    assert!(pair.host.send(channel, &input) > 0);
}

#[test]
fn grants_of_nothing_break_either_session() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    pair.cross();
    let empty = pair.host_gets(channel, &AgentMessage::Window(Stream::Stdin, 0));
    assert_eq!(empty, Err(SessionError::EmptyGrant { channel, stream: Stream::Stdin }));
    let empty = pair.agent.receive(&HostMessage::Window(Stream::Stdout, 0).to_frame(channel));
    assert_eq!(empty, Err(SessionError::EmptyGrant { channel, stream: Stream::Stdout }));
}
