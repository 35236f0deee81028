//! What passes by the proxies of a pod, kept over restarts of the proxy: a restart mends nothing.

use super::ledger::Clock;
use super::model::BypassEvidence;
use super::sources::Resolve;
use cinch_control::v1;
use std::net::IpAddr;

/// In one report; proxies name fewer.
const IN_REPORT: usize = 256;
/// Of one pod; the ones seen last stay.
const HELD: usize = 128;
/// The kernel's names of processes and the API's names of containers are shorter.
const LONGEST_NAME: usize = 63;

/// What was seen of one pod.
#[derive(Debug, Default)]
pub(super) struct Bypasses {
    seen: Vec<BypassEvidence>,
}

impl Bypasses {
    /// Takes a report; each entry takes the newer time.
    pub(super) fn take(&mut self, report: &v1::Evidence, clock: Clock, resolve: Resolve<'_>) {
        for wire in report.bypass.iter().take(IN_REPORT) {
            let Some(seen) = read(wire, clock, resolve) else { continue };
            match self.seen.iter_mut().find(|known| known.is_of(&seen)) {
                Some(known) => known.last_seen_unix_ms = known.last_seen_unix_ms.max(seen.last_seen_unix_ms),
                None => self.seen.push(seen),
            }
        }
        if self.seen.len() > HELD {
            self.seen.sort_by_key(|seen| (!seen.is_tcp(), std::cmp::Reverse(seen.last_seen_unix_ms)));
            self.seen.truncate(HELD);
        }
    }

    /// All that is held, TCP first and of that the newest.
    pub(super) fn sorted(&self) -> Vec<BypassEvidence> {
        let mut seen = self.seen.clone();
        seen.sort_by_key(|seen| (!seen.is_tcp(), std::cmp::Reverse(seen.last_seen_unix_ms)));
        seen
    }
}

/// `None` for what this operator does not know, and for nonsense.
fn read(wire: &v1::Bypass, clock: Clock, resolve: Resolve<'_>) -> Option<BypassEvidence> {
    let way = v1::bypass::Way::try_from(wire.way).ok()?;
    let ip = match (way, wire.ip.len()) {
        (v1::bypass::Way::Unspecified, _) => return None,
        (v1::bypass::Way::UdpListener, 0) => None,
        (_, 4) => Some(IpAddr::from(<[u8; 4]>::try_from(&*wire.ip).ok()?)),
        (_, 16) => Some(IpAddr::from(<[u8; 16]>::try_from(&*wire.ip).ok()?).to_canonical()),
        _ => return None,
    };
    let name = |text: &str| text.chars().take(LONGEST_NAME).collect();
    Some(BypassEvidence {
        way,
        peer: ip.map(resolve),
        port: u16::try_from(wire.port).ok()?,
        process: name(&wire.process),
        container: name(&wire.container),
        last_seen_unix_ms: clock.ago(wire.last_seen_age_ms)?,
    })
}
