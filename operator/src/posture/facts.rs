//! The facts of one namespace at one moment, gathered from index, evidence and sessions.

use super::Parts;
use crate::evidence::{BypassEvidence, Counts, NamespaceEvidence, PodEvidence, SourceEvidence};
use crate::index::{NamespaceInfo, PodInfo, SourceName};
use crate::settings::{PromotionDefault, RedirectMode, Settings};
use cinch_api::names::{PROMOTION_ANNOTATION, RELAX_REASON_ANNOTATION};
use cinch_api::{Posture, PromotionPolicy};
use cinch_control::v1::bypass::Way;
use cinch_promotion as promotion;
use promotion::{
    Departure, Facts, Finding, Memory, Millis, Pod, PodClass, Policy, Report, Slot, Source, Word,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The operator's clock.
pub(super) fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is asked for: the Posture's spec over the installation's defaults. A duration that can't be read (the
/// schema refuses it) counts as not written.
pub(super) fn spec(posture: &Posture, settings: &Settings) -> promotion::Spec {
    let defaults = &settings.promotion;
    let policy = match (posture.spec.promotion, defaults.default) {
        (Some(PromotionPolicy::Automatic), _) | (None, PromotionDefault::Automatic) => Policy::Automatic,
        (Some(PromotionPolicy::Manual), _) | (None, PromotionDefault::Manual) => Policy::Manual,
        (Some(PromotionPolicy::Paused), _) | (None, PromotionDefault::Paused) => Policy::Paused,
    };
    promotion::Spec {
        generation: posture.metadata.generation.unwrap_or_default(),
        word: match posture.spec.promotion {
            None => Word::Unwritten,
            Some(PromotionPolicy::Automatic) => Word::Written(Policy::Automatic),
            Some(PromotionPolicy::Manual) => Word::Written(Policy::Manual),
            Some(PromotionPolicy::Paused) => Word::Written(Policy::Paused),
        },
        has_agents: settings.redirect.mode == RedirectMode::Agent,
        policy,
        quiet: millis(posture.spec.quiet_period().ok().flatten().unwrap_or(defaults.quiet_period)),
        probation: millis(posture.spec.probation().ok().flatten().unwrap_or(defaults.probation)),
        settle: millis(defaults.settle),
        report_interval: millis(settings.proxy.report_interval),
        approve: posture.spec.approve.clone(),
    }
}

/// The namespace's labels and annotations.
pub(super) fn namespace(info: &NamespaceInfo, now: Millis) -> promotion::Namespace {
    let annotation = |key: &str| info.annotations.get(key).map(ToString::to_string);
    promotion::Namespace {
        name: info.name.to_string(),
        injection_required: info.injection_required,
        locked: info.locked,
        // Only the operator can have written it; should it be unreadable, it still stands.
        promotion: annotation(PROMOTION_ANNOTATION).map(|text| read_time(&text).unwrap_or(now)),
        host_network_allowed: info.host_network_allowed,
        relax_reason: annotation(RELAX_REASON_ANNOTATION),
    }
}

fn read_time(text: &str) -> Option<Millis> {
    text.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok())
}

/// What is gathered besides labels and spec.
pub(super) struct Gathered<'a> {
    /// The operator's clock.
    pub now: Millis,
    /// What the step before left.
    pub memory: &'a Memory,
    pub pods: Vec<Arc<PodInfo>>,
    pub findings: Vec<Finding>,
    pub slot: Slot,
    /// UIDs of pods that have gone lately.
    pub gone: Vec<Arc<str>>,
}

/// Everything that a step may look at.
pub(super) fn gather(
    parts: &Parts,
    info: &NamespaceInfo,
    posture: &Posture,
    gathered: Gathered<'_>,
) -> Facts {
    let now = gathered.now;
    let spec = spec(posture, &parts.settings);
    // As far as the decision looks back.
    let cutoff = now.saturating_sub(gathered.memory.period(&spec));
    parts.evidence.forget_bypass(gathered.pods.iter().map(|pod| &*pod.uid), cutoff);
    let evidence: HashMap<&str, PodEvidence> =
        gathered.pods.iter().filter_map(|pod| Some((&*pod.uid, parts.evidence.of(&pod.uid)?))).collect();
    let acknowledged = |uid: &str| {
        let policy = parts.index.workload_policy(uid);
        policy.is_some_and(|policy| policy.locked && parts.sessions.acknowledged(uid) == Some(policy.version))
    };
    let pods = gathered
        .pods
        .iter()
        .map(|pod| Pod {
            uid: pod.uid.to_string(),
            name: pod.name.to_string(),
            class: class(pod),
            by_agent: pod.by_agent,
            node_reachable: pod.node_ready,
            report: evidence.get(&*pod.uid).map(report),
            acknowledged_lock: acknowledged(&pod.uid),
            bypass: evidence.get(&*pod.uid).map(bypass).unwrap_or_default(),
            redirect_gone: evidence.get(&*pod.uid).and_then(redirect_gone),
        })
        .collect();
    let of_namespace = parts.evidence.namespace(&info.name);
    let names: Names<'_> = gathered.pods.iter().map(|pod| (&*pod.uid, &*pod.name)).collect();
    Facts {
        now,
        spec,
        namespace: namespace(info, now),
        departures: departures(parts, &gathered.gone, &of_namespace),
        pods,
        plaintext: plaintext(&of_namespace, &names),
        findings: gathered.findings,
        slot: gathered.slot,
    }
}

/// What a pod means for the evidence.
pub(super) fn class(pod: &PodInfo) -> PodClass {
    if pod.phase.is_terminal() {
        PodClass::Ended
    } else if pod.host_network || pod.mirror || pod.windows {
        PodClass::Unmeshable
    } else if !pod.injected {
        PodClass::NotInjected
    } else if pod.started {
        PodClass::Started
    } else {
        PodClass::NotStarted
    }
}

pub(super) fn report(evidence: &PodEvidence) -> Report {
    let received = evidence.last_report.received_unix_ms;
    Report {
        boot: evidence.boot_id,
        boot_started: received.saturating_sub(evidence.uptime_ms),
        received,
        last_word: evidence.last_report.final_report,
        inbound_proof_age: evidence.inbound_proof_age_ms,
        outbound_proof_age: evidence.outbound_proof_age_ms,
        last_look: evidence.last_look_unix_ms,
        look_was_cut: evidence.look_was_cut,
        agent_proof_age: evidence.agent_proof_age_ms,
    }
}

pub(super) fn redirect_gone(evidence: &PodEvidence) -> Option<promotion::RedirectGone> {
    let last = evidence.last_set_again_unix_ms?;
    Some(promotion::RedirectGone { times: evidence.set_again, last })
}

/// By transport, the newest of each way: no more is shown, or asked for.
pub(super) fn bypass(evidence: &PodEvidence) -> Vec<promotion::Bypass> {
    let newest = |transport, ways: [Way; 2]| {
        let of_way = |way| evidence.bypass.iter().find(|seen| seen.way == way);
        let seen: Vec<&BypassEvidence> = ways.into_iter().filter_map(of_way).collect();
        let last_seen = seen.iter().map(|seen| seen.last_seen_unix_ms).max()?;
        let what = seen.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Some(promotion::Bypass { transport, what, last_seen })
    };
    let tcp = newest(promotion::Transport::Tcp, [Way::Outbound, Way::Inbound]);
    let udp = newest(promotion::Transport::Udp, [Way::UdpPeer, Way::UdpListener]);
    tcp.into_iter().chain(udp).collect()
}

/// The last words of pods that are gone. The store's own list is the older news.
fn departures(parts: &Parts, gone: &[Arc<str>], evidence: &NamespaceEvidence) -> Vec<Departure> {
    let fresh = gone.iter().filter_map(|uid| Some((Arc::clone(uid), parts.evidence.last_report(uid)?)));
    let noted = evidence.vanished.iter().map(|pod| (Arc::clone(&pod.pod_uid), pod.last_report));
    fresh
        .chain(noted)
        .map(|(uid, last)| Departure {
            uid: uid.to_string(),
            through: last.received_unix_ms,
            last_word: last.final_report,
        })
        .collect()
}

/// Names of the pods that there are, by UID.
type Names<'a> = HashMap<&'a str, &'a str>;

fn plaintext(evidence: &NamespaceEvidence, names: &Names<'_>) -> promotion::Plaintext {
    let source = |seen: &SourceEvidence| Source {
        name: source_name(&seen.source),
        port: seen.port,
        counts: counts(&seen.counts),
        open: seen.counts.open,
        last_seen: seen.last_seen_unix_ms,
        last_served: seen.last_served_unix_ms,
        last_denied: seen.last_denied_unix_ms,
        last_denied_by_mode: seen.last_denied_by_mode_unix_ms,
        reported_by: seen.seen_by.as_deref().and_then(|uid| names.get(uid)).map(ToString::to_string),
    };
    promotion::Plaintext {
        totals: counts(&evidence.totals),
        open: evidence.totals.open,
        last_served: evidence.last_served_unix_ms,
        sources: evidence.sources.iter().map(source).collect(),
    }
}

fn counts(counts: &Counts) -> promotion::Counts {
    promotion::Counts {
        served: counts.served,
        denied: counts.denied,
        no_listener: counts.no_listener,
        empty: counts.empty,
    }
}

fn source_name(source: &SourceName) -> promotion::SourceName {
    match source {
        SourceName::Workload { name, created_unix_ms } => promotion::SourceName::Workload {
            namespace: name.namespace.to_string(),
            kind: name.kind.to_string(),
            name: name.name.to_string(),
            created: *created_unix_ms,
        },
        SourceName::Node(name) => promotion::SourceName::Node(name.to_string()),
        SourceName::External(address) => promotion::SourceName::External(address.to_string()),
    }
}
