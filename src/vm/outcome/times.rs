//! Where the time of a run went, step by step. The lifecycle fills in what every guest shows; a command that
//! is run in the guest divides the rest.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::Seconds;

/// How long each step took; none for a step that there was not, or whose end was not seen. As JSON they are
/// milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The emulated host that this ran on, from the start of QEMU until it ran programs.
    pub emulated_host: Option<Duration>,
    /// Making the machine: files opened, the root and the modules prepared, devices and vCPUs made.
    pub prepare: Option<Duration>,
    /// The guest from its first instruction until its init wrote the boot mark. An init of the guest's own
    /// writes none.
    pub kernel: Option<Duration>,
    /// From there until the agent was ready; without a command, until the end.
    pub init: Option<Duration>,
    /// The agent, from then until the command was started: the network, if that was asked for.
    pub agent: Option<Duration>,
    /// The command, until its end and that of its output.
    pub command: Option<Duration>,
}

impl Times {
    fn named(&self) -> [(&'static str, Option<Duration>); 6] {
        [
            ("emulated_host", self.emulated_host),
            ("prepare", self.prepare),
            ("kernel", self.kernel),
            ("init", self.init),
            ("agent", self.agent),
            ("command", self.command),
        ]
    }
}

impl fmt::Display for Times {
    /// The known steps in one line, as in `prepare 0.01 s, kernel 0.3 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.named().into_iter().filter_map(|(name, time)| Some((name, time?)));
        for (index, (name, time)) in known.enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", name.replace('_', " "), Seconds(time))?;
        }
        Ok(())
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let named = self.named();
        let mut times = serializer.serialize_struct("Times", named.len())?;
        for (name, time) in named {
            times.serialize_field(name, &time.map(|time| time.as_secs_f64() * 1e3))?;
        }
        times.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_steps_are_said_and_unknown_ones_are_null() {
        let times = Times {
            prepare: Some(Duration::from_micros(1500)),
            kernel: Some(Duration::from_secs(2)),
            ..Times::default()
        };
        assert_eq!(times.to_string(), "prepare 0.0015 s, kernel 2 s");
        let json = serde_json::to_value(times).unwrap();
        assert_eq!(json["prepare"], 1.5);
        assert!(json["command"].is_null() && json.as_object().unwrap().len() == 6, "{json}");
        assert_eq!(Times::default().to_string(), "");
    }
}
