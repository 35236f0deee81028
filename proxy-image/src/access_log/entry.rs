//! What a line of the access log tells, by the names that Istio's log has for it; and by which policy and rule a
//! connection or request passed or did not, which Istio's log says nowhere.

use super::line::Line;
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Bytes of a path, which stands in the log without its query.
pub const PATH: usize = 1024;
/// Bytes of a host, and of a user agent.
pub const FIELD: usize = 256;
/// Bytes of a method or a request's id.
pub const WORD: usize = 128;

/// Which end of the connection writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The pod that dials.
    Source,
    /// The pod that is dialled.
    Destination,
}

impl Reporter {
    /// Istio's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// Between whom.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// Who tells.
    pub reporter: Reporter,
    /// From where the connection came, as we saw it.
    pub from: SocketAddr,
    /// To where it was dialled.
    pub to: SocketAddr,
    /// Where it went on to, if it did.
    pub upstream: Option<SocketAddr>,
    /// The client's SPIFFE ID, where it is known.
    pub source: Option<&'a str>,
    /// The server's.
    pub destination: Option<&'a str>,
    /// What carries it outside of the pod is encrypted, and both ends have proved who they are.
    pub is_mutual: bool,
}

/// The head of a request. What is not known is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The path without its query, which may hold secrets.
    pub path: &'a [u8],
    /// `HTTP/1.1` and its like.
    pub protocol: &'static str,
    /// `Host` or `:authority`.
    pub authority: &'a [u8],
    /// `User-Agent`.
    pub user_agent: &'a [u8],
    /// `X-Request-Id`.
    pub request_id: &'a [u8],
}

/// What became of it by a decision of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It passed.
    Allowed,
    /// It was refused or cut, for what it is.
    Denied,
    /// It was refused or cut, for what the system is in: no policy speaks of that.
    Failed,
}

/// What mode, policies or the filter said, where they said anything.
#[derive(Debug, Clone, Copy)]
pub struct Ruling<'a> {
    /// What.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// By which policy (`namespace/name`), where one spoke.
    pub policy: Option<&'a Arc<str>>,
    /// By which of its rules, from 0.
    pub rule: Option<u32>,
    /// What was wrong, in words.
    pub detail: &'a str,
}

/// What a line tells.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Between whom.
    pub ends: Ends<'a>,
    /// The request; `None`: the line is about a whole connection.
    pub head: Option<Head<'a>>,
    /// The status of the answer; 0: there was none.
    pub code: u16,
    /// The status of a call of gRPC.
    pub grpc: Option<u8>,
    /// Envoy's word for how it failed; `-`: it did not.
    pub flags: &'static str,
    /// What policies said.
    pub ruling: Option<Ruling<'a>>,
    /// Bytes of the request's body, or from the client.
    pub received: u64,
    /// Bytes of the answer's body, or to the client.
    pub sent: u64,
    /// From the beginning to now.
    pub duration: Duration,
}

impl Entry<'_> {
    /// It is told of a refusal by mode, policy or filter: such lines are never lost.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        self.ruling.is_some_and(|ruling| ruling.decision == Decision::Denied)
    }

    /// Something failed: such lines are not sampled.
    #[must_use]
    pub fn is_error(&self) -> bool {
        // DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and those that are the server's fault.
        let grpc = matches!(self.grpc, Some(2 | 4 | 8 | 12..=15));
        let failed = self.ruling.is_some_and(|ruling| ruling.decision == Decision::Failed);
        failed || self.flags != "-" || self.code >= 500 || grpc || self.head.is_some() && self.code == 0
    }

    /// Appends the line, as of `now`.
    pub(super) fn write(&self, now: SystemTime, out: &mut Vec<u8>) {
        let mut line = Line::begin(out, now.checked_sub(self.duration).unwrap_or(now));
        if let Some(head) = &self.head {
            line.text("method", head.method, WORD);
            line.text("path", head.path, PATH);
            line.word("protocol", head.protocol);
            line.text("authority", head.authority, FIELD);
            line.text("user_agent", head.user_agent, FIELD);
            line.text("request_id", head.request_id, WORD);
        } else {
            line.word("protocol", "TCP");
        }
        line.number("response_code", u64::from(self.code));
        if let Some(grpc) = self.grpc {
            line.number("grpc_status", u64::from(grpc));
        }
        line.word("response_flags", self.flags);
        line.number("bytes_received", self.received);
        line.number("bytes_sent", self.sent);
        line.number("duration", u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX));
        self.ends.write(&mut line);
        if let Some(ruling) = &self.ruling {
            ruling.write(&mut line, self.head.is_some());
        }
        line.end();
    }
}

impl Ends<'_> {
    fn write(&self, line: &mut Line<'_>) {
        line.word("reporter", self.reporter.word());
        line.plain("downstream_remote_address", self.from);
        line.plain("downstream_local_address", self.to);
        if let Some(upstream) = self.upstream {
            line.plain("upstream_host", upstream);
        }
        line.word("source_principal", self.source.unwrap_or_default());
        line.word("destination_principal", self.destination.unwrap_or_default());
        line.word("connection_security_policy", if self.is_mutual { "mutual_tls" } else { "none" });
    }
}

impl Ruling<'_> {
    fn write(&self, line: &mut Line<'_>, is_request: bool) {
        line.word(
            "decision",
            match self.decision {
                Decision::Allowed => "allow",
                Decision::Denied => "deny",
                Decision::Failed => "",
            },
        );
        line.word("reason", self.reason.as_str());
        let policy = self.policy.map(|policy| &**policy).unwrap_or_default();
        line.word("policy", policy);
        if let Some(rule) = self.rule {
            line.number("rule", u64::from(rule));
        }
        line.text("detail", self.detail.as_bytes(), FIELD);
        let by_policy =
            matches!(self.reason, Reason::DeniedByPolicy | Reason::NoAllowMatched | Reason::DeniedByProvider);
        if self.decision == Decision::Denied && by_policy {
            // The words that tools look for in Istio's log.
            let key = if is_request { "response_code_details" } else { "connection_termination_details" };
            line.word(key, &matched(policy, self.rule));
        }
    }
}

/// Envoy's words for a policy that refuses.
fn matched(policy: &str, rule: Option<u32>) -> String {
    let inside = match (policy.split_once('/'), rule) {
        (Some((namespace, name)), Some(rule)) => format!("ns[{namespace}]-policy[{name}]-rule[{rule}]"),
        (Some((namespace, name)), None) => format!("ns[{namespace}]-policy[{name}]"),
        (None, _) => "none".to_owned(),
    };
    format!("rbac_access_denied_matched_policy[{inside}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::UNIX_EPOCH;

    fn ends() -> Ends<'static> {
        Ends {
            reporter: Reporter::Destination,
            from: "10.0.0.9:40000".parse().unwrap(),
            to: "[fd00::1]:8080".parse().unwrap(),
            upstream: None,
            source: Some("spiffe://td/ns/shop/sa/web"),
            destination: None,
            is_mutual: true,
        }
    }

    fn entry(head: Option<Head<'static>>) -> Entry<'static> {
        let duration = Duration::from_millis(1500);
        Entry {
            ends: ends(),
            head,
            code: 0,
            grpc: None,
            flags: "-",
            ruling: None,
            received: 5,
            sent: 7,
            duration,
        }
    }

    fn written(entry: &Entry<'_>) -> Value {
        let mut out = Vec::new();
        entry.write(UNIX_EPOCH + Duration::from_secs(10), &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_denied_request_names_policy_and_rule_in_istios_words_and_ours() {
        let head = Head { method: b"GET", path: b"/a", protocol: "HTTP/1.1", ..Head::default() };
        let policy: Arc<str> = "shop/no".into();
        let ruling = Ruling {
            decision: Decision::Denied,
            reason: Reason::DeniedByPolicy,
            policy: Some(&policy),
            rule: Some(2),
            detail: "",
        };
        let denied = Entry { code: 403, ruling: Some(ruling), ..entry(Some(head)) };
        assert!(denied.is_denial());
        assert_eq!(
            written(&denied),
            json!({
                "start_time": "1970-01-01T00:00:08.500Z", "method": "GET", "path": "/a", "protocol": "HTTP/1.1",
                "response_code": 403, "response_flags": "-", "bytes_received": 5, "bytes_sent": 7, "duration": 1500,
                "reporter": "destination", "downstream_remote_address": "10.0.0.9:40000",
                "downstream_local_address": "[fd00::1]:8080", "source_principal": "spiffe://td/ns/shop/sa/web",
                "connection_security_policy": "mutual_tls", "decision": "deny", "reason": "DeniedByPolicy",
                "policy": "shop/no", "rule": 2,
                "response_code_details": "rbac_access_denied_matched_policy[ns[shop]-policy[no]-rule[2]]",
            })
        );
        let nobodys = Ruling { reason: Reason::NoAllowMatched, policy: None, rule: None, ..ruling };
        let connection = written(&Entry { ruling: Some(nobodys), ..entry(None) });
        assert_eq!(connection["protocol"], "TCP");
        let details = &connection["connection_termination_details"];
        assert_eq!(details, "rbac_access_denied_matched_policy[none]");
    }

    #[test]
    fn an_error_is_what_failed_and_not_what_the_client_got_wrong() {
        let request = entry(Some(Head::default()));
        for (entry, is_error) in [
            (Entry { code: 200, ..request }, false),
            (Entry { code: 404, ..request }, false),
            (Entry { code: 500, ..request }, true),
            (Entry { code: 0, ..request }, true),
            (Entry { code: 200, flags: "UC", ..request }, true),
            (Entry { code: 200, grpc: Some(5), ..request }, false),
            (Entry { code: 200, grpc: Some(14), ..request }, true),
            (entry(None), false),
            (Entry { flags: "UF", ..entry(None) }, true),
        ] {
            assert_eq!(entry.is_error(), is_error, "{entry:?}");
            assert!(!entry.is_denial());
        }
    }
}
