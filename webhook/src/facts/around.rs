//! What policies are judged among: pods with their ports, Services that say what the ports carry, and the policies
//! that close pods already. Only warnings come of it, so nothing waits for it: until all of it has been listed,
//! nothing is known.

use super::Caches;
use cinch_injection::PROXY_CONTAINER;
use cinch_policy::{
    AuthorizationPolicy, Enforcement, MeshConfig, ObjectName, PodFacts, PodPort, Surroundings,
};
use kube::api::{DynamicObject, NotUsed, Object};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Namespace label that enrols, and its value.
const ENROLLED: (&str, &str) = ("cinch.dev/mesh", "enabled");
/// Namespace label that is the lock, and its value.
const LOCKED: (&str, &str) = ("cinch.dev/mode", "STRICT");

/// A pod as the API server sends it, read no further than needed: a whole pod takes a hundred times as much.
pub type Pod = Object<PodSpec, PodStatus>;
/// A Service, read no further than needed.
pub type Service = Object<ServiceSpec, NotUsed>;

/// `spec` of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

/// `status` of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    phase: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    restart_policy: Option<String>,
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<String>,
    container_port: u16,
    protocol: Option<String>,
}

/// `spec` of a Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    selector: Option<BTreeMap<String, String>>,
    ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServicePort {
    name: Option<String>,
    port: u16,
    target_port: Value,
    app_protocol: Option<String>,
    protocol: Option<String>,
}

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    namespace: String,
    labels: BTreeMap<String, String>,
    /// Number and name of each TCP port.
    ports: Vec<(u16, Option<String>)>,
}

/// What is kept of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    namespace: String,
    selector: BTreeMap<String, String>,
    ports: Vec<Declared>,
}

/// What a Service says of a port of its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Declared {
    target: Target,
    name: Option<String>,
    app_protocol: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Number(u16),
    Name(String),
}

/// A policy whose presence alone denies what no ALLOW policy matches.
#[derive(Debug, Clone)]
pub struct Closing(Arc<AuthorizationPolicy>);

impl PartialEq for Closing {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::borrow::Borrow<AuthorizationPolicy> for Closing {
    fn borrow(&self) -> &AuthorizationPolicy {
        &self.0
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// Labels and ports of a pod that may still serve.
#[must_use]
pub fn pod(pod: &Pod) -> Option<Arc<PodEntry>> {
    let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let native = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = pod.spec.init_containers.iter().filter(native).chain(&pod.spec.containers);
    let ports = containers
        .filter(|container| container.name != PROXY_CONTAINER)
        .flat_map(|container| &container.ports)
        .filter(|port| is_tcp(port.protocol.as_deref()))
        .map(|port| (port.container_port, port.name.clone()));
    Some(Arc::new(PodEntry {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ports: ports.collect(),
    }))
}

/// What a Service with a selector says of the ports of its pods.
#[must_use]
pub fn service(service: &Service) -> Option<Arc<ServiceEntry>> {
    let selector = service.spec.selector.clone().filter(|selector| !selector.is_empty())?;
    let ports = service.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref())).map(|port| {
        let number = || port.target_port.as_u64().and_then(|number| u16::try_from(number).ok());
        let target = match port.target_port.as_str() {
            Some(name) => Target::Name(name.to_owned()),
            None => Target::Number(number().unwrap_or(port.port)),
        };
        Declared { target, name: port.name.clone(), app_protocol: port.app_protocol.clone() }
    });
    Some(Arc::new(ServiceEntry {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        selector,
        ports: ports.collect(),
    }))
}

/// The policy, when its presence alone closes.
#[must_use]
pub fn policy(object: &DynamicObject) -> Option<Closing> {
    let meta = &object.metadata;
    let name = ObjectName { namespace: meta.namespace.clone()?, name: meta.name.clone()? };
    let enforcement = Enforcement::of(&meta.annotations.clone().unwrap_or_default());
    let spec = object.data.get("spec").unwrap_or(&Value::Null);
    let policy = AuthorizationPolicy::new(name, enforcement, spec);
    policy.closes_by_presence().then(|| Closing(Arc::new(policy)))
}

impl Caches {
    /// What stands around a policy; `None` while that is not known.
    #[must_use]
    pub fn around(&self, object: &Value, mesh: &MeshConfig) -> Option<Surroundings> {
        if !(self.pods.is_synced() && self.services.is_synced() && self.policies.is_synced()) {
            return None;
        }
        let namespace = object.pointer("/metadata/namespace")?.as_str()?;
        let counts = |of: &str| match namespace == mesh.root_namespace {
            true => self.is_labelled(of, ENROLLED),
            false => of == namespace,
        };
        let pods = self.pods.collect(|pod| counts(&pod.namespace).then(|| Arc::clone(pod)));
        let mut services: HashMap<String, Vec<Arc<ServiceEntry>>> = HashMap::new();
        for service in
            self.services.collect(|service| counts(&service.namespace).then(|| Arc::clone(service)))
        {
            services.entry(service.namespace.clone()).or_default().push(service);
        }
        let none = Vec::new();
        let facts = pods.iter().map(|pod| facts(pod, services.get(&pod.namespace).unwrap_or(&none)));
        let policies = self.policies.collect(|policy| Some(policy.clone()));
        let around = Surroundings::among(facts.collect(), &policies, mesh);
        Some(Surroundings { locked: self.is_labelled(namespace, LOCKED), ..around })
    }

    fn is_labelled(&self, namespace: &str, (key, value): (&str, &str)) -> bool {
        let facts = self.namespaces.get("", namespace);
        facts.is_some_and(|facts| facts.labels.get(key).is_some_and(|is| is == value))
    }
}

/// A pod with what its Services and its own port names say of its ports.
fn facts(pod: &PodEntry, services: &[Arc<ServiceEntry>]) -> PodFacts {
    let selects = |service: &&Arc<ServiceEntry>| {
        service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let said: Vec<&Declared> = services.iter().filter(selects).flat_map(|service| &service.ports).collect();
    let port = |(number, own): &(u16, Option<String>)| {
        let of_port = |declared: &&&Declared| match &declared.target {
            Target::Number(target) => target == number,
            Target::Name(target) => own.as_ref() == Some(target),
        };
        let of_port: Vec<_> = said.iter().filter(of_port).collect();
        let app_protocol = of_port.iter().find_map(|declared| declared.app_protocol.as_deref());
        let names = of_port.iter().filter_map(|declared| declared.name.as_deref()).chain(own.as_deref());
        PodPort::declared(*number, app_protocol, &names.collect::<Vec<_>>())
    };
    PodFacts {
        namespace: pod.namespace.clone(),
        labels: pod.labels.clone(),
        ports: pod.ports.iter().map(port).collect(),
        has_allow: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Event, Key, NamespaceFacts};
    use serde_json::json;

    fn a_pod(namespace: &str, name: &str, ports: Value) -> (Key, Option<Arc<PodEntry>>) {
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"initContainers": [
                    {"name": "cinch-proxy", "restartPolicy": "Always", "ports": [{"containerPort": 15020}]},
                    {"name": "once", "ports": [{"containerPort": 1}]}],
                "containers": [{"name": "cinch-like", "image": "x", "ports": ports}]},
            "status": {"phase": "Running"}});
        (Key::new(namespace, name), pod(&serde_json::from_value(object).unwrap()))
    }

    fn a_service(namespace: &str, name: &str, ports: Value) -> (Key, Option<Arc<ServiceEntry>>) {
        let object = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"selector": {"app": name}, "ports": ports}});
        (Key::new(namespace, name), service(&serde_json::from_value(object).unwrap()))
    }

    fn a_policy(namespace: &str, name: &str, spec: Value) -> (Key, Option<Closing>) {
        let object = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec});
        (Key::new(namespace, name), policy(&serde_json::from_value(object).unwrap()))
    }

    /// Namespaces with `mesh: enabled`; all else as given.
    fn caches(
        pods: Vec<(Key, Option<Arc<PodEntry>>)>,
        services: Vec<(Key, Option<Arc<ServiceEntry>>)>,
        policies: Vec<(Key, Option<Closing>)>,
    ) -> Caches {
        let caches = Caches::default();
        for namespace in ["shop", "bank"] {
            let labels = [("cinch.dev/mesh".to_owned(), "enabled".to_owned())].into();
            let facts = NamespaceFacts { labels, annotations: BTreeMap::new() };
            caches.namespaces.apply(Event::Upsert(Key::new("", namespace), Some(Arc::new(facts))));
        }
        pods.into_iter().for_each(|(key, pod)| caches.pods.apply(Event::Upsert(key, pod)));
        services.into_iter().for_each(|(key, service)| caches.services.apply(Event::Upsert(key, service)));
        policies.into_iter().for_each(|(key, policy)| caches.policies.apply(Event::Upsert(key, policy)));
        caches.pods.assume_empty();
        caches.services.assume_empty();
        caches.policies.assume_empty();
        caches
    }

    fn around(caches: &Caches, namespace: &str) -> Option<Surroundings> {
        let mesh = MeshConfig { root_namespace: "root".to_owned(), ..MeshConfig::default() };
        caches.around(&json!({"metadata": {"namespace": namespace, "name": "p"}}), &mesh)
    }

    #[test]
    fn nothing_is_known_before_all_was_listed() {
        let caches = Caches::default();
        assert!(around(&caches, "shop").is_none());
        caches.pods.assume_empty();
        caches.services.assume_empty();
        assert!(around(&caches, "shop").is_none());
        caches.policies.assume_empty();
        assert!(around(&caches, "shop").unwrap().pods.is_empty());
    }

    #[test]
    fn a_policy_is_judged_among_its_namespace_and_one_of_the_root_among_the_mesh() {
        let pods = ["shop", "bank", "elsewhere"].map(|namespace| a_pod(namespace, "web", json!([])));
        let caches = caches(pods.into(), Vec::new(), Vec::new());
        let namespaces = |of: &str| {
            let mut all: Vec<_> =
                around(&caches, of).unwrap().pods.into_iter().map(|pod| pod.namespace).collect();
            all.sort();
            all
        };
        assert_eq!(namespaces("shop"), ["shop"]);
        assert_eq!(namespaces("elsewhere"), ["elsewhere"]);
        assert_eq!(namespaces("root"), ["bank", "shop"]);
    }

    #[test]
    fn ports_carry_what_their_services_or_their_names_say() {
        let ports = json!([{"containerPort": 80, "name": "main"}, {"containerPort": 81, "name": "tcp-x"},
            {"containerPort": 82}, {"containerPort": 83, "name": "tcp"}, {"containerPort": 53, "protocol": "UDP"}]);
        let said = json!([{"port": 1, "targetPort": "main", "appProtocol": "tcp", "name": "http"},
            {"port": 82, "name": "mysql"}, {"port": 9, "targetPort": 83, "name": "http"}]);
        let caches = caches(
            vec![a_pod("shop", "web", ports)],
            vec![
                a_service("shop", "web", said),
                a_service("bank", "web", json!([{"port": 83, "name": "tcp"}])),
            ],
            Vec::new(),
        );
        let ports = around(&caches, "shop").unwrap().pods[0].ports.clone();
        let ports: Vec<_> = ports.into_iter().map(|port| (port.number, port.opaque)).collect();
        assert_eq!(ports, [(80, true), (81, true), (82, true), (83, false)]);
    }

    #[test]
    fn pods_that_serve_no_more_do_not_count() {
        let ended = |change: fn(&mut Value)| {
            let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "shop"},
                "spec": {"containers": []}, "status": {"phase": "Running"}});
            change(&mut object);
            pod(&serde_json::from_value(object).unwrap()).is_none()
        };
        assert!(!ended(|_| {}));
        assert!(ended(|pod| pod["status"]["phase"] = json!("Succeeded")));
        assert!(ended(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn pods_that_an_allow_policy_selects_already_are_known() {
        let deny = json!({"action": "DENY", "rules": [{}]});
        let of_web = json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [{}]});
        let has_allow = |policies| {
            let caches = caches(vec![a_pod("shop", "web", json!([]))], Vec::new(), policies);
            around(&caches, "shop").unwrap().pods[0].has_allow
        };
        assert!(!has_allow(vec![]));
        assert!(!has_allow(vec![a_policy("shop", "deny", deny), a_policy("bank", "all", json!({}))]));
        assert!(has_allow(vec![a_policy("shop", "web", of_web.clone())]));
        assert!(has_allow(vec![a_policy("root", "web", of_web)]));
        assert!(has_allow(vec![a_policy("shop", "deny-all", json!({}))]));
    }

    #[test]
    fn a_lock_is_known() {
        let caches = caches(Vec::new(), Vec::new(), Vec::new());
        assert!(!around(&caches, "shop").unwrap().locked);
        let labels = [("cinch.dev/mode".to_owned(), "STRICT".to_owned())].into();
        let facts = NamespaceFacts { labels, annotations: BTreeMap::new() };
        caches.namespaces.apply(Event::Upsert(Key::new("", "shop"), Some(Arc::new(facts))));
        assert!(around(&caches, "shop").unwrap().locked);
    }
}
