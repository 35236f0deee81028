//! Istio's string rules: exact, `abc*` prefix, `*abc` suffix, `*` present and non-empty.

/// A compiled string rule. Case-sensitive; `*` elsewhere than at an end is a literal; no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
}

impl Text {
    /// A leading `*` is looked at first, so `*x*` means "ends with `x*`".
    pub(crate) fn parse(rule: &str) -> Self {
        if rule == "*" {
            Text::Present
        } else if let Some(suffix) = rule.strip_prefix('*') {
            Text::Suffix(suffix.to_owned())
        } else if let Some(prefix) = rule.strip_suffix('*') {
            Text::Prefix(prefix.to_owned())
        } else {
            Text::Exact(rule.to_owned())
        }
    }

    pub(crate) fn matches(&self, value: &str) -> bool {
        match self {
            Text::Exact(exact) => value == exact,
            Text::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Text::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Text::Present => !value.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn rules_match_as_istio_reads_them() {
        let cases = [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc", "ABC", false),
            ("abc*", "abc", true),
            ("abc*", "abcd", true),
            ("*abc", "xabc", true),
            ("*abc", "abcx", false),
            ("*", "x", true),
            ("*", "", false),
            ("*x*", "ax*", true),
            ("*x*", "axb", false),
            ("a*c", "abc", false),
            ("a*c", "a*c", true),
        ];
        for (rule, value, expected) in cases {
            assert_eq!(Text::parse(rule).matches(value), expected, "{rule} on {value}");
        }
    }
}
