//! Addresses whose proxies have shaken hands with us lately. In go handshakes, out comes whether a silent connection is
//! perhaps a tunnel whose ClientHello is late: of two busy nodes it may come after the time that strangers have.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses remembered. Nothing depends on them but how long a silent client waits.
const MOST: usize = 4096;

/// The addresses.
#[derive(Debug)]
pub(super) struct Peers {
    lately: Duration,
    shook: Mutex<HashMap<IpAddr, Instant>>,
}

impl Peers {
    /// Nobody has shaken hands; who does is remembered for so long.
    pub(super) fn new(lately: Duration) -> Peers {
        Peers { lately, shook: Mutex::default() }
    }

    /// The proxy at `address` has shaken hands now.
    pub(super) fn note(&self, address: IpAddr) {
        let (mut shook, now) = (self.shook.lock(), Instant::now());
        if shook.len() >= MOST && !shook.contains_key(&address) {
            // The older half goes at once, so that many new ones do not each look through all.
            let mut times: Vec<Instant> = shook.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable(MOST / 2);
            let median = *median;
            shook.retain(|_, at| *at > median);
        }
        shook.insert(address, now);
    }

    /// Who came from `address` in silence was no proxy: who comes next is not waited for, until one shakes hands again.
    pub(super) fn forget(&self, address: IpAddr) {
        self.shook.lock().remove(&address);
    }

    /// Whether one has lately.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.shook.lock().get(&address).is_some_and(|at| at.elapsed() < self.lately)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: usize) -> IpAddr {
        IpAddr::from(u32::try_from(number).unwrap().to_be_bytes())
    }

    #[test]
    fn who_shook_hands_is_known_for_a_while() {
        let peers = Peers::new(Duration::from_secs(60));
        peers.note(ip(1));
        assert!(peers.knows(ip(1)) && !peers.knows(ip(2)));
        peers.forget(ip(1));
        assert!(!peers.knows(ip(1)));
        let forgetful = Peers::new(Duration::ZERO);
        forgetful.note(ip(1));
        assert!(!forgetful.knows(ip(1)));
    }

    #[test]
    fn those_remembered_are_bounded_and_the_oldest_go() {
        let peers = Peers::new(Duration::from_secs(60));
        for number in 0..3 * MOST {
            peers.note(ip(number));
            assert!(peers.shook.lock().len() <= MOST);
        }
        assert!(peers.knows(ip(3 * MOST - 1)) && peers.knows(ip(3 * MOST - MOST / 4)) && !peers.knows(ip(0)));
    }
}
