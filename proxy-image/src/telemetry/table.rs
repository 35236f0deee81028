//! Series by peer and kind, bounded.

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::collections::HashMap;
use std::sync::Arc;

/// The labels of a series, but for the peer.
pub(super) trait Kind: Copy + PartialEq {
    /// The kind of those that are counted together, of which there are few.
    fn other(self) -> Self;
}

/// Whose series it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// A peer's, by its SPIFFE ID; empty: one that nobody knows.
    Peer(Arc<str>),
    /// Of all that are beyond the bound.
    Others,
}

type OfKind<K, S> = Vec<(K, Arc<S>)>;

#[derive(Debug)]
struct Rows<K, S> {
    by_peer: HashMap<Arc<str>, OfKind<K, S>>,
    count: usize,
    others: OfKind<K, S>,
}

/// Hands out series; the same for the same labels.
#[derive(Debug)]
pub(super) struct Table<K, S> {
    rows: Mutex<Rows<K, S>>,
    bound: usize,
    overflows: Counter,
}

impl<K: Kind, S: Default> Table<K, S> {
    /// At most `bound` series, and the few of [`Kind::other`]; `overflows` counts what those got instead.
    pub(super) fn new(bound: usize, overflows: Counter) -> Self {
        let rows = Rows { by_peer: HashMap::new(), count: 0, others: Vec::new() };
        Table { rows: Mutex::new(rows), bound, overflows }
    }

    /// The series of `peer` (empty: unknown) and `kind`.
    pub(super) fn get(&self, peer: &str, kind: K) -> Arc<S> {
        self.get_with_peer(peer, kind).1
    }

    /// The same, with the peer's name as all that keep it may share it.
    pub(super) fn get_with_peer(&self, peer: &str, kind: K) -> (Arc<str>, Arc<S>) {
        let mut rows = self.rows.lock();
        let Rows { by_peer, count, others } = &mut *rows;
        let known = by_peer.get_key_value(peer);
        if let Some((peer, series)) = known.and_then(|(peer, of)| Some((peer, find(of, kind)?))) {
            return (peer.clone(), series);
        }
        let peer = known.map_or_else(|| peer.into(), |(peer, _)| peer.clone());
        if *count < self.bound {
            *count += 1;
            let series = Arc::<S>::default();
            by_peer.entry(peer.clone()).or_default().push((kind, series.clone()));
            return (peer, series);
        }
        self.overflows.inc();
        let kind = kind.other();
        let series = find(others, kind).unwrap_or_else(|| {
            let series = Arc::<S>::default();
            others.push((kind, series.clone()));
            series
        });
        (peer, series)
    }

    /// All of them, in an order that stays.
    pub(super) fn all(&self) -> Vec<(Whose, K, Arc<S>)> {
        let rows = self.rows.lock();
        let mut peers: Vec<_> = rows.by_peer.iter().collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        let known = peers.into_iter().flat_map(|(peer, series)| {
            series.iter().map(|(kind, series)| (Whose::Peer(peer.clone()), *kind, series.clone()))
        });
        let others = rows.others.iter().map(|(kind, series)| (Whose::Others, *kind, series.clone()));
        known.chain(others).collect()
    }
}

fn find<K: Kind, S>(series: &OfKind<K, S>, kind: K) -> Option<Arc<S>> {
    series.iter().find(|(of, _)| *of == kind).map(|(_, series)| series.clone())
}
