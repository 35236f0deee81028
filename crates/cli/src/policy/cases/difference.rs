//! What was expected beside what came, field by field.

use serde_json::{Map, Value};

/// One line for each expected field that came otherwise. Objects are compared by the fields that are expected of
/// them, everything else as a whole.
pub fn differences(expected: &Map<String, Value>, got: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    compare_objects("", expected, got, &mut found);
    let width = found.iter().map(|(field, ..)| field.len()).max().unwrap_or_default();
    let lines = found.iter().map(|(field, want, got)| format!("{field:width$}  want {want}, got {got}"));
    lines.collect()
}

type Found = (String, String, String);

fn compare_objects(
    at: &str,
    expected: &Map<String, Value>,
    got: &Map<String, Value>,
    found: &mut Vec<Found>,
) {
    for (key, want) in expected {
        let field = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        match (want, got.get(key)) {
            (Value::Object(want), Some(Value::Object(got))) => compare_objects(&field, want, got, found),
            (want, Some(got)) if same(want, got) => {}
            (Value::Null, None) => {}
            (want, got) => found.push((field, plain(Some(want)), plain(got))),
        }
    }
}

/// Words of Istio's are written in any case by people; a number may be written as text.
fn same(want: &Value, got: &Value) -> bool {
    match (want, got) {
        (Value::String(want), Value::String(got)) => {
            want == got || want.eq_ignore_ascii_case(got) && is_word(got)
        }
        _ => want == got,
    }
}

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphabetic())
}

fn plain(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
