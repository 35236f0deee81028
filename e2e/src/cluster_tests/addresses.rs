//! Every kind of address that leads to a meshed pod. All of the namespace is STRICT, so whatever is served came over a
//! tunnel; and who has no proxy is refused at the same addresses.

use super::dns;
use super::scene::{PORT, Scene, Workload};
use crate::place::{Outcome, Place, SERVED};
use crate::see::{APP_IMAGE, PODS, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Documentation addresses (RFC 5737): no other network of the cluster has them.
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Not in the range of node ports.
const HOST_PORT: u16 = 18_080;
/// Calls that must all come to the same.
const CALLS: usize = 8;
/// Where a pod's proxy tells its metrics.
const METRICS: u16 = 15020;

/// What the checks share.
struct World<'s> {
    scene: &'s Scene<'s>,
    client: Place,
    api: Vec<Place>,
    node: IpAddr,
}

/// The whole test.
pub fn every_kind(scene: &Scene<'_>) -> Result<String> {
    let api = Workload { replicas: 2, ..Workload::meshed("api") };
    scene.enrolled(&[api, Workload::meshed("client")])?;
    apply(scene, &bare_pods(scene))?;
    scene.policy("PeerAuthentication", "default", json!({"mtls": {"mode": "STRICT"}}))?;
    let api = scene.places(&scene.namespace, "api")?;
    ensure!(api.len() == 2, "api has {} pods", api.len());
    apply(scene, &services(scene, &api))?;
    let pods = scene.see.pods(&scene.namespace, "app=client")?;
    let node = text(pods.first().context("no client")?, "/status/hostIP").parse()?;
    let world = World { scene, client: scene.place("client")?, api, node };
    let checks: [fn(&World<'_>) -> Result<String>; 8] =
        [balanced, kept_to, near, by_name, from_the_node, declared, unready, ending];
    let mut seen = Vec::new();
    for check in checks {
        let line = check(&world)?;
        terminal::show(&line);
        seen.push(line);
    }
    Ok(seen.join("; "))
}

fn apply(scene: &Scene<'_>, items: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    scene.see.apply(&list.to_string()).map(drop)
}

/// Pods that no Deployment could stand for: one with a port of its node, one that is never ready, one that will end.
fn bare_pods(scene: &Scene<'_>) -> Vec<Value> {
    let pod = |name: &str, ports: Value, ready: &str, drain: &str| {
        let ready = json!({"httpGet": {"path": ready, "port": PORT}, "periodSeconds": 1});
        let container = json!({"name": "app", "image": APP_IMAGE, "ports": ports, "readinessProbe": ready,
            "args": ["serve", "--ports", PORT.to_string(), "--drain", drain]});
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": scene.namespace, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 20, "containers": [container]}})
    };
    vec![
        pod("host", json!([{"containerPort": PORT, "hostPort": HOST_PORT}]), "/ready", "0s"),
        pod("unready", json!([{"containerPort": PORT}]), "/fail", "0s"),
        pod("ending", json!([{"containerPort": PORT}]), "/ready", "14s"),
    ]
}

/// One Service for each kind of address.
fn services(scene: &Scene<'_>, api: &[Place]) -> Vec<Value> {
    let service = |name: &str, more: Value| {
        let mut spec = json!({"ports": [{"name": "web", "port": 80, "targetPort": PORT}]});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": scene.namespace},
            "spec": spec})
    };
    let slice = |service: &str, endpoints: Value| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-by-hand"), "namespace": scene.namespace,
                "labels": {"kubernetes.io/service-name": service,
                    "endpointslice.kubernetes.io/managed-by": "cinch-e2e"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "web", "port": PORT, "protocol": "TCP"}]})
    };
    let here_and_elsewhere = |hinted: bool| {
        let nodes = api.iter().zip(["node1", "elsewhere"]);
        let endpoint = |(place, node): (&Place, &str)| {
            let mut endpoint = json!({"addresses": [place.address], "nodeName": node});
            if hinted && let Some(endpoint) = endpoint.as_object_mut() {
                endpoint.insert("hints".to_owned(), json!({"forNodes": [{"name": node}]}));
            }
            endpoint
        };
        Value::from(nodes.map(endpoint).collect::<Vec<_>>())
    };
    let of = |app: &str| json!({"app": app});
    let declared = json!([{"name": "web", "port": 80, "targetPort": PORT, "appProtocol": "http"}]);
    let alias = format!("balanced.{}.svc.cluster.local", scene.namespace);
    vec![
        service("balanced", json!({"selector": of("api"), "type": "LoadBalancer"})),
        service("sticky", json!({"selector": of("api"), "sessionAffinity": "ClientIP"})),
        service("headless", json!({"selector": of("api"), "clusterIP": "None"})),
        service("alias", json!({"type": "ExternalName", "externalName": alias})),
        service("declared", json!({"selector": of("ending"), "ports": declared})),
        service("unready", json!({"selector": of("unready")})),
        service("published", json!({"selector": of("unready"), "publishNotReadyAddresses": true})),
        service("ending", json!({"selector": of("ending")})),
        service("by-hand", json!({})),
        slice("by-hand", json!([{"addresses": api.iter().map(|place| place.address).collect::<Vec<_>>()}])),
        service("local", json!({"internalTrafficPolicy": "Local"})),
        slice("local", here_and_elsewhere(false)),
        service("near", json!({})),
        slice("near", here_and_elsewhere(true)),
    ]
}

impl World<'_> {
    fn cluster_ip(&self, service: &str) -> Result<SocketAddr> {
        let found = self.scene.see.json(&["service", service, "-n", &self.scene.namespace])?;
        Ok(SocketAddr::new(text(&found, "/spec/clusterIP").parse()?, 80))
    }

    /// The pod that serves a call.
    fn who(&self, to: SocketAddr) -> Result<String> {
        let answer = self.client.read(to, "/").with_context(|| format!("a call to {to}"))?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        Ok(body.split_whitespace().last().unwrap_or_default().to_owned())
    }

    /// The pods that serve some calls.
    fn serving(&self, to: SocketAddr) -> Result<BTreeSet<String>> {
        (0..CALLS).map(|_| self.who(to)).collect()
    }

    /// Calls until both of api's pods have served one.
    fn both(&self, what: &str, to: SocketAddr) -> Result<()> {
        let mut seen = BTreeSet::new();
        wait::until(&format!("both pods behind {what}, {to}, to serve"), Duration::from_secs(120), || {
            seen.insert(self.who(to)?);
            let all = self.api.iter().all(|place| seen.contains(&place.pod));
            Ok(if all { Seen::Done(()) } else { Seen::Not(format!("{seen:?}")) })
        })
    }

    /// Waits until an address is served, and then only by the first of api's pods.
    fn only_the_first(&self, what: &str, to: SocketAddr) -> Result<()> {
        self.scene.until(&self.client, to, &SERVED)?;
        let (serving, first) = (self.serving(to)?, self.api.first().context("no pod")?);
        ensure!(
            serving.len() == 1 && serving.contains(&first.pod),
            "{what}: {serving:?} served, not {} alone",
            first.pod
        );
        Ok(())
    }

    /// Who has no proxy is refused at `to`.
    fn closed_to_plaintext(&self, to: SocketAddr) -> Result<()> {
        self.scene.always(&Place::outside(self.scene.see.cluster)?, to, &Outcome::Reset)
    }
}

/// ClusterIP, node port, load balancer.
fn balanced(world: &World<'_>) -> Result<String> {
    let see = &world.scene.see;
    let namespace = &world.scene.namespace;
    world.both("a ClusterIP", world.cluster_ip("balanced")?)?;
    let found = see.json(&["service", "balanced", "-n", namespace])?;
    let port = found.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).unwrap_or_default();
    let at_node = SocketAddr::new(world.node, u16::try_from(port)?);
    world.both("a node port", at_node)?;
    world.closed_to_plaintext(at_node)?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}).to_string();
    see.kubectl(&[
        "patch",
        "service",
        "balanced",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    world.both("a load balancer's address", SocketAddr::new(BALANCER.into(), 80))?;
    Ok(format!("ClusterIP, node port {port} and load balancer {BALANCER} reach both pods"))
}

/// Session affinity.
fn kept_to(world: &World<'_>) -> Result<String> {
    let to = world.cluster_ip("sticky")?;
    world.scene.until(&world.client, to, &SERVED)?;
    let serving = world.serving(to)?;
    ensure!(serving.len() == 1, "affinity: {serving:?} served");
    Ok(format!("affinity: {CALLS} calls, one pod"))
}

/// Services without a selector: by hand, with a traffic policy, with hints.
fn near(world: &World<'_>) -> Result<String> {
    world.both("a Service without selector", world.cluster_ip("by-hand")?)?;
    world.only_the_first("internalTrafficPolicy: Local", world.cluster_ip("local")?)?;
    world.only_the_first("hints", world.cluster_ip("near")?)?;
    Ok("without a selector: both; internalTrafficPolicy Local and hints: only the pod of this node"
        .to_owned())
}

/// Headless Services and aliases, as DNS tells them; over TCP, which passes the proxy as well.
fn by_name(world: &World<'_>) -> Result<String> {
    let namespace = &world.scene.namespace;
    let resolve = |service: &str| {
        let name = format!("{service}.{namespace}.svc.cluster.local");
        wait::until(&format!("{name} to have an address"), Duration::from_secs(120), || {
            let found = dns::addresses(&world.client, &name)?;
            Ok(if found.is_empty() { Seen::Not("none".to_owned()) } else { Seen::Done(found) })
        })
    };
    let headless: BTreeSet<IpAddr> = resolve("headless")?.into_iter().collect();
    let pods: BTreeSet<IpAddr> = world.api.iter().map(|place| place.address).collect();
    ensure!(headless == pods, "the headless Service is {headless:?}, not {pods:?}");
    for (ip, place) in headless.iter().zip(world.api.iter().cycle()) {
        let who = world.who(SocketAddr::new(*ip, PORT))?;
        ensure!(
            world.api.iter().any(|place| place.pod == who && place.address == *ip),
            "{ip}: {who}, {place:?}"
        );
    }
    for ip in resolve("alias")? {
        world.both("an ExternalName", SocketAddr::new(ip, 80))?;
    }
    Ok("headless: each pod by its address; ExternalName: what it names".to_owned())
}

/// A pod's port of its node.
fn from_the_node(world: &World<'_>) -> Result<String> {
    let to = SocketAddr::new(world.node, HOST_PORT);
    world.scene.until(&world.client, to, &SERVED)?;
    let who = world.who(to)?;
    ensure!(who == "host", "{who} served the port of the node");
    Ok(format!("hostPort {HOST_PORT}: the pod that asked for it"))
}

/// A port that its Service declares to speak HTTP takes nothing else, and its requests are counted.
fn declared(world: &World<'_>) -> Result<String> {
    let to = world.cluster_ip("declared")?;
    world.scene.until(&world.client, to, &SERVED)?;
    wait::until("what is no HTTP to be refused", Duration::from_secs(120), || {
        let mut stream = world.client.connect(to)?;
        stream.write_all(b"\x00\x01\x02 not HTTP\r\n\r\n")?;
        let said = std::io::read_to_string(&mut stream);
        Ok(match said {
            Err(error) if Outcome::from(&error) == Outcome::Reset => Seen::Done(()),
            other => Seen::Not(format!("{other:?}")),
        })
    })?;
    world.scene.always(&world.client, to, &SERVED)?;
    let pod = world.scene.places(&world.scene.namespace, "ending")?;
    let pod = pod.first().context("no pod")?;
    let page =
        Place::outside(world.scene.see.cluster)?.read(SocketAddr::new(pod.address, METRICS), "/metrics")?;
    let counted = page.lines().filter(|line| line.contains("requests_total{"));
    let total: u64 = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    ensure!(total > 0, "no request of a declared port was counted: {page}");
    Ok(format!("appProtocol http: {total} requests counted, other bytes refused"))
}

/// Pods that are not ready are served to nobody but who dials them, or where the Service says so.
fn unready(world: &World<'_>) -> Result<String> {
    let see = &world.scene.see;
    let address = wait::until("the pod that is never ready to run", PODS, || {
        let pods = see.pods(&world.scene.namespace, "app=unready")?;
        let started =
            pods.first().filter(|pod| pod.pointer("/status/containerStatuses/0/state/running").is_some());
        Ok(started
            .map_or_else(|| Seen::Not(format!("{pods:?}")), |pod| Seen::Done(text(pod, "/status/podIP"))))
    })?;
    world.scene.until(&world.client, SocketAddr::new(address.parse()?, PORT), &SERVED)?;
    world.scene.until(&world.client, world.cluster_ip("published")?, &SERVED)?;
    world.scene.always(&world.client, world.cluster_ip("unready")?, &Outcome::Reset)?;
    Ok("not ready: served by its own address and where it is published, reset behind its Service".to_owned())
}

/// A pod that ends and still serves does so while there is no other.
fn ending(world: &World<'_>) -> Result<String> {
    let (see, namespace) = (&world.scene.see, &world.scene.namespace);
    let to = world.cluster_ip("ending")?;
    world.scene.until(&world.client, to, &SERVED)?;
    see.kubectl(&["delete", "pod", "ending", "-n", namespace, "--wait=false"])?;
    wait::until("the slice to say that the pod ends", Duration::from_secs(12), || {
        let slices =
            see.items(&["endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=ending"])?;
        let conditions = slices.iter().find_map(|slice| slice.pointer("/endpoints/0/conditions"));
        let ends = conditions.is_some_and(|found| found.get("terminating") == Some(&json!(true)));
        Ok(if ends { Seen::Done(()) } else { Seen::Not(format!("{conditions:?}")) })
    })?;
    world.scene.always(&world.client, to, &SERVED)?;
    Ok("terminating, and no other: served".to_owned())
}
