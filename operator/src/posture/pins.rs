//! PeerAuthentications of users that pin a mode below STRICT: the gate *Unpinned*. They are Istio's objects, so
//! their definition may be missing, which is the same as none; a list now and then is enough, since a promotion
//! waits much longer than that for everything else.

use cinch_policy::{MutualTlsMode, ObjectName, PeerAuthentication};
use cinch_promotion::Finding;
use cinch_reason::Reason;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Between two lists.
const LIST_EVERY: Duration = Duration::from_secs(5);
/// Objects beyond this many in one namespace are not all named.
const NAMED: usize = 5;

type ByNamespace = HashMap<String, Vec<Finding>>;

/// A cheap handle to what pins a namespace.
#[derive(Clone, Default)]
pub(super) struct Pins {
    /// `None` until they have been listed once.
    by_namespace: Arc<RwLock<Option<ByNamespace>>>,
}

impl Pins {
    /// They have been listed once, or can't be there.
    pub(super) fn synced(&self) -> bool {
        self.by_namespace.read().is_some()
    }

    /// What pins the namespace.
    pub(super) fn of(&self, namespace: &str) -> Vec<Finding> {
        self.by_namespace.read().as_ref().and_then(|pins| pins.get(namespace).cloned()).unwrap_or_default()
    }
}

/// Lists them from time to time; ends only with the process.
pub(super) async fn run(client: Client, pins: Pins) {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let api: Api<DynamicObject> =
        Api::all_with(client, &ApiResource::from_gvk_with_plural(&kind, "peerauthentications"));
    loop {
        match api.list(&ListParams::default()).await {
            Ok(list) => *pins.by_namespace.write() = Some(pinning(&list.items)),
            // The definition is not installed.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                *pins.by_namespace.write() = Some(HashMap::new());
            }
            // What was known stays: a pin must not be lost to a bad moment.
            Err(error) => warn!(%error, "PeerAuthentications could not be listed; tried again"),
        }
        tokio::time::sleep(LIST_EVERY).await;
    }
}

/// What pins which namespace.
pub(super) fn pinning(objects: &[DynamicObject]) -> ByNamespace {
    let mut pins = ByNamespace::new();
    for object in objects {
        let namespace = object.namespace().unwrap_or_default();
        let name = ObjectName { namespace: namespace.clone(), name: object.name_any() };
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let parsed = PeerAuthentication::new(name.clone(), "", &spec);
        let modes = std::iter::once(parsed.mode()).chain(parsed.port_modes().map(|(_, mode)| mode));
        let below = |mode: &MutualTlsMode| matches!(mode, MutualTlsMode::Disable | MutualTlsMode::Permissive);
        let list = pins.entry(namespace).or_default();
        if modes.into_iter().any(|mode| below(&mode)) && list.len() < NAMED {
            list.push(Finding {
                reason: Reason::PinnedByPolicy,
                detail: name.to_string(),
                reference: Some(format!("peerauthentication/{}", name.name)),
            });
        }
    }
    pins.retain(|_, list| !list.is_empty());
    pins
}
