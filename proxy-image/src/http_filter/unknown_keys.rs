//! Keys that tokens name and no key set holds: in they come from refused requests, out they go to the operator,
//! which fetches the set again. Anybody can send a token with a made-up key, so what is passed on is bounded.

use crate::limits::{Limits, Refusals};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// One source is asked for no more often: the operator would not fetch more often anyway.
const INTERVAL: Duration = Duration::from_secs(10);
/// Sources that are remembered; there are as many as RequestAuthentications name.
const SOURCES: usize = 256;
/// The operator takes no longer key ID.
const LONGEST: usize = 256;

/// A key to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key set: its `jwksUri`, or the issuer.
    pub source: Arc<str>,
    /// The `kid` of the token; empty when the set itself is missing.
    pub kid: Box<str>,
}

/// The queue from the data path to the control stream.
#[derive(Debug)]
pub struct UnknownKeys {
    state: Mutex<State>,
    more: Notify,
    /// Requests that may wait for the control stream.
    most: usize,
    refusals: Refusals,
}

impl Default for UnknownKeys {
    fn default() -> Self {
        Self::within(Limits::default().http_unknown_keys, Refusals::default())
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<UnknownKey>,
    asked: HashMap<Arc<str>, Instant>,
}

impl UnknownKeys {
    /// A queue of at most so many; `refusals` hears of what found no place in it.
    #[must_use]
    pub fn within(most: usize, refusals: Refusals) -> Self {
        Self { state: Mutex::default(), more: Notify::new(), most, refusals }
    }

    /// Asks for a key, unless its source was asked for lately.
    pub fn ask(&self, source: &Arc<str>, kid: &str) {
        match self.state.lock().take(source, kid, Instant::now(), self.most) {
            Taken::Waits => self.more.notify_one(),
            Taken::Known => {}
            Taken::Full => self.refusals.count("http_unknown_keys"),
        }
    }

    /// Waits for the next one.
    pub async fn next(&self) -> UnknownKey {
        loop {
            let more = self.more.notified();
            if let Some(key) = self.state.lock().waiting.pop_front() {
                return key;
            }
            more.await;
        }
    }
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Waits,
    /// Its source was asked for lately.
    Known,
    Full,
}

impl State {
    fn take(&mut self, source: &Arc<str>, kid: &str, now: Instant, most: usize) -> Taken {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.asked.get(source).is_some_and(lately) {
            return Taken::Known;
        }
        if self.waiting.len() >= most {
            return Taken::Full;
        }
        if self.asked.len() >= SOURCES {
            self.asked.retain(|_, at| lately(at));
        }
        if self.asked.len() >= SOURCES {
            return Taken::Full;
        }
        self.asked.insert(source.clone(), now);
        let kid = if kid.len() > LONGEST { "" } else { kid };
        self.waiting.push_back(UnknownKey { source: source.clone(), kid: kid.into() });
        Taken::Waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_is_asked_for_once_in_a_while() {
        let keys = UnknownKeys::default();
        let source: Arc<str> = "https://issuer.example/keys".into();
        keys.ask(&source, "one");
        keys.ask(&source, "two");
        assert_eq!(keys.next().await, UnknownKey { source: source.clone(), kid: "one".into() });
        assert!(keys.state.lock().waiting.is_empty());
        let later = Instant::now() + INTERVAL;
        assert_eq!(keys.state.lock().take(&source, "three", later, 16), Taken::Waits);
        assert_eq!(keys.state.lock().take(&source, "four", later + INTERVAL / 2, 16), Taken::Known);
    }

    #[test]
    fn what_waits_and_what_is_remembered_is_bounded() {
        let (mut state, now) = (State::default(), Instant::now());
        for number in 0..10_000_u32 {
            state.take(&number.to_string().into(), &"k".repeat(1000), now + INTERVAL / 1000 * number, 16);
            assert!(state.waiting.len() <= 16 && state.asked.len() <= SOURCES);
            if number % 2 == 0 {
                let _ = state.waiting.pop_front();
            }
        }
        assert!(state.waiting.iter().all(|key| key.kid.is_empty()));
        let keys = UnknownKeys::within(2, Refusals::default());
        for number in 0..5 {
            keys.ask(&number.to_string().into(), "k");
        }
        assert_eq!((keys.state.lock().waiting.len(), keys.refusals.of("http_unknown_keys")), (2, 3));
    }
}
