//! Is this container already ours, in canonical form? Only what the API server itself adds is overlooked;
//! everything else makes it a look-alike, to be overwritten.

use crate::quantity;
use crate::sidecar::is_ours;
use serde_json::{Map, Value};

/// Where the API server's ServiceAccount plugin mounts its token in every container.
const API_ACCESS_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How it calls the volume.
const API_ACCESS_VOLUME: &str = "kube-api-access-";

/// Whether `have` is `want` but for what the API server added and a mirrored image among `allowed`.
pub(crate) fn same_container(want: &Value, have: &Value, allowed: &[String]) -> bool {
    let (Some(want), Some(have)) = (want.as_object(), have.as_object()) else {
        return false;
    };
    let known = want.keys().all(|key| have.contains_key(key));
    known && have.iter().all(|(key, value)| same_member(key, want.get(key), value, allowed))
}

fn same_member(key: &str, want: Option<&Value>, have: &Value, allowed: &[String]) -> bool {
    match (key, want) {
        ("image", Some(Value::String(want))) => {
            have.as_str().is_some_and(|have| same_image(want, have, allowed))
        }
        ("resources", Some(want)) => same_resources(want, have),
        ("volumeMounts", want) => same_mounts(want, have),
        (_, Some(want)) => want == have,
        (_, None) => false,
    }
}

/// A registry mirror may have been put in front, and a digest behind, by a webhook of the cluster's own; the
/// admission policies accept the same.
fn same_image(want: &str, have: &str, allowed: &[String]) -> bool {
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bare = match have.split_once("@sha256:") {
        Some((image, digest)) if is_digest(digest) => image,
        _ => have,
    };
    let last = |image: &str| image.rsplit('/').next().map(str::to_owned);
    bare == want || (allowed.iter().any(|image| image == bare) && last(bare) == last(want))
}

/// Equal in value, whatever the notation. A LimitRange may have added resources that we don't name.
fn same_resources(want: &Value, have: &Value) -> bool {
    let Some(have) = have.as_object() else {
        return false;
    };
    have.keys().all(|key| key == "requests" || key == "limits")
        && ["requests", "limits"].iter().all(|list| {
            let empty = Map::new();
            let of = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
            let (want, have) = (of(want.get(list)), of(have.get(*list)));
            let have = have.as_ref().unwrap_or(&empty);
            want.as_ref().unwrap_or(&empty).iter().all(|(name, want)| {
                have.get(name).is_some_and(|have| {
                    let (want, have) = (quantity::parse(want), quantity::parse(have));
                    want.is_some() && want == have
                })
            }) && have.keys().all(|name| {
                want.as_ref().is_some_and(|w| w.contains_key(name)) || name == "ephemeral-storage"
            })
        })
}

fn same_mounts(want: Option<&Value>, have: &Value) -> bool {
    let Some(have) = have.as_array() else {
        return false;
    };
    let ours: Vec<&Value> = have.iter().filter(|mount| !is_api_access(mount)).collect();
    let want: Vec<&Value> = want.and_then(Value::as_array).into_iter().flatten().collect();
    ours == want
}

fn is_api_access(mount: &Value) -> bool {
    let text = |key| mount.get(key).and_then(Value::as_str).unwrap_or_default();
    let members = mount.as_object().map_or(0, Map::len);
    members == 3
        && text("name").starts_with(API_ACCESS_VOLUME)
        && text("mountPath") == API_ACCESS_PATH
        && mount.get("readOnly") == Some(&Value::Bool(true))
}

/// Where our containers stand in a list of init containers, by index.
pub(crate) fn positions<'a>(names: impl Iterator<Item = &'a str>) -> Vec<usize> {
    names.enumerate().filter(|(_, name)| is_ours(name)).map(|(index, _)| index).collect()
}
