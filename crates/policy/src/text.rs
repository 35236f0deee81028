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

    /// The rule without its wildcard.
    pub(crate) fn literal(&self) -> &str {
        match self {
            Text::Exact(literal) | Text::Prefix(literal) | Text::Suffix(literal) => literal,
            Text::Present => "",
        }
    }

    /// The same rule with its literal changed.
    pub(crate) fn with(&self, change: impl Fn(&str) -> String) -> Self {
        match self {
            Text::Exact(literal) => Text::Exact(change(literal)),
            Text::Prefix(literal) => Text::Prefix(change(literal)),
            Text::Suffix(literal) => Text::Suffix(change(literal)),
            Text::Present => Text::Present,
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

/// What stands before and after the first `byte`, an ASCII character. For the short texts of IDs and targets quicker
/// than the general search.
pub(crate) fn split_once(text: &str, byte: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|one| one == byte)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// `*` spans any characters, none included; everything else is literal.
pub(crate) fn glob_matches(glob: &str, value: &str) -> bool {
    let Some((head, mut rest)) = glob.split_once('*') else { return glob == value };
    let Some(mut value) = value.strip_prefix(head) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some((_, behind)) = value.split_once(part) else { return false };
        value = behind;
        rest = after;
    }
    value.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::{Text, glob_matches};

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

    #[test]
    fn stars_in_a_namespace_span_characters() {
        let cases = [
            ("prod", "prod", true),
            ("prod", "prod2", false),
            ("prod-*", "prod-eu", true),
            ("*-eu", "prod-eu", true),
            ("p*d-*u", "prod-eu", true),
            ("p**u", "prod-eu", true),
            ("p*d", "prod-eu", false),
            ("*", "x", true),
            ("a*a", "a", false),
        ];
        for (glob, value, expected) in cases {
            assert_eq!(glob_matches(glob, value), expected, "{glob} on {value}");
        }
    }
}
