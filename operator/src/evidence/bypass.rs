//! What passes by the proxies of a pod, kept over restarts of the proxy: a restart mends nothing.

use super::ledger::Clock;
use super::model::BypassEvidence;
use super::sources::Resolve;
use cinch_control::v1;
use std::net::IpAddr;

/// In one report; proxies name fewer.
const IN_REPORT: usize = 256;
/// TCP of one pod; the ones seen last stay. As many as one look names: a mesh may have ten thousand pods, and people
/// are shown the newest.
const HELD_TCP: usize = 32;
/// The same of UDP, which stands against nothing.
const HELD_UDP: usize = 16;
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
        let tcp = self.seen.iter().filter(|seen| seen.is_tcp()).count();
        if tcp > HELD_TCP || self.seen.len() - tcp > HELD_UDP {
            self.bound();
        }
    }

    fn bound(&mut self) {
        self.seen = self.sorted();
        let (mut tcp, mut udp) = (0, 0);
        self.seen.retain(|seen| {
            let (held, most) = if seen.is_tcp() { (&mut tcp, HELD_TCP) } else { (&mut udp, HELD_UDP) };
            *held += 1;
            *held <= most
        });
        self.seen.shrink_to_fit();
    }

    /// Forgets what was not seen since `before_unix_ms`.
    pub(super) fn forget(&mut self, before_unix_ms: u64) {
        let held = self.seen.len();
        self.seen.retain(|seen| seen.last_seen_unix_ms >= before_unix_ms);
        if self.seen.len() < held {
            self.seen.shrink_to_fit();
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
