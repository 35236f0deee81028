//! What is printed for what is read.

use super::*;
use crate::documents::parse;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {containers: [{name: web, image: \"web:1\"}]}
";
const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: api, image: \"api:1\", ports: [{containerPort: 8080}], readinessProbe: {httpGet: {port: 8080}}}]}
";
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}]}}";

fn assumed(labels: &str, service_account_exists: bool) -> Assumed<'static> {
    Assumed {
        namespace: "shop",
        labels: super::labels(labels).unwrap(),
        service_account_exists,
        cinch_namespace: "cinch-system",
        image: "r/cinch-proxy:1",
        trust_domain: "cluster.local",
        redirect: Redirect::Agent,
    }
}

fn printed(text: &str, assumed: &Assumed<'_>, output: Output) -> (String, Said) {
    whole(parse(text).unwrap(), assumed, output).unwrap()
}

fn injected(text: &str, assumed: &Assumed<'_>) -> Vec<Value> {
    let (text, said) = printed(text, assumed, Output::Yaml);
    assert!(said.refusals.is_empty(), "{said:?}");
    parse(&text).unwrap()
}

fn names(object: &Value, at: &str) -> Vec<String> {
    let list = object.pointer(&format!("{at}/initContainers")).and_then(Value::as_array);
    let name = |c: &Value| c["name"].as_str().unwrap_or_default().to_owned();
    list.map(|all| all.iter().map(name).collect()).unwrap_or_default()
}

const OURS: [&str; 1] = ["cinch-proxy"];

#[test]
fn where_an_init_container_sets_the_redirect_both_are_put_in() {
    let with_init = Assumed { redirect: Redirect::Init, ..assumed("", false) };
    assert_eq!(names(&injected(POD, &with_init)[0], "/spec"), ["cinch-init", "cinch-proxy"]);
}

#[test]
fn a_pod_gets_the_sidecar_and_a_second_pass_changes_nothing() {
    let first = injected(POD, &assumed("", false));
    assert_eq!(names(&first[0], "/spec"), OURS);
    assert_eq!(first[0]["metadata"]["annotations"]["cinch.dev/injected"], env!("CARGO_PKG_VERSION"));
    let (patch, _) = printed(&first[0].to_string(), &assumed("", false), Output::Patch);
    assert_eq!(patch, "[]\n");
}

#[test]
fn every_kind_of_template_is_injected_where_it_stands_and_nothing_else_is_touched() {
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let kinds = [
        ("apps/v1", "Deployment", "/spec/template", "web"),
        ("apps/v1", "StatefulSet", "/spec/template", "web-statefulset"),
        ("apps/v1", "DaemonSet", "/spec/template", "web-daemonset"),
        ("batch/v1", "Job", "/spec/template", "web-job"),
        ("argoproj.io/v1alpha1", "Rollout", "/spec/template", "web"),
        ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template", "web-cronjob"),
        ("apps/v1", "ReplicaSet", "/spec/template", ""),
        ("v1", "ReplicationController", "/spec/template", ""),
        ("v1", "PodTemplate", "/template", ""),
    ];
    for (version, kind, at, account) in kinds {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}});
        let mut inner = template.clone();
        let names_of_path: Vec<&str> = at.split('/').skip(1).collect();
        for key in names_of_path[1..].iter().rev() {
            inner = json!({*key: inner});
        }
        object[names_of_path[0]] = inner;
        let result = &injected(&object.to_string(), &assumed("", true))[0];
        let pod = result.pointer(at).unwrap();
        assert_eq!(names(pod, "/spec"), OURS, "{kind}");
        assert_eq!(pod["metadata"]["labels"], json!({"a": "b"}), "{kind}");
        assert!(pod["metadata"].get("ownerReferences").is_none(), "{kind}");
        assert_eq!(pod["spec"]["serviceAccountName"].as_str().unwrap_or_default(), account, "{kind}");
        assert!(result["metadata"].get("annotations").is_none(), "{kind}");
    }
}

#[test]
fn an_account_that_is_not_there_refuses_a_pod_and_leaves_a_template_its_own() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: db-0, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, \
               name: db, controller: true}]}, spec: {containers: [{name: c, image: i}]}}";
    let (_, said) = printed(pod, &assumed("", false), Output::Yaml);
    assert!(said.refusals[0].starts_with("Pod/db-0: ServiceAccountPending: "), "{said:?}");
    assert_eq!(injected(pod, &assumed("", true))[0]["spec"]["serviceAccountName"], "db-statefulset");
    let (_, said) = printed(DEPLOYMENT, &assumed("", false), Output::Yaml);
    assert!(said.notes[0].starts_with("Deployment/api: ServiceAccountPending: "), "{said:?}");
    let deployment = &injected(DEPLOYMENT, &assumed("", false))[0];
    assert!(deployment["spec"]["template"]["spec"].get("serviceAccountName").is_none());
}

#[test]
fn documents_and_lists_keep_their_form_and_order() {
    let text = format!("{SERVICE}\n---{POD}---{DEPLOYMENT}");
    let all = injected(&text, &assumed("", true));
    let kinds: Vec<&str> = all.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Service", "Pod", "Deployment"]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": parse(&text).unwrap()});
    let listed = injected(&list.to_string(), &assumed("", true));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["items"], Value::Array(all));
    let (patch, _) = printed(&list.to_string(), &assumed("", true), Output::Patch);
    assert!(patch.contains(r#""path":"/items/1/spec/initContainers""#), "{patch}");
    assert_eq!(patch.lines().count(), 1);
    let (json, _) = printed(&text, &assumed("", true), Output::Json);
    assert_eq!(parse(&json).unwrap(), parse(&printed(&text, &assumed("", true), Output::Yaml).0).unwrap());
}

#[test]
fn the_patch_applied_is_what_is_printed() {
    for text in [POD, DEPLOYMENT] {
        let (patch, _) = printed(text, &assumed("", true), Output::Patch);
        let patch: json_patch::Patch = serde_json::from_str(patch.trim()).unwrap();
        let mut object = parse(text).unwrap().remove(0);
        json_patch::patch(&mut object, &patch).unwrap();
        assert_eq!(object, injected(text, &assumed("", true))[0]);
    }
}

#[test]
fn what_is_not_meshed_is_printed_as_it_came() {
    let cases: &[(&str, &str, &str)] = &[
        ("not enrolled", "cinch.dev/mesh=disabled", POD),
        ("a Service", "", SERVICE),
        (
            "host network",
            "",
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: true, containers: [{name: c, image: i}]}}",
        ),
        (
            "a system namespace",
            "",
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: kube-system}, spec: {containers: [{name: c, image: i}]}}",
        ),
    ];
    for (case, labels, text) in cases {
        assert_eq!(injected(text, &assumed(labels, true)), parse(text).unwrap(), "{case}");
    }
}

#[test]
fn a_pod_that_is_left_out_gets_the_reason_as_the_webhook_writes_it() {
    let labels = "pod-security.kubernetes.io/enforce=restricted";
    let with_init = Assumed { redirect: Redirect::Init, ..assumed(labels, true) };
    let pod = &injected(POD, &with_init)[0];
    assert_eq!(pod["metadata"]["annotations"]["cinch.dev/injected"], "PodSecurityForbidsInit");
    assert!(names(pod, "/spec").is_empty());
    assert_eq!(
        names(&injected(POD, &assumed(labels, true))[0], "/spec"),
        OURS,
        "the node agent needs no leave"
    );
}

#[test]
fn a_reserved_name_is_refused() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: cinch-proxy, image: i}]}}";
    let (_, said) = printed(pod, &assumed("", true), Output::Yaml);
    assert!(said.refusals[0].starts_with("Pod/a: ReservedName: "), "{said:?}");
}

#[test]
fn text_that_yaml_readers_take_for_something_else_stays_text() {
    let words = [
        "on",
        "yes",
        "1e3",
        "0x1F",
        "012",
        "1_000",
        "null",
        "~",
        "",
        "2001-01-01",
        "12:30:45",
        "a: b",
        "- x",
        " x",
        "x\ny\n",
    ];
    let env: Vec<Value> = words.iter().map(|word| json!({"name": "A", "value": word})).collect();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c", "image": "i", "env": env}]}});
    assert_eq!(injected(&pod.to_string(), &assumed("", true))[0]["spec"]["containers"][0]["env"], json!(env));
}
