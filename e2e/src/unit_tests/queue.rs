//! The test binaries that wait for their turn and those that run. In: what was compiled. Out: what may run now.

use super::build::Target;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Those that run after all others and with nothing beside them, by the end of their names: `attack` floods a proxy
/// with all that the machine has.
const ALONE: [&str; 1] = ["--test attack"];

/// The queue: threads add, take and wait.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Target>,
    running: Vec<Target>,
    closed: bool,
}

impl Queue {
    /// Adds one that is ready.
    pub fn add(&self, target: Target) {
        self.change(|state| state.waiting.push(target));
    }

    /// Says that no more will be added.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Waits for one that may run now, and takes it; `None` when there is no more.
    pub fn take(&self) -> Option<Target> {
        let mut state = self.lock();
        loop {
            if let Some(target) = state.next() {
                return Some(target);
            }
            if state.closed && state.waiting.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that one has ended.
    pub fn ended(&self, target: &Target) {
        self.change(|state| state.running.retain(|running| running != target));
    }

    /// Waits so long; the names of those that run then, or `None` as soon as all have ended.
    pub fn unfinished_after(&self, time: Duration) -> Option<Vec<String>> {
        let unfinished = |state: &mut State| !state.closed || !state.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), time, unfinished);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        waited.timed_out().then(|| state.running.iter().map(|target| target.name.clone()).collect())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    fn next(&mut self) -> Option<Target> {
        if self.running.iter().any(is_alone) {
            return None;
        }
        let beside = self.waiting.iter().position(|target| !is_alone(target));
        let last = (self.closed && self.running.is_empty() && !self.waiting.is_empty()).then_some(0);
        let target = self.waiting.remove(beside.or(last)?);
        self.running.push(target.clone());
        Some(target)
    }
}

fn is_alone(target: &Target) -> bool {
    ALONE.iter().any(|name| target.name.ends_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target { name: name.to_owned(), executable: "/x".into(), folder: "/".into() }
    }

    #[test]
    fn one_that_must_be_alone_comes_last_and_with_nothing_beside_it() {
        let queue = Queue::default();
        let (flood, other) = (target("-p proxy --test attack"), target("-p proxy --lib"));
        queue.add(flood.clone());
        queue.add(other.clone());
        assert_eq!(queue.take(), Some(other.clone()));
        queue.close();
        assert_eq!(queue.lock().next(), None, "another one runs");
        queue.ended(&other);
        assert_eq!(queue.take(), Some(flood.clone()));
        queue.change(|state| state.waiting.push(other.clone()));
        assert_eq!(queue.lock().next(), None, "nothing beside it");
        queue.ended(&flood);
        assert_eq!(queue.take(), Some(other));
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn it_tells_what_runs_until_all_have_ended() {
        let queue = Queue::default();
        queue.add(target("-p a --lib"));
        let taken = queue.take().unwrap();
        assert_eq!(queue.unfinished_after(Duration::ZERO).unwrap(), ["-p a --lib"]);
        queue.ended(&taken);
        assert_eq!(queue.unfinished_after(Duration::ZERO).unwrap().len(), 0, "more may come");
        queue.close();
        assert_eq!(queue.unfinished_after(Duration::from_secs(60)), None);
    }
}
