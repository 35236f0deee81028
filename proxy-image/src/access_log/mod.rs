//! The access log: JSON lines on standard output, one for a request or a connection. In go entries, told when they
//! are over; out go lines, written by a thread of their own, so that a slow reader never holds up the data path.
//!
//! Denials are always told (one by one, or summed up under a flood), errors always unless there is no room, the rest
//! as it is sampled. Values that peers send are bounded and escaped. Never in it: header values other than host,
//! user agent and request id; queries; bodies.

mod clock;
mod entry;
mod line;
mod queue;
mod settings;
mod sums;
#[cfg(test)]
mod tests;

pub use entry::{Decision, Ends, Entry, FIELD, Head, PATH, Reporter, Ruling, WORD};
pub use queue::AccessLogMetrics;
pub use settings::AccessLogSettings;

use prometheus_client::registry::Registry;
use queue::Queue;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The writer's stack: it calls nothing deep.
const STACK: usize = 64 * 1024;

/// The log; clones write to the same. The default one is off.
#[derive(Debug, Clone, Default)]
pub struct AccessLog(Option<Arc<On>>);

#[derive(Debug)]
struct On {
    queue: Queue,
    sampler: Sampler,
}

impl AccessLog {
    /// Writes to standard output, as `settings` say.
    ///
    /// # Errors
    /// The system's error, when it starts no thread.
    pub fn start(settings: &AccessLogSettings) -> io::Result<AccessLog> {
        AccessLog::start_to(settings, io::stdout())
    }

    /// Writes to `out`.
    ///
    /// # Errors
    /// The system's error, when it starts no thread.
    pub fn start_to(
        settings: &AccessLogSettings,
        mut out: impl Write + Send + 'static,
    ) -> io::Result<AccessLog> {
        if !settings.enabled {
            return Ok(AccessLog::default());
        }
        let on = Arc::new(On {
            queue: Queue::new(settings, AccessLogMetrics::default()),
            sampler: Sampler::new(settings.sampling),
        });
        let writer = on.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(STACK)
            .spawn(move || writer.queue.write_to(&mut out))?;
        Ok(AccessLog(Some(on)))
    }

    /// Anything is written at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the request or connection that begins now is to be told even if nothing is wrong with it.
    #[must_use]
    pub fn samples(&self) -> bool {
        self.0.as_ref().is_some_and(|on| on.sampler.takes())
    }

    /// Tells of `entry`, which is over now, if it was refused, has failed, or `is_sampled`.
    pub fn tell(&self, entry: &Entry<'_>, is_sampled: bool) {
        if let Some(on) = &self.0
            && (is_sampled || entry.is_denial() || entry.is_error())
        {
            on.queue.push(entry, SystemTime::now());
        }
    }

    /// Writes what is left, at most for `patience`. What is told afterwards is lost.
    pub fn close(&self, patience: Duration) {
        if let Some(on) = &self.0 {
            on.queue.close(patience);
        }
    }

    /// Registers what the log says of itself.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = self.0.as_ref().map(|on| on.queue.metrics.clone()).unwrap_or_default();
        let r = registry;
        r.register("access_log_lines", "Lines of the access log", metrics.lines);
        let help = "Lines of the access log, none of them a denial, for which there was no room";
        r.register("access_log_dropped", help, metrics.dropped);
        let help = "Denials that the access log tells in sums instead of lines of their own";
        r.register("access_log_summed", help, metrics.summed);
        let help = "Writes of the access log that failed";
        r.register("access_log_write_errors", help, metrics.write_errors);
    }
}

/// Takes a share of what it is asked about, evenly and at random.
#[derive(Debug)]
struct Sampler {
    /// Of 2^64; `None`: all.
    share: Option<u64>,
    state: AtomicU64,
}

impl Sampler {
    fn new(share: f64) -> Sampler {
        // 2^64; the product is below it unless the share is 1.
        let scaled = share * 18_446_744_073_709_551_616.0;
        Sampler { share: (share < 1.0).then_some(scaled as u64), state: AtomicU64::new(rand::random()) }
    }

    fn takes(&self) -> bool {
        match self.share {
            None => true,
            Some(0) => false,
            Some(share) => {
                // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): good enough
                // to choose, and nothing to lock.
                const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
                let mut mixed = self.state.fetch_add(GAMMA, Ordering::Relaxed);
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (mixed ^ (mixed >> 31)) < share
            }
        }
    }
}
