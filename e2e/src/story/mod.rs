//! The story: Cinch's main job on a real cluster, step by step. Each step changes something, looks at what
//! came of it, prints what it saw, and fails with what it saw instead.

mod admission;
mod encrypt;
mod end;
mod enrol;
mod guard;
mod promote;
mod see;
mod survive;
mod web;

use crate::cluster::Cluster;
use crate::report::Step;
use crate::terminal;
use anyhow::Result;
use see::See;
use std::time::Instant;

/// What a step does: returns what showed that it held.
type Play = fn(&mut Story<'_>) -> Result<String>;

/// The story's lines, in order. Later ones build on earlier ones; the destructive ones are last.
const LINES: &[(&str, Play)] = &[
    ("enrol", enrol::enrol),
    ("inject", enrol::inject),
    ("identity", enrol::identity),
    ("encrypt", encrypt::encrypt),
    ("network policy", encrypt::own_ports_only),
    ("observe", promote::observe),
    ("promote", promote::promote),
    ("enforce", promote::enforce),
    ("roll back", promote::roll_back),
    ("reject", guard::reject),
    ("reject, webhook dead", guard::reject_without_webhook),
    ("ratchet", guard::ratchet),
    ("bad tokens", guard::bad_tokens),
    ("survive", survive::survive),
    ("no operator", survive::no_operator),
    ("relax", guard::relax),
    ("zero loss", web::zero_loss),
    ("uninstall", end::uninstall),
];

/// What steps hand on to later ones.
struct Story<'a> {
    see: See<'a>,
    /// Where web's pods leave their counters.
    counters: std::path::PathBuf,
}

/// Plays the story; stops at the first line that does not hold, since the others stand on it.
///
/// # Errors
/// Only when the story can't be begun; a line that does not hold is in the steps.
pub fn run(cluster: &Cluster) -> Result<Vec<Step>> {
    let counters = cluster.state_dir().join("counters");
    std::fs::create_dir_all(&counters)?;
    let mut story = Story { see: See { cluster }, counters };
    let mut steps = Vec::new();
    for (name, play) in LINES {
        terminal::say(format_args!("== {name}"));
        let begun = Instant::now();
        let (held, shown_by) = match play(&mut story) {
            Ok(shown_by) => (true, shown_by),
            Err(error) => (false, format!("{error:#}")),
        };
        if !held {
            terminal::say(format_args!("{name} did not hold: {shown_by}"));
            steps.push(Step { name: (*name).into(), shown_by, took: begun.elapsed(), held });
            cluster.print_what_matters();
            break;
        }
        steps.push(Step { name: (*name).into(), shown_by, took: begun.elapsed(), held });
    }
    Ok(steps)
}

/// How many lines the story has; those after a failed one count as not played.
#[must_use]
pub fn length() -> usize {
    LINES.len()
}
