//! Sessions of a machine that goes on from a snapshot, while the other end of the old session stays behind.

use super::*;

/// Returns the agent of a snapshot, and the ends that its clone has: of the host, a new one.
fn clone_of(pair: Pair) -> (AgentSession, HostSession) {
    let saved = pair.host.save().unwrap();
    (pair.agent, HostSession::restored(saved))
}

/// Lets the agent hear of the snapshot, and returns its next session.
fn heard(agent: &mut AgentSession, host: &mut HostSession, piece: usize) -> AgentSession {
    let said = host.output().to_vec();
    host.sent(said.len());
    let mut results = said.chunks(piece).map(|bytes| agent.receive(bytes));
    assert!(results.any(|result| result == Err(SessionError::Restored)));
    AgentSession::after(Some(agent.token()), 8, info())
}

fn is_ready(agent: AgentSession, host: HostSession) -> Pair {
    let mut pair = Pair { host, agent, piece: 5 };
    assert!(pair.host_events().contains(&HostEvent::Ready(info())));
    pair
}

#[test]
fn agent_is_told_of_a_snapshot_in_the_middle_of_a_frame() {
    for piece in [1, 7, 4096] {
        let mut pair = Pair::ready();
        let channel = pair.exec(true);
        // Half a frame, which says that it is long, is on its way.
        pair.host.send(channel, &[7; 5000]);
        let half = pair.host.output()[..100].to_vec();
        pair.agent.receive(&half).unwrap();
        let (mut agent, mut host) = clone_of(pair);
        // So is half a frame of the agent.
        agent.send(channel, Stream::Stdout, &[8; 3000]);
        host.receive(&agent.output()[..1000]).unwrap();
        let next = heard(&mut agent, &mut host, piece);
        let mut pair = is_ready(next, host);
        assert!(!pair.agent.is_continued(), "the session before it has heard of that");
        pair.exec(false);
    }
}

#[test]
fn agent_that_connects_again_is_told_what_it_follows() {
    let (agent, host) = clone_of(Pair::ready());
    let next = AgentSession::after(Some(agent.token()), 8, info());
    let pair = is_ready(next, host);
    assert!(pair.agent.is_continued() && pair.agent.is_open());
    // Another one is not.
    let (_, host) = clone_of(Pair::ready());
    let pair = is_ready(AgentSession::after(Some(99), 8, info()), host);
    assert!(!pair.agent.is_continued());
}

#[test]
fn greeting_on_its_way_before_the_snapshot_opens_no_session() {
    let mut pair = Pair::new(4096);
    let greeting = pair.agent.output().to_vec();
    pair.host.receive(&greeting).unwrap();
    let ready = AgentMessage::Ready(info()).to_frame(0);
    let (mut agent, mut host) = clone_of(pair);
    // The agent has repeated itself, and its first message is for the host that stayed behind.
    host.receive(&[greeting, ready].concat()).unwrap();
    assert_eq!(host.next_event(), None);
    let next = heard(&mut agent, &mut host, 4096);
    is_ready(next, host);
}

#[test]
fn snapshot_of_a_snapshot_is_told_by_the_last_session_that_the_agent_knows() {
    let (mut agent, host) = clone_of(Pair::ready());
    // The second snapshot comes before the agent has heard of the first.
    let mut host = HostSession::restored(host.save().unwrap());
    let next = heard(&mut agent, &mut host, 4096);
    let (mut agent, mut host) = clone_of(is_ready(next, host));
    assert_eq!(agent.token(), 8);
    heard(&mut agent, &mut host, 4096);
}

#[test]
fn announcement_is_repeated_until_the_agent_greets() {
    let (agent, mut host) = clone_of(Pair::ready());
    host.sent(host.output().len());
    assert!(host.announces() && host.output().is_empty());
    host.announce();
    assert_eq!(host.output().len(), Hello::LEN);
    host.announce();
    assert_eq!(host.output().len(), Hello::LEN, "once at a time");
    host = HostSession::after(&host);
    assert_eq!(host.output().len(), Hello::LEN, "also on the next connection");
    let next = AgentSession::after(Some(agent.token()), 8, info());
    let pair = is_ready(next, host);
    assert!(!pair.host.announces());
    assert!(!HostSession::after(&pair.host).announces());
}

#[test]
fn token_of_nobody_means_nothing() {
    let mut pair = Pair::ready();
    let channel = pair.exec(true);
    let mut stranger = HostSession::restored(SavedSession { token: 12 });
    let bytes = stranger.output().to_vec();
    stranger.sent(bytes.len());
    pair.host.send(channel, &bytes);
    pair.cross();
    assert_eq!(pair.agent.next_event(), Some(AgentEvent::Data(channel, bytes)));
}

#[test]
fn branch_point_starts_and_ends_with_its_channel() {
    let mut pair = Pair::ready();
    let channel = pair.host.open(Request::BranchPoint { any_user: false }).unwrap();
    pair.cross();
    pair.agent.answer(channel, &AgentMessage::Started { pid: 3 });
    let started = HostEvent::Message(channel, AgentMessage::Started { pid: 3 });
    assert_eq!(pair.host_events(), [started]);
    assert!(pair.host_gets(channel, &AgentMessage::Done).is_err(), "there is no such answer");
    pair.host.close(channel);
    pair.cross();
    pair.agent.closed(channel);
    assert_eq!(pair.host_events(), [HostEvent::Message(channel, AgentMessage::Closed)]);
}

#[test]
fn list_of_the_most_commands_fits_into_a_frame() {
    let longest = ProcessInfo::new(u32::MAX, u32::MAX, "x".repeat(ProcessInfo::MAX_NAME).into());
    let frame = AgentMessage::Processes(vec![longest; MAX_CHANNELS]).to_frame(1);
    assert!(frame.len() <= MAX_AGENT_FRAME, "{}", frame.len());
}

#[test]
fn identities_that_no_host_sends_are_refused() {
    let good = IdentityRequest { machine_id: "0".repeat(32), ..IdentityRequest::default() };
    let parse = |request: &IdentityRequest| {
        let frame = HostMessage::Open(Request::Identify(Box::new(request.clone()))).to_frame(1);
        HostMessage::parse(&frame[4..]).map(drop)
    };
    assert_eq!(parse(&good), Ok(()));
    for machine_id in [String::new(), "0".repeat(31), "G".repeat(32), "A".repeat(32)] {
        assert!(parse(&IdentityRequest { machine_id, ..good.clone() }).is_err());
    }
    assert!(
        parse(&IdentityRequest { seed: vec![0; IdentityRequest::MAX_SEED + 1], ..good.clone() }).is_err()
    );
    let with = |cards| parse(&IdentityRequest { cards, ..good.clone() });
    let card = cards().swap_remove(1);
    assert_eq!(with(vec![card.clone(); IdentityRequest::MAX_CARDS]), Ok(()));
    let error = with(vec![card.clone(); IdentityRequest::MAX_CARDS + 1]).unwrap_err();
    assert_eq!(error.to_string(), "a message has 65 cards; up to 64 are allowed");
    for mac in [[0; 6], [1, 0, 0, 0, 0, 0], [0xff; 6]] {
        assert!(with(vec![CardIdentity { mac, ..card.clone() }]).is_err());
        assert!(with(vec![CardIdentity { former: mac, ..card.clone() }]).is_err());
    }
    let mut long = card;
    long.network.as_mut().unwrap().dns.push([9, 9, 9, 9].into());
    let error = with(vec![long]).unwrap_err();
    assert_eq!(error.to_string(), "a message has 65 name servers; up to 64 are allowed");
}
