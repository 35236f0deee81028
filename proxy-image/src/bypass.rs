//! What the node agent saw pass by this proxy, as it goes into the report: sightings go in, the newest time of each
//! comes out. Bounded; TCP, which stands against a promotion, pushes out UDP, which does not.

use cinch_control::v1;
use cinch_redirect::sighting::{Sighting, Sightings};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Sightings that a report names: two looks with as many as an answer holds.
const CAPACITY: usize = 64;

/// Sightings since the proxy began.
#[derive(Debug, Default)]
pub struct Bypass {
    seen: HashMap<Sighting, Instant>,
    dropped: u64,
    last_look: Option<Instant>,
    /// That look left TCP unseen, or may have.
    is_cut: bool,
}

impl Bypass {
    /// Takes the result of a look that ended `now`; returns what was never seen before.
    pub fn note<'a>(&mut self, found: &'a Sightings, now: Instant) -> Vec<&'a Sighting> {
        (self.last_look, self.is_cut) = (Some(now), found.is_cut);
        self.dropped = self.dropped.saturating_add(u64::from(found.more));
        let mut new = Vec::new();
        for sighting in &found.seen {
            if let Some(last) = self.seen.get_mut(sighting) {
                *last = now;
            } else if self.make_room(sighting) {
                self.seen.insert(sighting.clone(), now);
                new.push(sighting);
            }
        }
        new
    }

    fn make_room(&mut self, sighting: &Sighting) -> bool {
        if self.seen.len() < CAPACITY {
            return true;
        }
        self.dropped = self.dropped.saturating_add(1);
        let oldest = self.seen.iter().min_by_key(|(held, last)| (held.way.is_tcp(), **last));
        let victim = oldest.map(|(held, _)| held.clone());
        victim
            .filter(|held| sighting.way.is_tcp() || !held.way.is_tcp())
            .is_some_and(|held| self.seen.remove(&held).is_some())
    }

    /// Writes itself into a report.
    pub fn report(&self, report: &mut v1::Evidence, now: Instant) {
        report.bypass = self.seen.iter().map(|(sighting, last)| to_wire(sighting, *last, now)).collect();
        report.bypass_dropped = self.dropped;
        report.bypass_look_age_ms = self.last_look.map(|at| millis(now.saturating_duration_since(at)));
        report.bypass_cut = self.last_look.map(|_| self.is_cut);
    }
}

fn to_wire(sighting: &Sighting, last: Instant, now: Instant) -> v1::Bypass {
    let ip = match sighting.peer {
        None => Vec::new(),
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().to_vec(),
    };
    v1::Bypass {
        // The numbers are those of the agent's answer.
        way: i32::from(sighting.way.number()),
        ip: ip.into(),
        port: u32::from(sighting.port),
        process: sighting.process.clone(),
        container: sighting.container.clone(),
        last_seen_age_ms: millis(now.saturating_duration_since(last)),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_redirect::sighting::Way;

    fn sighting(way: Way, port: u16) -> Sighting {
        let peer = (way != Way::UdpListener).then(|| IpAddr::from([10, 0, 0, 1]));
        Sighting { way, peer, port, process: "curl".into(), container: "app".into() }
    }

    fn report(bypass: &Bypass, now: Instant) -> v1::Evidence {
        let mut report = v1::Evidence::default();
        bypass.report(&mut report, now);
        report
    }

    #[test]
    fn a_sighting_is_named_once_with_its_newest_time() {
        let (mut bypass, start) = (Bypass::default(), Instant::now());
        assert_eq!(report(&bypass, start).bypass_look_age_ms, None, "nobody has looked");
        let found = Sightings::of(vec![sighting(Way::Outbound, 443)]);
        assert_eq!(bypass.note(&found, start).len(), 1);
        assert!(bypass.note(&found, start + Duration::from_secs(30)).is_empty());
        bypass.note(&Sightings::default(), start + Duration::from_secs(60));
        let report = report(&bypass, start + Duration::from_secs(70));
        assert_eq!((report.bypass.len(), report.bypass_look_age_ms), (1, Some(10_000)));
        let wire = &report.bypass[0];
        assert_eq!((wire.way(), wire.port, wire.last_seen_age_ms), (v1::bypass::Way::Outbound, 443, 40_000));
        assert_eq!(
            (&wire.ip[..], wire.process.as_str(), wire.container.as_str()),
            (&[10, 0, 0, 1][..], "curl", "app")
        );
    }

    #[test]
    fn the_report_says_whether_the_last_look_was_cut() {
        let (mut bypass, start) = (Bypass::default(), Instant::now());
        assert_eq!(report(&bypass, start).bypass_cut, None, "nobody has looked");
        for is_cut in [true, false] {
            bypass.note(&Sightings { is_cut, more: 1, ..Sightings::default() }, start);
            assert_eq!(report(&bypass, start).bypass_cut, Some(is_cut));
        }
        assert_eq!(report(&bypass, start).bypass_dropped, 2);
    }

    #[test]
    fn numbers_of_ways_are_those_of_the_report() {
        for (way, wire) in [
            (Way::Outbound, v1::bypass::Way::Outbound),
            (Way::Inbound, v1::bypass::Way::Inbound),
            (Way::UdpPeer, v1::bypass::Way::UdpPeer),
            (Way::UdpListener, v1::bypass::Way::UdpListener),
        ] {
            assert_eq!(i32::from(way.number()), wire as i32);
        }
    }

    #[test]
    fn tcp_pushes_out_udp_and_never_the_other_way() {
        let (mut bypass, start) = (Bypass::default(), Instant::now());
        let of = |way, from: u16, to: u16| Sightings {
            seen: (from..to).map(|port| sighting(way, port)).collect(),
            ..Sightings::default()
        };
        bypass.note(&of(Way::UdpPeer, 0, 64), start);
        bypass.note(&of(Way::Outbound, 0, 64), start + Duration::from_secs(1));
        assert!(bypass.note(&of(Way::UdpPeer, 100, 110), start + Duration::from_secs(2)).is_empty());
        let report = report(&bypass, start);
        assert!(
            report.bypass.len() == 64
                && report.bypass.iter().all(|seen| seen.way() == v1::bypass::Way::Outbound)
        );
        assert_eq!(report.bypass_dropped, 64 + 10);
    }
}
