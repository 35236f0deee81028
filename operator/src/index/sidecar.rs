//! Whether a pod has our sidecar, read from what can't be changed after its creation.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// Name of the first init container, which sets the redirect.
pub const INIT: &str = "cinch-init";
/// Name of the second init container, the native sidecar.
pub const PROXY: &str = "cinch-proxy";

/// Whether the first two init containers are `cinch-init` and `cinch-proxy`, both with an image of `allowed`,
/// the latter a native sidecar (`restartPolicy: Always`, KEP-753). Labels and annotations don't count: users
/// may write them.
#[must_use]
pub fn is_injected(spec: &PodSpec, allowed: &[String]) -> bool {
    let Some([init, proxy, ..]) = spec.init_containers.as_deref() else { return false };
    is_ours(init, INIT, allowed)
        && is_ours(proxy, PROXY, allowed)
        && proxy.restart_policy.as_deref() == Some("Always")
}

fn is_ours(container: &Container, name: &str, allowed: &[String]) -> bool {
    container.name == name && container.image.as_deref().is_some_and(|image| is_allowed_image(image, allowed))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IMAGE: &str = "example.test/cinch-proxy:0.1.0";

    fn spec(init: &[(&str, &str, Option<&str>)]) -> PodSpec {
        let init: Vec<_> = init
            .iter()
            .map(|(name, image, policy)| json!({"name": name, "image": image, "restartPolicy": policy}))
            .collect();
        serde_json::from_value(json!({"containers": [], "initContainers": init})).unwrap()
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
