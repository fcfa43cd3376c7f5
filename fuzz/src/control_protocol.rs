//! The stream of the control port between the two sides of the emulated host, as either side reads it.

use coracle_agent::protocol::emulated_host::{
    FrameReader, FromAgent, MAX_AGENT_FRAME, MAX_START_FRAME, ToAgent,
};

/// The first byte of `data` is the size of the pieces in which the rest arrives: a stream of frames, read by
/// both sides. A message that is understood crosses unchanged when it is sent again.
pub fn control_protocol(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let piece = usize::from(piece).max(1);
    follow(stream, piece, MAX_START_FRAME, |content| {
        if let Ok(message) = ToAgent::parse(content) {
            assert_eq!(ToAgent::parse(content_of(&message.to_frame())).as_ref(), Ok(&message));
        }
    });
    follow(stream, piece, MAX_AGENT_FRAME, |content| {
        if let Ok(message) = FromAgent::parse(content) {
            assert_eq!(FromAgent::parse(content_of(&message.to_frame())).as_ref(), Ok(&message));
        }
    });
}

/// Hands each whole frame of `stream` to `parse`, until a length is refused.
fn follow(stream: &[u8], piece: usize, limit: usize, parse: impl Fn(&[u8])) {
    let mut reader = FrameReader::new(limit);
    for piece in stream.chunks(piece) {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(content)) => {
                    assert!((1..=limit).contains(&content.len()));
                    parse(&content);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A frame without its length.
fn content_of(frame: &[u8]) -> &[u8] {
    let (length, content) = frame.split_at(4);
    assert_eq!(length, (content.len() as u32).to_le_bytes());
    content
}
