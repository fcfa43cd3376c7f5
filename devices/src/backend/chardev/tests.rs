//! Console ends on real pipes, terminals, sockets, files and devices.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::{null, null_mut};

use vmm_sys_util::tempdir::TempDir;

use super::*;

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

/// A pseudo-terminal: the side of a terminal emulator and the side of a program.
fn terminal() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both out-pointers are to live locals; the optional name, modes and size are absent.
    assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null_mut(), null(), null()) }, 0);
    // SAFETY: openpty has just made this descriptor, and nothing else owns it.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as above.
    let slave = unsafe { File::from_raw_fd(slave) };
    (master, slave)
}

fn flags(file: &impl AsRawFd) -> i32 {
    // SAFETY: F_GETFL takes no argument and only reads the flags of a descriptor.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
}

fn sink(file: &impl AsFd) -> CharSink {
    CharSink::new(file.as_fd()).unwrap()
}

fn source(file: &impl AsFd) -> CharSource {
    CharSource::new(file.as_fd()).unwrap()
}

/// Writes until the sink would block and returns the number of bytes that it took.
fn fill(sink: &CharSink) -> usize {
    let mut total = 0;
    loop {
        match sink.write(&[b'.'; 4096]) {
            Written::Wrote(count) => total += count,
            Written::WouldBlock => return total,
            Written::Closed { errno } => panic!("closed with {errno} after {total} bytes"),
        }
        assert!(total < 64 << 20, "the reader is stopped, so the sink must fill up");
    }
}

fn read_some(mut file: &File) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let count = file.read(&mut buffer).unwrap();
    buffer[..count].to_vec()
}

#[test]
fn pipe_with_a_stopped_reader_would_block_and_recovers() {
    let (reader, writer) = pipe();
    let before = flags(&writer);
    let sink = sink(&writer);
    assert_eq!(sink.end.way, Way::OwnDescription);
    assert!(fill(&sink) >= 4096);
    assert!(sink.poll_fd().is_some());
    read_some(&reader);
    assert!(matches!(sink.write(b"more"), Written::Wrote(4)));
    assert_eq!(flags(&writer), before, "the caller's flags are its own");
}

#[test]
fn pipe_with_a_closed_reader_is_closed_with_epipe() {
    let (reader, writer) = pipe();
    let sink = sink(&writer);
    drop(reader);
    assert_eq!(sink.write(b"x"), Written::Closed { errno: libc::EPIPE });
}

#[test]
fn pipe_whose_reader_left_before_the_sink_was_made_is_closed_with_epipe() {
    let (reader, writer) = pipe();
    drop(reader);
    assert_eq!(sink(&writer).write(b"x"), Written::Closed { errno: libc::EPIPE });
}

#[test]
fn careful_writes_to_a_shared_pipe_do_not_block() {
    let (reader, writer) = pipe();
    let sink = CharSink { end: CharEnd { file: writer, way: Way::AskFirst } };
    assert_eq!(sink.write(&[b'.'; 4096]), Written::Wrote(CAREFUL_WRITE));
    fill(&sink);
    read_some(&reader);
    assert_eq!(sink.write(b"x"), Written::Wrote(1));
}

#[test]
fn terminal_with_a_stopped_reader_would_block_and_recovers() {
    let (master, slave) = terminal();
    let before = flags(&slave);
    let sink = sink(&slave);
    assert_eq!(sink.end.way, Way::OwnDescription);
    assert!(fill(&sink) > 0);
    while fill(&sink) == 0 {
        assert!(!read_some(&master).is_empty());
    }
    assert_eq!(flags(&slave), before);
}

#[test]
fn careful_writes_to_a_shared_terminal_do_not_block() {
    let (_master, slave) = terminal();
    fill(&CharSink { end: CharEnd { file: slave, way: Way::AskFirst } });
}

#[test]
fn terminal_that_hung_up_is_closed_with_eio() {
    let (master, slave) = terminal();
    let (sink, source) = (sink(&slave), source(&slave));
    drop(master);
    assert_eq!(sink.write(b"x"), Written::Closed { errno: libc::EIO });
    // A terminal that hung up reads as at its end.
    assert_eq!(source.read(&mut [0; 8]), ReadOutcome::EndOfInput);
}

#[test]
fn emulator_side_of_a_terminal_is_not_opened_again() {
    let (master, slave) = terminal();
    let sink = sink(&master);
    assert_eq!(sink.end.way, Way::AskFirst);
    assert_eq!(sink.write(b"to the program\n"), Written::Wrote(15));
    assert_eq!(read_some(&slave), b"to the program\n");
}

#[test]
fn socket_would_block_recovers_and_closes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let before = flags(&ours);
    let sink = sink(&ours);
    let filled = fill(&sink);
    let mut buffer = vec![0; filled];
    (&theirs).read_exact(&mut buffer).unwrap();
    assert_eq!(sink.write(b"x"), Written::Wrote(1));
    assert!(sink.poll_fd().is_some());
    assert_eq!(flags(&ours), before);
    drop(theirs);
    assert_eq!(sink.write(b"x"), Written::Closed { errno: libc::EPIPE });
}

#[test]
fn file_takes_everything_at_the_shared_offset_and_is_not_polled() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("console");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"caller ").unwrap();
    let sink = sink(&file);
    assert_eq!(sink.write(b"guest "), Written::Wrote(6));
    assert!(sink.poll_fd().is_none());
    file.write_all(b"caller").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"caller guest caller");
}

#[test]
fn devices_that_never_block_are_not_polled() {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    assert_eq!(sink(&null).write(b"gone"), Written::Wrote(4));
    assert!(sink(&null).poll_fd().is_none());
    assert_eq!(source(&null).read(&mut [0; 8]), ReadOutcome::EndOfInput);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(sink(&full).write(b"x"), Written::Closed { errno: libc::ENOSPC });
}

#[test]
fn empty_transfers_do_nothing() {
    let (reader, writer) = pipe();
    let (source, sink) = (source(&reader), sink(&writer));
    assert_eq!(sink.write(b""), Written::Wrote(0));
    assert_eq!(source.read(&mut []), ReadOutcome::Read(0));
}

#[test]
fn pipe_input_would_block_arrives_and_ends() {
    let (reader, mut writer) = pipe();
    let before = flags(&reader);
    let source = source(&reader);
    let mut buffer = [0; 8];
    assert_eq!(source.read(&mut buffer), ReadOutcome::WouldBlock);
    writer.write_all(b"hello").unwrap();
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(5));
    assert_eq!(&buffer[..5], b"hello");
    drop(writer);
    assert_eq!(source.read(&mut buffer), ReadOutcome::EndOfInput);
    assert!(source.poll_fd().is_some());
    assert_eq!(flags(&reader), before);
}

#[test]
fn shared_pipe_input_would_block_arrives_and_ends() {
    let (reader, mut writer) = pipe();
    let source = CharSource { end: CharEnd { file: reader, way: Way::AskFirst } };
    let mut buffer = [0; 8];
    assert_eq!(source.read(&mut buffer), ReadOutcome::WouldBlock);
    writer.write_all(b"hi").unwrap();
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(2));
    drop(writer);
    assert_eq!(source.read(&mut buffer), ReadOutcome::EndOfInput);
}

#[test]
fn terminal_input_would_block_and_arrives() {
    let (mut master, slave) = terminal();
    let source = source(&slave);
    assert_eq!(source.end.way, Way::OwnDescription);
    let mut buffer = [0; 8];
    assert_eq!(source.read(&mut buffer), ReadOutcome::WouldBlock);
    master.write_all(b"ls\n").unwrap();
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(3));
    assert_eq!(&buffer[..3], b"ls\n");
}

#[test]
fn socket_input_would_block_arrives_and_ends() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let source = source(&ours);
    let mut buffer = [0; 8];
    assert_eq!(source.read(&mut buffer), ReadOutcome::WouldBlock);
    theirs.write_all(b"hi").unwrap();
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(2));
    drop(theirs);
    assert_eq!(source.read(&mut buffer), ReadOutcome::EndOfInput);
}

#[test]
fn file_input_reads_to_its_end_and_is_not_polled() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("script");
    std::fs::write(&path, b"poweroff\n").unwrap();
    let source = source(&File::open(&path).unwrap());
    let mut buffer = [0; 6];
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(6));
    assert_eq!(source.read(&mut buffer), ReadOutcome::Read(3));
    assert_eq!(source.read(&mut buffer), ReadOutcome::EndOfInput);
    assert!(source.poll_fd().is_none());
}

#[test]
fn wrong_direction_directory_and_path_only_descriptors_are_refused() {
    let (reader, writer) = pipe();
    assert!(matches!(CharSink::new(reader.as_fd()), Err(CharError::WrongAccess { need: "writing", .. })));
    assert!(matches!(CharSource::new(writer.as_fd()), Err(CharError::WrongAccess { need: "reading", .. })));
    let directory = File::open("/").unwrap();
    assert!(matches!(CharSource::new(directory.as_fd()), Err(CharError::Directory { .. })));
    let path_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/dev/null").unwrap();
    assert!(matches!(CharSource::new(path_only.as_fd()), Err(CharError::WrongAccess { .. })));
}
