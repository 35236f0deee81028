//! What a person sees: lines with the elapsed time in front, to standard output, flushed at once.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

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
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
