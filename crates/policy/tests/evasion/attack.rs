//! What the policy protects, and targets that mean it to somebody.

use proptest::prelude::*;

/// The values of `paths` that are denied.
pub const DENIED: &[&str] =
    &["/admin", "/private/*", "*/secret", "/user/{*}/keys", "/shop/{**}/till", "/users/@me", "/a+b/*"];

/// What [`DENIED`] denies, as its author means it: a judge that knows nothing of the engine.
pub fn is_denied(resource: &[u8]) -> bool {
    let inner = |rest: &[u8]| !rest.is_empty() && !rest.contains(&b'/');
    resource == b"/admin"
        || resource.starts_with(b"/private/")
        || resource.ends_with(b"/secret")
        || resource.strip_prefix(b"/user/").and_then(|rest| rest.strip_suffix(b"/keys")).is_some_and(inner)
        || (resource.starts_with(b"/shop/") && resource.len() >= 11 && resource.ends_with(b"/till"))
        || resource == b"/users/@me"
        || resource.starts_with(b"/a+b/")
}

/// Letters of denied paths, dressed up.
pub fn attack() -> impl Strategy<Value = String> {
    let words = [
        "admin", "admin", "private", "secret", "user", "keys", "shop", "till", "x", "public", "users", "@me",
        "a+b",
    ];
    let word =
        (prop::sample::select(words.to_vec()), any::<u64>()).prop_map(|(word, seed)| dress(word, seed));
    let separator = prop::sample::select(vec![
        "/",
        "/",
        "/",
        "/",
        "//",
        "\\",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "%252f",
        "/./",
        "/%2e/",
        "/..%2f",
        "/../",
        "/%2e%2e/",
        "/.%2E/",
        "%2f..%2f",
        "%5C..%2F",
        "/%2F../",
        "%2F/",
        "%2%46",
        "%%32F",
        "/..;/",
        "/..;x=1/",
        ";p=1/",
        "/;/",
        "%3b/",
        "/..%3B/",
        "/%00",
        "%c0%af",
        "/%2%65%2%65/",
        "/%252e%252e/",
        "%25%32%66",
        "/ü/",
    ]);
    let end = prop::sample::select(vec![
        "", "", "", "", "/", "?a=/../b", "#x", ";a", ";a=/", "%3ba", "%00", "/.", "/..", "/..;", "%2f", "%20",
    ]);
    (prop::collection::vec((separator, word), 1..6), end).prop_map(|(parts, end)| {
        let path: String = parts.iter().map(|(separator, word)| format!("{separator}{word}")).collect();
        let lead = if path.starts_with(['/', '\\']) { "" } else { "/" };
        format!("{lead}{path}{end}")
    })
}

/// Some letters as escapes, escapes of escapes, or in upper case.
fn dress(word: &str, seed: u64) -> String {
    let letters = word.bytes().enumerate();
    letters.fold(String::new(), |so_far, (index, byte)| {
        so_far
            + &match (seed >> (index * 4)) & 15 {
                0 => format!("%{byte:02x}"),
                1 => format!("%{byte:02X}"),
                2 if seed >> 60 < 4 => format!("%25{byte:02x}"),
                3 if seed >> 60 == 4 => char::from(byte.to_ascii_uppercase()).to_string(),
                _ if !byte.is_ascii_alphanumeric() && seed >> 63 == 0 => format!("%{byte:02X}"),
                _ => char::from(byte).to_string(),
            }
    })
}
