//! Waiting for a condition: polls, says what it waits for, and on time-out what it saw last.

use crate::terminal;
use anyhow::{Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// A wait that lasts longer says so, and again each time this much has passed.
const SAY_AFTER: Duration = Duration::from_secs(10);

/// What one look found.
#[derive(Debug)]
pub enum Seen<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; the words say what was seen instead.
    Not(String),
}

/// Looks until `look` is done, at most `limit`. An error of `look` counts as "not yet", with its message as
/// what was seen.
///
/// # Errors
/// After `limit`, with what was seen last.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let start = Instant::now();
    let mut said = Instant::now();
    loop {
        let last = match look() {
            Ok(Seen::Done(found)) => return Ok(found),
            Ok(Seen::Not(words)) => words,
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() > limit {
            bail!("{what}: not within {} s; last seen: {}", limit.as_secs(), shortened(&last));
        }
        if said.elapsed() > SAY_AFTER {
            said = Instant::now();
            let waited = start.elapsed().as_secs();
            terminal::say(format_args!("  waiting for {what} ({waited} s): {}", shortened(&last)));
        }
        thread::sleep(PAUSE);
    }
}

/// As [`until`], for looks that only say whether they found something.
///
/// # Errors
/// As [`until`].
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until(what, limit, || Ok(look()?.map_or_else(|| Seen::Not("nothing yet".into()), Seen::Done)))
}

fn shortened(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(300) {
        Some((end, _)) => format!("{} …", one_line.get(..end).unwrap_or_default()),
        None => one_line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_becomes_true_ends_the_wait() {
        let mut looks = 0;
        let found = wait_for("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_time_out_says_what_was_seen_last() {
        let error = until::<()>("rain", Duration::ZERO, || Ok(Seen::Not("sun".into()))).unwrap_err();
        assert_eq!(error.to_string(), "rain: not within 0 s; last seen: sun");
    }
}
