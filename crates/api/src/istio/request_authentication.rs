//! `RequestAuthentication`.

use super::Kind;
use super::schema::{
    ONE_TARGET, at_most, bounded, described, flag, list, open, ruled, selector, target, targets, text, texts,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// Istio's bound of `jwtRules`.
const MOST_RULES: i64 = 4096;
/// Istio's bound of `jwksUri`.
const LONGEST_URI: i64 = 2048;
/// Istio's bound of `spaceDelimitedClaims`.
const MOST_CLAIMS: i64 = 64;
/// Far longer than a duration that anybody writes; CEL wants a bound.
const LONGEST_DURATION: i64 = 32;

const ONE_KEY_SET: (&str, &str) = (
    "(has(self.jwks) ? 1 : 0) + (has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) <= 1",
    "only one of jwks and jwksUri may be set",
);
const ISSUER: (&str, &str) = (
    "has(self.issuer) || has(self.jwksUri) || has(self.jwks_uri)",
    "issuer is missing: write what the tokens have as iss, or give jwksUri",
);
const URI: (&str, &str) = (
    "isURL(self) && url(self).getScheme() in ['http', 'https']",
    "jwksUri is the whole URL of the keys, such as https://issuer.example/keys",
);
const TIMEOUT: (&str, &str) =
    ("duration(self) >= duration('1ms')", "a timeout is a duration of at least 1ms, such as 5s");

pub(super) fn kind() -> Kind {
    Kind {
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        short: "ra",
        columns: &[],
        description: "Which tokens (JWT) requests to the workloads that it selects may carry. To demand one is the part of an AuthorizationPolicy.",
        spec: spec(),
    }
}

fn spec() -> JSONSchemaProps {
    let schema = open([
        ("selector", selector()),
        ("targetRef", target()),
        ("targetRefs", targets()),
        ("jwtRules", at_most(MOST_RULES, list(rule(), "Issuers whose tokens are checked."))),
    ]);
    ruled(schema, &[ONE_TARGET])
}

fn rule() -> JSONSchemaProps {
    let header =
        open([("name", text("Name of the header.")), ("prefix", text("What stands before the token."))]);
    let claim = open([
        ("header", text("Name of the header.")),
        ("claim", text("The claim; `a.b` for a nested one.")),
    ]);
    let timeout = bounded(LONGEST_DURATION, "How long a fetch of keys may take; left out: 5s.");
    let claims = texts("Claims that hold several values with spaces between, besides scope and permission.");
    let schema = open([
        ("issuer", text("The `iss` of the tokens.")),
        ("audiences", texts("The token's `aud` holds one of these.")),
        ("jwks", text("Keys, as a JSON Web Key Set.")),
        ("jwksUri", ruled(bounded(LONGEST_URI, "Where the keys are fetched."), &[URI])),
        ("jwks_uri", ruled(bounded(LONGEST_URI, "The same as jwksUri."), &[URI])),
        ("fromHeaders", list(described(header, "A header."), "Headers in which tokens are looked for.")),
        ("fromParams", texts("Query parameters in which tokens are looked for.")),
        ("fromCookies", texts("Cookies in which tokens are looked for.")),
        ("forwardOriginalToken", flag("Whether the workload gets to see the token.")),
        ("outputPayloadToHeader", text("Header in which the workload gets the payload, base64url.")),
        (
            "outputClaimToHeaders",
            list(described(claim, "A claim and its header."), "Claims that the workload gets in headers."),
        ),
        ("spaceDelimitedClaims", at_most(MOST_CLAIMS, claims)),
        ("timeout", ruled(timeout, &[TIMEOUT])),
    ]);
    described(ruled(schema, &[ONE_KEY_SET, ISSUER]), "An issuer.")
}
