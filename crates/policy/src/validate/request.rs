//! What a RequestAuthentication's shape can't say.

use crate::error::PolicyError;
use crate::object::check_selection;
use crate::request_authentication::{JwtRule, RequestAuthenticationSpec};
use std::time::Duration;

const MAX_JWKS_URI: usize = 2048;
const MAX_SPACE_DELIMITED: usize = 64;

impl JwtRule {
    /// How long a fetch of its keys may take; `None` where it does not say, or not so that it can be read.
    #[must_use]
    pub fn fetch_timeout(&self) -> Option<Duration> {
        duration(self.timeout.as_deref()?)
    }
}

impl RequestAuthenticationSpec {
    /// Every fault with its field.
    pub(crate) fn check(&self) -> Vec<PolicyError> {
        let mut faults = Vec::new();
        check_selection(
            self.selector.as_ref(),
            self.target_ref.as_ref(),
            self.target_refs.as_deref(),
            &mut faults,
        );
        for (index, rule) in self.jwt_rules.iter().enumerate() {
            let path = format!("spec.jwtRules[{index}]");
            check_rule(rule, &path, &mut faults);
            faults
                .extend(crate::jwt::check_rule(rule, &path).into_iter().filter(|fault| !is_of_issuer(fault)));
        }
        faults
    }

    /// Issuers whose keys nobody can discover. Admission refuses them; an object that is there nevertheless can be
    /// used: no token of such an issuer passes.
    pub(crate) fn undiscoverable(&self) -> Vec<PolicyError> {
        let rules = self.jwt_rules.iter().enumerate();
        let faults =
            rules.flat_map(|(index, rule)| crate::jwt::check_rule(rule, &format!("spec.jwtRules[{index}]")));
        faults.filter(is_of_issuer).collect()
    }
}

fn is_of_issuer(fault: &PolicyError) -> bool {
    matches!(fault, PolicyError::Value { field, .. } if field.ends_with(".issuer"))
}

fn check_rule(rule: &JwtRule, path: &str, faults: &mut Vec<PolicyError>) {
    let mut fault = |field: &str, problem: String| {
        faults.push(PolicyError::value(format!("{path}.{field}"), problem));
    };
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        fault("issuer", "is missing; write what `iss` of the tokens is, or give jwksUri".to_owned());
    }
    if !rule.jwks.is_empty() && !rule.jwks_uri.is_empty() {
        fault("jwks", "can not stand together with jwksUri; keep one of them".to_owned());
    }
    if rule.jwks_uri.len() > MAX_JWKS_URI {
        fault("jwksUri", format!("has more than {MAX_JWKS_URI} characters"));
    }
    if rule.space_delimited_claims.len() > MAX_SPACE_DELIMITED {
        let length = rule.space_delimited_claims.len();
        fault(
            "spaceDelimitedClaims",
            format!("has {length} entries; at most {MAX_SPACE_DELIMITED} are possible"),
        );
    }
    let lists = [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
        ("spaceDelimitedClaims", &rule.space_delimited_claims),
    ];
    for (name, list) in lists {
        for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            fault(&format!("{name}[{index}]"), "is an empty string; write a value or remove it".to_owned());
        }
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        if !is_header_name(&header.name) {
            fault(&format!("fromHeaders[{index}].name"), no_header(&header.name));
        }
    }
    if !rule.output_payload_to_header.is_empty() && !is_header_name(&rule.output_payload_to_header) {
        fault("outputPayloadToHeader", no_header(&rule.output_payload_to_header));
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        if !is_header_name(&output.header) {
            fault(&format!("outputClaimToHeaders[{index}].header"), no_header(&output.header));
        }
        if output.claim.is_empty() {
            let problem = "is an empty string; write the claim's name".to_owned();
            fault(&format!("outputClaimToHeaders[{index}].claim"), problem);
        }
    }
    if let Some(timeout) = &rule.timeout
        && !is_duration(timeout)
    {
        fault("timeout", format!("{timeout:?} is no duration of at least 1ms; write for example 5s"));
    }
}

fn no_header(name: &str) -> String {
    format!("{name:?} is no header's name; write letters, digits and dashes")
}

/// A token of RFC 9110.
fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

fn is_duration(text: &str) -> bool {
    duration(text).is_some()
}

/// Numbers with units (`1h`, `1.5s`, `100ms`, `1m30s`), at least a millisecond together.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut milliseconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let number = number.parse::<f64>().ok()?;
        let units = [
            ("ms", 1.0),
            ("s", 1000.0),
            ("m", 60_000.0),
            ("h", 3_600_000.0),
            ("us", 0.001),
            ("ns", 0.000_001),
        ];
        let (unit, factor) = units.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        milliseconds += number * factor;
        rest = after.get(unit.len()..).unwrap_or_default();
    }
    (milliseconds >= 1.0).then(|| Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_at_least_a_millisecond() {
        for good in ["5s", "1ms", "100ms", "1.5s", "1m30s", "1h", "1000us"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["", "5", "s", "0s", "0.5ms", "999us", "-1s", "5 s", "1x"] {
            assert!(!is_duration(bad), "{bad}");
        }
    }
}
