//! What is wrong with a token rule beyond its shape: keys that can't be read, URLs that lead nowhere, headers that
//! can't be given to the app.

use super::jwks::Jwks;
use crate::error::PolicyError;
use crate::request_authentication::JwtRule;

/// Headers that frame messages or choose the app: to take or set them would change what the request is.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Every fault of `rule`, which stands at `path` (`spec.jwtRules[0]`).
pub(crate) fn check_rule(rule: &JwtRule, path: &str) -> Vec<PolicyError> {
    let mut faults = Vec::new();
    let mut fault = |field: String, problem: String| {
        faults.push(PolicyError::value(format!("{path}.{field}"), problem));
    };
    if !rule.jwks.is_empty()
        && let Err(error) = Jwks::parse(&rule.jwks)
    {
        fault("jwks".to_owned(), format!("{error}; write the JSON document with the issuer's public keys"));
    }
    if !rule.jwks_uri.is_empty() {
        if let Some(problem) = url_problem(&rule.jwks_uri) {
            fault("jwksUri".to_owned(), problem);
        }
    } else if rule.jwks.is_empty()
        && !rule.issuer.is_empty()
        && let Some(problem) = url_problem(&rule.issuer)
    {
        let problem = format!(
            "{problem}; an issuer that is no URL needs jwks or jwksUri, since its keys can not be discovered"
        );
        fault("issuer".to_owned(), problem);
    }
    let read = read_headers(rule);
    for (field, header) in outputs(rule) {
        if RESERVED.iter().any(|reserved| header.eq_ignore_ascii_case(reserved)) {
            fault(
                field,
                format!("{header:?} frames the message and can not carry a claim; choose another header"),
            );
        } else if let Some((place, _)) = read.iter().find(|(_, name)| name.eq_ignore_ascii_case(header)) {
            let problem = format!(
                "{header:?} is also read for tokens ({place}), which would never be found there; choose another header"
            );
            fault(field, problem);
        }
    }
    faults
}

/// What is allowed in `rule` and will surprise.
pub(crate) fn rule_warnings(rule: &JwtRule, path: &str) -> Vec<String> {
    let keys = Jwks::parse(&rule.jwks);
    let unusable = keys.iter().flat_map(Jwks::unusable);
    unusable.map(|key| format!("{path}.jwks: keys[{}] is not used: {}", key.index, key.problem)).collect()
}

/// The headers in which tokens are looked for, each with what says so.
fn read_headers(rule: &JwtRule) -> Vec<(String, String)> {
    if rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty() {
        return vec![("the default place".to_owned(), "authorization".to_owned())];
    }
    let listed = rule.from_headers.iter().enumerate();
    listed.map(|(index, from)| (format!("fromHeaders[{index}]"), from.name.clone())).collect()
}

fn outputs(rule: &JwtRule) -> impl Iterator<Item = (String, &str)> {
    let payload = Some(("outputPayloadToHeader".to_owned(), rule.output_payload_to_header.as_str()));
    let single = rule.output_claim_to_headers.iter().enumerate();
    let single = single
        .map(|(index, output)| (format!("outputClaimToHeaders[{index}].header"), output.header.as_str()));
    payload.into_iter().chain(single).filter(|(_, header)| !header.is_empty())
}

/// Why keys can't be fetched there. The whole URL is judged by whoever fetches.
fn url_problem(url: &str) -> Option<String> {
    let rest = ["https://", "http://"].into_iter().find_map(|scheme| url.strip_prefix(scheme));
    let Some(rest) = rest else { return Some(format!("{url:?} is no URL; write https://…")) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Some(format!("{url:?} holds a user or password; leave them out"));
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let odd = |c: char| c.is_whitespace() || c.is_control() || "<>\"{}|\\^`".contains(c);
    (host.is_empty() || url.contains(odd)).then(|| format!("{url:?} names no host; write https://…"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_authentication::{ClaimToHeader, JwtHeader};

    fn faults(change: impl FnOnce(&mut JwtRule)) -> Vec<String> {
        let mut rule = JwtRule { issuer: "https://issuer.example".to_owned(), ..JwtRule::default() };
        change(&mut rule);
        check_rule(&rule, "spec.jwtRules[0]").iter().map(ToString::to_string).collect()
    }

    fn one(change: impl FnOnce(&mut JwtRule)) -> String {
        let faults = faults(change);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.into_iter().next().unwrap()
    }

    #[test]
    fn good_rules_have_no_faults() {
        assert_eq!(faults(|_| {}), [""; 0]);
        assert_eq!(faults(|rule| rule.jwks_uri = "https://issuer.example:8443/keys?x=1".to_owned()), [""; 0]);
        assert_eq!(faults(|rule| rule.jwks_uri = "http://[::1]:80/keys".to_owned()), [""; 0]);
        let with_uri = |rule: &mut JwtRule| {
            rule.issuer = "someone@example.com".to_owned();
            rule.jwks_uri = "https://issuer.example/keys".to_owned();
        };
        assert_eq!(faults(with_uri), [""; 0]);
    }

    #[test]
    fn keys_that_verify_nothing_are_refused_with_the_reason() {
        let told = one(|rule| rule.jwks = "{}".to_owned());
        assert!(told.starts_with("spec.jwtRules[0].jwks: the key set is no JSON object"), "{told}");
        let told = one(|rule| rule.jwks = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#.to_owned());
        assert!(told.contains("keys[0]: it is a shared secret"), "{told}");
    }

    #[test]
    fn urls_that_lead_nowhere_are_refused() {
        for url in [
            "ftp://x/",
            "https://",
            "https:///x",
            "https://:443/",
            "issuer.example",
            "https://a b/",
            "https://u:p@h/",
        ] {
            let told = one(|rule| rule.jwks_uri = url.to_owned());
            assert!(told.starts_with("spec.jwtRules[0].jwksUri: "), "{url}: {told}");
        }
    }

    #[test]
    fn keys_that_are_not_used_are_warned_of() {
        let key = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let rule = JwtRule { jwks: format!(r#"{{"keys":[{key},{{"kty":"oct"}}]}}"#), ..JwtRule::default() };
        let told = rule_warnings(&rule, "spec.jwtRules[0]");
        assert!(told.len() == 1 && told[0].starts_with("spec.jwtRules[0].jwks: keys[1] "), "{told:?}");
        assert!(check_rule(&rule, "spec.jwtRules[0]").is_empty());
    }

    #[test]
    fn an_issuer_without_a_url_needs_keys() {
        let told = one(|rule| rule.issuer = "someone@example.com".to_owned());
        assert!(told.starts_with("spec.jwtRules[0].issuer: "), "{told}");
        assert!(told.contains("jwksUri"), "{told}");
    }

    #[test]
    fn headers_that_frame_messages_or_bring_tokens_carry_no_claims() {
        let told = one(|rule| rule.output_payload_to_header = "Content-Length".to_owned());
        assert!(told.starts_with("spec.jwtRules[0].outputPayloadToHeader: "), "{told}");
        let told = one(|rule| {
            rule.from_headers.push(JwtHeader { name: "X-Jwt".to_owned(), prefix: String::new() });
            rule.output_claim_to_headers
                .push(ClaimToHeader { header: "x-jwt".to_owned(), claim: "sub".to_owned() });
        });
        assert!(told.starts_with("spec.jwtRules[0].outputClaimToHeaders[0].header: "), "{told}");
        assert!(told.contains("fromHeaders[0]"), "{told}");
        let told = one(|rule| rule.output_payload_to_header = "Authorization".to_owned());
        assert!(told.contains("the default place"), "{told}");
    }
}
