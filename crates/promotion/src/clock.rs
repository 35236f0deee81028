//! The quiet clock: when it starts, what moves it, when it stands still, and when it has run out.

use crate::coverage::Coverage;
use crate::facts::{Counts, Facts, Millis, PodClass};
use crate::memory::Memory;

/// The same served connection, reported twice, may seem to have come this much later.
const BLUR: Millis = 1_000;
/// One in so many pod-seconds may go unobserved: 0.1 %.
const BUDGET: u64 = 1_000;

/// What the clock says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Quiet {
    /// The quiet period has passed, and nothing makes the clock stand still now.
    pub elapsed: bool,
    /// When it will have passed; `None` while the clock stands still.
    pub due_at: Option<Millis>,
    /// Unobserved time beyond the budget, by which the period grows.
    pub pause: Millis,
    /// Plaintext since the window began.
    pub counted: Counts,
}

/// The quiet period with its doublings.
pub(crate) fn period(memory: &Memory, facts: &Facts) -> Millis {
    memory.period(&facts.spec)
}

/// Moves the clock to `facts.now`.
pub(crate) fn advance(memory: &mut Memory, facts: &Facts, coverage: &Coverage<'_>) -> Quiet {
    count(memory, facts, coverage);
    if !facts.namespace.locked {
        hold(memory, facts, coverage);
    }
    let period = period(memory, facts);
    let budget = period.saturating_mul(coverage.must_report as u64) / BUDGET;
    let pause = if memory.unobserved > budget { memory.unobserved_wall } else { 0 };
    let runs = memory.held_since.is_none() && !memory.open && memory.quiet_since > 0;
    let due_at = runs.then(|| memory.quiet_since.saturating_add(period).saturating_add(pause));
    // What the slowest proxy has not told yet is not quiet, it is unknown.
    let known = facts.now.min(memory.observed_through);
    let elapsed = due_at.is_some_and(|due| known >= due);
    if elapsed && !facts.namespace.locked {
        // Nothing was served for the whole period: what came before no longer matters.
        memory.base = memory.total;
    }
    Quiet { elapsed, due_at, pause, counted: memory.total.map(memory.base, u64::saturating_sub) }
}

/// Adds up plaintext over leaders, and moves the clock to the newest that was served.
fn count(memory: &mut Memory, facts: &Facts, coverage: &Coverage<'_>) {
    let ours = facts.plaintext.totals;
    if memory.offset.is_none() && (coverage.is_full() || memory.total == Counts::default()) {
        // What earlier leaders counted of pods that are gone. Until all pods have reported it can't be told.
        memory.offset = Some(memory.total.map(ours, u64::saturating_sub));
    }
    let before = memory.total.served;
    if let Some(offset) = memory.offset {
        memory.total = memory.total.map(ours.map(offset, u64::saturating_add), u64::max);
    }
    let newest = facts.plaintext.last_served.map(|time| time.min(facts.now));
    let newer = newest.is_some_and(|time| memory.last_served.is_none_or(|known| time > known + BLUR));
    if newer || memory.total.served > before {
        let time = newest.unwrap_or(facts.now).max(memory.last_served.unwrap_or_default());
        memory.last_served = Some(time);
        // Before the first window there is no clock to move.
        if memory.window > 0 && time > memory.quiet_since {
            memory.restart(time);
            // What was lost in this very step may have been after it.
            memory.unobserved = coverage.lost.pods;
            memory.unobserved_wall = coverage.lost.wall;
        }
    }
    if facts.plaintext.open > 0 {
        memory.open = true;
    } else if memory.open && coverage.is_full() {
        memory.open = false;
        memory.restart(facts.now);
    }
}

/// Stops the clock while pods run that nobody observes, or none run at all; the time is added afterwards.
fn hold(memory: &mut Memory, facts: &Facts, coverage: &Coverage<'_>) {
    let unobserved = facts.pods.iter().any(|pod| pod.class == PodClass::NotInjected);
    if unobserved || coverage.is_in_doubt() || coverage.must_report == 0 {
        memory.held_since.get_or_insert(facts.now);
        return;
    }
    let held_since = memory.held_since.take();
    if memory.window == 0 {
        memory.restart(facts.now);
        memory.base = memory.total;
    } else if let Some(since) = held_since {
        memory.quiet_since = memory.quiet_since.saturating_add(facts.now.saturating_sub(since));
    }
}
