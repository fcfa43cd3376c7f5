//! The log file of a case's console, with a limited size.

use std::fs::File;
use std::io::{self, Write};

/// The log file.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    left: usize,
    failure: Option<io::Error>,
}

impl Log {
    pub(super) fn new(file: File) -> Log {
        Log { file, left: LOG_BYTES, failure: None }
    }

    /// Returns why the file could not be written, if it could not.
    pub(super) fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Writes to the file. After an error it is left alone.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let taken = bytes.get(..self.left).unwrap_or(bytes);
        let is_cut = taken.len() < bytes.len() && self.left > 0;
        self.left -= taken.len();
        let written = self.file.write_all(taken);
        if is_cut {
            let note = format!(
                "\n[coracle: the console continues; this file has its first {} MiB]\n",
                LOG_BYTES >> 20
            );
            // Ignore the result: if the file failed just now, that is noted, and a short line usually fits.
            let _ = self.file.write_all(note.as_bytes());
        }
        if let Err(error) = written {
            self.left = 0;
            self.failure = Some(error);
        }
    }
}

const LOG_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn log_is_cut_with_a_note() {
        let file = TempFile::new().unwrap();
        let mut log = Log { file: file.as_file().try_clone().unwrap(), left: 10, failure: None };
        log.write(b"12345678");
        log.write(b"9abcdef");
        log.write(b"more");
        let mut text = String::new();
        let mut read = file.as_file();
        read.rewind().unwrap();
        read.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("123456789a\n[coracle: "), "{text}");
        assert_eq!(text.matches("coracle").count(), 1);
    }
}
