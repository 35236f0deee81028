//! Whether a pod has our sidecar, read from what can't be changed after its creation.

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, Probe, Volume, VolumeMount};
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
/// Its value then.
const BY_AGENT: &str = "agent";
/// Where the proxy is asked whether it is ready. Nobody listens there: only the redirect leads to it.
const PROBE: (&str, i32) = ("/ready", 15021);
/// The audience of the sidecar's token.
const AUDIENCE: &str = "cinch.dev";
const TOKEN: &str = "cinch-token";
const TRUST: &str = "cinch-trust";
const AGENT: &str = "cinch-agent";
/// What the injection mounts into the proxy: volume and path.
const MOUNTS: [(&str, &str); 3] =
    [(TOKEN, "/var/run/cinch/token"), (TRUST, "/var/run/cinch/trust"), (AGENT, AGENT_MOUNT)];
/// Below it is what the sidecar is given, in whichever version.
const OURS: &str = "/var/run/cinch/";
/// With it begin the names of the sidecar's volumes.
const VOLUME_PREFIX: &str = "cinch-";
/// With it begin the names of its variables.
const PREFIX: &str = "CINCH_";
/// What the API server mounts by itself, under a name of its own.
const OF_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Variables that tell the proxy about its pod, and the fields that they must come from.
const FIELDS: [(&str, &str); 7] = [
    ("CINCH_POD_NAME", "metadata.name"),
    ("CINCH_POD_NAMESPACE", "metadata.namespace"),
    ("CINCH_POD_UID", "metadata.uid"),
    ("CINCH_POD_IPS", "status.podIPs"),
    ("CINCH_HOST_IPS", "status.hostIPs"),
    ("CINCH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ("CINCH_NODE_NAME", "spec.nodeName"),
];

/// What the sidecars of this installation have in common.
#[derive(Debug, Clone)]
pub struct Ours {
    /// Images whose repositories are our sidecar's.
    pub images: Vec<String>,
    /// The trust domain that they are told.
    pub trust_domain: String,
    /// The operator's identity that they are told.
    pub operator_id: String,
}

/// Whether the first two init containers are `cinch-init` and `cinch-proxy`, or the first is `cinch-proxy` with the
/// volume of the node agent, which it is told to ask; with our images and doing with them what the injection has them
/// do, the proxy a native sidecar (`restartPolicy: Always`, KEP-753) before which nothing else starts, and token and
/// trust for it alone. Labels and annotations don't count: users may write them. Admission sees to the same (policy
/// `cinch-pods`), but only since the namespace is enrolled: a look-alike may be older.
///
/// An image is ours by its repository, which is that of one of [`Ours::images`]: whatever version runs. Which version
/// may start is for admission to say; a pod that runs would otherwise be unmeshed from the moment at which an upgrade
/// names the next one. So are earlier settings of the proxy.
///
/// Nor is a pod unmeshed by a roll-back, or by a leader that is older than the webhook: what a later version may add
/// counts as ours although this one does not know it. That is variables of our prefix, mounts beside ours and probes by
/// HTTP. No program that this version knows reads any of them, so a look-alike gains nothing by them; whatever else a
/// later version changes needs a version in between that knows it.
#[must_use]
pub fn is_injected(spec: &PodSpec, ours: &Ours) -> bool {
    let (stands, others) = match spec.init_containers.as_deref() {
        Some([init, proxy, others @ ..]) if init.name == INIT => {
            let redirected = is_ours(init, INIT, "init", ours) && has_redirected(init);
            (redirected && is_proxy(proxy, ours) && redirect_of(proxy).next().is_none(), others)
        }
        Some([proxy, others @ ..]) => (is_proxy(proxy, ours) && asks_agent(spec, proxy), others),
        _ => return false,
    };
    stands && spec.volumes.iter().flatten().all(is_given_volume) && is_left_alone(spec, others)
}

fn is_proxy(proxy: &Container, ours: &Ours) -> bool {
    is_ours(proxy, PROXY, "run", ours)
        && has_user(proxy, PROXY_UID, &[])
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

/// Whether the probe is a question over HTTP to the pod itself: it runs nothing in the container. Only the startup probe
/// has to need the redirect: nothing else starts before it has passed.
fn asks_the_pod(probe: &Probe) -> bool {
    probe.http_get.as_ref().is_some_and(|get| get.host.is_none())
}

/// Whether the proxy asks its node's agent for the redirect, and has the socket by which the agent knows the pod.
/// Then it never becomes ready without one.
fn asks_agent(spec: &PodSpec, proxy: &Container) -> bool {
    let mounted = proxy.volume_mounts.iter().flatten().any(|mount| mount.mount_path == AGENT_MOUNT);
    let connected = mounted && spec.volumes.iter().flatten().any(|volume| volume.name == AGENT);
    // Of several values the last holds.
    connected && redirect_of(proxy).last() == Some(Some(BY_AGENT))
}

/// What the proxy is told about who sets the redirect; `None` where that is not written out.
fn redirect_of(proxy: &Container) -> impl Iterator<Item = Option<&str>> {
    let variables = proxy.env.iter().flatten().filter(|variable| variable.name == REDIRECT);
    variables.map(|variable| variable.value.as_deref())
}

/// Whether it is the container `name`, which runs our program with the word `does` and nothing else.
fn is_ours(container: &Container, name: &str, does: &str, ours: &Ours) -> bool {
    container.name == name
        && container.image.as_deref().is_some_and(|image| is_our_image(image, &ours.images))
        && container.command.as_ref().is_none_or(Vec::is_empty)
        && container.args.as_deref().is_some_and(|args| args == [does])
        && container.env_from.as_ref().is_none_or(Vec::is_empty)
        && container.env.iter().flatten().all(|variable| is_given_variable(variable, ours))
        && container.volume_devices.as_ref().is_none_or(Vec::is_empty)
        && container.volume_mounts.iter().flatten().all(|mount| is_given_mount(mount, name))
        && container.lifecycle.is_none()
        && container.liveness_probe.as_ref().is_none_or(asks_the_pod)
        && container.readiness_probe.as_ref().is_none_or(asks_the_pod)
        && container.working_dir.is_none()
}

/// The proxy believes its environment: in which trust domain it is, and whom to ask.
fn is_given_variable(variable: &EnvVar, ours: &Ours) -> bool {
    let (said, literal) = (variable.value.as_deref().unwrap_or_default(), variable.value_from.is_none());
    match variable.name.as_str() {
        "CINCH_PROBES" | "CINCH_LOG" | "CINCH_PROXY_SETTINGS" => literal,
        "CINCH_TRUST_DOMAIN" => literal && said == ours.trust_domain,
        "CINCH_OPERATOR_ID" => literal && said == ours.operator_id,
        REDIRECT => literal && said == BY_AGENT,
        name => {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            match FIELDS.iter().find(|(known, _)| *known == name) {
                Some((_, path)) => field.is_some_and(|field| field.field_path == *path),
                None => name.starts_with(PREFIX) && (literal || field.is_some()),
            }
        }
    }
}

/// A mount elsewhere may replace the program, and one of something else the token or the trust.
fn is_given_mount(mount: &VolumeMount, container: &str) -> bool {
    let at = (mount.name.as_str(), mount.mount_path.as_str());
    let given = container == PROXY && (MOUNTS.contains(&at) || is_beside_ours(mount));
    let of_account = mount.mount_path == OF_ACCOUNT && !is_our_volume(&mount.name);
    mount.sub_path.is_none() && mount.sub_path_expr.is_none() && (given || of_account)
}

/// Whether the mount is of a volume of our prefix that is none of those we know, at a place of its own: below one of ours
/// it would replace a part of it.
fn is_beside_ours(mount: &VolumeMount) -> bool {
    let own_place = |place: &str| {
        let plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
        !place.is_empty() && place.bytes().all(plain)
    };
    mount.name.starts_with(VOLUME_PREFIX)
        && !is_our_volume(&mount.name)
        && MOUNTS.iter().all(|(_, path)| *path != mount.mount_path)
        && mount.mount_path.strip_prefix(OURS).is_some_and(own_place)
}

fn is_our_volume(name: &str) -> bool {
    MOUNTS.iter().any(|(volume, _)| *volume == name)
}

/// Whether there stands behind our names what the injection puts there, and behind no other name the same.
fn is_given_volume(volume: &Volume) -> bool {
    let sources =
        volume.projected.as_ref().and_then(|projected| projected.sources.as_deref()).unwrap_or_default();
    let tokens = || sources.iter().filter_map(|source| source.service_account_token.as_ref());
    let by_agent = volume.csi.as_ref().is_some_and(|csi| csi.driver == AGENT_DRIVER);
    match volume.name.as_str() {
        TOKEN => {
            let ours = |audience: Option<&str>, path: &str| audience == Some(AUDIENCE) && path == "token";
            sources.len() == 1 && tokens().any(|token| ours(token.audience.as_deref(), &token.path))
        }
        TRUST => volume.config_map.as_ref().is_some_and(|map| map.name == TRUST),
        AGENT => by_agent,
        _ => !by_agent && tokens().all(|token| token.audience.as_deref() != Some(AUDIENCE)),
    }
}

/// Whether no other container has one of our names or mounts what is the sidecar's alone. `others` are the init
/// containers behind ours.
fn is_left_alone(spec: &PodSpec, others: &[Container]) -> bool {
    let containers = others.iter().chain(&spec.containers).map(|other| (&other.name, &other.volume_mounts));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    containers.chain(ephemeral.map(|other| (&other.name, &other.volume_mounts))).all(|(name, mounts)| {
        name != INIT && name != PROXY && mounts.iter().flatten().all(|mount| !is_our_volume(&mount.name))
    })
}

/// Whether it can set the redirect and has ended before the next container starts.
fn has_redirected(init: &Container) -> bool {
    let context = init.security_context.as_ref();
    let added = context.and_then(|context| context.capabilities.as_ref()?.add.as_ref());
    init.restart_policy.is_none()
        && has_user(init, 0, &["NET_ADMIN"])
        && added.is_some_and(|added| added.iter().any(|capability| capability == "NET_ADMIN"))
}

/// Whether it runs as `user`, with no more than `capabilities` besides what everybody has.
fn has_user(container: &Container, user: i64, capabilities: &[&str]) -> bool {
    let Some(context) = &container.security_context else { return false };
    let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_deref());
    context.run_as_user == Some(user)
        && !context.privileged.unwrap_or(false)
        && added.unwrap_or_default().iter().all(|added| capabilities.contains(&added.as_str()))
}

/// Whether `image` is of the repository of one of `allowed`, in whatever version.
fn is_our_image(image: &str, allowed: &[String]) -> bool {
    let repository = repository(image);
    allowed.iter().any(|known| self::repository(known) == repository)
}

/// An image's reference without its tag and digest. A colon before the last slash is that of the registry's port.
fn repository(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
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

/// What sidecars with this image have in common, for tests.
#[cfg(test)]
pub(crate) fn ours(image: &str) -> Ours {
    Ours {
        images: vec![image.to_owned()],
        trust_domain: "cluster.local".to_owned(),
        operator_id: "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator".to_owned(),
    }
}

#[cfg(test)]
mod tests;
