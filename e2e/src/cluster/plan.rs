//! What the first process of a namespace does: a list of steps, written by the starter as JSON, run by
//! `cinch-e2e init`. It starts daemons, restarts those that end, and reaps every orphan, as an init must.

use anyhow::{Context, Result, bail};
use rustix::process::{WaitOptions, wait};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the starter writes to its end of the pipe when the cluster shall outlive it.
pub const KEEP: &str = "keep\n";
/// A daemon that ended is started again after this time, so that one that always fails does not spin.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a condition; a loaded machine needs some seconds.
const LIMIT: Duration = Duration::from_secs(180);

/// The steps of one namespace's first process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Folder for the logs: `NAME.log` for each daemon, `init.log` for the steps.
    pub logs: PathBuf,
    /// The search path of everything that is run.
    pub path: String,
    /// File that is written when all steps are done.
    pub done: PathBuf,
    /// In order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Serialize, Deserialize)]
pub enum Step {
    /// Runs to its end; a failure ends the namespace.
    Run(Vec<String>),
    /// Runs again until it succeeds.
    Until(Vec<String>),
    /// Writes a file.
    Write(PathBuf, String),
    /// Starts a daemon and goes on.
    Daemon(Daemon),
}

/// A program that is kept running.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name, for its log.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
}

/// A step that runs `line`, split at blanks.
#[must_use]
pub fn run(line: &str) -> Step {
    Step::Run(words(line))
}

/// A step that repeats `line`, split at blanks, until it succeeds.
#[must_use]
pub fn until(line: &str) -> Step {
    Step::Until(words(line))
}

/// A step that starts `line`, split at blanks, as the daemon `name`.
#[must_use]
pub fn daemon(name: &str, line: &str) -> Step {
    Step::Daemon(Daemon { name: name.into(), command: words(line), environment: Vec::new() })
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Runs the plan in `file` as the first process of a PID namespace; returns only on an error. When `guarded`,
/// the end of standard input (its writer is gone) ends everything, unless it said [`KEEP`] before.
///
/// # Errors
/// When a step fails.
pub fn init(file: &Path, guarded: bool) -> Result<()> {
    if guarded {
        thread::spawn(end_with_the_starter);
    }
    let plan: Plan = serde_json::from_slice(&fs::read(file)?)?;
    let mut running = BTreeMap::new();
    for step in &plan.steps {
        if let Err(error) = take(step, &plan, &mut running) {
            writeln!(log(&plan, "init")?, "{error:#}")?;
            return Err(error);
        }
    }
    fs::write(&plan.done, "")?;
    supervise(&plan, running)
}

fn end_with_the_starter() {
    let mut said = String::new();
    // Anything but the word, an error too, means that nobody is left who would clean up.
    if std::io::stdin().lock().read_line(&mut said).is_err() || said != KEEP {
        std::process::exit(1);
    }
}

fn take(step: &Step, plan: &Plan, running: &mut BTreeMap<i32, Daemon>) -> Result<()> {
    match step {
        Step::Run(words) => {
            let status = command(words, plan, "init")?.status()?;
            if !status.success() {
                bail!("{} failed: {status}", words.join(" "));
            }
        }
        Step::Until(words) => {
            let start = Instant::now();
            while !command(words, plan, "waiting")?.status()?.success() {
                if start.elapsed() > LIMIT {
                    bail!("{} did not succeed within {} s", words.join(" "), LIMIT.as_secs());
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        Step::Write(file, text) => {
            fs::write(file, text).with_context(|| format!("{} can't be written", file.display()))?;
        }
        Step::Daemon(daemon) => start(daemon, plan, running)?,
    }
    Ok(())
}

fn start(daemon: &Daemon, plan: &Plan, running: &mut BTreeMap<i32, Daemon>) -> Result<()> {
    let mut command = command(&daemon.command, plan, &daemon.name)?;
    let child = command.envs(daemon.environment.iter().cloned()).spawn();
    let child = child.with_context(|| format!("{} can't be started", daemon.name))?;
    running.insert(child.id().cast_signed(), daemon.clone());
    Ok(())
}

fn command(words: &[String], plan: &Plan, log_name: &str) -> Result<Command> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    let out = log(plan, log_name)?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", &plan.path).stdin(Stdio::null());
    command.stderr(out.try_clone()?).stdout(out);
    Ok(command)
}

fn log(plan: &Plan, name: &str) -> Result<File> {
    let path = plan.logs.join(format!("{name}.log"));
    OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("{}", path.display()))
}

/// Reaps whatever ends; a daemon among it is started again.
fn supervise(plan: &Plan, mut running: BTreeMap<i32, Daemon>) -> Result<()> {
    loop {
        let Ok(Some((pid, status))) = wait(WaitOptions::empty()) else {
            thread::sleep(RESTART_PAUSE);
            continue;
        };
        if let Some(daemon) = running.remove(&pid.as_raw_nonzero().get()) {
            writeln!(log(plan, "init")?, "{} ended ({status:?}); starting it again", daemon.name)?;
            thread::sleep(RESTART_PAUSE);
            start(&daemon, plan, &mut running)?;
        }
    }
}
