//! PeerAuthentications of users that pin a mode below STRICT: the gate *Unpinned*. The index knows them. While it
//! can't tell, every namespace counts as pinned: missing data is not "none".

use crate::index::{Index, PolicyKey};
use cinch_promotion::Finding;
use cinch_reason::Reason;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Objects beyond this many in one namespace are not all named.
const NAMED: usize = 5;

/// What pins the namespaces at one moment.
#[derive(Default)]
pub(super) struct Pins {
    /// `None`: nobody knows.
    by_namespace: Option<HashMap<Arc<str>, Vec<Finding>>>,
}

impl Pins {
    /// As the index has it now.
    pub(super) fn now(index: &Index) -> Self {
        Self::read(index.pins())
    }

    pub(super) fn read(pins: Option<BTreeSet<PolicyKey>>) -> Self {
        let by_namespace = pins.map(|pins| {
            let mut by_namespace = HashMap::<Arc<str>, Vec<Finding>>::new();
            for key in pins {
                let list = by_namespace.entry(Arc::clone(&key.namespace)).or_default();
                if list.len() < NAMED {
                    list.push(Finding {
                        reason: Reason::PinnedByPolicy,
                        detail: key.object(),
                        reference: Some(format!("peerauthentication/{}", key.name)),
                    });
                }
            }
            by_namespace
        });
        Self { by_namespace }
    }

    /// What pins the namespace.
    pub(super) fn of(&self, namespace: &str) -> Vec<Finding> {
        match &self.by_namespace {
            Some(pins) => pins.get(namespace).cloned().unwrap_or_default(),
            None => vec![Finding {
                reason: Reason::PinnedByPolicy,
                detail: "nobody knows: the operator can not read PeerAuthentications".to_owned(),
                reference: None,
            }],
        }
    }
}
