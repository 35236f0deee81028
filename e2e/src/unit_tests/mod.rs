//! Unit and integration tests: those of `cargo test --workspace`, each binary as soon as it is compiled, beside the
//! compiler and other ones, because the longest of them wait for timers. In: the checkout. Out: how many passed, failed and
//! were skipped; a log in the cache; what failed is shown, with the command that runs it alone.

mod build;
mod output;
mod queue;

use crate::prepare::cache_directory;
use crate::report::Counts;
use crate::terminal;
use anyhow::{Context, Result};
use build::Target;
use output::Heard;
use queue::Queue;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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
}

/// One run of all of them.
struct Run {
    queue: Queue,
    compiled: AtomicU64,
    ended: Mutex<Vec<Outcome>>,
    log: Mutex<File>,
}

/// Compiles and runs them all, also after a failure.
///
/// # Errors
/// When the log can't be written or cargo can't be started.
pub fn run() -> Result<Counts> {
    let (start, file) = (Instant::now(), cache_directory()?.join("test.log"));
    let log = File::create(&file).with_context(|| format!("{} can't be written", file.display()))?;
    terminal::say("test: unit and integration tests (those of cargo test --workspace)");
    let run = Run {
        queue: Queue::default(),
        compiled: AtomicU64::new(0),
        ended: Mutex::default(),
        log: Mutex::new(log),
    };
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
    built?;
    let Counts { passed, failed, skipped } = run.counts();
    let seconds = start.elapsed().as_secs_f64();
    terminal::say(format_args!(
        "test: {passed} passed, {failed} failed, {skipped} skipped in {seconds:.0} s ({})",
        file.display()
    ));
    let ended = run.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    for Outcome { name, said, .. } in ended.iter().filter(|outcome| outcome.counts.failed > 0) {
        terminal::say(format_args!("test: failed: cargo test {name}"));
        terminal::show(&output::failures(said));
    }
    Ok(Counts { passed, failed, skipped })
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
            Ok(()) => self.keep("--workspace --doc", hear(build::doc_tests()?)),
            // No test can say that it was not compiled.
            Err(said) => self.end("--workspace --no-run", Heard::default(), Some(said)),
        }
        Ok(())
    }

    /// Runs what waits until there is no more.
    fn play(&self) {
        while let Some(target) = self.queue.take() {
            self.keep(&target.name, hear(command(&target)));
            self.queue.ended(&target);
        }
    }

    fn keep(&self, name: &str, came: Result<(Heard, Option<String>)>) {
        match came {
            Ok((heard, trouble)) => self.end(name, heard, trouble),
            Err(error) => self.end(name, Heard::default(), Some(format!("error: {error:#}"))),
        }
    }

    /// Keeps what came of one; with `trouble` it failed, also when none of its tests says so.
    fn end(&self, name: &str, heard: Heard, trouble: Option<String>) {
        let (mut counts, mut said) = (heard.counts(), heard.text);
        if let Some(trouble) = trouble {
            counts.failed = counts.failed.max(1);
            said.push_str(&trouble);
            said.push('\n');
        }
        // In one piece, so that nothing comes between.
        self.write(&format!("     Running cargo test {name}\n{said}\n"));
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push(Outcome { name: name.to_owned(), counts, said });
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

/// Runs a command of tests to its end: what it said, and how it failed if it did.
fn hear(mut command: Command) -> Result<(Heard, Option<String>)> {
    let (reader, writer) = std::io::pipe()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{name} can't be started"))?;
    // The command holds the pipe's other end, without which reading would never end.
    drop(command);
    let mut heard = Heard::default();
    for line in BufReader::new(reader).split(b'\n') {
        heard.line(&String::from_utf8_lossy(&line?));
    }
    let status = child.wait()?;
    Ok((heard, (!status.success()).then(|| format!("error: {name} ended with {status}"))))
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
            ended: Mutex::default(),
            log: Mutex::new(tempfile::tempfile().unwrap()),
        }
    }

    #[test]
    fn what_fails_without_a_word_of_a_test_is_one_failure_that_says_how() {
        let run = new();
        run.keep("-p a --lib", hear(sh("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'")));
        run.keep("-p b --lib", hear(sh("kill -9 $$")));
        run.keep("-p c --lib", hear(Command::new("/does/not/exist")));
        let failed = "test result: FAILED. 1 passed; 2 failed; 0 ignored";
        run.keep("-p d --lib", hear(sh(&format!("echo '{failed}'; exit 101"))));
        assert_eq!(run.counts(), Counts { passed: 3, failed: 4, skipped: 0 });
        let ended = run.ended.into_inner().unwrap();
        assert!(output::failures(&ended[1].said).contains("signal: 9"), "{}", ended[1].said);
        assert!(output::failures(&ended[2].said).contains("can't be started"), "{}", ended[2].said);
    }

    #[test]
    fn a_test_that_skipped_itself_is_not_passed_as_well() {
        let said =
            "echo SKIPPED a: no root; echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'";
        let (heard, trouble) = hear(sh(said)).unwrap();
        assert_eq!(trouble, None);
        assert_eq!(heard.counts(), Counts { passed: 1, failed: 0, skipped: 1 });
    }
}
