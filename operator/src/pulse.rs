//! Whether the leader's rooms still turn. In go their beats, out comes the name of one that stands still: the kubelet
//! then ends this process, and the standby takes over. A leader that renews its lease and does nothing else would
//! keep everybody else from doing it.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No single step of a room takes nearly so long: each call to the API server has a limit.
const STILL: Duration = Duration::from_secs(120);

/// A cheap handle to the beats of all rooms; empty on a standby.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    beats: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
}

impl Pulse {
    /// `room` is about to take its next step, and will say so again before long.
    pub fn beat(&self, room: &'static str) {
        self.beats.lock().insert(room, Instant::now());
    }

    /// `room` is done for good.
    pub fn ended(&self, room: &'static str) {
        self.beats.lock().remove(room);
    }

    /// A room that has begun and not moved for two minutes.
    #[must_use]
    pub fn stopped(&self) -> Option<&'static str> {
        self.stopped_at(Instant::now())
    }

    fn stopped_at(&self, now: Instant) -> Option<&'static str> {
        let beats = self.beats.lock();
        beats.iter().find(|(_, at)| now.saturating_duration_since(**at) > STILL).map(|(room, _)| *room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_that_has_begun_and_does_not_go_on_is_named() {
        let (pulse, now) = (Pulse::default(), Instant::now());
        assert_eq!(pulse.stopped_at(now + STILL * 9), None, "a standby has no rooms");
        pulse.beat("a");
        pulse.beat("b");
        assert_eq!(pulse.stopped_at(now + STILL), None);
        pulse.beats.lock().insert("a", now + STILL);
        assert_eq!(pulse.stopped_at(now + STILL * 2 - Duration::from_secs(1)), Some("b"));
        pulse.beat("b");
        assert_eq!(pulse.stopped(), None);
        pulse.ended("a");
        pulse.ended("b");
        assert_eq!(pulse.stopped_at(now + STILL * 9), None);
    }
}
