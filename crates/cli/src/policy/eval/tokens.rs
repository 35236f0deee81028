//! Tokens of a case: the key sets that stand in it, and what the RequestAuthentications of the workload make of
//! the request.

use super::case::{Named, RequestCase};
use super::operation::Case;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cinch_policy::jwt::{HttpView, Jwks, TokenCache, TokenRules, authenticate};
use cinch_policy::{Header, JwtRule, PolicyObject, Readings};
use cinch_reason::Reason;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What tokens are judged by.
pub struct Tokens<'a> {
    rules: TokenRules,
    specs: Vec<(String, &'a JwtRule)>,
    keys: BTreeMap<String, Arc<Jwks>>,
}

/// A request that its tokens don't stop.
pub struct Checked {
    /// The verified payload, where a token came.
    pub claims: Option<Value>,
    /// Claims that are split at spaces.
    pub space_delimited: Vec<String>,
    /// The headers that go on to the workload, and that conditions are judged by.
    pub headers: Vec<Named>,
    /// The path with what is left of its query.
    pub target: String,
}

/// A request that its tokens stop.
pub struct Refusal {
    /// 401 or 403.
    pub status: u16,
    /// The stable word.
    pub reason: Reason,
}

impl<'a> Tokens<'a> {
    /// From the policies that select the case's workload.
    pub fn of(case: &Case, objects: &'a [PolicyObject]) -> Self {
        let mut selected = Vec::new();
        for object in objects {
            if let PolicyObject::RequestAuthentication(object) = object
                && object.applies_to(&case.mesh, &case.workload)
                && let Ok(spec) = object.spec()
            {
                selected.push((object.name().to_string(), spec));
            }
        }
        selected.sort_by(|one, other| one.0.cmp(&other.0));
        let rules = TokenRules::compile(selected.iter().map(|(name, spec)| (name.as_str(), *spec)));
        let keys = keys(case, &rules);
        let of_policy = |(name, spec): &(String, &'a cinch_policy::RequestAuthenticationSpec)| {
            let name = name.clone();
            spec.jwt_rules.iter().map(move |rule| (name.clone(), rule)).collect::<Vec<_>>()
        };
        let specs = selected.iter().flat_map(of_policy).collect();
        Tokens { rules, specs, keys }
    }

    /// What becomes of the request.
    ///
    /// # Errors
    /// When a token stops it.
    pub fn check(
        &self,
        request: &RequestCase,
        readings: &Readings<'_>,
        now: Option<f64>,
    ) -> Result<Checked, Refusal> {
        if let Some(claims) = &request.claims {
            return Ok(self.taken_for_verified(request, claims, readings));
        }
        let headers: Vec<Header<'_>> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let method = request.method.as_deref().unwrap_or("GET");
        let view = HttpView { method, query: readings.query(), headers: &headers };
        let lookup = |name: &str| self.keys.get(name).cloned();
        let cache = TokenCache::default();
        let passed = authenticate(&self.rules, &lookup, &cache, &view, seconds(now))
            .map_err(|refusal| Refusal { status: refusal.status(), reason: refusal.reason() })?;
        let query = passed.forwarding.query(readings.query());
        let kept = request.headers.iter().filter(|(name, _)| passed.forwarding.keeps(name)).cloned();
        let added = passed.forwarding.added().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(Checked {
            headers: kept.chain(added).collect(),
            target: target(readings.forward(), query.as_deref()),
            claims: passed.token.as_ref().map(|token| token.claims().clone()),
            space_delimited: passed.token.map_or_else(Vec::new, |token| token.space_delimited().to_vec()),
        })
    }

    /// A payload that the case vouches for: as if the first rule of its issuer had accepted it.
    fn taken_for_verified(
        &self,
        request: &RequestCase,
        claims: &Map<String, Value>,
        readings: &Readings<'_>,
    ) -> Checked {
        let value = Value::Object(claims.clone());
        let stripped = |name: &str| self.rules.stripped().any(|gone| gone.eq_ignore_ascii_case(name));
        let mut headers: Vec<Named> =
            request.headers.iter().filter(|(name, _)| !stripped(name)).cloned().collect();
        let issuer = claims.get("iss").and_then(Value::as_str);
        let of_issuer = |rule: &&JwtRule| rule.issuer.is_empty() || Some(rule.issuer.as_str()) == issuer;
        if let Some(rule) = self.specs.iter().map(|(_, rule)| *rule).find(of_issuer) {
            headers.extend(outputs(rule, &value));
        }
        Checked {
            space_delimited: self.rules.space_delimited(&value),
            headers,
            target: target(readings.forward(), readings.query()),
            claims: Some(value),
        }
    }
}

/// The key sets that the rules ask for, found by their URI or by their issuer. One that can't be read is like one
/// that could not be fetched.
fn keys(case: &Case, rules: &TokenRules) -> BTreeMap<String, Arc<Jwks>> {
    let read = |document: &Value| {
        let text = document.as_str().map_or_else(|| document.to_string(), str::to_owned);
        Jwks::parse(&text).ok().map(Arc::new)
    };
    let found = rules.fetches().into_iter().filter_map(|fetch| {
        let by_issuer = || case.jwks.get(fetch.issuer.as_deref()?);
        let document = case.jwks.get(&*fetch.name).or_else(by_issuer)?;
        Some((fetch.name.to_string(), read(document)?))
    });
    found.collect()
}

fn outputs(rule: &JwtRule, claims: &Value) -> Vec<Named> {
    let mut headers = Vec::new();
    if !rule.output_payload_to_header.is_empty() {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        headers.push((rule.output_payload_to_header.to_ascii_lowercase(), payload));
    }
    for output in &rule.output_claim_to_headers {
        let nested = || output.claim.split('.').try_fold(claims, |value, part| value.get(part));
        let value = match claims.get(&output.claim).or_else(nested) {
            Some(Value::String(text)) if text.bytes().all(|byte| byte >= b' ' && byte != 0x7f) => {
                text.clone()
            }
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
            Some(Value::Bool(truth)) => truth.to_string(),
            _ => continue,
        };
        headers.push((output.header.to_ascii_lowercase(), value));
    }
    headers
}

fn target(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Seconds since 1970, the clock's where the case says none.
fn seconds(now: Option<f64>) -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // `as` cuts a fraction off and keeps to the bounds, which is what is wanted.
    now.map_or_else(clock, |now| now as u64)
}
