//! Both ends of the guest agent's protocol, each fed by the other end's bytes as a hostile program would make
//! them.

use coracle_agent::protocol::agent::{
    AgentEvent, AgentInfo, AgentMessage, AgentSession, AttachRequest, CardIdentity, EntryReader, ExecRequest,
    Hello, HostEvent, HostSession, IdentityRequest, Place, PutRequest, Request, SavedSession, SessionError,
    Stream,
};

/// The host's end. The first byte is the size of the pieces in which the rest arrives, after a greeting and
/// the word that the agent is ready, or, where the byte is 0, without them. The host has a command, a file
/// each way, a list and what belongs to a snapshot under way. Where the byte is 255, the machine goes on from
/// a snapshot.
pub fn agent_host(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let mut host = match piece {
        u8::MAX => HostSession::restored(SavedSession { token: TOKEN + 1 }),
        _ => HostSession::default(),
    };
    if piece != 0 {
        let ready = AgentMessage::Ready(info()).to_frame(0);
        host.receive(&[Hello::new(TOKEN).to_bytes(), ready].concat()).unwrap();
        assert_eq!(host.next_event(), Some(HostEvent::Ready(info())));
        open_all(&mut host);
    }
    let mut entries = EntryReader::default();
    let mut kept = 0_usize;
    for piece in stream.chunks(usize::from(piece).max(1)) {
        if host.receive(piece).is_err() {
            return;
        }
        while let Some(event) = host.next_event() {
            let HostEvent::Message(channel, message) = event else { continue };
            match message {
                AgentMessage::Data(stream, bytes) => {
                    kept += bytes.len();
                    // Every other piece is taken by a reader.
                    if bytes.len() % 2 == 0 {
                        host.taken(channel, stream, bytes.len());
                    }
                    let _ = entries.push(&bytes);
                }
                AgentMessage::Window(..) => drop(host.send(channel, b"input")),
                AgentMessage::Exited(_) => host.close(channel),
                _ => {}
            }
        }
        host.sent(host.output().len() / 2);
        assert!(kept <= stream.len(), "no more comes out than went in");
    }
}

/// The agent's end, in the same way. It answers what a sound agent would, and runs nothing.
pub fn agent_guest(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let mut agent = AgentSession::after((piece == u8::MAX).then_some(TOKEN + 1), TOKEN, info());
    if piece != 0 {
        agent.receive(&Hello::new(TOKEN).to_bytes()).unwrap();
        assert!(agent.is_open());
    }
    for piece in stream.chunks(usize::from(piece).max(1)) {
        match agent.receive(piece) {
            Ok(()) => {}
            Err(SessionError::Restored) => {
                agent = AgentSession::after(Some(agent.token()), agent.token() + 1, info());
                assert!(!agent.is_open() && !agent.is_continued());
                continue;
            }
            Err(_) => return,
        }
        while let Some(event) = agent.next_event() {
            match event {
                AgentEvent::Open(channel, Request::Exec(_) | Request::Attach(_)) => {
                    agent.answer(channel, &AgentMessage::Started { pid: 2 });
                    let room = agent.credit(channel, Stream::Stdout);
                    agent.send(channel, Stream::Stdout, &vec![7; room.min(1000)]);
                }
                AgentEvent::Open(channel, request) => {
                    if let Request::Identify(identity) = &request {
                        check_cards(&identity.cards);
                    }
                    agent.answer(channel, &AgentMessage::Done);
                    agent.closed(channel);
                }
                AgentEvent::Data(channel, bytes) => agent.taken(channel, bytes.len()),
                AgentEvent::End(channel) => agent.end(channel, Stream::Stdout),
                AgentEvent::Close(channel) => agent.closed(channel),
                AgentEvent::Signal(channel, _) => agent.refuse_input(channel),
                AgentEvent::Resize(..) => {}
            }
        }
        agent.sent(agent.output().len());
    }
}

/// Checks what an agent relies on.
fn check_cards(cards: &[CardIdentity]) {
    assert!(cards.len() <= IdentityRequest::MAX_CARDS);
    for CardIdentity { former, mac, network } in cards {
        assert!([former, mac].iter().all(|mac| mac[0] & 1 == 0 && **mac != [0; 6]));
        assert!(network.as_ref().is_none_or(|network| network.dns.len() <= CardIdentity::MAX_DNS));
        assert!(network.as_ref().is_none_or(|network| network.interface.is_none()));
    }
}

fn open_all(host: &mut HostSession) {
    let exec = |terminal: bool| {
        let terminal = terminal.then(Default::default);
        Request::Exec(Box::new(ExecRequest { stdin: true, terminal, ..ExecRequest::default() }))
    };
    let requests = [
        exec(false),
        exec(true),
        Request::Put(PutRequest::default()),
        Request::Get("/".into()),
        Request::List("/".into()),
        Request::SetClock(Default::default()),
    ];
    let card = CardIdentity { former: [2, 0, 0, 0, 0, 7], mac: [2, 0, 0, 0, 0, 8], network: None };
    let (machine_id, cards) = ("0".repeat(32), vec![card]);
    let of_snapshots = [
        Request::Identify(Box::new(IdentityRequest { machine_id, cards, ..Default::default() })),
        Request::Processes,
        Request::Attach(AttachRequest { id: 1, stdin: true, terminal: false }),
        Request::BranchPoint { any_user: false },
    ];
    for request in requests.into_iter().chain(of_snapshots) {
        host.open(request).unwrap();
    }
}

fn info() -> AgentInfo {
    AgentInfo { kernel: "6.1.0".into(), place: Place::FirstProcess, kills_groups: false }
}

const TOKEN: u64 = 1;
