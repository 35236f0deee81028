//! Which accounts are made and corrected, from objects as the API server shows them.

use super::observed::{Observed, WORKLOAD_KINDS, Workloads};
use super::plan::{Step, plan};
use super::refused;
use super::write::{account, correction};
use crate::index::keyed::{Feed, Table};
use cinch_api::Posture;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

/// A workload of `shop` whose pods ask for `account`.
fn workload(observed: &mut Observed, kind: &str, name: &str, account: Option<&str>, metadata: Value) {
    let kind = WORKLOAD_KINDS.iter().find(|known| known.kind.as_str() == kind).unwrap();
    let template = json!({"template": {"spec": {"serviceAccountName": account}}});
    let spec =
        if kind.kind.as_str() == "CronJob" { json!({"jobTemplate": {"spec": template}}) } else { template };
    let mut object = json!({"apiVersion": "v1", "kind": "X", "metadata": metadata, "spec": spec});
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["name"] = json!(name);
    if object["metadata"]["uid"].is_null() {
        object["metadata"]["uid"] = json!(format!("{name}-uid"));
    }
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    Workloads { kind, observed }.apply(&object);
}

fn deployment(observed: &mut Observed, name: &str) {
    workload(observed, "Deployment", name, None, json!({}));
}

fn put<K: serde::de::DeserializeOwned>(observed: &mut Observed, object: Value)
where
    Observed: Table<K>,
{
    let object: K = serde_json::from_value(object).unwrap();
    Feed::default().event(observed, Event::Apply(object));
}

fn existing(observed: &mut Observed, name: &str, metadata: Value, more: Value) {
    let mut object = json!({"metadata": metadata});
    for (key, value) in more.as_object().unwrap() {
        object[key] = value.clone();
    }
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["name"] = json!(name);
    object["metadata"]["resourceVersion"] = json!("42");
    put::<ServiceAccount>(observed, object);
}

fn ours(owner: &str, uid: &str) -> Value {
    let (kind, name) = owner.split_once('/').unwrap();
    json!({"labels": {"app.kubernetes.io/managed-by": "cinch"}, "annotations": {"cinch.dev/owner": owner},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid}]})
}

/// The steps as text.
fn steps(observed: &Observed) -> Vec<String> {
    let text = |step: &Step| match step {
        Step::Create(wanted) => format!("create {} for {}", wanted.name, wanted.owner),
        Step::Correct(wanted, version) => {
            format!("correct {} at {version} for {}", wanted.name, wanted.owner_uid)
        }
    };
    plan(&["shop".to_owned()], observed).1.iter().map(text).collect()
}

#[test]
fn workloads_that_ask_for_default_get_an_account_of_their_own() {
    let cron = json!({"ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "n", "uid": "n", "controller": true}]});
    type Case = (&'static str, &'static str, Option<&'static str>, Value, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        ("no account named", "Deployment", None, json!({}), vec!["create web for Deployment/web"]),
        ("an empty one", "Deployment", Some(""), json!({}), vec!["create web for Deployment/web"]),
        ("default", "Deployment", Some("default"), json!({}), vec!["create web for Deployment/web"]),
        ("its own", "Deployment", Some("mine"), json!({}), vec![]),
        ("rollout", "Rollout", None, json!({}), vec!["create web for Rollout/web"]),
        ("stateful set", "StatefulSet", None, json!({}), vec!["create web-statefulset for StatefulSet/web"]),
        ("daemon set", "DaemonSet", None, json!({}), vec!["create web-daemonset for DaemonSet/web"]),
        ("job", "Job", None, json!({}), vec!["create web-job for Job/web"]),
        ("cron job", "CronJob", None, json!({}), vec!["create web-cronjob for CronJob/web"]),
        ("cron job with its own", "CronJob", Some("mine"), json!({}), vec![]),
        ("job of a cron job", "Job", None, cron, vec![]),
        ("generated job", "Job", None, json!({"generateName": "web-"}), vec![]),
        ("going", "Deployment", None, json!({"deletionTimestamp": "1970-01-01T00:00:10Z"}), vec![]),
    ];
    for (case, kind, asked, metadata, want) in cases {
        let mut observed = Observed::default();
        workload(&mut observed, kind, "web", asked, metadata);
        assert_eq!(steps(&observed), want, "{case}");
    }
}

#[test]
fn only_accounts_of_ours_are_touched() {
    let right = ours("Deployment/web", "web-uid");
    let cases: Vec<(&str, Value, Vec<&str>)> = vec![
        ("ours and right", right, vec![]),
        ("its owner was made anew", ours("Deployment/web", "former"), vec!["correct web at 42 for web-uid"]),
        ("somebody's", json!({}), vec!["create cinch-web-deployment for Deployment/web"]),
        (
            "somebody's, with our label",
            json!({"labels": {"app.kubernetes.io/managed-by": "cinch"}}),
            vec!["create cinch-web-deployment for Deployment/web"],
        ),
        (
            "of another workload",
            ours("Rollout/web", "web-uid"),
            vec!["create cinch-web-deployment for Deployment/web"],
        ),
    ];
    for (case, metadata, want) in cases {
        let mut observed = Observed::default();
        deployment(&mut observed, "web");
        existing(&mut observed, "web", metadata, json!({}));
        assert_eq!(steps(&observed), want, "{case}");
    }
}

#[test]
fn two_workloads_of_one_name_get_two_accounts() {
    let mut observed = Observed::default();
    workload(&mut observed, "Rollout", "web", None, json!({"uid": "r"}));
    workload(&mut observed, "Deployment", "web", None, json!({"uid": "d"}));
    assert_eq!(
        steps(&observed),
        ["create web for Deployment/web", "create cinch-web-rollout for Rollout/web"]
    );
}

#[test]
fn what_default_has_is_copied_and_what_people_add_stays() {
    let mut observed = Observed::default();
    deployment(&mut observed, "web");
    let secrets = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
    existing(
        &mut observed,
        "default",
        json!({}),
        json!({"automountServiceAccountToken": false, "imagePullSecrets": secrets(&["registry"])}),
    );
    let (_, planned) = plan(&["shop".to_owned()], &observed);
    let [Step::Create(wanted)] = planned.as_slice() else { panic!("{planned:?}") };
    assert_eq!(
        account(wanted),
        json!({
            "metadata": {"name": "web", "namespace": "shop",
                "labels": {"app.kubernetes.io/managed-by": "cinch"},
                "annotations": {"cinch.dev/owner": "Deployment/web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "web-uid"}]},
            "automountServiceAccountToken": false,
            "imagePullSecrets": [{"name": "registry"}],
        })
    );
    existing(
        &mut observed,
        "web",
        ours("Deployment/web", "web-uid"),
        json!({"automountServiceAccountToken": true, "imagePullSecrets": secrets(&["own"])}),
    );
    let (_, planned) = plan(&["shop".to_owned()], &observed);
    let [Step::Correct(wanted, version)] = planned.as_slice() else { panic!("{planned:?}") };
    let patch = correction(wanted, version);
    assert_eq!(patch["imagePullSecrets"], secrets(&["own", "registry"]));
    assert_eq!(patch["automountServiceAccountToken"], true);
    assert_eq!(patch["metadata"]["resourceVersion"], "42");
}

#[test]
fn default_is_kept_where_something_hangs_on_it_or_the_posture_says_so() {
    let subject = json!([{"kind": "ServiceAccount", "name": "default", "namespace": "shop"}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"});
    let binding = |namespace: Option<&str>| json!({"metadata": {"name": "b", "namespace": namespace}, "roleRef": role, "subjects": subject});
    let mut observed = Observed::default();
    deployment(&mut observed, "web");
    let forced = |observed: &Observed| plan(&["shop".to_owned()], observed).0.remove("shop");
    assert_eq!((forced(&observed), steps(&observed).len()), (None, 1));

    // Who may bind elsewhere does not decide on the accounts of this namespace.
    put::<RoleBinding>(&mut observed, binding(Some("other")));
    assert_eq!((forced(&observed), steps(&observed).len()), (None, 1));
    put::<RoleBinding>(&mut observed, binding(Some("shop")));
    assert_eq!(forced(&observed).as_deref(), Some("RoleBinding shop/b names it"));
    assert!(steps(&observed).is_empty());
    let mut lifted = binding(Some("shop"));
    lifted["subjects"] = json!([]);
    put::<RoleBinding>(&mut observed, lifted);
    assert_eq!(steps(&observed).len(), 1);

    put::<ClusterRoleBinding>(&mut observed, binding(None));
    assert_eq!(forced(&observed).as_deref(), Some("ClusterRoleBinding b names it"));
    // A re-list of RoleBindings says nothing about ClusterRoleBindings.
    let mut feed = Feed::default();
    for event in [Event::Init, Event::InitDone] {
        feed.event::<RoleBinding, _>(&mut observed, event);
    }
    assert!(forced(&observed).is_some());
    let mut feed = Feed::default();
    for event in [Event::Init, Event::InitDone] {
        feed.event::<ClusterRoleBinding, _>(&mut observed, event);
    }
    assert!(forced(&observed).is_none());

    existing(
        &mut observed,
        "default",
        json!({"annotations": {"iam.gke.io/gcp-service-account": "x@y"}}),
        json!({}),
    );
    assert!(forced(&observed).is_some());
    existing(&mut observed, "default", json!({}), json!({}));

    put::<Posture>(
        &mut observed,
        json!({"apiVersion": "cinch.dev/v1alpha1", "kind": "Posture",
        "metadata": {"name": "mesh", "namespace": "shop"}, "spec": {"serviceAccounts": "Keep"}}),
    );
    assert_eq!((forced(&observed), steps(&observed).len()), (None, 0));
}

#[test]
fn other_namespaces_and_other_kinds_are_left_alone() {
    let mut observed = Observed::default();
    deployment(&mut observed, "web");
    assert!(plan(&["other".to_owned()], &observed).1.is_empty());
    // A re-list of StatefulSets says nothing about Deployments.
    let kind = WORKLOAD_KINDS.iter().find(|kind| kind.plural == "statefulsets").unwrap();
    let mut feed = Feed::default();
    for event in [Event::Init, Event::InitDone] {
        feed.event(&mut Workloads { kind, observed: &mut observed }, event);
    }
    assert_eq!(steps(&observed).len(), 1);
}

/// What stands against a lock of `shop`, after a workload of this kind was seen.
fn against_a_lock(kind: &str, template: Value, more: Value) -> Vec<(String, String, String)> {
    let known = WORKLOAD_KINDS.iter().find(|known| known.kind.as_str() == kind).unwrap();
    let spec = json!({"template": template});
    let spec = if kind == "CronJob" { json!({"jobTemplate": {"spec": spec}}) } else { spec };
    let metadata = json!({"namespace": "shop", "name": "web", "uid": "web-uid"});
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec});
    for (path, value) in more.as_object().unwrap() {
        object[path.as_str()] = value.clone();
    }
    let mut observed = Observed::default();
    Workloads { kind: known, observed: &mut observed }.apply(&serde_json::from_value(object).unwrap());
    let found = refused::by_namespace(&observed).remove("shop").unwrap_or_default();
    found.into_iter().map(|one| (one.reason.to_string(), one.detail, one.reference)).collect()
}

#[test]
fn workloads_that_a_lock_would_stop_are_known_before_their_pods_come() {
    let app = json!({"name": "app", "image": "app"});
    let pods = |change: &dyn Fn(&mut Value)| {
        let mut template = json!({"metadata": {"labels": {}}, "spec": {"containers": [app]}});
        change(&mut template);
        template
    };
    let opted_out = pods(&|t| t["metadata"]["labels"]["cinch.dev/inject"] = json!("disabled"));
    let privileged = pods(&|t| t["spec"]["containers"][0]["securityContext"] = json!({"privileged": true}));
    let on_host = pods(&|t| {
        t["spec"]["hostNetwork"] = json!(true);
        t["spec"]["hostPID"] = json!(true);
    });
    let fine = pods(&|_| ());
    let said = |reason: &str, detail: &str, reference: &str| {
        (reason.to_owned(), detail.to_owned(), reference.to_owned())
    };
    let none = json!({});
    assert_eq!(against_a_lock("Deployment", fine, none.clone()), []);
    let out = "CronJob/web: OptedOut, label cinch.dev/inject: disabled";
    assert_eq!(
        against_a_lock("CronJob", opted_out.clone(), none.clone()),
        [said("WorkloadNotInjectable", out, "cronjob/web")]
    );
    assert_eq!(
        against_a_lock("StatefulSet", privileged, none.clone()),
        [said("CouldUndoRedirect", "StatefulSet/web: container app, privileged", "statefulset/web")]
    );
    assert_eq!(
        against_a_lock("DaemonSet", on_host, none.clone()),
        [
            said("HostNetworkPods", "DaemonSet/web: hostNetwork: true", "daemonset/web"),
            said("CouldUndoRedirect", "DaemonSet/web: hostPID", "daemonset/web"),
        ]
    );
    let ended = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
    assert_eq!(against_a_lock("Job", opted_out.clone(), none).len(), 1, "one that runs");
    assert_eq!(against_a_lock("Job", opted_out.clone(), ended), [], "its pods do not come again");
    let owner =
        json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "n", "uid": "n", "controller": true}]);
    let of_a_cron_job =
        json!({"metadata": {"namespace": "shop", "name": "web", "uid": "w", "ownerReferences": owner}});
    assert_eq!(against_a_lock("Job", opted_out, of_a_cron_job), [], "told of its owner");
}
