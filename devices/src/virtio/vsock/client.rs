//! A client of the host's socket before it has a connection: it sends the line `CONNECT PORT`, and waits for
//! `OK PORT` or for the end of its stream. The bytes after the line are for the guest.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;

use crate::virtio::socket;

/// A client that has not sent its whole line yet.
#[derive(Debug)]
pub(super) struct Client {
    pub stream: UnixStream,
    /// The number of clock ticks until the device gives up on the client.
    pub patience: u32,
}

/// The state of a client's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The client wants this port of the guest. The line has been taken from the stream, and nothing more.
    Port(u32),
    /// The line has not arrived as a whole.
    Incomplete,
    /// The client has sent something else, or has gone.
    Bad,
}

impl Client {
    /// Looks at the bytes that the client has sent.
    pub(super) fn greeting(&self) -> Greeting {
        let mut bytes = [0; LONGEST_LINE];
        let count = match socket::peek(&self.stream, &mut bytes) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Greeting::Incomplete,
            Ok(_) | Err(_) => return Greeting::Bad,
        };
        let said = bytes.get(..count).unwrap_or_default();
        let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
            return if count == LONGEST_LINE { Greeting::Bad } else { Greeting::Incomplete };
        };
        let Some(line) = bytes.get_mut(..=end) else { return Greeting::Bad };
        // The line has arrived as a whole, so one call receives all of it.
        if socket::receive(&self.stream, line).ok() != Some(line.len()) {
            return Greeting::Bad;
        }
        port(line).map_or(Greeting::Bad, Greeting::Port)
    }
}

/// Returns the port in `CONNECT PORT`. The case of the word does not matter.
fn port(line: &[u8]) -> Option<u32> {
    let (word, port) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let port = port.trim_start();
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("connect") && is_number).then(|| port.parse().ok())?
}

/// The longest line in bytes: more than `CONNECT 4294967295` with carriage return and line feed.
const LONGEST_LINE: usize = 32;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn greeting_of(said: &[u8]) -> Greeting {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        Client { stream: ours, patience: 1 }.greeting()
    }

    #[test]
    fn line_contains_the_port() {
        assert_eq!(greeting_of(b"CONNECT 52\n"), Greeting::Port(52));
        assert_eq!(greeting_of(b"connect 4294967295\r\n"), Greeting::Port(u32::MAX));
        assert_eq!(greeting_of(b""), Greeting::Incomplete);
        assert_eq!(greeting_of(b"CONNECT 52"), Greeting::Incomplete);
        let wrong: [&[u8]; 9] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +5\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 5 6\n",
            b"LISTEN 5\n",
            b"\xff\xff 5\n",
            &[b'C'; 64],
        ];
        for said in wrong {
            assert_eq!(greeting_of(said), Greeting::Bad, "{said:?}");
        }
    }

    #[test]
    fn line_in_pieces_is_read_once_it_is_whole_and_nothing_after_it() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let client = Client { stream: ours, patience: 1 };
        for byte in b"CONNECT 7" {
            theirs.write_all(&[*byte]).unwrap();
            assert_eq!(client.greeting(), Greeting::Incomplete);
        }
        theirs.write_all(b"\nhello\n").unwrap();
        assert_eq!(client.greeting(), Greeting::Port(7));
        let mut rest = [0; 16];
        assert_eq!(socket::receive(&client.stream, &mut rest).unwrap(), 6);
        assert_eq!(&rest[..6], b"hello\n");
    }

    #[test]
    fn client_that_has_gone_is_bad() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(Client { stream: ours, patience: 1 }.greeting(), Greeting::Bad);
    }
}
