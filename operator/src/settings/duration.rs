//! Durations of the settings file. In go texts as Kubernetes users write them, out come times.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// A duration of the file, as [`parse_duration`] reads it.
///
/// # Errors
/// When it is none; the message shows the forms.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no duration: write it as 15s, 1h30m or 168h"))
    })
}

/// Parses a duration of numbers with the units `h`, `m`, `s` and `ms`, largest first, each at most once.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = text;
    let mut total: u64 = 0;
    let mut units = UNITS.as_slice();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let at = units.iter().position(|(name, _)| *name == unit)?;
        let (_, factor) = units.get(at)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        units = units.get(at + 1..)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("15s", 15.0), ("168h", 604_800.0), ("1h30m", 5400.0), ("0s", 0.0), ("1s500ms", 1.5)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "15", "s", "-1s", "1d", "1s1s", "1m1h", "1.5h", "99999999999999999999h", "1 s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
