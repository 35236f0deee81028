//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) as numbers, to compare them whatever way they are written.

use serde_json::Value;

/// Billionths, the finest that Kubernetes keeps.
const NANO: i128 = 1_000_000_000;

const SUFFIXES: &[(&str, i128, i128)] = &[
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("", 1, 1),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
];

/// The quantity in billionths; `None` for what is no quantity.
pub(crate) fn parse(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse_text(text),
        // YAML users write `cpu: 1`; the API accepts numbers.
        Value::Number(number) => parse_text(&number.to_string()),
        _ => None,
    }
}

pub(crate) fn parse_text(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let fine = format!("{:0<9}", fraction.get(..fraction.len().min(9))?);
    let nanos = digits(whole)?.checked_mul(NANO)?.checked_add(digits(&fine)?)?;
    if let Some((_, times, by)) = SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        return Some(nanos.checked_mul(*times)? / by);
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 { nanos.checked_div(power) } else { nanos.checked_mul(power) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_compare_as_numbers() {
        let same = [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("2e3", "2k"),
            ("1.5Gi", "1536Mi"),
            (".1", "100m"),
        ];
        for (one, two) in same {
            assert_eq!(parse_text(one).unwrap(), parse_text(two).unwrap(), "{one} {two}");
        }
        for bad in ["", "m", "1x", "-1", "1.2.3", "1e", "1e99", "9999999999999999999999999999999999999999"] {
            assert_eq!(parse_text(bad), None, "{bad}");
        }
    }
}
