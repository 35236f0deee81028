//! The timer of one connection. Deadlines of HTTP move with each byte; the timer moves only when it must be earlier,
//! and is looked at again when it comes too early, so that bytes cost no work on timers.

use std::pin::{Pin, pin};
use std::task::Context;
use std::time::Instant;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep_until};

/// A timer that is set anew when it has come.
#[derive(Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    at: Option<Instant>,
}

impl Timer {
    /// Whether it has come; it is unset then.
    pub(super) fn has_come(&mut self, now: Instant) -> bool {
        let come = self.at.is_some_and(|at| at <= now);
        if come {
            self.at = None;
        }
        come
    }

    /// Wakes the task at `wanted` at the latest.
    pub(super) fn arm(&mut self, wanted: Option<Instant>, cx: &mut Context<'_>) {
        let Some(wanted) = wanted.filter(|wanted| self.at.is_none_or(|at| *wanted < at)) else { return };
        self.at = Some(wanted);
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                sleep.as_mut().reset(wanted.into());
                sleep
            }
            none => none.insert(Box::pin(sleep_until(wanted.into()))),
        };
        if sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// Wakes the task once the runtime has looked for what others have to do. A plain wake would only go round among the
/// tasks that are ready.
pub(super) fn let_others(cx: &mut Context<'_>) {
    let look = pin!(yield_now());
    if look.poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
}
