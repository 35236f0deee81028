//! The table as the operator is told of it. In go counts and instants, out come messages with ages: the clocks of nodes
//! differ.

use super::table::{Counts, Key, Source};
use cinch_control::v1;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The age of what never happened.
pub(super) const NEVER: u64 = u64::MAX;

/// What a source did, with the ages of `now`.
pub(super) fn to_source((ip, port): &Key, source: &Source, now: Instant) -> v1::PlaintextSource {
    v1::PlaintextSource {
        ip: match ip {
            IpAddr::V4(ip) => ip.octets().to_vec().into(),
            IpAddr::V6(ip) => ip.octets().to_vec().into(),
        },
        port: u32::from(*port),
        counts: Some(to_counts(&source.counts, now)),
        last_seen_age_ms: millis(now.saturating_duration_since(source.last_seen)),
        last_denied_age_ms: age(source.last_denied, now),
        last_denied_by_mode_age_ms: Some(age(source.last_denied_by_mode, now)),
    }
}

/// Counts with the age of the newest that was served.
pub(super) fn to_counts(counts: &Counts, now: Instant) -> v1::PlaintextCounts {
    v1::PlaintextCounts {
        served: counts.served,
        denied: counts.denied,
        no_listener: counts.no_listener,
        empty: counts.empty,
        exempt: counts.exempt,
        open: counts.open,
        last_served_age_ms: age(counts.last_served, now),
    }
}

fn age(at: Option<Instant>, now: Instant) -> u64 {
    at.map_or(NEVER, |at| millis(now.saturating_duration_since(at)))
}

/// Milliseconds, never more than a number can say.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}
