//! The story: Cinch's main job on a real cluster, step by step. Each step changes something, looks at what
//! came of it, prints what it saw, and fails with what it saw instead.

pub mod admission;
mod authorise;
mod bad;
mod encrypt;
mod end;
mod enrol;
mod guard;
mod partial;
mod port_modes;
mod promote;
mod shape;
mod survive;
mod web;

use crate::cluster::Cluster;
use crate::install::Redirect;
use crate::report::{Step, Verdict};
use crate::see::See;
use crate::terminal;
use Bond::{Aside, Carries};
use anyhow::Result;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

/// What a step does: returns what showed that it held.
type Play = fn(&mut Story<'_>) -> Result<String>;

/// Name, what depends on it, what it does.
pub type Line = (&'static str, Bond, Play);

/// Whether later lines stand on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// Without it the lines after it say nothing.
    Carries,
    /// It leaves everything as it was.
    Aside,
}

/// The story's lines, in order; those that kill parts of Cinch come last.
pub const LINES: &[Line] = &[
    ("enrol", Carries, enrol::enrol),
    ("inject", Carries, enrol::inject),
    ("identity", Aside, enrol::identity),
    ("encrypt", Aside, encrypt::encrypt),
    ("network policy", Aside, encrypt::own_ports_only),
    ("observe", Aside, promote::observe),
    ("promote", Carries, promote::promote),
    ("enforce", Aside, promote::enforce),
    ("authorise", Aside, authorise::authorise),
    ("port modes", Aside, port_modes::side_by_side),
    ("roll back", Carries, promote::roll_back),
    ("reject", Aside, guard::reject),
    ("ratchet", Aside, guard::ratchet),
    ("bad tokens", Aside, bad::tokens),
    ("bad bytes", Aside, bad::bytes),
    ("reject, webhook dead", Carries, guard::reject_without_webhook),
    ("survive", Carries, survive::survive),
    ("no operator", Carries, survive::no_operator),
    ("relax", Aside, guard::relax),
];

/// How it ends: nothing comes after these.
pub const ENDING: &[Line] = &[("zero loss", Aside, web::zero_loss), ("uninstall", Carries, end::uninstall)];

/// What steps hand on to later ones.
pub struct Story<'a> {
    see: See<'a>,
    /// Who sets the redirect of pods.
    redirect: Redirect,
    /// Where web's pods leave their counters.
    counters: std::path::PathBuf,
    /// Requests that web had lost before the line that is played: they are that earlier line's fault.
    lost: u64,
    /// The line that did not hold and carries all that follow.
    fallen: Option<&'static str>,
}

impl<'a> Story<'a> {
    /// Prepares the story on a cluster with Cinch installed.
    ///
    /// # Errors
    /// When the folder of web's counters can't be made.
    pub fn begin(cluster: &'a Cluster, redirect: Redirect) -> Result<Self> {
        let counters = cluster.state_dir().join("counters");
        std::fs::create_dir_all(&counters)?;
        // Web runs as a user of its own.
        std::fs::set_permissions(&counters, std::fs::Permissions::from_mode(0o777))?;
        Ok(Story { see: See { cluster }, redirect, counters, lost: 0, fallen: None })
    }

    /// Plays lines, in order. After one that did not hold and carries others nothing more is played, now or
    /// later.
    pub fn play(&mut self, lines: &[Line]) -> Vec<Step> {
        lines.iter().map(|line| self.play_one(line)).collect()
    }

    fn play_one(&mut self, (name, bond, play): &Line) -> Step {
        if let Some(fallen) = self.fallen {
            return Step::skipped(name, &format!("it stands on {fallen:?}, which did not hold"));
        }
        terminal::say(format_args!("== {name}"));
        let begun = Instant::now();
        let step = Step::played(name, begun.elapsed(), play(self));
        let step = Step { took: begun.elapsed(), ..step };
        if step.verdict == Verdict::Failed {
            terminal::say(format_args!("{name} did not hold: {}", step.shown_by));
            self.see.cluster.print_what_matters();
            self.fallen = (*bond == Carries).then_some(*name);
        }
        self.lost = self.web().map_or(self.lost, |web| web.failed);
        step
    }
}

/// The lines that have one of the `wanted` words in their names, with those before them on which they stand.
#[must_use]
pub fn lines_for(wanted: &[&str]) -> Vec<Line> {
    let all = LINES.iter().chain(ENDING);
    let is_wanted = |line: &Line| wanted.iter().any(|word| line.0.contains(word));
    let last = all.clone().enumerate().filter(|(_, line)| is_wanted(line)).last().map_or(0, |(at, _)| at + 1);
    all.take(last).filter(|line| line.1 == Carries || is_wanted(line)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_played_with_those_on_which_it_stands_and_no_others() {
        let names = |wanted: &[&str]| lines_for(wanted).iter().map(|line| line.0).collect::<Vec<_>>();
        assert_eq!(names(&["identity"]), ["enrol", "inject", "identity"]);
        assert_eq!(names(&["enforce", "observe"]), ["enrol", "inject", "observe", "promote", "enforce"]);
        assert_eq!(names(&["no such line"]), [""; 0]);
    }
}
