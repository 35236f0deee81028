//! Bounds open connections: so many at once, so many of one address. In goes the address of a connection, out comes a
//! place that is held as long as it is open, or which limit refuses it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one listener has room for.
#[derive(Debug)]
pub struct Capacity {
    all: Arc<Semaphore>,
    /// `None`: one address may have all.
    sources: Option<Arc<Sources>>,
}

#[derive(Debug)]
struct Sources {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    _one: OwnedSemaphorePermit,
    _of_source: Option<OfSource>,
}

#[derive(Debug)]
struct OfSource {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Capacity {
    /// `connections` at once, `per_source` of them for one address.
    #[must_use]
    pub fn new(connections: usize, per_source: usize) -> Capacity {
        let is_bound = per_source < connections;
        let sources = || Arc::new(Sources { most: per_source, open: Mutex::default() });
        Capacity { all: Arc::new(Semaphore::new(connections)), sources: is_bound.then(sources) }
    }

    /// A place for a connection from `source`.
    ///
    /// # Errors
    /// The name of the limit, as metrics have it, when there is none.
    pub fn take(&self, source: IpAddr) -> Result<Place, &'static str> {
        let of_source = match &self.sources {
            None => None,
            Some(sources) => Some(sources.take(source).ok_or("connections_per_source")?),
        };
        let one = self.all.clone().try_acquire_owned().map_err(|_| "connections")?;
        Ok(Place { _one: one, _of_source: of_source })
    }
}

impl Sources {
    fn take(self: &Arc<Self>, source: IpAddr) -> Option<OfSource> {
        let mut all = self.open.lock();
        let open = all.entry(source).or_default();
        if *open >= self.most {
            return None;
        }
        *open += 1;
        Some(OfSource { sources: self.clone(), source })
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let mut all = self.sources.open.lock();
        let Some(open) = all.get_mut(&self.source) else { return };
        *open = open.saturating_sub(1);
        if *open == 0 {
            all.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn one_address_has_its_share_and_all_have_the_whole() {
        let capacity = Capacity::new(5, 2);
        let mut held: Vec<_> = [1, 1, 2, 2].map(|last| capacity.take(ip(last)).unwrap()).into();
        assert_eq!(capacity.take(ip(1)).unwrap_err(), "connections_per_source");
        held.push(capacity.take(ip(3)).unwrap());
        assert_eq!(capacity.take(ip(3)).unwrap_err(), "connections");
        drop(held.remove(0));
        held.push(capacity.take(ip(1)).unwrap());
        drop(held);
        assert!(capacity.sources.unwrap().open.lock().is_empty(), "nobody is remembered");
    }

    #[test]
    fn one_address_may_have_all_where_its_share_is_no_less() {
        let capacity = Capacity::new(3, 3);
        let _held: Vec<_> = (0..3).map(|_| capacity.take(ip(1)).unwrap()).collect();
        assert_eq!(capacity.take(ip(1)).unwrap_err(), "connections");
    }
}
