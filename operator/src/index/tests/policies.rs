//! Istio's policies in the index, on events as a watch brings them.

use super::*;
use crate::index::policies::{Asker, OfKind, PolicyInfo, PolicyKey, PolicyKind};
use kube::api::DynamicObject;
use std::collections::BTreeSet;
use std::sync::Arc;

use PolicyKind::{
    AuthorizationPolicy as Authorization, PeerAuthentication as Peer, RequestAuthentication as Tokens,
};

/// An object of `shop`, created at second 100.
pub(super) fn object(kind: PolicyKind, name: &str, spec: Value) -> DynamicObject {
    in_namespace("shop", kind, name, spec)
}

fn in_namespace(namespace: &str, kind: PolicyKind, name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1", "kind": kind.as_str(),
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "generation": 1,
            "creationTimestamp": "1970-01-01T00:01:40Z"},
        "spec": spec,
    }))
    .unwrap()
}

pub(super) fn put(state: &mut State, kind: PolicyKind, object: DynamicObject) -> bool {
    Feed::default().event(&mut OfKind { state, kind }, Event::Apply(object))
}

fn take(state: &mut State, kind: PolicyKind, object: DynamicObject) -> bool {
    Feed::default().event(&mut OfKind { state, kind }, Event::Delete(object))
}

/// `web` and `api` in `shop`, `other` in `old`.
fn three_pods() -> State {
    let other = pod("other").namespace("old").ip("10.1.0.7");
    cluster(
        vec![pod("web").ip("10.1.0.5").build(), pod("api").ip("10.1.0.6").build(), other.build()],
        vec![],
        vec![],
    )
}

fn strict() -> Value {
    json!({"mtls": {"mode": "STRICT"}})
}

fn of_app(app: &str, mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": app}});
    spec
}

/// The modes of ports 80 and 8080 of a pod, as its proxy is told; whoever dials it must be told the same.
fn modes(state: &State, name: &str, ip: &str) -> (v1::Mode, v1::Mode) {
    let policy = state.workload_policy(&format!("{name}-uid")).unwrap();
    let told = |port: u16| {
        let of_port = policy.ports.iter().find(|of_port| of_port.port == u32::from(port));
        let mode = of_port.map_or(policy.mode, |of_port| of_port.mode);
        let record = state.record(ASKER, at(&format!("{ip}:{port}")));
        assert_eq!(record.endpoints[0].mode, mode, "both ends of port {port} are told the same");
        v1::Mode::try_from(mode).unwrap()
    };
    (told(80), told(8080))
}

fn names(state: &State, pod: &str) -> Vec<String> {
    state.workload_policy(&format!("{pod}-uid")).unwrap().policies.iter().map(|p| p.name.clone()).collect()
}

fn version(state: &State, pod: &str) -> u64 {
    state.workload_policy(&format!("{pod}-uid")).unwrap().version
}

fn key(kind: PolicyKind, namespace: &str, name: &str) -> PolicyKey {
    PolicyKey { kind, namespace: namespace.into(), name: name.into() }
}

fn selected(state: &State, key: &PolicyKey) -> Vec<String> {
    state.selected_by(key).iter().map(|pod| pod.name.to_string()).collect()
}

fn info(state: &State, key: &PolicyKey) -> Arc<PolicyInfo> {
    state.policy_infos().into_iter().find(|info| info.key == *key).unwrap()
}

#[test]
fn modes_compose_by_port_workload_namespace_and_mesh_for_both_ends_alike() {
    use v1::Mode::{Disable, Permissive, Strict};
    let mut state = three_pods();
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Permissive, Permissive));
    put(&mut state, Peer, in_namespace("cinch-system", Peer, "mesh", strict()));
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Strict, Strict));
    assert_eq!(modes(&state, "other", "10.1.0.7"), (Strict, Strict));
    put(&mut state, Peer, object(Peer, "namespace", json!({"mtls": {"mode": "PERMISSIVE"}})));
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Permissive, Permissive));
    assert_eq!(modes(&state, "other", "10.1.0.7"), (Strict, Strict));
    let ports = json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}});
    put(&mut state, Peer, object(Peer, "web", of_app("web", ports)));
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Strict, Disable));
    assert_eq!(modes(&state, "api", "10.1.0.6"), (Permissive, Permissive));
    // A selector in the root namespace selects nothing, as in Istio.
    let root = in_namespace("cinch-system", Peer, "api", of_app("api", json!({"mtls": {"mode": "DISABLE"}})));
    put(&mut state, Peer, root);
    assert_eq!(modes(&state, "api", "10.1.0.6"), (Permissive, Permissive));
    assert!(selected(&state, &key(Peer, "cinch-system", "api")).is_empty());
}

#[test]
fn the_lock_lifts_every_port_and_its_end_gives_back_what_the_objects_say() {
    use v1::Mode::{Disable, Strict};
    let mut state = three_pods();
    let ports = json!({"portLevelMtls": {"8080": {"mode": "DISABLE"}}, "mtls": {"mode": "DISABLE"}});
    put(&mut state, Peer, object(Peer, "web", of_app("web", ports)));
    let open = version(&state, "web");
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Disable, Disable));
    apply(&mut state, namespace("shop", json!({"cinch.dev/mesh": "enabled", "cinch.dev/mode": "STRICT"})));
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Strict, Strict));
    assert!(state.workload_policy("web-uid").unwrap().locked);
    apply(&mut state, namespace("shop", json!({"cinch.dev/mesh": "enabled"})));
    assert_eq!(modes(&state, "web", "10.1.0.5"), (Disable, Disable));
    assert_eq!(version(&state, "web"), open, "the version follows from the content alone");
}

#[test]
fn policies_select_by_the_live_labels_of_pods() {
    let mut state = three_pods();
    put(&mut state, Authorization, object(Authorization, "web", of_app("web", json!({"rules": [{}]}))));
    put(&mut state, Authorization, object(Authorization, "all", json!({"rules": [{}]})));
    let mesh = in_namespace("cinch-system", Authorization, "api", of_app("api", json!({"rules": [{}]})));
    put(&mut state, Authorization, mesh);
    assert_eq!(names(&state, "web"), ["shop/all", "shop/web"]);
    assert_eq!(names(&state, "api"), ["cinch-system/api", "shop/all"]);
    assert!(names(&state, "other").is_empty());
    // A label is edited on the running pods.
    apply(&mut state, pod("web").ip("10.1.0.5").label("app", "api").build());
    apply(&mut state, pod("other").namespace("old").ip("10.1.0.7").label("app", "api").build());
    assert_eq!(names(&state, "web"), ["cinch-system/api", "shop/all"]);
    assert_eq!(names(&state, "other"), ["cinch-system/api"], "of another namespace, by the root's");
    assert_eq!(selected(&state, &key(Authorization, "cinch-system", "api")), ["other", "api", "web"]);
    assert!(selected(&state, &key(Authorization, "shop", "web")).is_empty());
    let of_web = state.policies_of("web-uid");
    let of_web: Vec<String> = of_web.iter().map(|info| info.key.object()).collect();
    assert_eq!(of_web, ["cinch-system/api", "shop/all"]);
    // Neither a pod without sidecar nor one that has ended counts.
    apply(&mut state, pod("api").ip("10.1.0.6").phase("Succeeded").build());
    apply(&mut state, pod("bare").ip("10.1.0.9").label("app", "api").unmeshed().build());
    assert_eq!(selected(&state, &key(Authorization, "cinch-system", "api")), ["other", "web"]);
}

#[test]
fn a_policy_for_gateways_selects_no_pod() {
    let mut state = three_pods();
    let targets =
        json!({"targetRefs": [{"kind": "Gateway", "name": "x", "group": "gateway.networking.k8s.io"}]});
    put(&mut state, Authorization, object(Authorization, "gate", targets));
    assert!(names(&state, "web").is_empty());
    assert!(selected(&state, &key(Authorization, "shop", "gate")).is_empty());
}

#[test]
fn a_broken_policy_closes_what_it_selects_until_it_is_deleted() {
    let mut state = three_pods();
    let open = version(&state, "web");
    let unknown_field = of_app("web", json!({"action": "ALLOW", "rules": [{"form": []}]}));
    let broken = object(Authorization, "broken", unknown_field);
    assert!(put(&mut state, Authorization, broken.clone()));
    let sent = state.workload_policy("web-uid").unwrap().policies[0].clone();
    assert!(sent.fault.contains("form") && sent.body.is_empty(), "{sent:?}");
    assert_eq!((sent.action.as_str(), sent.dry_run), ("ALLOW", false));
    assert!(names(&state, "api").is_empty(), "it closes only what it selects");
    let known = info(&state, &key(Authorization, "shop", "broken"));
    assert!(known.fault.as_ref().is_some_and(|fault| fault.contains("form")), "{known:?}");
    assert!(state.policies_of("web-uid")[0].fault.is_some());
    assert!(take(&mut state, Authorization, broken));
    assert!(names(&state, "web").is_empty());
    assert_eq!(version(&state, "web"), open, "and opens again");
}

#[test]
fn an_unreadable_selector_selects_the_whole_namespace_and_in_the_root_all() {
    for selector in [
        json!("app"),
        json!({"matchLabels": {"app": 7}}),
        json!({"matchLabel": {"app": "web"}}),
        json!({"matchLabels": ["app"]}),
    ] {
        let mut state = three_pods();
        let spec = json!({"selector": selector, "rules": [{}]});
        put(&mut state, Authorization, object(Authorization, "p", spec.clone()));
        assert_eq!((names(&state, "web").len(), names(&state, "other").len()), (1, 0), "{selector}");
        assert!(!state.workload_policy("web-uid").unwrap().policies[0].fault.is_empty(), "{selector}");
        put(&mut state, Authorization, in_namespace("cinch-system", Authorization, "p", spec));
        assert_eq!((names(&state, "web").len(), names(&state, "other").len()), (2, 1), "{selector}");
        // Of a PeerAuthentication it closes the namespace, whatever an older one says.
        let mut older = object(Peer, "older", json!({"mtls": {"mode": "PERMISSIVE"}}));
        older.metadata.creation_timestamp = None;
        put(&mut state, Peer, older);
        assert_eq!(modes(&state, "web", "10.1.0.5").0, v1::Mode::Permissive);
        let unreadable = json!({"selector": selector, "mtls": {"mode": "PERMISSIVE"}});
        put(&mut state, Peer, object(Peer, "unreadable", unreadable));
        assert_eq!(modes(&state, "web", "10.1.0.5").0, v1::Mode::Strict, "{selector}");
        assert_eq!(modes(&state, "other", "10.1.0.7").0, v1::Mode::Permissive, "{selector}");
    }
}

#[test]
fn a_broken_peer_authentication_is_strict() {
    let mut state = three_pods();
    let broken = object(Peer, "p", of_app("web", json!({"mtls": {"mode": "LOOSE"}})));
    put(&mut state, Peer, broken.clone());
    assert_eq!(modes(&state, "web", "10.1.0.5").0, v1::Mode::Strict);
    assert_eq!(modes(&state, "api", "10.1.0.6").0, v1::Mode::Permissive);
    assert!(info(&state, &key(Peer, "shop", "p")).fault.is_some());
    take(&mut state, Peer, broken);
    assert_eq!(modes(&state, "web", "10.1.0.5").0, v1::Mode::Permissive);
}

#[test]
fn while_a_kind_is_not_known_nothing_is_promised() {
    let mut state = State::new(settings());
    list::<Namespace>(&mut state, vec![namespace("shop", json!({}))]);
    list::<Pod>(&mut state, vec![pod("web").ip("10.1.0.5").build()]);
    assert!(state.workload_policy("web-uid").is_none() && !state.policies.served());
    state.policies.not_served(Tokens);
    state.policies.not_served(Authorization);
    assert!(!state.policies.synced() && state.pins().is_none());
    // The API server refuses to show the third.
    assert!(state.policies.forbidden(Peer));
    assert!(!state.policies.synced() && state.workload_policy("web-uid").is_none());
    assert!(state.policies.not_served(Peer));
    assert!(state.policies.synced() && !state.policies.served());
    assert!(state.workload_policy("web-uid").is_some());
    assert_eq!(state.pins().map(|pins| pins.len()), Some(0), "no definition, no pins");
}

#[test]
fn kinds_may_appear_later_go_again_and_be_hidden() {
    let mut state = three_pods();
    let pinning = object(Peer, "pins", json!({"mtls": {"mode": "PERMISSIVE"}}));
    let mut feed = Feed::default();
    for event in [Event::Init, Event::InitApply(pinning), Event::InitDone] {
        feed.event(&mut OfKind { state: &mut state, kind: Peer }, event);
    }
    assert!(state.policies.served() && state.synced());
    let pins =
        |state: &State| state.pins().map(|pins| pins.iter().map(PolicyKey::object).collect::<Vec<_>>());
    assert_eq!(pins(&state), Some(vec!["shop/pins".to_owned()]));
    // What is known stays in force, but nobody may conclude from it that there is no more.
    assert!(state.policies.forbidden(Peer) && !state.policies.forbidden(Peer));
    assert_eq!((pins(&state), state.policy_infos().len()), (None, 1));
    for event in [Event::Init, Event::InitDone] {
        feed.event(&mut OfKind { state: &mut state, kind: Peer }, event);
    }
    assert_eq!((pins(&state), state.policy_infos().len()), (Some(vec![]), 0));
    put(&mut state, Peer, object(Peer, "again", strict()));
    assert_eq!(pins(&state), Some(vec![]), "STRICT pins nothing");
    assert!(state.policies.not_served(Peer));
    assert!(state.policy_infos().is_empty() && state.synced() && !state.policies.served());
}

#[test]
fn what_changes_nothing_changes_nothing() {
    let mut state = three_pods();
    let spec = || json!({"rules": [{}]});
    assert!(put(&mut state, Authorization, object(Authorization, "p", spec())));
    let before = state.workload_policy("web-uid").unwrap();
    let mut with_status = object(Authorization, "p", spec());
    with_status.data["status"] = json!({"conditions": []});
    with_status.metadata.resource_version = Some("77".into());
    assert!(!put(&mut state, Authorization, with_status), "a status was written");
    apply(&mut state, pod("new").ip("10.1.0.8").build());
    apply(&mut state, pod("web").ip("10.1.0.5").label("unrelated", "label").build());
    let other = in_namespace("old", Authorization, "p", spec());
    assert!(put(&mut state, Authorization, other));
    let shared = [state.workload_policy("web-uid").unwrap(), state.workload_policy("new-uid").unwrap()];
    assert!(
        shared.iter().all(|policy| Arc::ptr_eq(policy, &before)),
        "it was put together once for all of them"
    );
    let mut next = object(Authorization, "p", spec());
    next.metadata.generation = Some(2);
    assert!(put(&mut state, Authorization, next));
    assert_ne!(version(&state, "web"), before.version, "a generation is acknowledged by itself");
}

#[test]
fn the_version_does_not_depend_on_the_order_of_events() {
    let objects = || {
        vec![
            (Authorization, object(Authorization, "b", json!({"rules": [{}]}))),
            (Tokens, object(Tokens, "a", json!({"jwtRules": [{"issuer": "https://issuer.example"}]}))),
            (
                Authorization,
                in_namespace("cinch-system", Authorization, "c", json!({"action": "DENY", "rules": [{}]})),
            ),
            (Peer, object(Peer, "d", strict())),
        ]
    };
    let of_order = |objects: Vec<(PolicyKind, DynamicObject)>| {
        let mut state = three_pods();
        for (kind, object) in objects {
            put(&mut state, kind, object);
        }
        assert_eq!(names(&state, "web"), ["cinch-system/c", "shop/b", "shop/a"]);
        version(&state, "web")
    };
    let forward = of_order(objects());
    assert_eq!(forward, of_order(objects().into_iter().rev().collect()));
}

#[test]
fn the_message_says_what_a_proxy_needs_to_know_of_a_policy() {
    let cases = [
        (
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80", "81"], "methods": ["GET"]}}]}]}),
            vec![80, 81],
            true,
        ),
        (
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}, {"from": [{"source": {"namespaces": ["x"]}}]}]}),
            vec![],
            false,
        ),
        (
            json!({"action": "DENY", "rules": [{"when": [{"key": "destination.port", "values": ["90"]}]}]}),
            vec![90],
            false,
        ),
        (json!({"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}), vec![], true),
        (json!({"rules": [{"when": [{"key": "request.headers[x]", "values": ["y"]}]}]}), vec![], true),
        (json!({"action": "AUDIT", "rules": [{}]}), vec![], false),
    ];
    for (spec, ports, http) in cases {
        let mut state = three_pods();
        put(&mut state, Authorization, object(Authorization, "p", spec.clone()));
        let policy = state.workload_policy("web-uid").unwrap();
        let sent = &policy.policies[0];
        let features: Vec<&str> = sent.required_features.iter().map(String::as_str).collect();
        assert_eq!(
            (&sent.ports, features.as_slice()),
            (&ports, if http { &["http"][..] } else { &[] }),
            "{spec}"
        );
        assert_eq!(sent.action, spec["action"].as_str().unwrap_or("ALLOW"), "{spec}");
        assert_eq!(serde_json::from_slice::<Value>(&sent.body).unwrap(), spec);
        assert_eq!((sent.kind.as_str(), sent.generation, sent.fault.as_str()), ("", 1, ""));
        assert_eq!(info(&state, &key(Authorization, "shop", "p")).needs_http, http, "{spec}");
        let mesh = policy.mesh.as_ref().unwrap();
        assert_eq!(
            (mesh.root_namespace.as_str(), mesh.path_normalization.as_str()),
            ("cinch-system", "SAFE")
        );
    }
}

#[test]
fn dry_runs_are_marked_and_their_annotation_is_a_change() {
    let mut state = three_pods();
    let mut policy = object(Authorization, "p", json!({"rules": [{}]}));
    put(&mut state, Authorization, policy.clone());
    assert!(!state.workload_policy("web-uid").unwrap().policies[0].dry_run);
    policy.metadata.annotations = Some([("istio.io/dry-run".to_owned(), "true".to_owned())].into());
    assert!(put(&mut state, Authorization, policy));
    assert!(state.workload_policy("web-uid").unwrap().policies[0].dry_run);
    assert!(info(&state, &key(Authorization, "shop", "p")).dry_run);
}

/// The key of RFC 7517, appendix A.1.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

#[test]
fn key_sets_travel_with_the_policies_that_ask_for_them() {
    let mut state = three_pods();
    let rules = json!({"jwtRules": [
        {"issuer": "https://a.example", "jwksUri": "https://keys.example/a"},
        {"issuer": "https://b.example"},
        {"issuer": "https://c.example", "jwks": KEYS},
    ]});
    put(&mut state, Tokens, object(Tokens, "tokens", rules.clone()));
    put(
        &mut state,
        Tokens,
        in_namespace("old", Tokens, "tokens", json!({"jwtRules": [{"issuer": "https://old.example"}]})),
    );
    let asked = state.jwks_sources();
    let shop = BTreeSet::from([Asker::Namespace("shop".into())]);
    assert!(asked.values().all(|askers| *askers == shop), "{asked:?}");
    let sources: Vec<_> = asked.keys().map(|source| source.name().to_owned()).collect();
    assert_eq!(
        sources,
        ["https://keys.example/a", "https://b.example"],
        "of enrolled namespaces, not held inline"
    );
    let sent = |state: &State| state.workload_policy("web-uid").unwrap().policies[0].clone();
    assert_eq!((sent(&state).kind.as_str(), sent(&state).action.as_str()), ("RequestAuthentication", ""));
    assert_eq!((sent(&state).required_features, sent(&state).jwks.len()), (vec!["http".to_owned()], 0));
    let before = version(&state, "web");
    assert!(state.policies.set_document("https://b.example", Some(Arc::from(&b"{}"[..]))));
    assert!(!state.policies.set_document("https://b.example", Some(Arc::from(&b"{}"[..]))), "the same again");
    let jwks = sent(&state).jwks;
    assert_eq!(
        (jwks.len(), jwks[0].source.as_str(), &jwks[0].document[..]),
        (1, "https://b.example", &b"{}"[..])
    );
    assert_ne!(version(&state, "web"), before);
    assert!(state.asks_for("web-uid", "https://b.example"));
    assert!(
        !state.asks_for("web-uid", "https://c.example") && !state.asks_for("other-uid", "https://b.example")
    );
    assert!(state.policies.set_document("https://b.example", None));
    assert_eq!((version(&state, "web"), sent(&state).jwks.len()), (before, 0));
}

#[test]
fn what_does_not_fit_a_message_is_closed_with_a_fault_and_never_cut_silently() {
    let mut state = three_pods();
    let large = |values: usize| {
        let paths: Vec<String> = (0..values).map(|number| format!("/{number:0>200}")).collect();
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": paths}}]}]})
    };
    put(&mut state, Authorization, object(Authorization, "small", json!({"rules": [{}]})));
    put(&mut state, Authorization, object(Authorization, "large", large(9_000)));
    put(&mut state, Authorization, object(Authorization, "larger", large(8_000)));
    let of_web = of_app("web", large(9_500));
    assert!(state.policy_infos().iter().all(|info| info.fault.is_none()), "these fit");
    put(&mut state, Authorization, object(Authorization, "largest", of_web));
    let policy = state.workload_policy("web-uid").unwrap();
    assert!(cinch_control::size(&*policy) <= cinch_control::MAX_MESSAGE);
    let faults: Vec<(&str, bool)> = policy
        .policies
        .iter()
        .map(|policy| (&*policy.name, !policy.fault.is_empty() && policy.body.is_empty()))
        .collect();
    assert_eq!(
        faults,
        [("shop/large", false), ("shop/larger", false), ("shop/largest", true), ("shop/small", false)]
    );
    let whole = state.workload_policy("api-uid").unwrap();
    assert!(whole.policies.iter().all(|policy| policy.fault.is_empty()), "other pods are not concerned");
    let fault = info(&state, &key(Authorization, "shop", "largest")).fault.clone().unwrap();
    assert!(fault.contains("split it"), "{fault}");
    assert!(info(&state, &key(Authorization, "shop", "small")).fault.is_none());
}

#[test]
fn so_many_policies_that_even_their_names_do_not_fit_close_too() {
    let mut state = three_pods();
    for number in 0..16_000 {
        put(
            &mut state,
            Authorization,
            object(Authorization, &format!("{number:0>240}"), json!({"rules": [{}]})),
        );
    }
    let policy = state.workload_policy("web-uid").unwrap();
    assert!(cinch_control::size(&*policy) <= cinch_control::MAX_MESSAGE);
    assert!(!policy.policies[0].fault.is_empty());
}
