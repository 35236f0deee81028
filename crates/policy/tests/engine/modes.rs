//! PeerAuthentication, composed as Istio does, and the lock.

use cinch_policy::{MeshConfig, Mode, ObjectName, PeerAuthentication, PolicyObject, PortModes, Workload};
use proptest::prelude::*;
use serde_json::{Value, json};

fn workload() -> Workload {
    let labels = [("app".to_owned(), "api".to_owned())].into();
    Workload { namespace: "shop".to_owned(), labels, service_account: String::new() }
}

fn compose<'a>(objects: impl IntoIterator<Item = &'a PeerAuthentication>, floor: Option<Mode>) -> PortModes {
    let mesh = MeshConfig { root_namespace: "istio-system".to_owned(), ..MeshConfig::default() };
    PortModes::compose(objects, &mesh, &workload(), floor)
}

fn object(namespace: &str, name: &str, created: &str, spec: Value) -> PeerAuthentication {
    PeerAuthentication::new(
        ObjectName { namespace: namespace.to_owned(), name: name.to_owned() },
        created,
        &spec,
    )
}

fn mtls(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

fn of_api(mode: &str, ports: Value) -> Value {
    json!({"selector": {"matchLabels": {"app": "api"}}, "mtls": {"mode": mode}, "portLevelMtls": ports})
}

#[test]
fn modes_are_ordered_by_strictness_and_spelled_as_istio_does() {
    assert!(Mode::Disable < Mode::Permissive && Mode::Permissive < Mode::Strict);
    for (mode, word) in
        [(Mode::Disable, "DISABLE"), (Mode::Permissive, "PERMISSIVE"), (Mode::Strict, "STRICT")]
    {
        assert_eq!(serde_json::to_value(mode).expect("JSON"), word);
        assert_eq!(serde_json::from_value::<Mode>(json!(word)).expect("a mode"), mode);
        assert_eq!(mode.to_string(), word);
    }
}

#[test]
fn the_narrower_scope_wins_and_unset_inherits() {
    let mesh = || object("istio-system", "default", "2", mtls("STRICT"));
    let namespace = |mode| object("shop", "default", "2", mtls(mode));
    let cases: [(&str, Vec<PeerAuthentication>, Mode, Mode); 12] = [
        ("nothing", vec![], Mode::Permissive, Mode::Permissive),
        ("mesh", vec![mesh()], Mode::Strict, Mode::Strict),
        ("namespace over mesh", vec![mesh(), namespace("DISABLE")], Mode::Disable, Mode::Disable),
        ("namespace unset", vec![mesh(), namespace("UNSET")], Mode::Strict, Mode::Strict),
        ("namespace silent", vec![mesh(), object("shop", "x", "2", json!({}))], Mode::Strict, Mode::Strict),
        (
            "workload over namespace",
            vec![mesh(), namespace("STRICT"), object("shop", "api", "2", of_api("PERMISSIVE", Value::Null))],
            Mode::Permissive,
            Mode::Permissive,
        ),
        (
            "port over workload",
            vec![object("shop", "api", "2", of_api("STRICT", json!({"8080": {"mode": "DISABLE"}})))],
            Mode::Disable,
            Mode::Strict,
        ),
        (
            "an unset port is as the workload",
            vec![object("shop", "api", "2", of_api("STRICT", json!({"8080": {"mode": "UNSET"}})))],
            Mode::Strict,
            Mode::Strict,
        ),
        (
            "an unset workload with a port",
            vec![
                mesh(),
                object("shop", "api", "2", of_api("UNSET", json!({"8080": {"mode": "PERMISSIVE"}}))),
            ],
            Mode::Permissive,
            Mode::Strict,
        ),
        (
            "another workload's",
            vec![object(
                "shop",
                "x",
                "2",
                json!({"selector": {"matchLabels": {"app": "db"}}, "mtls": {"mode": "STRICT"}}),
            )],
            Mode::Permissive,
            Mode::Permissive,
        ),
        (
            "another namespace's",
            vec![object("other", "default", "2", mtls("STRICT"))],
            Mode::Permissive,
            Mode::Permissive,
        ),
        (
            "a selector in the root namespace selects nothing",
            vec![object("istio-system", "x", "2", of_api("STRICT", Value::Null))],
            Mode::Permissive,
            Mode::Permissive,
        ),
    ];
    for (case, objects, on_8080, elsewhere) in cases {
        let modes = compose(&objects, None);
        assert_eq!((modes.mode(8080), modes.mode(9090)), (on_8080, elsewhere), "{case}");
    }
}

#[test]
fn the_oldest_of_a_scope_wins_whole_and_equal_ages_go_by_name() {
    let old = || object("shop", "z", "2026-01-01T00:00:00Z", mtls("STRICT"));
    let new = || object("shop", "a", "2026-02-01T00:00:00Z", mtls("DISABLE"));
    assert_eq!(compose(&[new(), old()], None).mode(1), Mode::Strict);
    let a = object("shop", "a", "2026-01-01T00:00:00Z", mtls("DISABLE"));
    assert_eq!(compose(&[old(), a], None).mode(1), Mode::Disable);
}

#[test]
fn what_can_not_be_used_closes_what_it_selects() {
    let cases = [
        json!({"mtls": {"mode": "STRIKT"}}),
        json!({"mtls": {"mode": "PERMISSIVE", "modes": 1}}),
        json!({"mtl": {"mode": "PERMISSIVE"}}),
        json!({"mtls": {"mode": "PERMISSIVE"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
        json!({"selector": {"matchLabels": {"app": "api"}}, "portLevelMtls": {}}),
        json!({"selector": {"matchLabels": {"app": "api"}}, "portLevelMtls": {"0": {"mode": "DISABLE"}}}),
        json!({"selector": {"matchLabels": {"app": "api"}}, "portLevelMtls": {"http": {"mode": "DISABLE"}}}),
        json!({"selector": "api"}),
    ];
    for spec in cases {
        let broken = object("shop", "x", "1", spec.clone());
        assert!(broken.fault().is_some(), "{spec}");
        assert_eq!(compose(&[broken], None).mode(8080), Mode::Strict, "{spec}");
    }
    let elsewhere = json!({"selector": {"matchLabels": {"app": "db"}}, "nonsense": 1});
    let modes = compose(&[object("shop", "x", "1", elsewhere)], None);
    assert_eq!(modes.mode(8080), Mode::Permissive, "a broken object closes only what it selects");
}

#[test]
fn the_lock_lifts_every_port_whatever_the_objects_say() {
    let objects = [
        object("shop", "default", "1", mtls("DISABLE")),
        object("shop", "api", "1", of_api("PERMISSIVE", json!({"8080": {"mode": "DISABLE"}}))),
    ];
    let modes = compose(&objects, Some(Mode::Strict));
    assert_eq!(
        (modes.mode(8080), modes.default_mode(), modes.weakest()),
        (Mode::Strict, Mode::Strict, Mode::Strict)
    );
    assert_eq!(modes, PortModes::uniform(Mode::Strict, []));
    assert_eq!(modes.exceptions().count(), 0);
}

#[test]
fn the_documented_examples_read() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: default, namespace: production}\nspec: {mtls: {mode: STRICT}}\n";
    let value: Value = serde_saphyr::from_str(text).expect("YAML");
    let Ok(PolicyObject::PeerAuthentication(read)) = PolicyObject::parse(&value) else { panic!("not read") };
    assert!(read.fault().is_none());
    for (kind, version) in [("Gateway", "security.istio.io/v1"), ("PeerAuthentication", "v1")] {
        let other = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        assert!(PolicyObject::parse(&other).is_err());
    }
}

fn any_mode() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])
}

fn any_object() -> impl Strategy<Value = PeerAuthentication> {
    let place = prop::sample::select(vec!["istio-system", "shop", "other"]);
    (place, "[a-d]", "[1-3]", any_mode(), prop::option::of(any_mode())).prop_map(
        |(namespace, name, created, mode, port)| {
            let spec = match port {
                Some(port) => of_api(mode, json!({"8080": {"mode": port}})),
                None => mtls(mode),
            };
            object(namespace, &name, &created, spec)
        },
    )
}

proptest! {
    #[test]
    fn order_never_matters_and_the_lock_never_weakens(
        objects in prop::collection::vec(any_object(), 0..6),
        seed in any::<prop::sample::Index>(),
    ) {
        // Two objects of one name can't be in one namespace.
        let mut objects = objects;
        objects.sort_by(|a, b| a.name().cmp(b.name()));
        objects.dedup_by(|a, b| a.name() == b.name());
        let there = compose(&objects, None);
        let mut turned = objects.clone();
        if !turned.is_empty() {
            let at = seed.index(turned.len());
            turned.rotate_left(at);
            turned.reverse();
        }
        prop_assert_eq!(&there, &compose(&turned, None));
        let locked = compose(&objects, Some(Mode::Strict));
        for port in [1, 8080, 65535] {
            prop_assert_eq!(locked.mode(port), Mode::Strict);
            prop_assert!(there.clone().at_least(Mode::Permissive).mode(port) >= there.mode(port));
        }
    }
}
