//! Bounds open connections: so many at once, so many of one source. In goes the address of a connection, out comes a
//! place that is held as long as it is open, or which limit refuses it.

use cinch_places::source_of;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one listener has room for.
#[derive(Debug)]
pub struct Capacity {
    all: Arc<Semaphore>,
    /// `None`: one source may have all.
    sources: Option<Arc<Sources>>,
    spared: &'static [u16],
}

#[derive(Debug)]
struct Sources {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    _one: Option<OwnedSemaphorePermit>,
    _of_source: Option<OfSource>,
}

#[derive(Debug)]
struct OfSource {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Capacity {
    /// `connections` at once, `per_source` of them for one source ([`source_of`]).
    #[must_use]
    pub fn new(connections: usize, per_source: usize) -> Capacity {
        let is_bound = per_source < connections;
        let sources = || Arc::new(Sources { most: per_source, open: Mutex::default() });
        Capacity { all: Arc::new(Semaphore::new(connections)), sources: is_bound.then(sources), spared: &[] }
    }

    /// Spares connections to `ports`: they need no place, as they have a bound of their own.
    #[must_use]
    pub fn sparing(self, ports: &'static [u16]) -> Capacity {
        Capacity { spared: ports, ..self }
    }

    /// A place for a connection from `source` to `port`, where that is known.
    ///
    /// # Errors
    /// The name of the limit, as metrics have it, when there is none.
    pub fn take(&self, source: IpAddr, port: Option<u16>) -> Result<Place, &'static str> {
        if port.is_some_and(|port| self.spared.contains(&port)) {
            return Ok(Place { _one: None, _of_source: None });
        }
        let of_source = match &self.sources {
            None => None,
            Some(sources) => Some(sources.take(source_of(source)).ok_or("connections_per_source")?),
        };
        let one = self.all.clone().try_acquire_owned().map_err(|_| "connections")?;
        Ok(Place { _one: Some(one), _of_source: of_source })
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
        let mut held: Vec<_> = [1, 1, 2, 2].map(|last| capacity.take(ip(last), None).unwrap()).into();
        assert_eq!(capacity.take(ip(1), None).unwrap_err(), "connections_per_source");
        held.push(capacity.take(ip(3), None).unwrap());
        assert_eq!(capacity.take(ip(3), None).unwrap_err(), "connections");
        drop(held.remove(0));
        held.push(capacity.take(ip(1), None).unwrap());
        drop(held);
        assert!(capacity.sources.unwrap().open.lock().is_empty(), "nobody is remembered");
    }

    #[test]
    fn one_address_may_have_all_where_its_share_is_no_less() {
        let capacity = Capacity::new(3, 3);
        let _held: Vec<_> = (0..3).map(|_| capacity.take(ip(1), None).unwrap()).collect();
        assert_eq!(capacity.take(ip(1), None).unwrap_err(), "connections");
    }

    #[test]
    fn an_address_has_its_share_however_it_is_written() {
        let capacity = Capacity::new(10, 2);
        let host = |last: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, last]);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let _held = [ip(1), mapped, host(1), host(1)].map(|address| capacity.take(address, None).unwrap());
        for address in [ip(1), mapped, host(1)] {
            assert_eq!(capacity.take(address, None).unwrap_err(), "connections_per_source");
        }
        assert!(capacity.take(host(2), None).is_ok(), "another pod of the same node");
    }

    #[test]
    fn ports_that_are_spared_need_no_place_and_take_none() {
        let capacity = Capacity::new(2, 1).sparing(&[15021]);
        let spared: Vec<_> = (0..9).map(|_| capacity.take(ip(1), Some(15021)).unwrap()).collect();
        let _held = [1, 2].map(|last| capacity.take(ip(last), Some(80)).unwrap());
        for port in [Some(80), None] {
            assert!(capacity.take(ip(3), port).is_err());
        }
        assert!(capacity.take(ip(3), Some(15021)).is_ok());
        drop(spared);
        assert_eq!(capacity.take(ip(3), Some(80)).unwrap_err(), "connections", "they give none back either");
    }
}
