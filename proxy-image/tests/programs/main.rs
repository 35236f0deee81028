//! Proxies as they are released, each a process in a network namespace of its own, with the redirect and a file in place
//! of a control plane. In [`vanished`]: peers that are gone from one moment to the next, and such that only look so. In
//! [`many`]: as many connections, and as many peers, as a process has descriptors for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../../crates/redirect/tests/support/mod.rs"]
mod support;

mod kernel;
mod many;
mod many_apps;
mod proxies;
mod scene;
mod vanished;
mod vanished_apps;

use std::time::{Duration, Instant};

/// All that is waited for comes much sooner, also on a machine that has other things to do.
pub const WAIT: Duration = Duration::from_secs(180);

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_about(condition), "{what} did not come about");
}

/// Waits until `condition` holds; says whether it came to that.
pub fn comes_about(mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if begin.elapsed() >= WAIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
