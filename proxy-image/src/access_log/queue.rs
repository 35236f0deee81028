//! Lines on their way to the writer. In come entries from the data path, which never waits; out go whole buffers of
//! lines to one thread, which may wait for its output as long as that takes.
//!
//! Room is bounded. A line of a request that passed, or of an error, is dropped when there is none, and counted. A
//! denial has room of its own, and when that is spent too (or there are too many in a second) it is summed up with
//! others of the same cause ([`Sums`]): the log then says how many there were, and nothing is lost.

use super::entry::Entry;
use super::settings::AccessLogSettings;
use super::sums::Sums;
use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The writer lets so much time pass between the first line and its write, so that a busy proxy makes few system
/// calls, and wakes its writer seldom.
const BATCH: Duration = Duration::from_millis(10);
/// Sums are written no more often.
const SUMMING: Duration = Duration::from_secs(1);

/// What the access log says of itself.
#[derive(Debug, Default, Clone)]
pub struct AccessLogMetrics {
    /// Lines that were queued.
    pub lines: Counter,
    /// Lines about what passed, or failed, for which there was no room.
    pub dropped: Counter,
    /// Denials that are not told by a line of their own, but in a sum.
    pub summed: Counter,
    /// Writes that failed: what they held is lost.
    pub write_errors: Counter,
}

/// The queue of one log.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    more: Condvar,
    done: Condvar,
    room: usize,
    per_second: u32,
    pub(super) metrics: AccessLogMetrics,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    denials: Budget,
    others: Budget,
    sums: Sums,
    summed_at: Option<Instant>,
    /// The writer sleeps until somebody wakes it.
    sleeping: bool,
    closing: bool,
    done: bool,
}

/// What one kind of lines has used of its room and of the second's lines.
#[derive(Debug, Default)]
struct Budget {
    bytes: usize,
    second: u64,
    lines: u32,
}

impl Budget {
    /// Whether a line may be added at `second`; then it is counted as one.
    fn admits(&mut self, second: u64, room: usize, per_second: u32) -> bool {
        if second != self.second {
            (self.second, self.lines) = (second, 0);
        }
        let admitted = self.bytes < room && self.lines < per_second;
        self.lines += u32::from(admitted);
        admitted
    }
}

impl Queue {
    pub(super) fn new(settings: &AccessLogSettings, metrics: AccessLogMetrics) -> Queue {
        Queue {
            state: Mutex::default(),
            more: Condvar::new(),
            done: Condvar::new(),
            room: usize::try_from(settings.queue_bytes).unwrap_or(usize::MAX),
            per_second: settings.lines_per_second,
            metrics,
        }
    }

    /// Queues the line of `entry`, as of `now`.
    pub(super) fn push(&self, entry: &Entry<'_>, now: SystemTime) {
        let mut state = self.state.lock();
        let State { lines, denials, others, sums, .. } = &mut *state;
        let is_denial = entry.is_denial();
        let budget = if is_denial { denials } else { others };
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if budget.admits(second, self.room, self.per_second) {
            let before = lines.len();
            entry.write(now, lines);
            budget.bytes += lines.len() - before;
            self.metrics.lines.inc();
        } else if is_denial {
            sums.add(entry, now);
            self.metrics.summed.inc();
        } else {
            self.metrics.dropped.inc();
            return;
        }
        if std::mem::take(&mut state.sleeping) {
            self.more.notify_one();
        }
    }

    /// Waits for lines, and leaves them in `buffer`, which must be empty; `false`: there will be no more.
    fn next(&self, buffer: &mut Vec<u8>) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.closing || !state.lines.is_empty() || state.sums_are_due() {
                break;
            }
            state.sleeping = true;
            match state.sums_due() {
                Some(at) => drop(self.more.wait_until(&mut state, at)),
                None => self.more.wait(&mut state),
            }
            state.sleeping = false;
        }
        if !state.closing {
            self.more.wait_for(&mut state, BATCH);
        }
        std::mem::swap(&mut state.lines, buffer);
        (state.denials.bytes, state.others.bytes) = (0, 0);
        if state.closing || state.sums_are_due() {
            let sums = std::mem::take(&mut state.sums);
            state.summed_at = Some(Instant::now());
            let goes_on = !state.closing;
            drop(state);
            self.metrics.lines.inc_by(sums.write(buffer));
            return goes_on;
        }
        !state.closing
    }

    /// Writes all that is queued to `out`, until [`Queue::close`].
    pub(super) fn write_to(&self, out: &mut dyn Write) {
        let mut buffer = Vec::new();
        loop {
            let goes_on = self.next(&mut buffer);
            if !buffer.is_empty() && out.write_all(&buffer).and_then(|()| out.flush()).is_err() {
                self.metrics.write_errors.inc();
            }
            buffer.clear();
            buffer.shrink_to(self.room.min(16 * 1024));
            if !goes_on {
                break;
            }
        }
        self.state.lock().done = true;
        self.done.notify_all();
    }

    /// Lets the writer write what is left and end; waits for that, at most for `patience`.
    pub(super) fn close(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        state.closing = true;
        self.more.notify_all();
        while !state.done && !self.done.wait_until(&mut state, until).timed_out() {}
    }
}

impl State {
    /// When the sums are to be written, if there are any.
    fn sums_due(&self) -> Option<Instant> {
        let now = Instant::now();
        (!self.sums.is_empty()).then(|| self.summed_at.map_or(now, |at| at + SUMMING))
    }

    fn sums_are_due(&self) -> bool {
        self.sums_due().is_some_and(|due| due <= Instant::now())
    }
}
