//! What admission answers: objects as people paste them, mistakes as people make them, and the surprises.

use super::setup::{mesh, object, workload};
use cinch_policy::{
    MeshConfig, PodFacts, PodPort, PolicyObject, Surroundings, Validation, WorkloadPolicies, validate,
    validate_among,
};
use serde_json::{Value, json};

const PASTED: &str = include_str!("pasted.yaml");
const MISTAKEN: &str = include_str!("mistaken.yaml");

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn of(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec
    })
}

fn errors(object: &Value) -> Vec<String> {
    validate(object, &mesh()).errors
}

fn warnings(object: &Value, around: Option<&Surroundings>) -> Vec<String> {
    let Validation { errors, warnings } = validate_among(object, &mesh(), around);
    assert_eq!(errors, Vec::<String>::new(), "{object}");
    warnings
}

#[test]
fn what_guides_tell_people_to_paste_is_accepted() {
    let mesh = MeshConfig { root_namespace: "istio-system".into(), ..MeshConfig::default() };
    let documents = documents(PASTED);
    assert_eq!(documents.len(), 9);
    for document in documents {
        let validation = validate(&document, &mesh);
        assert!(validation.is_valid(), "{document}: {:?}", validation.errors);
        let mut older = document.clone();
        older["apiVersion"] = json!("security.istio.io/v1beta1");
        assert_eq!(validate(&older, &mesh), validation);
    }
}

#[test]
fn what_guides_tell_people_to_paste_means_what_they_say() {
    let mesh = MeshConfig { root_namespace: "istio-system".into(), ..MeshConfig::default() };
    let objects: Vec<_> =
        documents(PASTED).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let policies = |namespace: &str, app: &str| {
        let labels = [("app".to_owned(), app.to_owned())].into();
        let workload = cinch_policy::Workload { namespace: namespace.into(), labels, ..workload() };
        WorkloadPolicies::compile(&mesh, &objects, &workload)
    };
    let decide =
        |namespace: &str, app: &str, peer: Option<&str>, method: &str, path: &str, claims: Option<Value>| {
            let paths = cinch_policy::normalize(mesh.path_normalization, path).unwrap();
            let connection = cinch_policy::Connection::new(
                peer,
                "10.0.0.1".parse().unwrap(),
                "10.0.0.2:8080".parse().unwrap(),
            );
            let token = claims.as_ref().map(|claims| cinch_policy::Token { claims, space_delimited: &[] });
            let request =
                cinch_policy::Request { connection, method, paths: &paths, host: None, headers: &[], token };
            policies(namespace, app).request(&request, &cinch_policy::no_providers).reason.as_str()
        };
    let frontend = Some("spiffe://cluster.local/ns/production/sa/frontend");
    let checkout = Some("spiffe://cluster.local/ns/checkout/sa/checkout-sa");
    let token = |role: &str| Some(json!({"iss": "https://auth.example.com", "sub": "x", "role": role}));
    let cases = [
        (decide("production", "other", frontend, "GET", "/", None), "NoAllowMatched"),
        (decide("production", "api-server", frontend, "GET", "/api/x", None), "Allowed"),
        (decide("production", "api-server", frontend, "PUT", "/api/x", None), "NoAllowMatched"),
        (decide("production", "api-server", checkout, "GET", "/api/x", None), "NoAllowMatched"),
        (decide("production", "api-server", None, "GET", "/api/x", None), "DeniedByPolicy"),
        (decide("production", "secure-api", frontend, "GET", "/", None), "NoAllowMatched"),
        (decide("production", "secure-api", frontend, "GET", "/", token("any")), "Allowed"),
        (decide("default", "reviews", None, "GET", "/", token("payments")), "Allowed"),
        (decide("default", "reviews", None, "GET", "/", token("other")), "NoAllowMatched"),
        (decide("default", "other", None, "GET", "/", None), "AllowedByDefault"),
        (decide("orders", "orders", checkout, "POST", "/orders", None), "Allowed"),
        (decide("orders", "orders", checkout, "POST", "/orders/1", None), "NoAllowMatched"),
    ];
    for (number, (reason, expected)) in cases.into_iter().enumerate() {
        assert_eq!(reason, expected, "case {number}");
    }
    for namespace in ["production", "elsewhere"] {
        assert_eq!(policies(namespace, "x").mtls().mode(80).as_str(), "STRICT");
    }
}

#[test]
fn mistakes_that_people_make_get_a_sentence_that_helps() {
    let sentences: Vec<_> = documents(MISTAKEN).iter().flat_map(errors).collect();
    let expected = include_str!("mistaken.txt").lines().collect::<Vec<_>>();
    assert_eq!(sentences, expected, "\n{}\n", sentences.join("\n"));
}

#[test]
fn every_unknown_field_is_named_with_its_path() {
    let spec = json!({
        "colour": 1, "selector": {"matchlabels": {}},
        "rules": [{"from": [{"source": {"principal": ["a"], "weather": 1}, "x": 1}], "whenn": []}],
    });
    let errors = errors(&of("AuthorizationPolicy", spec));
    for path in [
        "spec.colour",
        "spec.selector.matchlabels",
        "spec.rules[0].from[0].source.principal",
        "spec.rules[0].from[0].source.weather",
        "spec.rules[0].from[0].x",
        "spec.rules[0].whenn",
    ] {
        assert!(errors.iter().any(|error| error.starts_with(&format!("{path}:"))), "{path}: {errors:#?}");
    }
    assert!(errors.iter().any(|error| error.contains("did you mean \"matchLabels\"?")), "{errors:#?}");
}

#[test]
fn refusals_name_their_field() {
    let rule = |rule: Value| json!({"rules": [rule]});
    let source = |fields: Value| rule(json!({"from": [{"source": fields}]}));
    let operation = |fields: Value| rule(json!({"to": [{"operation": fields}]}));
    let many = |count: usize| vec!["a"; count];
    let long = "x".repeat(321);
    let cases = [
        (source(json!({})), "spec.rules[0].from[0].source: "),
        (source(json!({"principals": []})), "spec.rules[0].from[0].source: "),
        (rule(json!({"from": []})), "spec.rules[0].from: "),
        (rule(json!({"to": []})), "spec.rules[0].to: "),
        (rule(json!({"when": []})), "spec.rules[0].when: "),
        (rule(json!({"from": [{}]})), "spec.rules[0].from[0].source: is missing"),
        (operation(json!({})), "spec.rules[0].to[0].operation: "),
        (operation(json!({"paths": [""]})), "spec.rules[0].to[0].operation.paths[0]: "),
        (operation(json!({"paths": ["/a/{*}x"]})), "spec.rules[0].to[0].operation.paths[0]: "),
        (operation(json!({"ports": ["http"]})), "spec.rules[0].to[0].operation.ports[0]: "),
        (operation(json!({"ports": [8080]})), "spec.rules[0].to[0].operation.ports[0]: must be a string"),
        (operation(json!({"ports": "8080"})), "spec.rules[0].to[0].operation.ports: must be a list"),
        (source(json!({"ipBlocks": ["10.0.0.0/40"]})), "spec.rules[0].from[0].source.ipBlocks[0]: "),
        (source(json!({"trustDomains": ["a/b"]})), "spec.rules[0].from[0].source.trustDomains[0]: "),
        (source(json!({"serviceAccounts": ["a*"]})), "spec.rules[0].from[0].source.serviceAccounts[0]: "),
        (source(json!({"serviceAccounts": [long]})), "spec.rules[0].from[0].source.serviceAccounts[0]: "),
        (source(json!({"serviceAccounts": many(17)})), "spec.rules[0].from[0].source.serviceAccounts: "),
        (
            source(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})),
            "spec.rules[0].from[0].source.serviceAccounts: ",
        ),
        (rule(json!({"when": [{"key": "source.ip"}]})), "spec.rules[0].when[0]: "),
        (rule(json!({"when": [{"values": ["a"]}]})), "spec.rules[0].when[0].key: is missing"),
        (
            rule(json!({"when": [{"key": "weather", "values": ["a"]}]})),
            "spec.rules[0].when[0].key: \"weather\"",
        ),
        (
            rule(json!({"when": [{"key": "experimental.envoy.filters.a", "values": ["a"]}]})),
            "spec.rules[0].when[0].key: \"experimental.envoy.filters.a\" is not implemented",
        ),
        (json!({"rules": vec![json!({}); 513]}), "spec.rules: "),
        (rule(json!({"from": vec![json!({"source": {"namespaces": ["a"]}}); 513]})), "spec.rules[0].from: "),
        (json!({"targetRefs": vec![json!({"kind": "a", "name": "b"}); 17]}), "spec.targetRefs: "),
        (json!({"targetRefs": [{"kind": "a", "name": "b"}], "selector": {}}), "spec.selector: "),
        (json!({"selector": {"matchLabels": {"a": "x".repeat(64)}}}), "spec.selector.matchLabels: "),
        (json!({"selector": {"matchLabels": {"a": "*"}}}), "spec.selector.matchLabels: "),
        (json!({"action": "AUDIT"}), "spec.rules: is missing"),
        (
            json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}),
            "spec.action: CUSTOM is not implemented",
        ),
        (json!({"action": "CUSTOM", "rules": [{}]}), "spec.provider.name: "),
        (json!({"provider": {"name": "x"}}), "spec.provider: "),
        (json!({"action": "deny", "rules": [{}]}), "spec.action: \"deny\" is none of"),
    ];
    for (spec, start) in cases {
        let errors = errors(&of("AuthorizationPolicy", spec.clone()));
        assert!(errors.iter().any(|error| error.starts_with(start)), "{start} {spec}: {errors:#?}");
    }
    for key in ["source.principal", "source.namespace", "request.auth.claims[a]", "request.auth.principal"] {
        let spec = json!({
            "action": "CUSTOM", "provider": {"name": "x"}, "rules": [{"when": [{"key": key, "values": ["a"]}]}]
        });
        let errors = errors(&of("AuthorizationPolicy", spec));
        assert!(
            errors[0].starts_with("spec.rules[0].when[0].values: can not be used with action CUSTOM"),
            "{errors:?}"
        );
    }
}

#[test]
fn refusals_of_the_other_kinds_name_their_field() {
    let jwt = |rule: Value| json!({"jwtRules": [rule]});
    let good = |fields: Value| {
        let mut rule = json!({"issuer": "https://i.example"});
        rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        jwt(rule)
    };
    let cases = [
        ("RequestAuthentication", jwt(json!({})), "spec.jwtRules[0].issuer: "),
        (
            "RequestAuthentication",
            good(json!({"jwks": "{}", "jwksUri": "https://x"})),
            "spec.jwtRules[0].jwks: ",
        ),
        ("RequestAuthentication", good(json!({"jwksUri": "x"})), "spec.jwtRules[0].jwksUri: "),
        (
            "RequestAuthentication",
            good(json!({"jwksUri": format!("https://{}", "x".repeat(2048))})),
            "spec.jwtRules[0].jwksUri: ",
        ),
        ("RequestAuthentication", good(json!({"timeout": "0s"})), "spec.jwtRules[0].timeout: "),
        ("RequestAuthentication", good(json!({"audiences": [""]})), "spec.jwtRules[0].audiences[0]: "),
        (
            "RequestAuthentication",
            good(json!({"fromHeaders": [{"prefix": "x"}]})),
            "spec.jwtRules[0].fromHeaders[0].name: ",
        ),
        (
            "RequestAuthentication",
            good(json!({"spaceDelimitedClaims": vec!["a"; 65]})),
            "spec.jwtRules[0].spaceDelimitedClaims: ",
        ),
        (
            "RequestAuthentication",
            good(json!({"forwardOriginalToken": "yes"})),
            "spec.jwtRules[0].forwardOriginalToken: must be true or false",
        ),
        (
            "RequestAuthentication",
            good(json!({"outputClaimToHeaders": [{"header": "a b", "claim": "c"}]})),
            "spec.jwtRules[0].outputClaimToHeaders[0].header: ",
        ),
        ("PeerAuthentication", json!({"mtls": {"mode": "ISTIO_MUTUAL"}}), "spec.mtls.mode: "),
        (
            "PeerAuthentication",
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {}}),
            "spec.portLevelMtls: ",
        ),
        (
            "PeerAuthentication",
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"0": {}}}),
            "spec.portLevelMtls: \"0\"",
        ),
        ("EnvoyFilter", json!({}), "kind: EnvoyFilter is not implemented: "),
        ("Ingress", json!({}), "not a policy object: kind \"Ingress\""),
    ];
    for (kind, spec, start) in cases {
        let errors = errors(&of(kind, spec.clone()));
        assert!(errors.iter().any(|error| error.starts_with(start)), "{start} {spec}: {errors:#?}");
    }
    let nowhere = of("RequestAuthentication", jwt(json!({"issuer": "someone@example.com"})));
    assert!(errors(&nowhere)[0].starts_with("spec.jwtRules[0].issuer: "), "its keys can't be found");
    let Ok(PolicyObject::RequestAuthentication(usable)) = PolicyObject::parse(&nowhere) else {
        panic!("not read")
    };
    assert_eq!(usable.faults(), [], "it refuses tokens and closes nothing else");
    let alias = good(json!({"jwks_uri": "https://x/jwks", "timeout": "1ms"}));
    assert_eq!(errors(&of("RequestAuthentication", alias)), Vec::<String>::new());
}

#[test]
fn a_dry_run_is_for_allow_and_deny_only() {
    let annotated = |action: &str, value: &str| {
        let mut object = object("p", json!({"action": action, "rules": [{}]}));
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": value});
        errors(&object)
    };
    assert_eq!(annotated("DENY", "true"), Vec::<String>::new());
    assert_eq!(annotated("AUDIT", "false"), Vec::<String>::new());
    for (action, value) in [("AUDIT", "true"), ("ALLOW", "yes")] {
        let errors = annotated(action, value);
        assert!(errors[0].starts_with("metadata.annotations[\"istio.io/dry-run\"]: "), "{errors:?}");
    }
}

#[test]
fn surprises_are_said() {
    let rule = |rule: Value| object("p", json!({"rules": [rule]}));
    let source = |fields: Value| rule(json!({"from": [{"source": fields}]}));
    let operation = |fields: Value| rule(json!({"to": [{"operation": fields}]}));
    let deny = |mut object: Value| {
        object["spec"]["action"] = json!("DENY");
        object
    };
    let peer = |namespace: &str| {
        let mut object = of("PeerAuthentication", json!({"selector": {"matchLabels": {"app": "x"}}}));
        object["metadata"]["namespace"] = json!(namespace);
        object
    };
    let cases = [
        (object("p", json!({})), "denies everything"),
        (operation(json!({"paths": ["/a*b"]})), "spec.rules[0].to[0].operation.paths[0]: a * counts only"),
        (operation(json!({"paths": ["*a*"]})), "a * counts only"),
        (operation(json!({"paths": ["api"]})), "begin with a slash"),
        (operation(json!({"methods": ["get"]})), "case-sensitive"),
        (source(json!({"requestPrincipals": ["https://a*"]})), "split at its last slash"),
        (source(json!({"principals": ["web"]})), "trust-domain/ns/namespace/sa/account"),
        (deny(operation(json!({"methods": ["GET"]}))), "matches without this field"),
        (
            of("RequestAuthentication", json!({"jwtRules": [{"issuer": "https://i.example"}]})),
            "spec.jwtRules: every port of what it selects must carry HTTP",
        ),
        (operation(json!({"paths": ["/users/{id}"]})), "the braces in \"/users/{id}\" are taken literally"),
        (source(json!({"principals": ["else.example/ns/a/sa/b"]})), "has the trust domain \"else.example\""),
        (
            rule(json!({"when": [{"key": "connection.sni", "values": ["a"]}]})),
            "spec.rules[0].when[0].key: proxies see no server name",
        ),
        (object("p", json!({"targetRefs": [{"kind": "Gateway", "name": "x"}]})), "gateways and waypoints"),
        (peer("mesh"), "in the root namespace"),
        (
            of("RequestAuthentication", json!({"jwtRules": [{"issuer": "https://i.example"}]})),
            "a request without a token still passes",
        ),
    ];
    for (object, part) in cases {
        let warnings = warnings(&object, None);
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {object} {warnings:#?}");
    }
    for silent in [
        source(json!({"principals": ["cluster.local/ns/a/sa/b"]})),
        source(json!({"namespaces": ["a*b"]})),
        deny(operation(json!({"ports": ["80"]}))),
    ] {
        assert_eq!(warnings(&silent, None), Vec::<String>::new(), "{silent}");
    }
    for (object, field) in [
        (operation(json!({"methods": ["GET"]})), "methods"),
        (deny(operation(json!({"paths": ["/a"], "ports": ["80"]}))), "paths"),
    ] {
        assert_eq!(warnings(&object, None), [needs_http(field)], "{object}");
    }
}

/// The warning for a policy that decides on requests, by the first field that does.
fn needs_http(field: &str) -> String {
    format!(
        "spec.rules[0].to[0].operation.{field}: this needs HTTP: on the ports that it may decide on (all of them, unless the rule names ports) the proxies cut connections that carry none, and a proxy without the feature http fails closed there"
    )
}

#[test]
fn a_dry_run_and_an_audit_that_need_http_say_when_they_are_reported() {
    let of_action = |action: &str, annotation: Option<&str>| {
        let rules = json!([{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]);
        let mut object = object("p", json!({"action": action, "rules": rules}));
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": annotation.unwrap_or("false")});
        warnings(&object, None)
    };
    for (action, annotation) in [("AUDIT", None), ("ALLOW", Some("true")), ("DENY", Some("true"))] {
        let said = of_action(action, annotation);
        assert_eq!(
            said,
            [
                "spec.rules[0].to[0].operation.methods: reported only on ports that are declared to carry HTTP, and where a policy in force makes the proxies read it"
            ]
        );
    }
    assert_eq!(of_action("DENY", None), [needs_http("methods")]);
}

#[test]
fn an_allow_policy_closes_pods_by_its_presence_only_where_it_selects_and_is_enforced() {
    let pods = || {
        vec![PodFacts {
            namespace: "shop".into(),
            labels: [("app".into(), "api".into())].into(),
            ..Default::default()
        }]
    };
    let policy = |name: &str, spec: Value, dry: bool| {
        let mut object = object(name, spec);
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": dry.to_string()});
        let Ok(PolicyObject::AuthorizationPolicy(policy)) = PolicyObject::parse(&object) else {
            panic!("not read")
        };
        policy
    };
    let of_app = |app: &str| json!({"selector": {"matchLabels": {"app": app}}, "rules": [{}]});
    let cases = [
        (policy("shop/p", of_app("api"), false), true),
        (policy("mesh/p", of_app("api"), false), true),
        (policy("shop/p", json!({}), false), true),
        (policy("shop/p", of_app("db"), false), false),
        (policy("bank/p", json!({}), false), false),
        (policy("shop/p", of_app("api"), true), false),
        (policy("shop/p", json!({"action": "DENY", "rules": [{}]}), false), false),
        (policy("shop/p", json!({"action": "ALOW"}), false), false),
    ];
    for (number, (policy, closes)) in cases.iter().enumerate() {
        let around = Surroundings::among(pods(), std::slice::from_ref(policy), &mesh());
        assert_eq!(around.pods[0].has_allow, *closes, "case {number}");
    }
}

#[test]
fn surprises_among_pods_are_said() {
    let pod = |app: &str, has_allow: bool| PodFacts {
        namespace: "shop".into(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ports: vec![PodPort { number: 80, opaque: false }, PodPort { number: 5432, opaque: true }],
        has_allow,
    };
    let around = Surroundings { pods: vec![pod("api", false), pod("db", true)], locked: false };
    let of_app = |app: &str, rule: Value| {
        object("p", json!({"selector": {"matchLabels": {"app": app}}, "rules": [rule]}))
    };
    let peer = |ports: Value| {
        let selector = json!({"matchLabels": {"app": "api"}});
        of("PeerAuthentication", json!({"selector": selector, "portLevelMtls": ports}))
    };
    let methods = |port: &str| json!({"to": [{"operation": {"methods": ["GET"], "ports": [port]}}]});
    let cases = [
        (of_app("nobody", json!({})), Some("no pod has these labels")),
        (of_app("api", json!({})), Some("1 of the selected pods had no ALLOW policy")),
        (of_app("db", json!({})), None),
        (of_app("db", methods("5432")), Some("port 5432 is declared to carry no HTTP")),
        (peer(json!({"8080": {"mode": "STRICT"}})), Some("no selected pod declares this port")),
        (peer(json!({"80": {"mode": "STRICT"}})), None),
    ];
    for (object, part) in cases {
        let warnings = warnings(&object, Some(&around));
        match part {
            Some(part) => {
                assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:#?}")
            }
            None => assert_eq!(warnings, Vec::<String>::new(), "{object}"),
        }
    }
    let locked = Surroundings { locked: true, ..around.clone() };
    let open =
        |mode: &str| warnings(&of("PeerAuthentication", json!({"mtls": {"mode": mode}})), Some(&locked));
    assert!(open("DISABLE")[0].contains("locked STRICT"), "{:?}", open("DISABLE"));
    assert_eq!(open("STRICT"), Vec::<String>::new());
    let http = warnings(&of_app("db", methods("80")), Some(&around));
    assert_eq!(http, [needs_http("methods")]);
}
