//! Policies, connections and requests from small vocabularies, so that they meet often. Everything follows from
//! a seed.

use super::naive::{Case, HttpCase};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, SocketAddr};

/// Numbers from a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % end as u64).unwrap()
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub fn pick<'w>(&mut self, words: &[&'w str]) -> &'w str {
        words[self.below(words.len())]
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}

pub const PRINCIPALS: &[&str] = &[
    "*",
    "cluster.local/ns/shop/sa/web",
    "cluster.local/ns/shop/sa/api",
    "old.mesh/ns/shop/sa/web",
    "mesh.example/ns/bank/sa/web",
    "other.org/ns/shop/sa/web",
    "cluster.local/*",
    "mesh.example/ns/shop/*",
    "*/sa/web",
    "*/ns/bank/sa/api",
    "*/sa/*",
    "mesh.example/ns/shop/sa/a*",
];
const PEERS: &[&str] = &[
    "spiffe://mesh.example/ns/shop/sa/web",
    "spiffe://mesh.example/ns/shop/sa/api",
    "spiffe://old.mesh/ns/shop/sa/web",
    "spiffe://mesh.example/ns/bank/sa/web",
    "spiffe://other.org/ns/shop/sa/web",
    "mesh.example/ns/bank/sa/api",
    "spiffe://mesh.example/ns/shop/pod/x",
    "spiffe://mesh.example/spire/agent",
    "spiffe://cluster.local/ns/shop/sa/web",
];
const NAMESPACES: &[&str] = &["shop", "bank", "s*", "*k", "b*k", "*", "sh*p", "mesh", "*o*"];
const ACCOUNTS: &[&str] = &["web", "api", "shop/web", "bank/api", "bank/web", "mesh/web"];
const DOMAINS: &[&str] =
    &["cluster.local", "mesh.example", "old.mesh", "other.org", "*", "mesh*", "*.org", "*.mesh"];
const BLOCKS: &[&str] = &[
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "10.1.2.0/30",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "2001:db8::/32",
    "::/0",
];
const ADDRESSES: &[&str] = &["10.1.2.3", "10.1.2.9", "10.7.0.1", "192.0.2.1", "2001:db8::1", "127.0.0.1"];
const PORTS: &[&str] = &["80", "8080", "9090"];
const HOSTS: &[&str] = &["shop.example", "SHOP.*", "*.example", "*", "api.example:8080", "*:8080"];
const SENT_HOSTS: &[&str] = &["shop.example", "Shop.Example", "api.example:8080", "other.org", ""];
const METHODS: &[&str] = &["GET", "POST", "P*", "*", "*ET"];
const SENT_METHODS: &[&str] = &["GET", "POST", "PUT", "get"];
const PATHS: &[&str] = &[
    "/",
    "/api",
    "/api/*",
    "/api/users",
    "*",
    "*.json",
    "/api/{*}",
    "/api/{*}/edit",
    "/{**}",
    "/api/{**}",
    "/{*}/users",
    "/{**}/edit",
    "/admin*",
    "/api/{*}/{**}/edit",
    "*/users",
    "/a*b",
    "/api/us%40rs",
    "/api/{*}/%40edit",
    "/api;v=1*",
    "*@users",
    "/api/%3B/{**}",
];
const TARGETS: &[&str] = &[
    "/",
    "/api",
    "/api/",
    "/api/users",
    "/api/users/edit",
    "/api/a/b/edit?x=1",
    "/admin",
    "/admin/x.json",
    "/api//users",
    "/api/%2e%2e/admin",
    "/api%2Fusers",
    "/x/..%2fadmin",
    "/api/us=rs",
    "/api/us*rs/edit",
    "/a*b",
    "/other",
    "/api\\users",
    "//admin",
    "/x/users",
    "/edit",
    "/api/users#top",
    "*",
    "/api/us%40rs",
    "/api/us@rs",
    "/api;v=1/users",
    "/api/..;/admin",
    "/api/%40users",
    "/api/x/%40edit",
    "/api/a;b/edit",
    "/%2561dmin",
];
const TEXTS: &[&str] = &["a", "b", "a*", "*b", "*", "a,b", "a b", "ab"];
const SENT_TEXTS: &[&str] = &["a", "b", "ab", "", "aab", "a,b"];
const REQUEST_PRINCIPALS: &[&str] = &[
    "*",
    "https://a.example/bob",
    "https://a.example/*",
    "*/bob",
    "*bob",
    "https*",
    "https://a*",
    "none",
    "*.example/alice",
    "issuer/*",
];
const ISSUERS: &[&str] = &["https://a.example", "https://b.example", "issuer", ""];
const SUBJECTS: &[&str] = &["bob", "alice", "a/bob", ""];
const SNI: &[&str] = &["shop.example", "*.example", "*", "shop*"];
const IDENTITY_KEYS: &[&str] = &[
    "source.principal",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[role]",
    "request.auth.claims[scope]",
    "request.auth.claims[deep][role]",
];
const OTHER_KEYS: &[&str] = &[
    "source.ip",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.headers[X-Mark]",
    "request.headers[y-mark]",
];

fn words_of(key: &str) -> &'static [&'static str] {
    match key {
        "principals" | "source.principal" => PRINCIPALS,
        "namespaces" | "source.namespace" => NAMESPACES,
        "serviceAccounts" | "source.serviceAccount" => ACCOUNTS,
        "trustDomains" | "source.trustDomain" => DOMAINS,
        "requestPrincipals" | "request.auth.principal" => REQUEST_PRINCIPALS,
        "ipBlocks" | "remoteIpBlocks" | "source.ip" | "remote.ip" | "destination.ip" => BLOCKS,
        "ports" | "destination.port" => PORTS,
        "connection.sni" => SNI,
        "hosts" => HOSTS,
        "methods" => METHODS,
        "paths" => PATHS,
        _ => TEXTS,
    }
}

fn values(dice: &mut Dice, key: &str) -> Value {
    let count = 1 + dice.below(3);
    (0..count).map(|_| json!(dice.pick(words_of(key)))).collect()
}

/// Some of `fields`, at least one, each perhaps negated.
fn members(dice: &mut Dice, fields: &[&str]) -> Value {
    let mut all = Map::new();
    while all.is_empty() {
        for field in fields {
            if !dice.percent(90 / fields.len()) {
                continue;
            }
            let mut name = (*field).to_owned();
            if dice.percent(25) {
                name[..1].make_ascii_uppercase();
                name.insert_str(0, "not");
            }
            all.insert(name, values(dice, field));
        }
    }
    Value::Object(all)
}

pub fn rule(dice: &mut Dice, custom: bool) -> Value {
    let mut rule = Map::new();
    if dice.percent(60) {
        let fields: &[&str] = match dice.below(4) {
            _ if custom => &["ipBlocks", "remoteIpBlocks"],
            0 => &["serviceAccounts", "ipBlocks", "trustDomains", "requestPrincipals"],
            1 => &["requestPrincipals", "ipBlocks", "remoteIpBlocks", "trustDomains"],
            _ => &["principals", "namespaces", "ipBlocks"],
        };
        let count = 1 + dice.below(2);
        rule.insert("from".into(), (0..count).map(|_| json!({"source": members(dice, fields)})).collect());
    }
    if dice.percent(60) {
        let fields = ["hosts", "ports", "methods", "paths", "paths"];
        let count = 1 + dice.below(2);
        rule.insert("to".into(), (0..count).map(|_| json!({"operation": members(dice, &fields)})).collect());
    }
    if dice.percent(35) {
        let count = 1 + dice.below(2);
        let conditions = (0..count).map(|_| {
            let keys = if custom || dice.percent(40) { OTHER_KEYS } else { IDENTITY_KEYS };
            let key = dice.pick(keys);
            let mut condition = json!({"key": key});
            let which = dice.below(4);
            if which != 0 {
                condition["values"] = values(dice, key);
            }
            if which < 2 {
                condition["notValues"] = values(dice, key);
            }
            condition
        });
        rule.insert("when".into(), conditions.collect());
    }
    Value::Object(rule)
}

/// One AuthorizationPolicy that can be used.
pub fn policy(dice: &mut Dice, name: &str) -> Value {
    let action = dice.pick(&["ALLOW", "ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM"]);
    policy_of(dice, name, action)
}

pub fn policy_of(dice: &mut Dice, name: &str, action: &str) -> Value {
    let custom = action == "CUSTOM";
    // Refusing rules are kept few, or little would ever pass.
    let most = if action == "ALLOW" { 5 } else { 2 };
    let rules: Vec<Value> = (0..dice.below(most + 1)).map(|_| rule(dice, custom)).collect();
    let mut spec = json!({"action": action, "rules": rules});
    if custom {
        spec["provider"] = json!({"name": dice.pick(&["yes", "no", "absent"])});
    }
    if dice.percent(25) {
        spec["selector"] = json!({"matchLabels": {"app": dice.pick(&["api", "api", "web"])}});
    }
    let namespace = dice.pick(&["shop", "shop", "shop", "shop-x", "mesh"]);
    let mut metadata = json!({"name": name, "namespace": namespace});
    if dice.percent(20) {
        metadata["annotations"] = json!({"istio.io/dry-run": "true"});
    }
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec
    })
}

pub fn policies(dice: &mut Dice, most: usize) -> Vec<Value> {
    let count = dice.below(most + 1);
    (0..count).map(|number| policy(dice, &format!("p{}", (number * 7) % 61))).collect()
}

fn maybe<'w>(dice: &mut Dice, words: &[&'w str]) -> Option<&'w str> {
    dice.percent(80).then(|| dice.pick(words))
}

pub fn connection(dice: &mut Dice) -> Case {
    let address = |dice: &mut Dice| -> IpAddr { dice.pick(ADDRESSES).parse().unwrap() };
    Case {
        peer: maybe(dice, PEERS).map(str::to_owned),
        source: address(dice),
        remote: dice.percent(30).then(|| address(dice)),
        destination: SocketAddr::new(address(dice), dice.pick(&["80", "8080", "7070"]).parse().unwrap()),
        sni: maybe(dice, &["shop.example", "x", "shop"]).map(str::to_owned),
        http: None,
    }
}

pub fn http(dice: &mut Dice) -> HttpCase {
    let headers = (0..dice.below(4))
        .map(|_| {
            let name = dice.pick(&["x-mark", "X-MARK", "Y-Mark", "other"]);
            (name.to_owned(), dice.pick(SENT_TEXTS).to_owned())
        })
        .collect();
    HttpCase {
        method: dice.pick(SENT_METHODS).to_owned(),
        target: dice.pick(TARGETS).to_owned(),
        host: maybe(dice, SENT_HOSTS).map(str::to_owned),
        headers,
        claims: dice.percent(70).then(|| claims(dice)),
    }
}

fn claims(dice: &mut Dice) -> Value {
    let mut claims = json!({"iss": dice.pick(ISSUERS), "sub": dice.pick(SUBJECTS)});
    if dice.percent(10) {
        claims["sub"] = json!(7);
    }
    for name in ["aud", "azp", "role", "scope"] {
        match dice.below(4) {
            0 => {}
            1 => claims[name] = json!([dice.pick(SENT_TEXTS), dice.pick(SENT_TEXTS), 3]),
            2 => claims[name] = json!(format!("{} {}", dice.pick(SENT_TEXTS), dice.pick(SENT_TEXTS))),
            _ => claims[name] = json!(dice.pick(SENT_TEXTS)),
        }
    }
    if dice.percent(50) {
        claims["deep"] = json!({"role": dice.pick(SENT_TEXTS)});
    }
    claims
}

/// A request three times out of four, else a connection that carries something else.
pub fn case(dice: &mut Dice) -> Case {
    let connection = connection(dice);
    let http = dice.percent(75).then(|| http(dice));
    Case { http, ..connection }
}
