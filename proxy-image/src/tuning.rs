//! What an installation may say about the proxies' work, apart from policy: one JSON object, the chart's
//! `proxy.settings`. In pods it comes in [`cinch_injection::SETTINGS_VARIABLE`], in files under `settings:`. All of it is optional;
//! an unknown field, or a value that no proxy could work with, is refused by name.

use crate::access_log::AccessLogSettings;
use crate::limits::Limits;
use cinch_identity::RecordLayer;
use serde::{Deserialize, Deserializer, de};
use std::time::Duration;

/// The settings of one proxy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tuning {
    /// Who seals the records of tunnels: `in-place` (the default) or `rustls`.
    #[serde(deserialize_with = "record_layer")]
    pub records: RecordLayer,
    /// Every bound of the data path.
    pub limits: Limits,
    /// What is written to the access log.
    pub access_log: AccessLogSettings,
}

/// Settings that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TuningError {
    /// Not JSON, an unknown field, or a value of the wrong shape.
    #[error("{0}")]
    Shape(String),
    /// A limit that is out of its bounds or contradicts another.
    #[error("limits.{field}: {problem}")]
    Limit {
        /// The field, as it is written.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Tuning {
    /// Reads the JSON text of the settings; an empty one leaves all defaults.
    ///
    /// # Errors
    /// [`TuningError`] with the field's name.
    pub fn parse(json: &str) -> Result<Self, TuningError> {
        if json.trim().is_empty() {
            return Ok(Self::default());
        }
        let tuning: Self =
            serde_json::from_str(json).map_err(|error| TuningError::Shape(error.to_string()))?;
        tuning.check()?;
        Ok(tuning)
    }

    /// Checks what the shape alone does not say; for settings that were read as part of something else.
    ///
    /// # Errors
    /// [`TuningError::Limit`].
    pub fn check(&self) -> Result<(), TuningError> {
        self.limits.check()
    }
}

/// Reads the name of a record layer.
///
/// # Errors
/// When there is none of that name.
pub fn record_layer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RecordLayer, D::Error> {
    let name = String::deserialize(deserializer)?;
    let wrong = || de::Error::custom(format!("{name:?} is neither in-place nor rustls"));
    RecordLayer::by_name(&name).ok_or_else(wrong)
}

/// Reads a duration as Kubernetes users write it: `10s`, `100ms`, `1h30m`.
///
/// # Errors
/// When the text is none.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        de::Error::custom(format!("{text:?} is no duration: write it as 100ms, 10s, 1h30m or 7d"))
    })
}

/// Units in milliseconds, as they may follow a number.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, next) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(*scale)?)?;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::from_millis(sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    #[test]
    fn nothing_said_is_all_defaults() {
        for nothing in ["", " ", "{}", r#"{"limits": {}}"#, r#"{"limits": {"http": {}}, "accessLog": {}}"#] {
            assert_eq!(Tuning::parse(nothing).unwrap(), Tuning::default(), "{nothing:?}");
        }
        assert_eq!(Tuning::default().records, RecordLayer::InPlace);
        Tuning::default().check().unwrap();
    }

    #[test]
    fn what_is_said_holds_and_the_rest_has_its_default() {
        let tuning = Tuning::parse(
            r#"{"records": "rustls", "limits": {"handshakes": 7, "openTimeout": "1m30s", "http": {"headBytes": 8192}}}"#,
        )
        .unwrap();
        assert_eq!(tuning.records, RecordLayer::Rustls);
        let usual = Limits::default();
        let expected = Limits {
            handshakes: 7,
            open_timeout: Duration::from_secs(90),
            http: cinch_http::Limits { head_bytes: 8192, ..usual.http.clone() },
            ..usual
        };
        assert_eq!(tuning.limits, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, named) in [
            ("[", "EOF"),
            (r#"{"limit": {}}"#, "`limit`"),
            (r#"{"records": "kernel"}"#, "kernel"),
            (r#"{"limits": {"handshake": 1}}"#, "`handshake`"),
            (r#"{"limits": {"handshakes": -1}}"#, "-1"),
            (r#"{"limits": {"handshakes": "many"}}"#, "many"),
            (r#"{"limits": {"silence": "soon"}}"#, "soon"),
            (r#"{"limits": {"silence": 5}}"#, "5"),
            (r#"{"limits": {"http": {"heads": 1}}}"#, "`heads`"),
            (r#"{"limits": {"handshakes": 0}}"#, "limits.handshakes: "),
            (r#"{"limits": {"connectTimeout": "0s"}}"#, "limits.connectTimeout: "),
            (r#"{"limits": {"http": {"headFields": 1000}}}"#, "limits.http.headFields: "),
            (r#"{"limits": {"helloBytes": 1800}}"#, "limits.helloBytes: 1800 is not between 4096 and 16384"),
            (r#"{"limits": {"probeTimeout": "25h"}}"#, "limits.probeTimeout: "),
            (r#"{"limits": {"httpTokenTries": 0}}"#, "limits.httpTokenTries: "),
            (r#"{"limits": {"http": {"streamHeadBytes": 1}}}"#, "limits.http.streamHeadBytes: "),
            (r#"{"limits": {"clientIdle": "45s"}}"#, "limits.clientIdle: "),
            (r#"{"limits": {"peerTimeout": "999ms"}}"#, "limits.peerTimeout: "),
            (r#"{"limits": {"peerTimeout": "2h"}}"#, "limits.peerTimeout: "),
        ] {
            let error = Tuning::parse(json).unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }

    /// The chart's schema of `proxy.settings`.
    fn schema() -> Value {
        let text = include_str!("../../charts/cinch/values.schema.json");
        let all: Value = serde_json::from_str(text).unwrap();
        all["properties"]["proxy"]["properties"]["settings"].clone()
    }

    /// The settings that say `value` at `path` and nothing else.
    fn at(path: &[&str], value: Value) -> String {
        path.iter().rev().fold(value, |inner, name| json!({ *name: inner })).to_string()
    }

    /// The names that serde knows at `path`: an unknown one makes it list them.
    fn known(path: &[&str]) -> BTreeSet<String> {
        let error = Tuning::parse(&at(path, json!({"-": 1}))).unwrap_err().to_string();
        let (_, list) = error.split_once("expected").expect("a list of names");
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// Calls `leaf` for each setting that is no object, and compares the names of the others.
    fn walk<'s>(schema: &'s Value, path: &mut Vec<&'s str>, leaf: &mut impl FnMut(&[&str], &Value)) {
        let Some(properties) = schema["properties"].as_object() else { return leaf(path, schema) };
        assert_eq!(schema["additionalProperties"], false, "{path:?} is closed");
        let named: BTreeSet<String> = properties.keys().cloned().collect();
        assert_eq!(named, known(path), "the chart's schema and the proxy know the same of {path:?}");
        for (name, inner) in properties {
            path.push(name);
            walk(inner, path, leaf);
            path.pop();
        }
    }

    #[test]
    fn the_charts_schema_names_every_setting_with_the_bounds_that_the_proxy_has() {
        let mut bounded = 0;
        walk(&schema(), &mut Vec::new(), &mut |path, schema| {
            if schema["type"] != "integer" {
                return;
            }
            let bound = |which: &str| schema[which].as_u64().expect("a bound");
            let (low, high) = (bound("minimum"), bound("maximum"));
            for (value, good) in [(low, true), (high, true), (high + 1, false)] {
                assert_eq!(Tuning::parse(&at(path, json!(value))).is_ok(), good, "{path:?}: {value}");
            }
            let below = i64::try_from(low).unwrap() - 1;
            assert!(Tuning::parse(&at(path, json!(below))).is_err(), "{path:?}: {below}");
            bounded += 1;
        });
        assert!(bounded >= 17, "{bounded}");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in
            [("10s", 10_000), ("100ms", 100), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in
            ["", "10", "s", "10 s", "-1s", "1.5s", "1w", "99999999999999999999s", "999999999999999999d"]
        {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
