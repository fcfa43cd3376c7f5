//! Every message crosses unchanged; everything else is refused within bounds.

use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

fn full_request() -> Request {
    Request {
        argv: vec!["sh".into(), OsString::from_vec(vec![0xff, b' ', b'\n', b'\'']), OsString::new()],
        env: vec![("PATH".into(), "/bin".into()), ("EMPTY".into(), "".into())],
        cwd: "/home/user".into(),
        umask: 0o027,
        terminals: [true, false, true],
        terminal: Some((
            TerminalModes { input: 1, output: 2, control: 3, local: 4, characters: [7; libc::NCCS] },
            WindowSize { rows: 24, columns: 80 },
        )),
        ignored_signals: vec![1, 3],
        limits: vec![Limit { resource: 7, soft: 1024, hard: u64::MAX }],
        shares: vec![Share { source: "/tmp/a".into(), target: "/tmp/b".into() }],
    }
}

fn messages_to_agent() -> Vec<ToAgent> {
    vec![
        ToAgent::Start(Box::default()),
        ToAgent::Start(Box::new(full_request())),
        ToAgent::StdinEnd { bytes: u64::MAX },
        ToAgent::OutputClosed(Stream::Stdout),
        ToAgent::OutputClosed(Stream::Stderr),
        ToAgent::Resize(WindowSize { rows: 0, columns: u16::MAX }),
        ToAgent::Signal(15),
        ToAgent::Tick,
    ]
}

fn messages_from_agent() -> Vec<FromAgent> {
    vec![
        FromAgent::Hello { version: VERSION },
        FromAgent::Started,
        FromAgent::Failed(StartFailure { step: StartStep::Execute, subject: "nothing".into(), errno: 2 }),
        FromAgent::Delivered { signal: 2 },
        FromAgent::Exited { ending: Ending::Code(255), produced: [0, 1, u64::MAX] },
        FromAgent::Exited { ending: Ending::Signal(9), produced: [0; 3] },
    ]
}

fn content(frame: &[u8]) -> &[u8] {
    let (header, content) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_le_bytes(*header) as usize, content.len());
    content
}

#[test]
fn every_message_to_the_agent_crosses_unchanged() {
    for message in messages_to_agent() {
        assert_eq!(ToAgent::parse(content(&message.to_frame())), Ok(message));
    }
}

#[test]
fn every_message_from_the_agent_crosses_unchanged() {
    for message in messages_from_agent() {
        assert_eq!(FromAgent::parse(content(&message.to_frame())), Ok(message));
    }
}

#[test]
fn a_message_cut_anywhere_is_refused() {
    for message in messages_to_agent() {
        let frame = message.to_frame();
        for length in 0..content(&frame).len() {
            let cut = ToAgent::parse(&content(&frame)[..length]);
            assert!(
                matches!(cut, Err(ProtocolError::Truncated { .. })),
                "{message:?} cut at {length}: {cut:?}"
            );
        }
    }
}

#[test]
fn bytes_after_the_last_field_are_refused() {
    let mut frame = ToAgent::Signal(2).to_frame();
    frame.push(0);
    assert_eq!(ToAgent::parse(&frame[4..]), Err(ProtocolError::TrailingBytes { count: 1 }));
}

#[test]
fn a_greeting_of_a_later_version_is_understood() {
    let mut frame = FromAgent::Hello { version: 99 }.to_frame();
    frame.extend_from_slice(b"more");
    assert_eq!(FromAgent::parse(&frame[4..]), Ok(FromAgent::Hello { version: 99 }));
}

#[test]
fn a_greeting_without_the_magic_is_refused() {
    assert_eq!(FromAgent::parse(b"\0something else"), Err(ProtocolError::NotHello));
}

#[test]
fn unknown_kinds_are_refused() {
    for kind in 6..=255 {
        let unknown = ProtocolError::UnknownValue { what: "kind", value: kind };
        assert_eq!(ToAgent::parse(&[kind, 0, 0]), Err(unknown));
    }
    for kind in 5..=255 {
        assert!(matches!(FromAgent::parse(&[kind]), Err(ProtocolError::UnknownValue { .. })));
    }
}

#[test]
fn a_list_count_beyond_the_message_is_refused_without_allocating_for_it() {
    let lying = [0, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(ToAgent::parse(&lying), Err(ProtocolError::Truncated { field: "argument" }));
}

#[test]
fn a_frame_over_the_limit_is_refused_before_its_content_arrives() {
    let mut reader = FrameReader::new(16);
    reader.push(&17_u32.to_le_bytes());
    assert_eq!(reader.next_frame(), Err(ProtocolError::FrameLength { length: 17, limit: 16 }));
}

#[test]
fn an_empty_frame_is_refused() {
    let mut reader = FrameReader::new(16);
    reader.push(&[0; 4]);
    assert_eq!(reader.next_frame(), Err(ProtocolError::FrameLength { length: 0, limit: 16 }));
}

#[test]
fn frames_are_found_however_the_bytes_arrive() {
    let stream: Vec<u8> = messages_to_agent().iter().flat_map(ToAgent::to_frame).collect();
    for step in [1, 2, 3, 5, 7, 64, stream.len()] {
        let mut reader = FrameReader::new(MAX_START_FRAME);
        let mut seen = Vec::new();
        for part in stream.chunks(step) {
            reader.push(part);
            while let Some(content) = reader.next_frame().unwrap() {
                seen.push(ToAgent::parse(&content).unwrap());
            }
        }
        assert_eq!(seen, messages_to_agent(), "in steps of {step}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_understood(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(message) = ToAgent::parse(&bytes) {
            let frame = message.to_frame();
            prop_assert_eq!(content(&frame), &bytes[..]);
        }
        let _ = FromAgent::parse(&bytes);
    }
}
