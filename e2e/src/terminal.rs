//! What a person sees: lines with the elapsed time in front, to standard output, flushed at once, or held back
//! while several things go on beside each other.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

thread_local! {
    /// The lines of this thread that are held back.
    static HELD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Does `work` and holds back what this thread prints meanwhile, so that the lines of things that go on beside
/// each other do not mix. Returns them with what came of it.
pub fn held_back<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    HELD.set(Some(Vec::new()));
    let done = work();
    (done, HELD.take().unwrap_or_default())
}

/// Time since the command began.
pub fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Prints a line with the elapsed time in front of it.
pub fn say(text: impl Display) {
    let seconds = elapsed().as_secs_f64();
    line(format_args!("[{seconds:6.1} s] {text}"));
}

/// Prints what was seen, indented under the line before it; several lines keep their shape.
pub fn show(text: &str) {
    for part in text.trim_end().lines() {
        line(format_args!("             {part}"));
    }
}

/// Prints a plain line. A closed standard output (a pager that was left) is no reason to fail.
pub fn line(text: impl Display) {
    let held = HELD.with_borrow_mut(|held| held.as_mut().map(|lines| lines.push(text.to_string())).is_some());
    if held {
        return;
    }
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_is_returned_in_order_and_only_of_this_thread() {
        let (done, lines) = held_back(|| {
            show("one\ntwo");
            let (_, other) = std::thread::spawn(|| held_back(|| line("elsewhere"))).join().unwrap();
            assert_eq!(other, ["elsewhere"]);
            7
        });
        assert_eq!(done, 7);
        assert_eq!(lines, ["             one", "             two"]);
    }
}
