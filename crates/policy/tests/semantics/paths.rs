//! Paths: what of a target is matched, templates, and what each mode lets rules see.

use crate::ask::{allow, field, get, operation, reason, refused_at};
use crate::setup::{decide, mesh, object, workload};
use cinch_policy::{
    MeshConfig, PathNormalization, PolicyObject, Request, WorkloadPolicies, no_providers, normalize,
};
use serde_json::json;

#[test]
fn query_and_fragment_are_no_part_of_the_path() {
    for target in ["/a", "/a?b=/c", "/a#d", "/a?b#d", "/a?"] {
        field("paths", &get(target), &[("/a", true), ("*a", true), ("/a?*", false), ("*d", false)]);
    }
}

#[test]
fn a_template_describes_the_whole_path_segment_by_segment() {
    let cases = [
        ("/a/{*}", "/a/b", true),
        ("/a/{*}", "/a/", false),
        ("/a/{*}", "/a", false),
        ("/a/{*}", "/a/b/", false),
        ("/a/{*}", "/a/b/c", false),
        ("/{*}/b", "/a/b", true),
        ("/{*}/{*}", "/a/b", true),
        ("/a/{**}", "/a/", true),
        ("/a/{**}", "/a", false),
        ("/a/{**}", "/a/b/c/", true),
        ("/store/{**}/cart", "/store/a/b/cart", true),
        ("/store/{**}/cart", "/store/cart", false),
        ("/store/{**}/cart", "/store/a/cart/", false),
        ("/{*}/x/{**}", "/a/x/", true),
        ("/A/{*}", "/a/b", false),
    ];
    for (template, target, expected) in cases {
        field("paths", &get(target), &[(template, expected)]);
    }
}

#[test]
fn what_breaks_the_rules_of_templates_is_refused() {
    for template in ["/a{*}", "/{*}b", "/{**}/{*}", "/{**}/{**}", "/{*}/{id}", "/{*}/*", "*/{*}", "/{*}*"] {
        refused_at(
            &allow(json!([operation("paths", &[template])])),
            "spec.rules[0].to[0].operation.paths[0]: ",
        );
    }
    field("paths", &get("/{id}"), &[("/{id}", true)]);
}

/// Where a match lets requests pass, operators span Istio's characters; where it refuses, any.
#[test]
fn templates_are_never_broader_in_allow_and_never_narrower_in_deny_safer() {
    for odd in ["/a/x=y", "/a/x*y", "/a/x^y", "/a/ü"] {
        for (action, name, expected) in [
            ("ALLOW", "paths", "NoAllowMatched"),
            ("DENY", "paths", "DeniedByPolicy"),
            ("ALLOW", "notPaths", "NoAllowMatched"),
            ("DENY", "notPaths", "DeniedByPolicy"),
        ] {
            for template in ["/a/{*}", "/a/{**}"] {
                let policy = object("p", json!({"action": action, "rules": [operation(name, &[template])]}));
                assert_eq!(reason(&[policy], &get(odd)), expected, "{action} {name} {template} {odd}");
            }
        }
    }
    field("paths", &get("/a/Az09-._~%25!$&'()+,;:@"), &[("/a/{*}", true)]);
}

/// The reason that a mode gives for a target, with one policy.
fn under(mode: PathNormalization, action: &str, value: &str, target: &str) -> &'static str {
    let mesh = MeshConfig { path_normalization: mode, ..mesh() };
    let policy = object("p", json!({"action": action, "rules": [operation("paths", &[value])]}));
    let policies = WorkloadPolicies::compile(&mesh, [&PolicyObject::parse(&policy).unwrap()], &workload());
    let Ok(paths) = normalize(mode, target) else { return "BadRequest" };
    let case = get("/");
    let request = Request {
        connection: crate::setup::connection(&case),
        method: "GET",
        paths: &paths,
        host: None,
        headers: &[],
        token: None,
    };
    policies.request(&request, &no_providers).reason.as_str()
}

#[test]
fn each_mode_lets_deny_see_what_it_resolves() {
    use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None, Safe};
    // Target, and the first mode that sees `/admin` in it; SAFE sees all that any sees.
    let order = [None, Base, MergeSlashes, DecodeAndMergeSlashes];
    let cases = [
        ("/admin", None),
        ("/admin#x", None),
        ("/x/../admin", Base),
        ("/x/%2e%2E/admin", Base),
        ("/x\\..\\admin", Base),
        ("/%61dmin", Base),
        ("/./admin", Base),
        ("//admin", MergeSlashes),
        ("/.//admin", MergeSlashes),
        ("/x%2F..%2fadmin", DecodeAndMergeSlashes),
        ("/x%5C..%5cadmin", DecodeAndMergeSlashes),
        ("%2Fadmin", DecodeAndMergeSlashes),
    ];
    for (target, first) in cases {
        for (place, mode) in order.into_iter().enumerate() {
            let sees = place >= order.iter().position(|mode| *mode == first).unwrap();
            let said = under(mode, "DENY", "/admin", target);
            // A target that begins with an escape is no path but to the mode that decodes it.
            let refused = said == "BadRequest" && target.starts_with('%');
            assert!(
                said == if sees { "DeniedByPolicy" } else { "AllowedByDefault" } || refused,
                "{mode:?} {target} {said}"
            );
        }
        let safe = under(Safe, "DENY", "/admin", target);
        assert!(safe == "DeniedByPolicy" || safe == "BadRequest", "{target}: {safe}");
    }
}

#[test]
fn a_nul_is_a_bad_request_in_every_mode_but_none() {
    use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None, Safe};
    for mode in [Base, MergeSlashes, DecodeAndMergeSlashes, Safe] {
        assert_eq!(under(mode, "ALLOW", "*", "/a%00"), "BadRequest", "{mode:?}");
    }
    assert_eq!(under(None, "ALLOW", "*", "/a%00"), "Allowed");
}

#[test]
fn allow_must_hold_under_every_reading_and_deny_fires_on_any_safer() {
    use PathNormalization::Safe;
    let cases = [
        ("/api/a%2Fb", "/api/*", true),
        ("/api/a%2Fb", "/api/a/b", false),
        ("/api/a%2Fb", "/api/a%2Fb", false),
        ("/api//x", "/api/*", true),
        ("/api//x", "/api//x", false),
        ("/api/..%2Fadmin", "/api/*", false),
        ("/api\\x", "/api/x", true),
        ("/%61pi", "/api", true),
    ];
    for (target, value, allowed) in cases {
        let expected = if allowed { "Allowed" } else { "NoAllowMatched" };
        assert_eq!(under(Safe, "ALLOW", value, target), expected, "{value} on {target}");
    }
    for value in ["/api/a%2Fb", "/api/a/b"] {
        assert_eq!(under(Safe, "DENY", value, "/api/a%2Fb"), "DeniedByPolicy", "{value}");
    }
}

#[test]
fn different_rules_may_allow_the_readings_of_one_request_safer() {
    let policies = crate::setup::compile(&[
        object("a", json!({"rules": [operation("paths", &["/a/b"])]})),
        object("b", json!({"rules": [operation("paths", &["/a%2Fb"])]})),
    ]);
    let decision = decide(&policies, &get("/a%2Fb"));
    assert_eq!((decision.is_allowed(), decision.policy.map(|name| &**name)), (true, Some("shop/a")));
}

#[test]
fn not_paths_follow_by_themselves_safer() {
    let all_but = |action: &str| {
        object("p", json!({"action": action, "rules": [operation("notPaths", &["/public/*"])]}))
    };
    for (target, inside) in [("/public/x", true), ("/public/..%2Fadmin", false), ("//public/x", false)] {
        let denied = if inside { "AllowedByDefault" } else { "DeniedByPolicy" };
        assert_eq!(reason(&[all_but("DENY")], &get(target)), denied, "{target}");
    }
    let but_admin = object("p", json!({"rules": [operation("notPaths", &["/admin"])]}));
    for (target, expected) in
        [("/x", "Allowed"), ("/x%2F..%2Fadmin", "NoAllowMatched"), ("//admin", "NoAllowMatched")]
    {
        assert_eq!(reason(std::slice::from_ref(&but_admin), &get(target)), expected, "{target}");
    }
}
