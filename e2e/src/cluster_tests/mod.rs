//! Tests on a real cluster, beside the story: each in a namespace of its own that is made for it and deleted after
//! it, all on the same cluster and the same install. One that fails does not keep the others from being played.

mod addresses;
mod agent;
mod bypass;
mod connections;
mod dns;
pub mod figures;
mod forwarded;
mod init;
mod latency;
mod mesh_wide;
mod objects;
mod reboot;
mod requests;
mod residents;
mod scene;
mod ways_round;
mod without;
mod workloads;

use crate::cluster::Cluster;
use crate::install::Redirect;
use crate::report::{Step, Verdict};
use crate::see::See;
use crate::terminal;
use crate::wait::{self, Seen};
use Company::{Alone, Beside, Last};
use anyhow::{Result, anyhow};
pub use scene::RESTRICTED;
use scene::Scene;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a test does in its scene: returns what showed that its claim holds.
type Play = fn(&Scene<'_>) -> Result<String>;

/// Where tests are played.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The cluster, with Cinch installed.
    pub cluster: &'a Cluster,
    /// Who sets the redirect there.
    pub redirect: Redirect,
}

/// What is looked at after a test.
pub type Check<'c> = &'c (dyn Fn() -> Result<()> + Sync);

/// Name, what else may go on meanwhile, what it does.
pub type Test = (&'static str, Company, Play);

/// What else may go on while a test is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Other tests of this kind: it changes nothing outside its own namespace.
    Beside,
    /// Nothing: it measures, or changes what holds for the whole mesh.
    Alone,
    /// Nothing, and only after all others: it takes parts of Cinch away and brings them back.
    Last,
}

/// How many are played beside each other: more only wait for each other's pods on two cores.
const AT_ONCE: usize = 3;
/// Pods end within seconds; namespaces with them.
const GONE: Duration = Duration::from_secs(120);
/// Label of every namespace that a test makes.
const LABEL: &str = "cinch-e2e=test";

/// Every test.
pub const TESTS: &[Test] = &[
    // The longest first, so that nothing waits for them at the end.
    ("bypass", Beside, bypass::bypass),
    ("workloads", Beside, workloads::pass_unchanged),
    ("addresses", Beside, addresses::every_kind),
    ("policy: live labels", Beside, connections::live_labels),
    ("policy: plaintext clients", Beside, connections::plaintext_clients),
    ("policy: PeerAuthentication", Beside, connections::peer_authentication),
    ("policy: dry run", Beside, connections::dry_run),
    ("policy: requests", Beside, requests::by_method_and_path),
    ("policy: broken", Beside, objects::broken),
    ("policy: status", Beside, objects::status),
    ("policy: admission", Beside, objects::admission),
    ("policy: tokens", Beside, requests::by_token),
    ("policy: explain", Beside, objects::explain),
    ("forwarded port", Beside, forwarded::answers),
    ("policy: root namespace", Alone, mesh_wide::root_namespace),
    ("policy: latency", Alone, latency::changes_reach_all_proxies),
    ("policy: no operator", Last, without::operator),
    ("policy: no webhook", Last, without::webhook),
    ("node agent", Last, agent::agent),
    ("node reboot", Last, reboot::reboot),
    ("redirect by init", Last, init::init),
];

/// Tests that say nothing where an init container sets the redirect, and why.
const NEED_AGENTS: [(&str, &str); 3] = [
    ("bypass", "what passes by a proxy is seen by the node agent, and there is none"),
    ("node agent", "there is no node agent"),
    ("redirect by init", "the whole release is in this mode"),
];

/// The tests that have one of the `wanted` words in their names.
#[must_use]
pub fn named(wanted: &[&str]) -> Vec<Test> {
    TESTS.iter().filter(|test| wanted.iter().any(|word| test.0.contains(word))).copied().collect()
}

/// Plays those of `tests` that may be played before the story: first those that don't mind each other, some at a
/// time, then the others one by one.
pub fn play_first(ground: Ground<'_>, tests: &[Test]) -> Vec<Step> {
    let of = |company: Company| tests.iter().filter(|test| test.1 == company).collect::<Vec<_>>();
    let nothing: Check<'_> = &|| Ok(());
    let mut steps = play(ground, &of(Company::Beside), AT_ONCE, nothing);
    steps.extend(play(ground, &of(Company::Alone), 1, nothing));
    steps
}

/// Plays those of `tests` that take parts of Cinch away. `check` looks, after each of them, whether it has harmed
/// what goes on beside it; then it has failed.
pub fn play_last(ground: Ground<'_>, tests: &[Test], check: Check<'_>) -> Vec<Step> {
    let last: Vec<&Test> = tests.iter().filter(|test| test.1 == Company::Last).collect();
    play(ground, &last, 1, check)
}

/// Plays all of them, at most so many at once; waits until their namespaces are gone.
fn play(ground: Ground<'_>, tests: &[&Test], at_once: usize, check: Check<'_>) -> Vec<Step> {
    if tests.is_empty() {
        return Vec::new();
    }
    let next = AtomicUsize::new(0);
    let steps = Mutex::new(Vec::new());
    let take = || {
        while let Some((name, _, play)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let step = play_one(ground, name, *play, check);
            steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        }
    };
    thread::scope(|scope| {
        for _ in 1..at_once.min(tests.len()) {
            scope.spawn(take);
        }
        take();
    });
    let mut steps = steps.into_inner().unwrap_or_else(PoisonError::into_inner);
    // As they are listed, not as they came to their ends.
    steps.sort_by_key(|step| tests.iter().position(|test| test.0 == step.name));
    let begun = Instant::now();
    if let Err(error) = all_gone(&See { cluster: ground.cluster }) {
        steps.push(Step::played("namespaces of tests end", begun.elapsed(), Err(error)));
    }
    steps
}

/// Plays one test in a scene of its own. What it prints comes in one piece, when it has ended.
fn play_one(ground: Ground<'_>, name: &str, play: Play, check: Check<'_>) -> Step {
    let needs = NEED_AGENTS.iter().find(|(needing, _)| *needing == name);
    if let (Redirect::Init, Some((_, why))) = (ground.redirect, needs) {
        terminal::say(format_args!("skipped {name}: {why}"));
        return Step::skipped(name, why);
    }
    let begun = Instant::now();
    let scene = Scene::new(ground, name);
    let (result, lines) = terminal::held_back(|| {
        let result = scene.told(play(&scene));
        // A namespace that does not end is a failure too, also of a test that failed.
        let closed = scene.close();
        let result = result.and_then(|shown_by| closed.map(|()| shown_by));
        match (result, check()) {
            (result, Ok(())) => result,
            (Ok(_), Err(harm)) => Err(harm),
            (Err(error), Err(harm)) => Err(anyhow!("{error:#}; and {harm:#}")),
        }
    });
    let step = Step::played(name, begun.elapsed(), result);
    let came = if step.verdict == Verdict::Held { "held" } else { "did not hold" };
    let all = format!(
        "== {name}: {came} ({:.1} s)\n{}\n{}",
        step.took.as_secs_f64(),
        lines.join("\n"),
        step.shown_by
    );
    // One call, so that nothing comes between.
    terminal::say(all.trim_end());
    step
}

/// Waits until no namespace of a test is left: a meshed namespace can always be deleted.
fn all_gone(see: &See<'_>) -> Result<()> {
    wait::until("the namespaces of the tests to be gone", GONE, || {
        let left = see.kubectl(&["get", "namespaces", "-l", LABEL, "-o", "name"])?;
        Ok(if left.trim().is_empty() { Seen::Done(()) } else { Seen::Not(left) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_needs_agents_is_a_test() {
        let is_test = |(name, _): &(&str, &str)| TESTS.iter().any(|test| test.0 == *name);
        assert!(NEED_AGENTS.iter().all(is_test));
    }

    #[test]
    fn names_are_unique_and_make_names_of_namespaces() {
        let names: BTreeSet<String> = TESTS.iter().map(|test| scene::namespace_of(test.0)).collect();
        assert_eq!(names.len(), TESTS.len());
        for name in names {
            assert!(
                name.len() <= 50 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{name}"
            );
        }
    }
}
