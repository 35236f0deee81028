//! Lists anew what decides. A watch whose API server died without a word looks like one without news, for minutes;
//! who is about to lead must not tell proxies what was true before. In goes the wish, out comes that every watch has
//! listed since.

use super::Index;
use super::policies::PolicyKind;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// What proxies are told follows from these. Owners of pods only name workloads.
pub(super) const DECIDING: [&str; 6] =
    ["pods", "services", "endpointslices", "namespaces", "nodes", "servicecidrs"];

/// The wish, and how far each watch is.
#[derive(Debug, Default)]
pub(super) struct Relists {
    wanted: watch::Sender<u64>,
    listed: watch::Sender<BTreeMap<&'static str, u64>>,
}

impl Relists {
    /// The newest wish; it changes with the next.
    pub(super) fn wanted(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// The watch of `what` has listed, or learnt that there is nothing to list, since it heard of `wish`.
    pub(super) fn listed(&self, what: &'static str, wish: u64) {
        self.listed.send_if_modified(|listed| listed.insert(what, wish) != Some(wish));
    }
}

impl Index {
    /// Has every watch that decides list anew, and waits until all have; the index keeps what it has meanwhile. As long
    /// as the API server does not answer, this does not end.
    pub async fn relist(&self) {
        let relists = &self.shared.relists;
        let mut listed = relists.listed.subscribe();
        let mut wish = 0;
        relists.wanted.send_modify(|wanted| {
            *wanted += 1;
            wish = *wanted;
        });
        let kinds = || DECIDING.into_iter().chain(PolicyKind::ALL.map(PolicyKind::plural));
        let all =
            |listed: &BTreeMap<&str, u64>| kinds().all(|kind| listed.get(kind).is_some_and(|at| *at >= wish));
        // The sender lives in `self`.
        let _ = listed.wait_for(|listed| all(listed)).await;
    }
}
