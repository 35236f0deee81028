//! What to do about fields and words that Istio's API doesn't have. The mistakes that people really make get
//! their own sentence; others the nearest name, or the list of what there is.

/// (field in which it stands, unknown name, what to do).
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "from",
        "operation",
        "`operation` belongs under `to`: write `to: [{operation: …}]` beside `from` in the same rule",
    ),
    (
        "to",
        "source",
        "`source` belongs under `from`: write `from: [{source: …}]` beside `to` in the same rule",
    ),
    (
        "from",
        "operations",
        "operations belong under `to`: write `to: [{operation: …}]` beside `from` in the same rule",
    ),
    ("rules", "source", "`source` stands within `from`: write `from: [{source: …}]`"),
    ("rules", "operation", "`operation` stands within `to`: write `to: [{operation: …}]`"),
    ("rules", "action", "the action is one for the whole policy: write it as spec.action"),
    (
        "operation",
        "headers",
        "headers are conditions: write `when: [{key: \"request.headers[name]\", values: […]}]`",
    ),
    ("spec", "mode", "the mode stands within mtls: write `mtls: {mode: …}`"),
    ("spec", "matchLabels", "labels stand within selector: write `selector: {matchLabels: …}`"),
    ("spec", "from", "`from` stands within a rule: write `rules: [{from: …}]`"),
    ("spec", "to", "`to` stands within a rule: write `rules: [{to: …}]`"),
    ("selector", "matchExpressions", "only matchLabels can select; use one label that all of the pods have"),
];

const OF_SOURCE: &[&str] = &[
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

const OF_OPERATION: &[&str] =
    &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];

/// For an unknown field `name` at `path`, where `known` could stand.
pub(super) fn unknown(path: &str, name: &str, known: &[&str]) -> String {
    let parent = path.rsplit('.').next().unwrap_or(path);
    let parent = parent.split('[').next().unwrap_or(parent);
    if let Some((_, _, advice)) = MISTAKES.iter().find(|(of, mistake, _)| *of == parent && *mistake == name) {
        return format!("is not known here; {advice}");
    }
    if parent == "from" && OF_SOURCE.contains(&name) {
        return format!("is not known here; write `from: [{{source: {{{name}: …}}}}]`");
    }
    if parent == "to" && OF_OPERATION.contains(&name) {
        return format!("is not known here; write `to: [{{operation: {{{name}: …}}}}]`");
    }
    if OF_SOURCE.contains(&name) && parent == "operation" {
        return format!(
            "is not known here; who asks stands under `from`: write `from: [{{source: {{{name}: …}}}}]`"
        );
    }
    if OF_OPERATION.contains(&name) && parent == "source" {
        return format!(
            "is not known here; what is asked stands under `to`: write `to: [{{operation: {{{name}: …}}}}]`"
        );
    }
    match nearest(name, known) {
        Some(near) => format!("is not known; did you mean {near:?}?"),
        None => format!("is not known; remove it, or use one of: {}", known.join(", ")),
    }
}

/// For `word`, which is none of `words`.
pub(super) fn word(word: &str, words: &[&str]) -> String {
    let list = words.join(", ");
    match nearest(word, words) {
        Some(near) => format!("{word:?} is none of {list}; did you mean {near:?}?"),
        None => format!("{word:?} is none of {list}; write one of them"),
    }
}

/// The name that is at most two edits, or its case, away.
fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let lower = name.to_lowercase();
    let near = known.iter().map(|known| (distance(&lower, &known.to_lowercase()), *known));
    let (edits, best) = near.min_by_key(|(edits, _)| *edits)?;
    (edits <= 2 && edits < best.len().min(name.len())).then_some(best)
}

/// The number of characters to insert, remove or replace.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, of_one) in one.chars().enumerate() {
        let mut corner = above;
        let mut left = above + 1;
        let mut next = vec![left];
        for (of_other, up) in other.iter().zip(row.iter().skip(1)) {
            left = (corner + usize::from(of_one != *of_other)).min(left + 1).min(up + 1);
            corner = *up;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (one, other, edits) in
            [("", "", 0), ("abc", "abc", 0), ("alow", "allow", 1), ("kitten", "sitting", 3), ("", "ab", 2)]
        {
            assert_eq!(distance(one, other), edits, "{one} {other}");
            assert_eq!(distance(other, one), edits, "{other} {one}");
        }
    }

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        assert_eq!(nearest("ALOW", &["ALLOW", "DENY"]), Some("ALLOW"));
        assert_eq!(nearest("Principals", &["principals", "namespaces"]), Some("principals"));
        assert_eq!(nearest("principal", &["principals"]), Some("principals"));
        assert_eq!(nearest("weather", &["principals", "hosts"]), None);
        assert_eq!(nearest("x", &["to"]), None);
    }
}
