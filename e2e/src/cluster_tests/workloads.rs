//! What people really run, bit by bit through the mesh: gRPC streams, WebSocket, uploads, curl's verbs, HTTP/1.0, a
//! server that speaks first, PostgreSQL and Redis. In PERMISSIVE from both kinds of clients, as plain TCP and read as
//! HTTP; in STRICT from the meshed one.

use super::scene::{PORT, Scene};
use crate::place::{Outcome, SERVED};
use crate::policies;
use crate::prepare::{PROGRAMS_IMAGE, PROGRAMS_USER, programs_image};
use crate::see::APP_IMAGE;
use crate::terminal;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

/// What Debian's clients do.
const SCRIPT: &str = include_str!("workloads.sh");
const SERVER: &str = "server";
const CLIENTS: [&str; 2] = ["client", "plain"];
/// HTTP and WebSocket; gRPC; the one that greets; PostgreSQL; Redis.
const PORTS: [u16; 5] = [PORT, 9000, 2525, 5432, 6379];
/// What a client uploads in each round, in MiB, and in the last one.
const UPLOAD: u32 = 16;
const LARGE_UPLOAD: u32 = 1024;

/// Trusts whoever comes: who may come is the mesh's to say.
const POSTGRES: &str = "initdb -D /data/db -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null && \
    echo 'host all all all trust' >>/data/db/pg_hba.conf && \
    exec postgres -D /data/db -c 'listen_addresses=*' -c unix_socket_directories=/tmp -c fsync=off";

/// Three rounds: no byte may come otherwise than it was sent.
pub fn pass_unchanged(scene: &Scene<'_>) -> Result<String> {
    scene.see.cluster.import_image(&programs_image()?)?;
    scene.enrolled(&[])?;
    let names: Vec<&str> = CLIENTS.into_iter().chain([SERVER]).collect();
    let items =
        [servers(scene), service(scene), client(scene, "client", true), client(scene, "plain", false)];
    scene.see.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    names
        .iter()
        .try_for_each(|name| scene.see.rolled_out(&scene.namespace, &format!("deployment/{name}")))?;
    let (meshed, plain, to) = (scene.place("client")?, scene.place("plain")?, scene.server(SERVER)?);
    scene.until(&meshed, to, &SERVED)?;
    scene.until(&plain, to, &SERVED)?;
    let mut seen = vec![round(scene, "PERMISSIVE, as TCP", &CLIENTS, "tcp", UPLOAD)?];
    let closed = json!({"operation": {"paths": ["/closed"], "ports": ["8080", "9000"]}});
    let selector = json!({"matchLabels": {"app": SERVER}});
    let spec = json!({"selector": selector, "action": "DENY", "rules": [{"to": [closed]}]});
    scene.policy("AuthorizationPolicy", "closed", spec)?;
    policies::enforced(&scene.see, "authorizationpolicies", &scene.namespace, "closed", 1)?;
    seen.push(round(scene, "PERMISSIVE, read as HTTP", &CLIENTS, "http", UPLOAD)?);
    scene.policy(
        "PeerAuthentication",
        "strict",
        json!({"selector": selector, "mtls": {"mode": "STRICT"}}),
    )?;
    for port in PORTS {
        scene.until(&plain, SocketAddr::new(to.ip(), port), &Outcome::Reset)?;
    }
    seen.push(round(scene, "STRICT, read as HTTP", &CLIENTS[..1], "http", LARGE_UPLOAD)?);
    Ok(seen.join("; "))
}

/// Plays everything from each client, beside each other.
fn round(scene: &Scene<'_>, name: &str, clients: &[&str], read_as: &str, upload: u32) -> Result<String> {
    let begun = Instant::now();
    let play = |client: &str| -> Result<String> {
        let upload = format!("--upload-mib={upload}");
        let streams = exec(scene, client, "app", &["/cinch-demo-app", "try", SERVER, &upload])?;
        let programs =
            exec(scene, client, "programs", &["/bin/sh", "-c", SCRIPT, "workloads", SERVER, read_as])?;
        Ok(streams + &programs)
    };
    let played: Vec<_> = thread::scope(|scope| {
        let playing: Vec<_> = clients.iter().map(|client| scope.spawn(|| play(client))).collect();
        playing.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for (client, lines) in clients.iter().zip(played) {
        let lines = lines.map_err(|_| anyhow!("a thread failed"))?;
        let lines = lines.with_context(|| format!("{name}, from {client}"))?;
        terminal::show(&format!("{name}, from {client}:\n{}", lines.trim_end()));
    }
    Ok(format!("{name}: {} in {:.1} s", clients.join(" and "), begun.elapsed().as_secs_f64()))
}

/// Runs a command in the pod of a client; what it printed.
fn exec(scene: &Scene<'_>, client: &str, container: &str, command: &[&str]) -> Result<String> {
    let pod = scene.place(client)?.pod;
    let exec = ["exec", "-n", &scene.namespace, &pod, "-c", container, "--"];
    let output = scene.see.attempt(&exec.into_iter().chain(command.iter().copied()).collect::<Vec<_>>())?;
    if !output.ok() {
        bail!("{}", output.text().trim());
    }
    Ok(output.stdout)
}

/// One pod with all servers.
fn servers(scene: &Scene<'_>) -> Value {
    let exec = |command: &str| json!({"exec": {"command": ["/bin/sh", "-c", command]}, "periodSeconds": 2, "timeoutSeconds": 5});
    let app = json!({"name": "app", "image": APP_IMAGE, "args": ["workloads"],
        "ports": [{"containerPort": PORT}, {"containerPort": 9000}, {"containerPort": 2525}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1}});
    let postgres = json!({"name": "postgres", "image": PROGRAMS_IMAGE, "command": ["/bin/sh", "-c", POSTGRES],
        "ports": [{"containerPort": 5432}], "securityContext": {"runAsUser": PROGRAMS_USER},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "readinessProbe": exec("psql -h /tmp -U postgres -c 'select 1'")});
    let redis = json!({"name": "redis", "image": PROGRAMS_IMAGE,
        "command": ["/usr/bin/redis-server", "--save", "", "--protected-mode", "no"],
        "ports": [{"containerPort": 6379}], "readinessProbe": exec("redis-cli ping")});
    deployment(scene, SERVER, true, &[app, postgres, redis])
}

/// One pod with all clients.
fn client(scene: &Scene<'_>, name: &str, meshed: bool) -> Value {
    let app = json!({"name": "app", "image": APP_IMAGE, "args": ["pause"]});
    let programs = json!({"name": "programs", "image": PROGRAMS_IMAGE, "command": ["/bin/sleep", "3600"]});
    deployment(scene, name, meshed, &[app, programs])
}

fn deployment(scene: &Scene<'_>, name: &str, meshed: bool, containers: &[Value]) -> Value {
    let mut labels = json!({"app": name});
    if let (false, Some(labels)) = (meshed, labels.as_object_mut()) {
        labels.insert("cinch.dev/inject".to_owned(), json!("disabled"));
    }
    let metadata = json!({"labels": labels});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": scene.namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": metadata,
            "spec": {"terminationGracePeriodSeconds": 1, "containers": containers,
                "volumes": [{"name": "data", "emptyDir": {}}]}}}})
}

/// Ports whose names say nothing of what they speak.
fn service(scene: &Scene<'_>) -> Value {
    let ports: Vec<Value> =
        PORTS.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVER, "namespace": scene.namespace},
        "spec": {"selector": {"app": SERVER}, "ports": ports}})
}
