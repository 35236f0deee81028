//! How often one address may begin a connection. In go addresses and the time, out comes whether to shake hands: a
//! handshake costs us far more than whoever asks for it, and anybody may ask.

use cinch_places::{Pace, RateLimit};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A pod's proxy connects twice each time it starts: for a certificate, and for its stream.
const OF_A_POD: Pace = Pace { burst: 16, refill: Duration::from_secs(2) };
/// Behind any other address there may be all pods of a node.
const OF_OTHERS: Pace = Pace { burst: 256, refill: Duration::from_millis(20) };

/// Who knocked lately.
#[derive(Debug)]
pub(super) struct Knocks {
    pods: RateLimit<IpAddr>,
    others: RateLimit<IpAddr>,
}

impl Default for Knocks {
    fn default() -> Self {
        Self { pods: RateLimit::new(OF_A_POD), others: RateLimit::new(OF_OTHERS) }
    }
}

impl Knocks {
    /// Whether `ip`, which is that of a pod if `is_pod` says so, may come in at `now`.
    pub(super) fn may_enter(&mut self, ip: IpAddr, is_pod: impl Fn(IpAddr) -> bool, now: Instant) -> bool {
        let ip = ip.to_canonical();
        let limit = if is_pod(ip) { &mut self.pods } else { &mut self.others };
        limit.take(&ip, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_knocks_without_end_is_not_let_in_and_nobody_else_is_the_worse_for_it() {
        let (mut knocks, start) = (Knocks::default(), Instant::now());
        let pod: IpAddr = "10.0.0.7".parse().unwrap();
        let mut entered = |ip: &str, times: u32, at: Instant| {
            let ip: IpAddr = ip.parse().unwrap();
            (0..times).filter(|_| knocks.may_enter(ip, |ip| ip == pod, at)).count()
        };
        assert_eq!(entered("10.0.0.7", 1000, start), 16);
        assert_eq!(entered("::ffff:10.0.0.7", 1000, start), 0, "the same in other words");
        assert_eq!(entered("10.0.0.7", 1000, start + Duration::from_secs(21)), 10);
        assert_eq!(entered("10.0.0.1", 250, start), 250, "a node");
        assert_eq!(entered("10.0.0.1", 1000, start + Duration::from_secs(100)), 256);
    }
}
