//! Durations as Kubernetes users write them: `168h`, `1h30m`, `15s`, `500ms`, `0s`, and days as `7d`.

use std::time::Duration;

/// The text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration; write it as 168h, 1h30m, 15s or 500ms")]
pub struct DurationError(String);

/// Units in milliseconds, as they may follow a number.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration: whole numbers, each with its unit (`d`, `h`, `m`, `s`, `ms`), one after the other.
///
/// # Errors
/// When a unit is missing or unknown, nothing is there, or the sum is out of range.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    let mut rest = text.trim();
    let mut sum = 0_u64;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        let number = number.parse::<u64>().map_err(|_| error())?;
        let part = number.checked_mul(*scale).ok_or_else(error)?;
        sum = sum.checked_add(part).ok_or_else(error)?;
        rest = next;
    }
    Ok(Duration::from_millis(sum))
}

/// The two largest units of a duration, as people say it: `6d2h`, `3m12s`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    let mut parts = 0;
    for (unit, scale) in UNITS.iter().rev().take(4) {
        let count = rest / scale;
        rest %= scale;
        if count > 0 && parts < 2 {
            text.push_str(&format!("{count}{unit}"));
        }
        parts += u32::from(count > 0 || parts > 0);
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        let cases = [
            ("168h", 604_800_000),
            ("1h30m", 5_400_000),
            ("15s", 15_000),
            ("500ms", 500),
            ("1m500ms", 60_500),
            ("7d", 604_800_000),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", " ", "5", "h", "1.5h", "-1s", "1 h", "1y", "99999999999999999999s", "9999999999999999h"]
        {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_are_said_in_two_units() {
        let cases =
            [(0, "0s"), (12_000, "12s"), (192_000, "3m12s"), (525_600_000, "6d2h"), (3_601_000, "1h")];
        for (millis, text) in cases {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }
}
