//! Keys that tokens name and no key set holds: in they come from refused requests, out they go to the operator,
//! which fetches the set again. Anybody can send a token with a made-up key, so what is passed on is bounded.

use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// One source is asked for no more often: the operator would not fetch more often anyway.
const INTERVAL: Duration = Duration::from_secs(10);
/// Requests that wait for the control stream.
const WAITING: usize = 16;
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
#[derive(Debug, Default)]
pub struct UnknownKeys {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<UnknownKey>,
    asked: HashMap<Arc<str>, Instant>,
}

impl UnknownKeys {
    /// Asks for a key, unless its source was asked for lately.
    pub fn ask(&self, source: &Arc<str>, kid: &str) {
        if self.state.lock().take(source, kid, Instant::now()) {
            self.more.notify_one();
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

impl State {
    fn take(&mut self, source: &Arc<str>, kid: &str, now: Instant) -> bool {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.asked.get(source).is_some_and(lately) || self.waiting.len() >= WAITING {
            return false;
        }
        if self.asked.len() >= SOURCES {
            self.asked.retain(|_, at| lately(at));
        }
        if self.asked.len() >= SOURCES {
            return false;
        }
        self.asked.insert(source.clone(), now);
        let kid = if kid.len() > LONGEST { "" } else { kid };
        self.waiting.push_back(UnknownKey { source: source.clone(), kid: kid.into() });
        true
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
        assert!(keys.state.lock().take(&source, "three", later));
        assert!(!keys.state.lock().take(&source, "four", later + INTERVAL / 2));
    }

    #[test]
    fn what_waits_and_what_is_remembered_is_bounded() {
        let (mut state, now) = (State::default(), Instant::now());
        for number in 0..10_000_u32 {
            state.take(&number.to_string().into(), &"k".repeat(1000), now + INTERVAL / 1000 * number);
            assert!(state.waiting.len() <= WAITING && state.asked.len() <= SOURCES);
            if number % 2 == 0 {
                let _ = state.waiting.pop_front();
            }
        }
        assert!(state.waiting.iter().all(|key| key.kid.is_empty()));
    }
}
