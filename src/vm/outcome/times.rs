//! How the time of a run divides into steps. The lifecycle fills in the steps of every guest; a command that
//! runs in the guest divides the rest.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::Seconds;
use crate::config::milliseconds;

/// How long each step took. A step is `None` if it did not happen or its end was not observed. In JSON the
/// unit is milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Booting the emulated host on which the machine ran: from the start of QEMU until programs run in it.
    pub emulated_host: Option<Duration>,
    /// Building the machine: opening files, preparing the root and the modules, creating the devices and
    /// vCPUs.
    pub prepare: Option<Duration>,
    /// Booting the kernel: from the guest's first instruction until its init wrote the boot mark. Only
    /// Coracle's own inits write one.
    pub kernel: Option<Duration>,
    /// Starting the guest's system: from the boot mark until the agent was ready, or without a command until
    /// the end.
    pub init: Option<Duration>,
    /// Preparing the command: from the ready agent until the command started, with the network if it was
    /// requested.
    pub agent: Option<Duration>,
    /// Running the command, until it and its output have ended.
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
    /// Writes the known steps in one line, as in `prepare 0.01 s, kernel 0.3 s`.
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
            times.serialize_field(name, &time.map(milliseconds))?;
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
