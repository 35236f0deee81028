//! Endpoints whose peer proved another identity than the record says. In they come from handshakes; out comes what is
//! left of a record without them. The operator may be slow, and says the same again until it knows better: whoever
//! stands at such an address must not cost each connection a handshake meanwhile.

use super::endpoints_of;
use crate::context::{Destination, Endpoint};
use cinch_identity::SpiffeId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// So long a peer is not asked again who it is. No longer: the pod of the record may come back to its address, and where
/// nobody was told of the one in between, nobody says so.
const BELIEVED: Duration = Duration::from_secs(60);
/// Endpoints that are remembered; beyond them the one that is over first goes.
const MOST: usize = 1024;

/// The endpoints that were refuted lately.
#[derive(Debug, Default)]
pub(super) struct Refuted(HashMap<SocketAddr, Refutation>);

#[derive(Debug)]
struct Refutation {
    /// Who is not there.
    identity: SpiffeId,
    until: Instant,
}

impl Refuted {
    /// The peer at this endpoint proved to be somebody else.
    pub(super) fn note(&mut self, endpoint: &Endpoint, now: Instant) {
        let Some(identity) = endpoint.identity.clone() else { return };
        if self.0.len() >= MOST && !self.0.contains_key(&endpoint.address) {
            self.0.retain(|_, refutation| now < refutation.until);
        }
        if self.0.len() >= MOST
            && !self.0.contains_key(&endpoint.address)
            && let Some(first) = self.0.iter().min_by_key(|(_, refutation)| refutation.until)
        {
            let first = *first.0;
            self.0.remove(&first);
        }
        self.0.insert(endpoint.address, Refutation { identity, until: now + BELIEVED });
    }

    /// Whether anything was found out at its address.
    pub(super) fn knows(&self, endpoint: &Endpoint) -> bool {
        self.0.contains_key(&endpoint.address)
    }

    /// The endpoint is not in its record any more: what was found out there says nothing of the next one.
    pub(super) fn forgive(&mut self, endpoint: &Endpoint) {
        if self
            .0
            .get(&endpoint.address)
            .is_some_and(|known| Some(&known.identity) == endpoint.identity.as_ref())
        {
            self.0.remove(&endpoint.address);
        }
    }

    fn until(&self, endpoint: &Endpoint, now: Instant) -> Option<Instant> {
        let known = self.0.get(&endpoint.address)?;
        (Some(&known.identity) == endpoint.identity.as_ref() && now < known.until).then_some(known.until)
    }

    /// What is left of `said`, if anything is, and when more of it will be; `None` where nothing of it is refuted.
    pub(super) fn left_of(&self, said: &Destination, now: Instant) -> Option<(Option<Destination>, Instant)> {
        if self.0.is_empty() {
            return None;
        }
        let first = endpoints_of(said).iter().filter_map(|endpoint| self.until(endpoint, now)).min()?;
        Some((without(said, |endpoint| self.until(endpoint, now).is_some()), first))
    }
}

/// What is left of a record when nobody may go to the endpoints that are `out` any more; `None` when it leads to no
/// meshed endpoint then. Endpoints that are all unmeshed would be left to whatever balances the address outside of the
/// mesh, and that may choose the very one that was wrong.
fn without(said: &Destination, out: impl Fn(&Endpoint) -> bool) -> Option<Destination> {
    let left: Arc<[Endpoint]> =
        endpoints_of(said).iter().filter(|endpoint| !out(endpoint)).cloned().collect();
    if !left.iter().any(|endpoint| endpoint.meshed) {
        return None;
    }
    match said {
        Destination::Endpoints(_) => Some(Destination::Endpoints(left)),
        Destination::Sticky(_, within) => Some(Destination::Sticky(left, *within)),
        Destination::PassThrough | Destination::Refuse(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiscoveryMetrics, Look, RecordCache};
    use super::*;
    use crate::context::Discovery;
    use crate::limits::Limits;
    use cinch_policy::Mode;
    use cinch_reason::Reason;

    fn endpoint(number: usize, account: &str) -> Endpoint {
        let identity = SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap();
        let [.., high, low] = number.to_be_bytes();
        Endpoint {
            address: ([10, 0, high, low], 80).into(),
            meshed: true,
            identity: Some(identity),
            mode: Mode::Strict,
            ready: true,
        }
    }

    #[test]
    fn a_peer_is_asked_again_after_a_minute_or_when_another_one_is_expected() {
        let (mut refuted, start) = (Refuted::default(), Instant::now());
        let (one, other, third) = (endpoint(1, "api"), endpoint(1, "other"), endpoint(2, "api"));
        refuted.note(&one, start);
        assert!(refuted.until(&one, start + BELIEVED - Duration::from_secs(1)).is_some());
        assert!(refuted.until(&one, start + BELIEVED).is_none());
        assert!(refuted.until(&other, start).is_none() && refuted.until(&third, start).is_none());
        refuted.forgive(&other);
        assert!(refuted.until(&one, start).is_some(), "of it nothing was said");
        refuted.forgive(&one);
        assert!(refuted.until(&one, start).is_none());
    }

    fn pass_the_time(cache: &RecordCache) {
        let mut state = cache.state.lock();
        state.refuted.0.values_mut().for_each(|refutation| refutation.until -= BELIEVED);
        let whole = state.entries.values_mut().filter_map(|entry| entry.whole.as_mut());
        whole.for_each(|(_, until)| *until -= BELIEVED);
    }

    fn goes_to(cache: &RecordCache, to: SocketAddr) -> Destination {
        match cache.look(to) {
            Look::Known(destination) => destination,
            Look::Wait(_) => panic!("nothing is known"),
        }
    }

    #[test]
    fn a_record_is_whole_again_once_its_endpoint_is_asked_again() {
        let cache = RecordCache::new(&Limits::default(), DiscoveryMetrics::default());
        let to = SocketAddr::from(([10, 96, 0, 1], 80));
        let (one, other) = (endpoint(1, "api"), endpoint(2, "api"));
        let of = |endpoints: &[&Endpoint]| -> Destination {
            Destination::Endpoints(endpoints.iter().map(|endpoint| (*endpoint).clone()).collect())
        };
        let refused = Destination::Refuse(Reason::PeerIdentityMismatch);
        let _ = cache.look(to);
        for (said, left) in [(of(&[&one, &other]), of(&[&other])), (of(&[&one]), refused.clone())] {
            cache.state.lock().put(to, said.clone(), None);
            assert_eq!(goes_to(&cache, to), said);
            cache.forget(to, &one);
            // The operator says the same again.
            cache.state.lock().put(to, said.clone(), Some(refused.clone()));
            assert_eq!((goes_to(&cache, to), cache.leads_to(one.address)), (left, false));
            pass_the_time(&cache);
            assert_eq!((goes_to(&cache, to), cache.leads_to(one.address)), (said, true));
        }
    }

    #[test]
    fn those_remembered_are_bounded_and_the_oldest_go() {
        let (mut refuted, start) = (Refuted::default(), Instant::now());
        let after = |number: usize| start + Duration::from_millis(number as u64);
        for number in 0..MOST + 10 {
            refuted.note(&endpoint(number, "api"), after(number));
            assert!(refuted.0.len() <= MOST);
        }
        let now = after(MOST + 10);
        let known = |number: usize| refuted.until(&endpoint(number, "api"), now).is_some();
        assert!((0..10).all(|number| !known(number)) && (10..MOST + 10).all(known));
        refuted.note(&endpoint(MOST + 10, "api"), start + BELIEVED * 2);
        assert_eq!(refuted.0.len(), 1, "what is over goes first");
    }
}
