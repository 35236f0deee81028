//! Whether a pod has our sidecar, read from what can't be changed after its creation.

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, VolumeMount};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Name of the first init container, which sets the redirect.
pub const INIT: &str = "cinch-init";
/// Name of the second init container, the native sidecar.
pub const PROXY: &str = "cinch-proxy";

/// The user that the redirect lets through.
const PROXY_UID: i64 = 1507;
/// Where the sidecar has the socket of the node agent.
const AGENT_MOUNT: &str = "/var/run/cinch/agent";
/// The CSI driver that the node agent is.
const AGENT_DRIVER: &str = "node.cinch.dev";
/// The variable that has the proxy ask the agent; without it the proxy takes the redirect for set.
const REDIRECT: &str = "CINCH_REDIRECT";
/// Where the proxy is asked whether it is ready. Nobody listens there: only the redirect leads to it.
const PROBE: (&str, i32) = ("/ready", 15021);
/// What the injection mounts, and what the API server adds by itself.
const MOUNTS: [&str; 4] = [
    "/var/run/cinch/token",
    "/var/run/cinch/trust",
    AGENT_MOUNT,
    "/var/run/secrets/kubernetes.io/serviceaccount",
];

/// Whether the first two init containers are `cinch-init` and `cinch-proxy`, or the first is `cinch-proxy` with the
/// volume of the node agent, which it is told to ask; with images of `allowed` and doing with them what the injection
/// has them do, the proxy a native sidecar (`restartPolicy: Always`, KEP-753) before which nothing else starts.
/// Labels and annotations don't count: users may write them. Admission sees to the same, but only since the
/// namespace is enrolled: a look-alike may be older.
#[must_use]
pub fn is_injected(spec: &PodSpec, allowed: &[String]) -> bool {
    match spec.init_containers.as_deref() {
        Some([init, proxy, ..]) if init.name == INIT => {
            is_ours(init, INIT, "init", allowed)
                && has_redirected(init)
                && is_proxy(proxy, allowed)
                && redirect_of(proxy).next().is_none()
        }
        Some([proxy, ..]) => is_proxy(proxy, allowed) && asks_agent(spec, proxy),
        _ => false,
    }
}

fn is_proxy(proxy: &Container, allowed: &[String]) -> bool {
    is_ours(proxy, PROXY, "run", allowed)
        && proxy.security_context.as_ref().and_then(|context| context.run_as_user) == Some(PROXY_UID)
        && proxy.restart_policy.as_deref() == Some("Always")
        && proxy.startup_probe.as_ref().is_some_and(needs_redirect)
}

/// Whether the probe can only pass by way of the redirect.
fn needs_redirect(probe: &Probe) -> bool {
    let (path, port) = PROBE;
    probe.http_get.as_ref().is_some_and(|get| {
        get.path.as_deref() == Some(path)
            && get.port == IntOrString::Int(port)
            && get.host.is_none()
            && get.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP")
    })
}

/// Whether the proxy asks its node's agent for the redirect, and has the socket by which the agent knows the pod.
/// Then it never becomes ready without one.
fn asks_agent(spec: &PodSpec, proxy: &Container) -> bool {
    let mount = proxy.volume_mounts.iter().flatten().find(|mount| mount.mount_path == AGENT_MOUNT);
    let volumes = || spec.volumes.iter().flatten();
    let connected = mount.is_some_and(|mount| {
        volumes().any(|volume| {
            volume.name == mount.name && volume.csi.as_ref().is_some_and(|csi| csi.driver == AGENT_DRIVER)
        })
    });
    // Of several values the last holds.
    connected && redirect_of(proxy).last() == Some(Some("agent"))
}

/// What the proxy is told about who sets the redirect; `None` where that is not written out.
fn redirect_of(proxy: &Container) -> impl Iterator<Item = Option<&str>> {
    let variables = proxy.env.iter().flatten().filter(|variable| variable.name == REDIRECT);
    variables.map(|variable| variable.value.as_deref())
}

/// Whether it is the container `name`, which runs our program with the word `does` and nothing else.
fn is_ours(container: &Container, name: &str, does: &str, allowed: &[String]) -> bool {
    container.name == name
        && container.image.as_deref().is_some_and(|image| is_allowed_image(image, allowed))
        && container.command.as_ref().is_none_or(Vec::is_empty)
        && container.args.as_deref().is_some_and(|args| args == [does])
        && container.env_from.as_ref().is_none_or(Vec::is_empty)
        && container.volume_mounts.iter().flatten().all(is_our_mount)
}

/// A mount elsewhere may replace the program.
fn is_our_mount(mount: &VolumeMount) -> bool {
    MOUNTS.contains(&mount.mount_path.as_str())
}

/// Whether it can set the redirect and has ended before the next container starts.
fn has_redirected(init: &Container) -> bool {
    let context = init.security_context.as_ref();
    let added = context.and_then(|context| context.capabilities.as_ref()?.add.as_ref());
    init.restart_policy.is_none()
        && added.is_some_and(|added| added.iter().any(|capability| capability == "NET_ADMIN"))
}

/// Whether `image` is one of `allowed`, or one of them pinned to a digest (`@sha256:` and 64 hex digits).
#[must_use]
pub fn is_allowed_image(image: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|known| match image.strip_prefix(known.as_str()) {
        Some("") => true,
        Some(rest) => rest.strip_prefix("@sha256:").is_some_and(is_digest),
        None => false,
    })
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The two containers as they are injected, as far as it matters here.
#[cfg(test)]
pub(crate) fn containers(image: &str) -> serde_json::Value {
    serde_json::json!([
        {"name": INIT, "image": image, "args": ["init"],
            "securityContext": {"runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}},
        {"name": PROXY, "image": image, "args": ["run"], "restartPolicy": "Always",
            "securityContext": {"runAsUser": PROXY_UID},
            "startupProbe": {"httpGet": {"path": PROBE.0, "port": PROBE.1, "scheme": "HTTP"}},
            "volumeMounts": [{"name": "cinch-token", "mountPath": "/var/run/cinch/token"},
                {"name": "cinch-trust", "mountPath": "/var/run/cinch/trust"},
                {"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const IMAGE: &str = "example.test/cinch-proxy:0.1.0";

    fn with(init: &Value) -> PodSpec {
        serde_json::from_value(json!({"containers": [], "initContainers": init})).unwrap()
    }

    /// Containers that do what ours do by their names.
    fn spec(init: &[(&str, &str, Option<&str>)]) -> PodSpec {
        let ours = containers(IMAGE);
        let of = |(name, image, policy): &(&str, &str, Option<&str>)| {
            let mut container = ours[usize::from(*name == PROXY)].clone();
            container["name"] = json!(name);
            container["image"] = json!(image);
            container["restartPolicy"] = json!(policy);
            container
        };
        with(&init.iter().map(of).collect())
    }

    #[test]
    fn containers_that_only_look_like_ours_do_not_count() {
        let allowed = [IMAGE.to_owned()];
        assert!(is_injected(&with(&containers(IMAGE)), &allowed));
        let cases = [
            ("/0/command", json!(["/bin/true"])),
            ("/1/command", json!(["/cinch-proxy"])),
            ("/0/args", json!(["run"])),
            ("/0/args", Value::Null),
            ("/1/args", json!(["run", "--config", "/x"])),
            ("/1/args", json!([])),
            ("/0/envFrom", json!([{"configMapRef": {"name": "x"}}])),
            ("/1/envFrom", json!([{"configMapRef": {"name": "x"}}])),
            ("/0/securityContext", Value::Null),
            ("/0/securityContext", json!({"capabilities": {"add": ["NET_RAW"]}})),
            ("/1/securityContext", Value::Null),
            ("/1/securityContext", json!({"runAsUser": 0})),
            ("/1/volumeMounts", json!([{"name": "x", "mountPath": "/cinch-proxy"}])),
            ("/0/restartPolicy", json!("Always")),
            ("/1/env", json!([{"name": "CINCH_REDIRECT", "value": "agent"}])),
            ("/1/startupProbe", Value::Null),
            ("/1/startupProbe", json!({"exec": {"command": ["/cinch-proxy", "version"]}})),
            ("/1/startupProbe", json!({"tcpSocket": {"port": 15006}})),
            ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 15021, "host": "192.0.2.1"}})),
            ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 15021, "scheme": "HTTPS"}})),
            ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 8080}})),
            ("/1/startupProbe", json!({"httpGet": {"path": "/", "port": 15021}})),
        ];
        for (at, value) in cases {
            let mut init = containers(IMAGE);
            let (parent, key) = at.rsplit_once('/').unwrap();
            init.pointer_mut(parent).unwrap()[key] = value.clone();
            assert!(!is_injected(&with(&init), &allowed), "{at}: {value}");
        }
    }

    #[test]
    fn the_proxy_alone_counts_with_the_volume_of_the_node_agent() {
        let allowed = [IMAGE.to_owned()];
        let pod = || {
            let mut proxy = containers(IMAGE)[1].clone();
            let mount = json!({"name": "cinch-agent", "mountPath": AGENT_MOUNT, "readOnly": true});
            proxy["volumeMounts"].as_array_mut().unwrap().push(mount);
            proxy["env"] =
                json!([{"name": "CINCH_LOG", "value": "info"}, {"name": REDIRECT, "value": "agent"}]);
            let volume = json!({"name": "cinch-agent", "csi": {"driver": AGENT_DRIVER, "readOnly": true}});
            json!({"containers": [], "initContainers": [proxy, {"name": "x", "image": "y"}], "volumes": [volume]})
        };
        let counts = |pod: Value| is_injected(&serde_json::from_value(pod).unwrap(), &allowed);
        assert!(counts(pod()));
        let cases = [
            ("/volumes/0/csi/driver", json!("csi.example.com")),
            ("/volumes/0/name", json!("other")),
            ("/volumes", json!([{"name": "cinch-agent", "emptyDir": {}}])),
            ("/initContainers/0/volumeMounts/3/mountPath", json!("/elsewhere")),
            ("/initContainers/0/volumeMounts/3/name", json!("other")),
            ("/initContainers/0/name", json!("proxy")),
            ("/initContainers/0/args", json!(["run", "--config", "/x"])),
            ("/initContainers/0/restartPolicy", Value::Null),
            ("/initContainers/0/image", json!("evil/cinch-proxy:1")),
            ("/initContainers/0/env", Value::Null),
            ("/initContainers/0/env/1/name", json!("CINCH_X")),
            ("/initContainers/0/env/1/value", json!("")),
            ("/initContainers/0/env/1/value", Value::Null),
            ("/initContainers/0/startupProbe", Value::Null),
            ("/initContainers/0/startupProbe/httpGet", Value::Null),
            ("/initContainers/0/startupProbe", json!({"tcpSocket": {"port": 15006}})),
        ];
        for (at, value) in cases {
            let mut changed = pod();
            *changed.pointer_mut(at).unwrap() = value.clone();
            assert!(!counts(changed), "{at}: {value}");
        }
        let mut taken_back = pod();
        let again = json!({"name": REDIRECT, "value": ""});
        taken_back["initContainers"][0]["env"].as_array_mut().unwrap().push(again);
        assert!(!counts(taken_back), "the last value holds");
        let mut behind = pod();
        behind["initContainers"].as_array_mut().unwrap().swap(0, 1);
        assert!(!counts(behind));
    }

    #[test]
    fn only_the_two_containers_in_first_place_with_our_image_count() {
        let always = Some("Always");
        let digest = format!("{IMAGE}@sha256:{}", "a".repeat(64));
        let cases = [
            ("as injected", vec![(INIT, IMAGE, None), (PROXY, IMAGE, always)], true),
            ("with a digest", vec![(INIT, digest.as_str(), None), (PROXY, digest.as_str(), always)], true),
            ("others behind", vec![(INIT, IMAGE, None), (PROXY, IMAGE, always), ("x", "y", None)], true),
            ("another in front", vec![("x", "y", None), (INIT, IMAGE, None), (PROXY, IMAGE, always)], false),
            ("wrong order", vec![(PROXY, IMAGE, always), (INIT, IMAGE, None)], false),
            ("not a sidecar", vec![(INIT, IMAGE, None), (PROXY, IMAGE, None)], false),
            ("foreign proxy", vec![(INIT, IMAGE, None), (PROXY, "evil/cinch-proxy:1", always)], false),
            ("foreign init", vec![(INIT, "evil/x", None), (PROXY, IMAGE, always)], false),
            (
                "longer tag",
                vec![(INIT, IMAGE, None), (PROXY, "example.test/cinch-proxy:0.1.01", always)],
                false,
            ),
            (
                "short digest",
                vec![(INIT, IMAGE, None), (PROXY, "example.test/cinch-proxy:0.1.0@sha256:ab", always)],
                false,
            ),
            ("proxy missing", vec![(INIT, IMAGE, None)], false),
            ("nothing", vec![], false),
        ];
        for (case, init, want) in cases {
            assert_eq!(is_injected(&spec(&init), &[IMAGE.to_owned()]), want, "{case}");
        }
    }
}
