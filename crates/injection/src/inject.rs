//! The whole decision: leave the pod alone, refuse it, or write the sidecar into it.

use crate::account::{Assignment, assignment};
use crate::compare::{positions, same_container};
use crate::eligible::{Because, is_mirror, look_alike, reason_to_skip, reserved_name};
use crate::facts::{Facts, Redirect};
use crate::operation::{Op, escape};
use crate::pod::{List, Malformed, Pod, map};
use crate::probe::{self, Whose};
use crate::sidecar::{
    INIT_CONTAINER, INJECTED_ANNOTATION, PROXY_CONTAINER, init_container, proxy_container, resources, volumes,
};
use cinch_reason::Reason;
use serde_json::{Value, json};

/// What is to be done with a pod at its creation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The pod gets (or has) the sidecar.
    Inject {
        /// Operations that make it so; empty when it is so already.
        operations: Vec<Op>,
        /// Sentences for the person who applies.
        warnings: Vec<String>,
    },
    /// The pod stays without the sidecar.
    Skip {
        /// Why.
        reason: Reason,
        /// What was seen.
        detail: String,
        /// Writes the reason into the pod's annotation; empty when it stands there already.
        operations: Vec<Op>,
    },
    /// The pod must not be created as it is (or not yet).
    Refuse {
        /// Why.
        reason: Reason,
        /// What was seen.
        detail: String,
    },
}

/// Decides on a pod at its creation. The result applied to the pod and decided on again, also after the API
/// server has filled in its defaults, gives no further operation.
#[must_use]
pub fn inject(pod: &Value, facts: &Facts<'_>) -> Outcome {
    let pod = match Pod::of(pod) {
        Ok(pod) => pod,
        Err(malformed) => return refuse((Reason::MalformedReview, malformed.to_string())),
    };
    if is_mirror(&pod) {
        let because = (Reason::StaticPod, "a mirror of a static pod".to_owned());
        return leave(&pod, because, Vec::new());
    }
    if let Some(because) = reason_to_skip(&pod, facts) {
        return skip(&pod, because);
    }
    let planned = match probe::plan(&pod) {
        Ok(planned) => planned,
        Err(because) => return skip(&pod, because),
    };
    if let Some(because) = reserved_name(&pod) {
        return refuse(because);
    }
    write(&pod, facts, planned).unwrap_or_else(refuse)
}

fn refuse((reason, detail): Because) -> Outcome {
    Outcome::Refuse { reason, detail }
}

fn skip(pod: &Pod<'_>, because: Because) -> Outcome {
    match annotate(pod, because.0.as_str()) {
        Ok(operations) => leave(pod, because, operations),
        Err(malformed) => refuse((Reason::MalformedReview, malformed.to_string())),
    }
}

/// Leaves the pod as it is, unless a container in it has a name of ours: nobody would overwrite it there, and it would
/// be taken for the sidecar.
fn leave(pod: &Pod<'_>, (reason, detail): Because, operations: Vec<Op>) -> Outcome {
    match look_alike(pod) {
        Some(name) => {
            refuse((Reason::ReservedName, format!("container {name}; left alone for {reason}: {detail}")))
        }
        None => Outcome::Skip { reason, detail, operations },
    }
}

fn write(pod: &Pod<'_>, facts: &Facts<'_>, planned: Vec<probe::Planned>) -> Result<Outcome, Because> {
    let malformed = |error: Malformed| (Reason::MalformedReview, error.to_string());
    let mut warnings = Vec::new();
    let mut operations = annotate(pod, &facts.sidecar.version).map_err(malformed)?;

    let account = match assignment(pod, facts) {
        Assignment::Keep(account, warning) => {
            warnings.extend(warning);
            account.to_owned()
        }
        Assignment::Assign(account) => {
            // The old name of the field is kept in step by the API server's conversion, but not in a patch.
            for field in ["/spec/serviceAccountName", "/spec/serviceAccount"] {
                operations.push(Op::add(field, account.clone()));
            }
            account
        }
        Assignment::Pending(what) => return Err((Reason::ServiceAccountPending, what)),
    };
    if !facts.trust_bundle_present {
        let what = format!("ConfigMap cinch-trust in namespace {}", facts.namespace);
        if !facts.dry_run {
            return Err((Reason::ServiceAccountPending, what));
        }
        warnings.push(Reason::ServiceAccountPending.message_with(&what));
    }

    let whose = Whose { namespace: facts.namespace, account: &account };
    let probes = probe::rewrite(planned, pod, &whose, facts.probe_key)?;
    // Before containers are put in front: the pointers count from the pod as it came.
    operations.extend(probes.operations);
    operations.extend(containers(pod, facts, &probes.originals));
    operations.extend(volume_operations(pod, facts.sidecar.redirect));
    Ok(Outcome::Inject { operations, warnings })
}

fn annotate(pod: &Pod<'_>, value: &str) -> Result<Vec<Op>, Malformed> {
    if pod.annotation(INJECTED_ANNOTATION) == Some(value) {
        return Ok(Vec::new());
    }
    Ok(vec![match map(pod.raw, "/metadata/annotations")? {
        Some(_) => Op::add(format!("/metadata/annotations/{}", escape(INJECTED_ANNOTATION)), value),
        None => Op::add("/metadata/annotations", json!({INJECTED_ANNOTATION: value})),
    }])
}

/// Our containers, first and in order. Those that stand in their places are overwritten there if they
/// differ; in any other arrangement all that bear our names go and ours are put in front.
fn containers(pod: &Pod<'_>, facts: &Facts<'_>, probes: &str) -> Vec<Op> {
    let resources = resources(pod, &facts.sidecar.resources);
    let proxy = (PROXY_CONTAINER, proxy_container(facts.sidecar, &resources, probes));
    let wanted = match facts.sidecar.redirect {
        Redirect::Init => vec![(INIT_CONTAINER, init_container(facts.sidecar, &resources)), proxy],
        Redirect::Agent => vec![proxy],
    };
    let list = List::InitContainers.path();
    if pod.init_containers.is_empty() {
        let wanted: Vec<Value> = wanted.into_iter().map(|(_, container)| container).collect();
        return vec![Op::add(list, json!(wanted))];
    }
    let ours = positions(pod.init_containers.iter().map(|container| container.name));
    let in_place = |(index, (name, _)): (usize, &(&str, Value))| {
        pod.init_containers.get(index).is_some_and(|have| have.name == *name)
    };
    if ours.len() == wanted.len() && wanted.iter().enumerate().all(in_place) {
        let pairs = wanted.into_iter().map(|(_, want)| want).zip(&pod.init_containers);
        return pairs
            .filter(|(want, have)| !same_container(want, have.raw, &facts.sidecar.allowed_images))
            .map(|(want, have)| Op::replace(have.path(), want))
            .collect();
    }
    let removals = ours.iter().rev().map(|index| Op::remove(format!("{list}/{index}")));
    let front = format!("{list}/0");
    let additions = wanted.into_iter().rev().map(|(_, container)| Op::add(front.clone(), container));
    removals.chain(additions).collect()
}

/// Our volumes; those of the name are overwritten in place. No container of the user mounts them: such a
/// pod was refused before.
fn volume_operations(pod: &Pod<'_>, redirect: Redirect) -> Vec<Op> {
    let wanted = volumes(redirect);
    if pod.volumes.is_empty() {
        let wanted: Vec<Value> = wanted.into_iter().map(|(_, volume)| volume).collect();
        return vec![Op::add("/spec/volumes", json!(wanted))];
    }
    let mut operations = Vec::new();
    for (name, want) in wanted {
        let named = |volume: &Value| volume.get("name").and_then(Value::as_str) == Some(name);
        match pod.volumes.iter().position(named) {
            Some(index) if pod.volumes.get(index) == Some(&want) => {}
            Some(index) => operations.push(Op::replace(format!("/spec/volumes/{index}"), want)),
            None => operations.push(Op::add("/spec/volumes/-", want)),
        }
    }
    operations
}
