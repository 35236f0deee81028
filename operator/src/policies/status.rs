//! A verdict as `status`, beside what is there already. Pure.

use super::verdict::Verdict;
use cinch_api::policy_status::{CONDITION_PREFIX, PolicyReport, PolicyStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

/// What is in `status` now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Present {
    /// What is ours of it.
    pub(super) own: PolicyStatus,
    /// Somebody else writes there, as istiod does: conditions are one list in Istio's definitions, which has one
    /// owner.
    pub(super) shared: bool,
}

impl Present {
    /// Reads an object's `status`.
    pub(super) fn read(status: &Value) -> Self {
        let list = |key: &str| status.get(key).and_then(Value::as_array).into_iter().flatten();
        let is_ours = |condition: &&Value| {
            let kind = condition.get("type").and_then(Value::as_str).unwrap_or_default();
            kind.starts_with(CONDITION_PREFIX)
        };
        let own = list("conditions").filter(is_ours);
        let conditions: Vec<Condition> =
            own.filter_map(|condition| serde_json::from_value(condition.clone()).ok()).collect();
        let foreign = list("conditions").any(|condition| !is_ours(&condition));
        let report = status.get("cinch").cloned().and_then(|report| serde_json::from_value(report).ok());
        let observed_generation =
            status.get("observedGeneration").and_then(Value::as_i64).filter(|_| !conditions.is_empty());
        Present {
            own: PolicyStatus { observed_generation, conditions, cinch: report },
            shared: foreign || list("validationMessages").next().is_some(),
        }
    }
}

/// What `status` must be at `now`.
pub(super) fn of(verdict: &Verdict, present: &Present, now: &Time) -> PolicyStatus {
    let conditions = verdict.findings.iter().map(|finding| {
        let status = finding.truth.as_str();
        let known = &present.own.conditions;
        let same = known.iter().find(|known| known.type_ == finding.kind && known.status == status);
        Condition {
            type_: finding.kind.to_owned(),
            status: status.to_owned(),
            reason: finding.reason.to_string(),
            message: finding.message(),
            observed_generation: Some(verdict.generation),
            last_transition_time: same.map_or_else(|| now.clone(), |same| same.last_transition_time.clone()),
        }
    });
    let summary = verdict.summary();
    let report = PolicyReport {
        observed_generation: verdict.generation,
        selected: verdict.selected,
        enforcing: verdict.enforcing,
        reason: summary.map(|finding| finding.reason.to_string()).unwrap_or_default(),
        message: summary.map(|finding| finding.message()).unwrap_or_default(),
    };
    PolicyStatus {
        observed_generation: (!present.shared).then_some(verdict.generation),
        conditions: if present.shared { Vec::new() } else { conditions.collect() },
        cinch: Some(report),
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Finding, Truth};
    use super::*;
    use cinch_api::policy_status::{ACCEPTED, ENFORCED};
    use cinch_reason::Reason;
    use serde_json::json;

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).unwrap())
    }

    fn verdict(enforced: Truth, reason: Reason) -> Verdict {
        let accepted = Finding {
            kind: ACCEPTED,
            truth: Truth::True,
            reason: Reason::PolicyAccepted,
            detail: String::new(),
        };
        let enforced = Finding { kind: ENFORCED, truth: enforced, reason, detail: "1 of 2".to_owned() };
        Verdict { generation: 4, selected: 2, enforcing: 1, findings: vec![accepted, enforced] }
    }

    fn pending() -> Verdict {
        verdict(Truth::False, Reason::EnforcementPending)
    }

    #[test]
    fn a_status_reads_back_as_it_was_written_and_is_then_left_alone() {
        let first = of(&pending(), &Present::default(), &at(10));
        let json = serde_json::to_value(&first).unwrap();
        assert_eq!(json["cinch"]["selected"], 2);
        assert_eq!(json["cinch"]["reason"], "EnforcementPending");
        assert_eq!(json["conditions"][0]["type"], "cinch.dev/Accepted");
        let present = Present::read(&json);
        assert_eq!((&present.own, present.shared), (&first, false));
        assert_eq!(of(&pending(), &present, &at(99)), first, "times stay while nothing changes");
    }

    #[test]
    fn only_the_condition_that_turns_gets_a_new_time() {
        let before = of(&pending(), &Present::default(), &at(10));
        let present = Present { own: before, shared: false };
        let after = of(&verdict(Truth::True, Reason::PolicyEnforced), &present, &at(99));
        let times: Vec<_> = after.conditions.iter().map(|one| one.last_transition_time.clone()).collect();
        assert_eq!(times, [at(10), at(99)]);
    }

    #[test]
    fn where_istio_writes_we_keep_to_our_own_key() {
        let istio = json!({"type": "WaypointAccepted", "status": "True", "lastProbeTime": null});
        for status in [
            json!({"conditions": [istio], "observedGeneration": "3"}),
            json!({"validationMessages": [{"level": "ERROR"}]}),
        ] {
            let present = Present::read(&status);
            assert!(present.shared, "{status}");
            let ours = serde_json::to_value(of(&pending(), &present, &at(10))).unwrap();
            assert_eq!(ours.as_object().unwrap().keys().collect::<Vec<_>>(), ["cinch"], "{status}");
        }
        assert!(!Present::read(&Value::Null).shared);
    }
}
