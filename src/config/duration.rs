//! Durations as a person writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use coracle_devices::virtio::poll::Poll;

use super::ConfigError;

/// Parses `500ms`, `20s`, `1.5m`, `2h` or a bare number of seconds: more than zero, and at most about 31
/// years.
pub fn parse_duration(text: &str) -> Result<Duration, ConfigError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_each = match text.get(digits.len()..) {
        Some("ms") => 1e-3,
        Some("" | "s") => 1.0,
        Some("m" | "min") => 60.0,
        Some("h") => 3600.0,
        _ => return Err(ConfigError::DurationSyntax { text: text.into() }),
    };
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = digits.parse::<f64>().ok().map(|number| number * seconds_each);
    let seconds = seconds
        .filter(|seconds| is_plain && *seconds <= LONGEST_SECONDS)
        .ok_or_else(|| ConfigError::DurationSyntax { text: text.into() })?;
    let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    if duration.is_zero() {
        return Err(ConfigError::DurationZero { text: text.into() });
    }
    Ok(duration)
}

/// How long a guest, or the command in it, may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// Without a limit.
    None,
    /// At most this long.
    After(Duration),
}

impl Timeout {
    /// Returns the limit, if there is one.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Timeout::None => None,
            Timeout::After(limit) => Some(limit),
        }
    }
}

impl From<Timeout> for Option<Duration> {
    fn from(timeout: Timeout) -> Option<Duration> {
        timeout.limit()
    }
}

impl FromStr for Timeout {
    type Err = ConfigError;

    /// Parses `none`, or whatever [`parse_duration`] parses.
    fn from_str(text: &str) -> Result<Timeout, ConfigError> {
        if text == "none" { Ok(Timeout::None) } else { parse_duration(text).map(Timeout::After) }
    }
}

/// Returns the time in milliseconds, for JSON: the number with the fewest digits, which a product of seconds
/// would not be (`394.53945300000003`).
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// Explains what is wrong with a text that is not a duration, and what to write instead.
pub(super) fn duration_advice(text: &str) -> String {
    let form = "write a number and ms, s, m or h, as in 20s (a bare number is seconds)";
    if text.starts_with('-') {
        return format!("`{text}` is negative: {form}");
    }
    if text.contains(' ') {
        return format!("`{text}` has a blank: write number and unit together, as in 20s");
    }
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let known = UNITS.iter().find(|(names, _)| names.contains(&unit.to_ascii_lowercase().as_str()));
    if let (Some((_, unit_here)), Some(number)) = (known, text.strip_suffix(unit)) {
        let in_our_units = format!("{number}{unit_here}");
        if parse_duration(&in_our_units).is_ok() {
            return format!("`{text}` is not a time: write {in_our_units}");
        }
        if number.parse::<f64>().is_ok_and(|number| number > 0.0) {
            return format!("`{text}` is too long: write at most {LONGEST_SECONDS}s (about 31 years)");
        }
    }
    format!("`{text}` is not a time: {form}")
}

/// Units of other programs, with ours.
const UNITS: [(&[&str], &str); 4] = [
    (&["", "sec", "secs", "second", "seconds", "s"], "s"),
    (&["min", "mins", "minute", "minutes", "m"], "m"),
    (&["hr", "hrs", "hour", "hours", "h"], "h"),
    (&["msec", "msecs", "millisecond", "milliseconds", "ms"], "ms"),
];

/// Parses how long a device's thread polls: `off`, `32us` or a bare number of microseconds.
pub(super) fn poll(text: &str) -> Option<Duration> {
    if text == "off" {
        return Some(Duration::ZERO);
    }
    let digits = text.strip_suffix("us").unwrap_or(text);
    let time = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    time.map(Duration::from_micros).filter(|time| (FIRST_POLL..=Poll::MAX).contains(time))
}

/// Writes `,poll=` with what [`poll`] parses, unless it is the default.
pub(super) fn write_poll(time: Duration, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match time.as_micros() {
        _ if time == Poll::DEFAULT => Ok(()),
        0 => f.write_str(",poll=off"),
        micros => write!(f, ",poll={micros}us"),
    }
}

const LONGEST_SECONDS: f64 = 1e9;
const FIRST_POLL: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        let cases = [("500ms", 500), ("20s", 20_000), ("20", 20_000), ("1.5m", 90_000), ("2h", 7_200_000)];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "s", "ten", "-1s", "1d", "NaN", "inf", "1e99s", "1e3", "+1s", "1.2.3", "0x1s", "ms"]
        {
            assert!(matches!(parse_duration(text), Err(ConfigError::DurationSyntax { .. })), "{text}");
        }
        assert!(matches!(parse_duration("0"), Err(ConfigError::DurationZero { .. })));
    }

    #[test]
    fn advice_says_what_to_write() {
        for (text, words) in [
            ("-1s", "`-1s` is negative: write"),
            ("1 s", "`1 s` has a blank"),
            ("5sec", "write 5s"),
            ("1.5Hours", "write 1.5h"),
            ("90S", "write 90s"),
            ("1d", "`1d` is not a time: write a number"),
        ] {
            let said = parse_duration(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn advice_is_never_the_refused_text() {
        for text in ["12345678901s", "12345678901", "18446744073709551615h", "1000000h", "16666667MIN"] {
            let said = parse_duration(text).unwrap_err().to_string();
            let expected = format!("`{text}` is too long: write at most 1000000000s (about 31 years)");
            assert_eq!(said, expected);
        }
        for text in ["1.2.3s", "1.2.3", ".s", ".", "", "s", "0S", "0.0Hours"] {
            let said = parse_duration(text).unwrap_err().to_string();
            assert!(said.contains("is not a time: write a number and ms, s, m or h"), "{text}: {said}");
        }
        assert_eq!(parse_duration("1000000000s"), Ok(Duration::from_secs(1_000_000_000)));
    }

    #[test]
    fn milliseconds_have_no_more_digits_than_the_time() {
        let texts = [394_539_453, 1, 7_000_000_001]
            .map(|nanos| milliseconds(Duration::from_nanos(nanos)).to_string());
        assert_eq!(texts, ["394.539453", "0.000001", "7000.000001"]);
    }
}
