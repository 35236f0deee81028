//! Unit and integration tests: those of `cargo test --workspace`, each binary as soon as it is compiled, beside the
//! compiler and other ones, because the longest of them wait for timers. In: the checkout. Out: how many passed, failed and
//! were skipped, and what failed; a log in the cache; what failed is shown, with the command that runs it alone.

mod build;
mod hear;
mod output;
mod queue;

use crate::closing::Failure;
use crate::prepare::cache_directory;
use crate::report::Counts;
use crate::{signals, terminal};
use anyhow::{Context, Result};
use build::Target;
use hear::{AFTERWARDS, Came, Groups, hear};
use queue::Queue;
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Test binaries at once, so that those that wait for timers leave no core idle. With many more, those that compute
/// on two cores would make them late.
const AT_ONCE: usize = 3;
/// How often it says how far it is.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What came of one test binary, or of the documentation's tests.
struct Outcome {
    /// What cargo is told to run it alone: `-p cinch-node --test csi`.
    name: String,
    counts: Counts,
    said: String,
    failures: Vec<Failure>,
}

/// One run of all of them.
struct Run {
    queue: Queue,
    compiled: AtomicU64,
    groups: Arc<Groups>,
    ended: Mutex<Vec<Outcome>>,
    log: Mutex<File>,
}

/// Compiles and runs them all, also after a failure. Returns how many did what, and what failed.
///
/// # Errors
/// When the log can't be written or cargo can't be started.
pub fn run() -> Result<(Counts, Vec<Failure>)> {
    let (start, file) = (Instant::now(), cache_directory()?.join("test.log"));
    let log = File::create(&file).with_context(|| format!("{} can't be written", file.display()))?;
    terminal::say("test: unit and integration tests (those of cargo test --workspace)");
    let run = Run {
        queue: Queue::default(),
        compiled: AtomicU64::new(0),
        groups: Arc::default(),
        ended: Mutex::default(),
        log: Mutex::new(log),
    };
    // Ctrl-C in a terminal is for its foreground's process group alone.
    let groups = Arc::clone(&run.groups);
    signals::at_end(move || groups.kill())?;
    let built = thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| run.play());
        }
        scope.spawn(|| run.say_how_far());
        let built = run.compile();
        // Whatever came of it: the threads wait for the end.
        run.queue.close();
        built
    });
    signals::at_end(|| ())?;
    built?;
    let Counts { passed, failed, skipped } = run.counts();
    let seconds = start.elapsed().as_secs_f64();
    terminal::say(format_args!(
        "test: {passed} passed, {failed} failed, {skipped} skipped in {seconds:.0} s ({})",
        file.display()
    ));
    let ended = run.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut failures = Vec::new();
    for outcome in ended.into_iter().filter(|outcome| outcome.counts.failed > 0) {
        terminal::say(format_args!("test: failed: cargo test {}", outcome.name));
        terminal::show(&output::failures(&outcome.said));
        failures.extend(outcome.failures);
    }
    Ok((Counts { passed, failed, skipped }, failures))
}

impl Run {
    /// Compiles, and hands on what is ready. The documentation's tests are cargo's own to run, when it is free.
    fn compile(&self) -> Result<()> {
        let heard = |line: &str| {
            let compiles = line.trim_start().starts_with("Compiling ");
            self.compiled.fetch_add(u64::from(compiles), Ordering::Relaxed);
            self.write(&format!("{line}\n"));
        };
        match build::build(|target| self.queue.add(target), heard)? {
            Ok(()) => self.hear("--workspace --doc", build::doc_tests()?),
            // No test can say that it was not compiled.
            Err(said) => {
                self.end("--workspace --no-run", Came { ended: Some(said), ..Came::default() });
            }
        }
        Ok(())
    }

    /// Runs what waits until there is no more.
    fn play(&self) {
        while let Some(target) = self.queue.take() {
            self.hear(&target.name, command(&target));
            self.queue.ended(&target);
        }
    }

    fn hear(&self, name: &str, command: Command) {
        let came = hear(command, &self.groups, AFTERWARDS);
        self.end(
            name,
            came.unwrap_or_else(|error| Came { ended: Some(format!("error: {error:#}")), ..Came::default() }),
        );
    }

    /// Keeps what came of one: that it ended badly or left something behind is a failure also when none of its tests
    /// says so.
    fn end(&self, name: &str, came: Came) {
        let (mut counts, mut said) = (came.heard.counts(), came.heard.text);
        let mut failures = output::failed(&said);
        failures.extend(came.ended.iter().map(|ended| (String::new(), output::cause(&said, ended))));
        failures.extend(came.left.iter().map(|left| (String::new(), left.clone())));
        for trouble in came.ended.iter().chain(&came.left) {
            said.push_str(trouble);
            said.push('\n');
        }
        if !failures.is_empty() {
            counts.failed = counts.failed.max(1);
        }
        // In one piece, so that nothing comes between.
        self.write(&format!("     Running cargo test {name}\n{said}\n"));
        let failures = failures.into_iter().map(|(test, why)| Failure::new(&format!("{name} {test}"), &why));
        let failures = failures.collect();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push(Outcome { name: name.to_owned(), counts, said, failures });
    }

    fn write(&self, text: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // What failed is shown from memory: a full disk takes nothing but the log.
        let _ = log.write_all(text.as_bytes());
    }

    fn counts(&self) -> Counts {
        let mut all = Counts::default();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().for_each(|outcome| all.add(outcome.counts));
        all
    }

    fn say_how_far(&self) {
        while let Some(running) = self.queue.unfinished_after(HEARTBEAT) {
            let Counts { passed, failed, .. } = self.counts();
            let compiled = self.compiled.load(Ordering::Relaxed);
            let running = if running.is_empty() { "none".to_owned() } else { running.join(" and ") };
            terminal::say(format_args!(
                "  {compiled} crates compiled, {passed} tests passed, {failed} failed; running: {running}"
            ));
        }
    }
}

/// The test binary as cargo would run it.
fn command(target: &Target) -> Command {
    let mut command = Command::new(&target.executable);
    // Skipped tests speak on their output.
    command.arg("--show-output").current_dir(&target.folder).env("CARGO_MANIFEST_DIR", &target.folder);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn new() -> Run {
        Run {
            queue: Queue::default(),
            compiled: AtomicU64::new(0),
            groups: Arc::default(),
            ended: Mutex::default(),
            log: Mutex::new(tempfile::tempfile().unwrap()),
        }
    }

    #[test]
    fn what_fails_without_a_word_of_a_test_is_one_failure_that_says_how() {
        let run = new();
        run.hear("-p a --lib", sh("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'"));
        run.hear("-p b --lib", sh("kill -9 $$"));
        run.hear("-p c --lib", Command::new("/does/not/exist"));
        let failed = "test result: FAILED. 1 passed; 2 failed; 0 ignored";
        run.hear("-p d --lib", sh(&format!("echo '{failed}'; exit 101")));
        assert_eq!(run.counts(), Counts { passed: 3, failed: 4, skipped: 0 });
        let ended = run.ended.into_inner().unwrap();
        assert!(output::failures(&ended[1].said).contains("signal: 9"), "{}", ended[1].said);
        assert!(output::failures(&ended[2].said).contains("can't be started"), "{}", ended[2].said);
        assert_eq!(ended[0].failures, []);
        assert_eq!(ended[1].failures.len(), 1);
    }

    #[test]
    fn a_failure_has_the_words_that_run_it_alone_and_what_was_left_behind_is_one_too() {
        let run = new();
        let said = "failures:\n\n---- a::b stdout ----\nthread 'a::b' panicked at src/a.rs:1:2:\nnot so\n";
        let result = "test result: FAILED. 1 passed; 1 failed; 0 ignored";
        let left = vec!["left a process behind: 7: sleep 600".to_owned()];
        let mut heard = output::Heard::default();
        said.lines().chain([result]).for_each(|line| heard.line(line));
        run.end("-p a --lib", Came { heard, ended: None, left: left.clone() });
        let mut heard = output::Heard::default();
        heard.line("test result: ok. 3 passed; 0 failed; 0 ignored");
        run.end("-p b --lib", Came { heard, ended: None, left: left.clone() });
        assert_eq!(run.counts(), Counts { passed: 4, failed: 2, skipped: 0 });
        let ended = run.ended.into_inner().unwrap();
        let of_test = Failure::new("-p a --lib a::b", "panicked at src/a.rs:1:2:\nnot so");
        assert_eq!(ended[0].failures, [of_test, Failure::new("-p a --lib", &left[0])]);
        assert_eq!(ended[1].failures, [Failure::new("-p b --lib", &left[0])]);
        assert!(ended[1].said.ends_with("left a process behind: 7: sleep 600\n"), "{}", ended[1].said);
    }

    #[test]
    fn a_test_that_skipped_itself_is_not_passed_as_well() {
        let run = new();
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured";
        run.hear("-p a --lib", sh(&format!("echo SKIPPED a: no root; echo '{result}'")));
        assert_eq!(run.counts(), Counts { passed: 1, failed: 0, skipped: 1 });
    }
}
