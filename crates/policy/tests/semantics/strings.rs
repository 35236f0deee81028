//! How strings are compared, in every field that compares strings.

use crate::ask::{accepted, allow, but, each, field, get, key, matches, when, with_headers};
use serde_json::json;

#[test]
fn strings_are_exact_or_prefix_or_suffix_or_present() {
    let cases = [
        ("/api/v1", true),
        ("/api/v", false),
        ("/api/v11", false),
        ("/api/*", true),
        ("/api/v1*", true),
        ("/api/v2*", false),
        ("*/v1", true),
        ("*/v2", false),
        ("*", true),
    ];
    field("paths", &get("/api/v1"), &cases);
    field("methods", &get("/"), &[("GET", true), ("G*", true), ("*T", true), ("*", true), ("GE", false)]);
    key("connection.sni", &but(|case, _| case.sni = Some(String::new())), &[("*", false), ("x*", false)]);
}

#[test]
fn a_leading_star_is_looked_at_first() {
    field("paths", &get("/a/x*"), &[("*x*", true), ("*/x*", true)]);
    field("paths", &get("/a/xb"), &[("*x*", false), ("**", false)]);
}

#[test]
fn a_star_in_the_middle_is_a_letter_and_is_warned_of() {
    field("paths", &get("/a*c"), &[("/a*c", true)]);
    field("paths", &get("/abc"), &[("/a*c", false)]);
    for value in ["/a*c", "*a*"] {
        let warnings = accepted(&allow(json!([crate::ask::operation("paths", &[value])])));
        assert!(
            warnings.iter().any(|warning| warning.contains("a * counts only at")),
            "{value}: {warnings:?}"
        );
    }
}

#[test]
fn nothing_is_escaped() {
    field("paths", &get("/a.c"), &[("/a.c", true), ("/a\\.c", false), ("/a?c", false), ("/a[.]c", false)]);
    field("paths", &get("/abc"), &[("/a.c", false), ("/a%62c", false)]);
}

#[test]
fn case_counts_but_for_hosts() {
    field("methods", &get("/"), &[("get", false), ("GET", true)]);
    field("paths", &get("/API"), &[("/api", false), ("/API", true), ("/api*", false)]);
    field("namespaces", &get("/"), &[("SHOP", false)]);
    field("principals", &get("/"), &[("mesh.example/ns/shop/sa/WEB", false)]);
    field("serviceAccounts", &get("/"), &[("Web", false)]);
    let case = but(|case, http| {
        case.sni = Some("Shop.Example".into());
        http.host = Some("Shop.EXAMPLE".into());
    });
    field("hosts", &case, &[("sHOP.example", true), ("SHOP.*", true), ("*.Example", true)]);
    key("connection.sni", &case, &[("shop.example", false), ("Shop.Example", true)]);
}

#[test]
fn header_names_ignore_case_and_values_do_not() {
    let case = with_headers(&[("X-Mark", "Gold")]);
    for name in ["x-mark", "X-MARK", "X-Mark"] {
        key(&format!("request.headers[{name}]"), &case, &[("Gold", true), ("gold", false), ("G*", true)]);
    }
}

#[test]
fn a_star_for_a_header_means_present_even_if_empty() {
    key(
        "request.headers[x-mark]",
        &with_headers(&[("x-mark", "")]),
        &[("*", true), ("a*", false), ("a", false)],
    );
}

#[test]
fn a_missing_header_fails_values_and_satisfies_not_values() {
    let case = with_headers(&[("other", "a")]);
    key("request.headers[x-mark]", &case, &[("*", false), ("a", false), ("a*", false)]);
    let neither = json!({"when": [{"key": "request.headers[x-mark]", "values": ["a"], "notValues": ["b"]}]});
    assert!(!matches(&neither, &case));
}

#[test]
fn repeated_headers_are_joined_with_commas_first() {
    let case = with_headers(&[("X-Mark", "a"), ("other", "z"), ("x-mark", "b"), ("x-MARK", "c")]);
    each(
        |values| when("request.headers[x-mark]", values),
        &case,
        &[
            ("a,b,c", true),
            ("a", false),
            ("b", false),
            ("a,*", true),
            ("*,c", true),
            ("a, b, c", false),
            ("*", true),
        ],
    );
}
