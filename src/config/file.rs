//! The config file of `coracle run --config`: opened, bounded, read, and what is wrong with it said by line
//! and field.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use coracle_arch::regular_file::{self, RegularFileError};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_path_to_error::Segment;

use super::RawConfig;
use super::keyed::did_you_mean;
use super::nearest::nearest;

/// Why a config file was refused. Each message begins with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// The file cannot be opened or read.
    #[error("{}: the config file cannot be read: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The path is that of a directory, a FIFO or another file that is not regular.
    #[error("{}: a config file has to be a regular file", path.display())]
    NotRegular {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file is longer than any config file.
    #[error("{}: a config file has at most {MAX_LEN} bytes, and this one more; is it the right file?", path.display())]
    TooLong {
        /// The path of the file.
        path: PathBuf,
    },
    /// The content of the file is wrong.
    #[error("{}:{fault}", path.display())]
    Content {
        /// The path of the file.
        path: PathBuf,
        /// The location and the reason.
        fault: ConfigFault,
    },
}

/// The first error in the text of a config file, shown in one line as `LINE: FIELD: REASON`, or as
/// `LINE:COLUMN: REASON` for a text that is not JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in bytes, counted from 1, of an error in the syntax.
    pub column: Option<usize>,
    /// The field, as in `initrds[1]`; empty if the error is not in a field.
    pub field: String,
    /// The reason.
    pub reason: String,
}

impl RawConfig {
    /// Reads a config file. Relative paths in it are resolved against its directory.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON, or has an unknown field or an invalid value.
    pub fn open(path: &Path) -> Result<RawConfig, ConfigFileError> {
        let text = read(path)?;
        let raw = RawConfig::from_json(&text);
        let raw = raw.map_err(|fault| ConfigFileError::Content { path: path.into(), fault })?;
        Ok(raw.relative_to(path.parent().unwrap_or(Path::new(""))))
    }

    /// Parses the text of a config file; paths are left as they are.
    ///
    /// # Errors
    /// The first error in the text.
    pub fn from_json(text: &[u8]) -> Result<RawConfig, ConfigFault> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let Object(raw) = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| ConfigFault::new(field_of(error.path()), error.inner()))?;
        json.end().map_err(|error| ConfigFault::new(String::new(), &error))?;
        Ok(raw)
    }
}

impl ConfigFault {
    fn new(field: String, error: &serde_json::Error) -> ConfigFault {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let mut reason = text.strip_suffix(&place).unwrap_or(&text).to_owned();
        // The field has already been named.
        let name = field.rsplit('.').next().unwrap_or_default();
        if let Some(rest) = reason.strip_prefix(&format!("unknown field `{name}`")) {
            let known = RawConfig::NAMES.iter().map(|name| (*name).to_owned()).collect();
            let near = nearest(&field, known).filter(|_| rest.starts_with(", "));
            let hint = near.map_or_else(
                || rest.trim_start_matches([':', ',', ' ']).to_owned(),
                |near| did_you_mean(&near),
            );
            reason = format!("there is no such field; {hint}");
        }
        let is_syntax = matches!(error.classify(), Category::Syntax | Category::Eof);
        let column = is_syntax.then(|| error.column().max(1));
        ConfigFault { line: error.line().max(1), column, field, reason }
    }
}

/// Returns the name of a field, as in `disks[1].path`. It is empty for the whole, and where the text is wrong
/// before the name is known.
fn field_of(path: &serde_path_to_error::Path) -> String {
    let is_known = |segment: &&Segment| !matches!(segment, Segment::Unknown);
    let mut field = String::new();
    for segment in path.iter().take_while(is_known) {
        if !field.is_empty() && !matches!(segment, Segment::Seq { .. }) {
            field.push('.');
        }
        field += &segment.to_string();
    }
    field
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigFault { line, column, field, reason } = self;
        match column {
            Some(column) => write!(f, "{line}:{column}: ")?,
            None => write!(f, "{line}: ")?,
        }
        if !field.is_empty() {
            write!(f, "{}: ", in_one_line(field))?;
        }
        f.write_str(&in_one_line(reason))
    }
}

/// A config that is a JSON object: serde would also accept an array of the fields' values.
struct Object(RawConfig);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object, A::Error> {
                RawConfig::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        from.deserialize_map(Fields)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigFileError> {
    regular_file::read(path, MAX_LEN).map_err(|error| match error {
        RegularFileError::Kind { .. } => ConfigFileError::NotRegular { path: path.into() },
        RegularFileError::TooLong { .. } => ConfigFileError::TooLong { path: path.into() },
        RegularFileError::Host(source) => ConfigFileError::Read { path: path.into(), source },
    })
}

/// Escapes control characters in a text from a file, so that a message stays on one line and cannot control a
/// terminal.
pub fn in_one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// The maximum size of a config file, in bytes: thirty times the longest kernel command line and many paths.
/// It keeps a wrong file out of memory.
const MAX_LEN: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn fault(json: &str) -> String {
        RawConfig::from_json(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn value_that_cannot_be_is_named_by_line_and_field() {
        let said = fault("{\n  \"cpus\": 1,\n  \"memory\": \"1M\"\n}");
        assert_eq!(said, "3: memory: 1M is not possible: write a size from 2M to 1T, in whole MiB");
        let said = fault("{\n  \"initrds\": [\n    \"a\",\n    5\n  ]\n}");
        assert_eq!(said, "4: initrds[1]: invalid type: integer `5`, expected path string");
        assert!(fault("{\"timeout\":\n\"0\"}").starts_with("2: timeout: 0 leaves no time to run"));
    }

    #[test]
    fn unknown_and_repeated_fields_are_refused() {
        let said = fault("{\n\n \"memroy\": \"1G\"}");
        assert_eq!(said, "3: memroy: there is no such field; did you mean `memory`?");
        let said = fault(r#"{"surprise": 1}"#);
        assert!(said.starts_with("1: surprise: there is no such field; expected one of"), "{said}");
        let said = fault("{\"cpus\": 1,\n \"cpus\": 2}");
        assert!(said.starts_with("2: ") && said.contains("duplicate field `cpus`"), "{said}");
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_line() {
        for (json, line) in
            [("", 1), ("{\n\"cpus\": 1\n", 3), ("{}\n{}", 2), ("[]", 1), ("{\"cpus\": 1,}", 1)]
        {
            let fault = RawConfig::from_json(json.as_bytes()).unwrap_err();
            assert_eq!(fault.line, line, "{json}: {fault}");
        }
        assert_eq!(fault("{\"cpus\": 1,}"), "1:12: trailing comma");
        assert_eq!(fault("{\"cpus\": 1,\n x}"), "2:2: key must be a string");
        assert_eq!(fault("{\"disks\": [{\"path\": \"a\",}]}"), "1:25: disks[0]: trailing comma");
        assert!(RawConfig::from_json(b"{\"kernel\": \"\xff\"}").is_err());
    }

    #[test]
    fn message_stays_in_one_line_whatever_the_file_says() {
        let said = fault(r#"{"memory": "\n\u001b[2J"}"#);
        assert!(said.contains(r"`\n\u{1b}[2J` is not a size"), "{said}");
        assert!(!fault(r#"{"a\nb": 1}"#).contains('\n'));
    }

    #[test]
    fn deep_nesting_is_refused_without_using_up_the_stack() {
        assert!(RawConfig::from_json("[".repeat(1 << 18).as_bytes()).is_err());
        assert!(RawConfig::from_json(format!("{{\"x\": {}", "[".repeat(1 << 18)).as_bytes()).is_err());
    }

    #[test]
    fn paths_are_taken_from_the_folder_of_the_file() {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("vm.json");
        std::fs::write(&path, r#"{"kernel": "vmlinux", "outcome": "/tmp/o"}"#).unwrap();
        let raw = RawConfig::open(&path).unwrap();
        assert_eq!(raw.kernel, Some(folder.as_path().join("vmlinux")));
        assert_eq!(raw.outcome, Some("/tmp/o".into()));
    }

    #[test]
    fn what_is_no_readable_file_is_refused_and_named() {
        let said = |path: &str| RawConfig::open(Path::new(path)).unwrap_err().to_string();
        assert_eq!(
            said("/no/such.json"),
            "/no/such.json: the config file cannot be read: No such file or directory (os error 2)"
        );
        assert_eq!(said("/tmp"), "/tmp: a config file has to be a regular file");
        assert_eq!(said("/dev/zero"), "/dev/zero: a config file has to be a regular file");
        let folder = TempDir::new().unwrap();
        let long = folder.as_path().join("long.json");
        std::fs::write(&long, vec![b' '; MAX_LEN as usize + 1]).unwrap();
        assert!(RawConfig::open(&long).unwrap_err().to_string().contains("is it the right file?"));
    }
}
