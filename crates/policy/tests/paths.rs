//! Path normalisation: every mode line by line, readings, idempotence, hostile bytes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cinch_policy::{BadPath, PathNormalization, normalize};
use cinch_reason::Reason;
use proptest::prelude::*;

const MODES: [PathNormalization; 5] = [
    PathNormalization::Safe,
    PathNormalization::DecodeAndMergeSlashes,
    PathNormalization::MergeSlashes,
    PathNormalization::Base,
    PathNormalization::None,
];

fn forward(mode: PathNormalization, target: &str) -> Result<String, BadPath> {
    normalize(mode, target).map(|readings| readings.forward().to_owned())
}

#[test]
fn each_mode_gives_its_form() {
    // path, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
    let cases = [
        ("/", "/", "/", "/"),
        ("", "/", "/", "/"),
        ("*", "*", "*", "*"),
        ("/a/b", "/a/b", "/a/b", "/a/b"),
        ("/a/b/", "/a/b/", "/a/b/", "/a/b/"),
        ("/A/b", "/A/b", "/A/b", "/A/b"),
        ("\\a\\b", "/a/b", "/a/b", "/a/b"),
        ("/a\\..\\b", "/b", "/b", "/b"),
        ("/%61%2D%2e%5F%7e%39", "/a-._~9", "/a-._~9", "/a-._~9"),
        ("/a%20b%3Bc%40", "/a%20b%3Bc%40", "/a%20b%3Bc%40", "/a%20b%3Bc%40"),
        ("/a%2fb", "/a%2fb", "/a%2fb", "/a/b"),
        ("/a%2Fb%5Cc%5cd", "/a%2Fb%5Cc%5cd", "/a%2Fb%5Cc%5cd", "/a/b/c/d"),
        ("/a%252Fb", "/a%252Fb", "/a%252Fb", "/a%252Fb"),
        ("/a//b///c", "/a//b///c", "/a/b/c", "/a/b/c"),
        ("//a", "//a", "/a", "/a"),
        ("/a%2F%2Fb", "/a%2F%2Fb", "/a%2F%2Fb", "/a/b"),
        ("/a/./b/.", "/a/b/", "/a/b/", "/a/b/"),
        ("/a/../b", "/b", "/b", "/b"),
        ("/a/%2e%2E/b", "/b", "/b", "/b"),
        ("/a/.%2e/b", "/b", "/b", "/b"),
        ("/../../b", "/b", "/b", "/b"),
        ("/a/..", "/", "/", "/"),
        ("/a//../b", "/a/b", "/a/b", "/a/b"),
        ("/a/..%2Fb", "/a/..%2Fb", "/a/..%2Fb", "/b"),
        ("/a%2F..%2Fb", "/a%2F..%2Fb", "/a%2F..%2Fb", "/b"),
        ("/a/...", "/a/...", "/a/...", "/a/..."),
        ("/a;x=1/b", "/a;x=1/b", "/a;x=1/b", "/a;x=1/b"),
        ("/a/..;/b", "/a/..;/b", "/a/..;/b", "/a/..;/b"),
        ("/%c0%af/%e0%80%af", "/%c0%af/%e0%80%af", "/%c0%af/%e0%80%af", "/%c0%af/%e0%80%af"),
        ("/ü/%C3%BC", "/ü/%C3%BC", "/ü/%C3%BC", "/ü/%C3%BC"),
        ("/%zz/%4", "/%zz/%4", "/%zz/%4", "/%zz/%4"),
        ("/a#b?c", "/a", "/a", "/a"),
        ("/a?b#c", "/a", "/a", "/a"),
        ("/pkg.Service/Method", "/pkg.Service/Method", "/pkg.Service/Method", "/pkg.Service/Method"),
    ];
    for (path, base, merged, decoded) in cases {
        let expected =
            [base, decoded, merged, base, path.split(['?', '#']).next().unwrap()].map(str::to_owned);
        assert_eq!(MODES.map(|mode| forward(mode, path).unwrap()), expected, "{path}");
    }
}

#[test]
fn a_nul_or_a_relative_path_is_refused_but_for_none() {
    let cases = [
        ("/a%00", BadPath::Nul),
        ("/a%00/../b", BadPath::Nul),
        ("/\0", BadPath::Nul),
        ("a/b", BadPath::NotAbsolute),
        ("http://host/a", BadPath::NotAbsolute),
        (" /a", BadPath::NotAbsolute),
        ("./a", BadPath::NotAbsolute),
        ("**", BadPath::NotAbsolute),
    ];
    for (path, fault) in cases {
        for mode in MODES {
            let expected = if mode == PathNormalization::None { Ok(path.to_owned()) } else { Err(fault) };
            assert_eq!(forward(mode, path), expected, "{path:?} {mode:?}");
        }
        assert_eq!(fault.reason(), Reason::BadRequest);
    }
    for fine in ["/a?b%00", "/a#%00", "/a%2500"] {
        for mode in MODES {
            assert!(forward(mode, fine).is_ok(), "{fine} {mode:?}");
        }
    }
    assert_eq!(forward(PathNormalization::Base, "%2Fa"), Err(BadPath::NotAbsolute));
    assert_eq!(forward(PathNormalization::DecodeAndMergeSlashes, "%2Fa").as_deref(), Ok("/a"));
}

#[test]
fn the_query_goes_along_and_the_fragment_goes() {
    let cases = [
        ("/a/../b?x=/../y", Some("x=/../y"), "/b?x=/../y"),
        ("/a?", Some(""), "/a?"),
        ("/a?b?c#d", Some("b?c"), "/a?b?c"),
        ("/a#b?c", None, "/a"),
        ("?x", Some("x"), "/?x"),
    ];
    for (target, query, expected) in cases {
        let readings = normalize(PathNormalization::Safe, target).unwrap();
        assert_eq!(readings.query(), query, "{target}");
        assert_eq!(readings.target(), expected, "{target}");
    }
    assert_eq!(normalize(PathNormalization::None, "/a/../b?x#y").unwrap().target(), "/a/../b?x");
}

#[test]
fn safe_judges_every_reading_and_forwards_base() {
    let cases: [(&str, &[&str], &[&str]); 15] = [
        ("/a/b", &["/a/b"], &[]),
        ("/a//b", &["/a//b", "/a/b"], &[]),
        ("/a\\b", &["/a/b"], &[]),
        ("/a%2Fb", &["/a%2Fb", "/a/b"], &[]),
        ("/public/..%2Fadmin", &["/public/..%2Fadmin", "/admin"], &[]),
        // A back end that decodes every escape, once or twice.
        ("/a%20b", &["/a%20b"], &["/a b"]),
        ("/a%5cb", &["/a%5cb", "/a/b"], &["/a\\b"]),
        ("/users/%40me", &["/users/%40me"], &["/users/@me"]),
        ("/%2561dmin", &["/%2561dmin"], &["/%61dmin", "/admin"]),
        // A back end for which parameters are no part of the path.
        ("/admin;x=1", &["/admin;x=1"], &["/admin"]),
        ("/x/..;/admin", &["/x/..;/admin"], &["/admin"]),
        ("/a//b%2Fc", &["/a//b%2Fc", "/a/b%2Fc", "/a/b/c"], &["/a//b/c"]),
        // A back end that merges before it resolves.
        ("/a/%2F../b", &["/a/%2F../b", "/a/b"], &["/b"]),
        // A back end for which a backslash is a letter.
        ("/x%5Cy%2F..%2Fb", &["/x%5Cy%2F..%2Fb", "/x/b"], &["/b"]),
        // A back end that decodes what is forwarded, which has fewer segments than what came.
        ("/a%2Fb/../c%2F..%2Fd", &["/c%2F..%2Fd", "/a/d"], &["/d"]),
    ];
    for (path, named, further) in cases {
        let readings = normalize(PathNormalization::Safe, path).unwrap();
        assert_eq!(readings.named().collect::<Vec<_>>(), named, "{path}");
        let beyond: Vec<_> = readings.further().collect();
        for reading in further {
            assert!(beyond.contains(reading), "{path}: {reading} is missing in {beyond:?}");
        }
        assert_eq!(beyond.is_empty(), further.is_empty(), "{path}: {beyond:?}");
        assert_eq!(readings.judged().count(), named.len() + beyond.len());
        assert_eq!(readings.is_single(), named.len() + beyond.len() == 1, "{path}");
    }
    for mode in MODES.into_iter().filter(|mode| *mode != PathNormalization::Safe) {
        assert!(
            normalize(mode, "/a//b%2Fc%40;d").unwrap().is_single(),
            "a chosen mode has one reading: {mode:?}"
        );
    }
}

#[test]
fn a_path_in_its_normal_form_is_not_copied() {
    let paths = ["/", "/a/b", "/a/@b/c", "/.well-known/x", "/a/..b/c", "/ü", "/a?b=c#d", "*", "/a#b?c//%"];
    for path in paths {
        for mode in MODES {
            let readings = normalize(mode, path).unwrap();
            assert!(readings.is_single(), "{path} {mode:?}");
            assert_eq!(readings.forward().as_ptr(), path.as_ptr(), "{path} {mode:?}");
        }
    }
}

#[test]
fn modes_are_written_as_istio_writes_them() {
    for (mode, word) in
        MODES.into_iter().zip(["SAFE", "DECODE_AND_MERGE_SLASHES", "MERGE_SLASHES", "BASE", "NONE"])
    {
        assert_eq!(serde_json::to_value(mode).unwrap(), word);
        assert_eq!(serde_json::from_value::<PathNormalization>(word.into()).unwrap(), mode);
    }
    assert_eq!(PathNormalization::default(), PathNormalization::Safe);
}

/// Paths as attackers put them together.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "/", "//", "\\", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%25", "%", "%2", "%32", "%46",
        "%65", "%2%65", "%252e", "%252f", "a", "b", "E", "2", "5", "F", ";x", "%41", "%c0%ae", "%20", "ü",
        "*",
    ]);
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn normalisation_is_idempotent(path in hostile()) {
        for mode in MODES {
            if let Ok(once) = forward(mode, &path) {
                prop_assert_eq!(forward(mode, &once), Ok(once.clone()), "{:?}", mode);
            }
        }
    }

    #[test]
    fn readings_are_distinct_and_few_and_the_forwarded_form_is_base(path in hostile()) {
        let Ok(readings) = normalize(PathNormalization::Safe, &path) else { return Ok(()) };
        let judged: Vec<&str> = readings.judged().collect();
        let mut distinct = judged.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), judged.len());
        prop_assert!(judged.len() <= 100);
        prop_assert_eq!(Ok(judged[0].to_owned()), forward(PathNormalization::Base, &path));
        for mode in [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes] {
            let form = forward(mode, &path).unwrap();
            prop_assert!(readings.named().any(|named| named == form), "{:?}", mode);
        }
        prop_assert!(readings.named().count() <= 3);
        let scanned = ["%2f", "%5c", "\\", "//"];
        if !scanned.iter().any(|part| path.to_ascii_lowercase().contains(part)) {
            prop_assert_eq!(readings.named().count(), 1);
            prop_assert!(readings.is_single() || path.contains(['%', ';']));
        }
    }

    #[test]
    fn any_text_is_normalised_or_refused(path in any::<String>()) {
        for mode in MODES {
            if let Ok(readings) = normalize(mode, &path) {
                let forward = readings.forward();
                prop_assert!(mode == PathNormalization::None || forward.starts_with('/') || forward == "*");
                prop_assert!(mode == PathNormalization::None || !forward.contains(['\\', '\0']));
                prop_assert!(!forward.contains(['#', '?']));
            }
        }
    }
}
