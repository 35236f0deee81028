//! What an installation says about the access log: part of the proxy's settings.

use serde::{Deserialize, Deserializer, de};

/// The access log. Denials and errors are always in it; the rest as `sampling` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLogSettings {
    /// `false`: nothing is written, denials neither.
    pub enabled: bool,
    /// The share of requests and connections without fault that are written, from 0.0 to 1.0.
    #[serde(deserialize_with = "share")]
    pub sampling: f64,
    /// Lines a second of each kind: denials beyond are summed up, others are dropped and counted.
    #[serde(deserialize_with = "lines")]
    pub lines_per_second: u32,
    /// Bytes of lines that wait to be written. Denials have as much again for themselves.
    #[serde(deserialize_with = "bytes")]
    pub queue_bytes: u32,
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        AccessLogSettings { enabled: true, sampling: 0.0, lines_per_second: 1000, queue_bytes: 256 * 1024 }
    }
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let share = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    Err(de::Error::custom(format!("accessLog.sampling: {share} is not between 0.0 and 1.0")))
}

fn lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    between(u32::deserialize(deserializer)?, (1, 1_000_000), "linesPerSecond")
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    between(u32::deserialize(deserializer)?, (16 * 1024, 16 * 1024 * 1024), "queueBytes")
}

fn between<E: de::Error>(value: u32, (low, high): (u32, u32), field: &str) -> Result<u32, E> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(E::custom(format!("accessLog.{field}: {value} is not between {low} and {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_said_writes_denials_and_errors_only() {
        let settings: AccessLogSettings = serde_json::from_value(json!({})).unwrap();
        assert_eq!(settings, AccessLogSettings::default());
        assert!(settings.enabled && settings.sampling == 0.0);
        let all: AccessLogSettings = serde_json::from_value(json!({"sampling": 1})).unwrap();
        assert_eq!(all, AccessLogSettings { sampling: 1.0, ..settings });
    }

    #[test]
    fn what_is_out_of_its_bounds_is_refused_by_name() {
        for (wrong, named) in [
            (json!({"sampling": 1.1}), "accessLog.sampling"),
            (json!({"sampling": -0.1}), "accessLog.sampling"),
            (json!({"linesPerSecond": 0}), "accessLog.linesPerSecond"),
            (json!({"queueBytes": 1024}), "accessLog.queueBytes"),
            (json!({"queueBytes": 16_777_217}), "accessLog.queueBytes"),
            (json!({"sample": 1}), "`sample`"),
        ] {
            let error = serde_json::from_value::<AccessLogSettings>(wrong.clone()).unwrap_err();
            assert!(error.to_string().contains(named), "{wrong}: {error}");
        }
    }
}
