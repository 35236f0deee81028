//! Subprocesses: captured ones with a limit of time, and long ones with a log and a heartbeat.

use crate::terminal;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a long step says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; `None` when a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Whether the command ended with exit code 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output followed by standard error, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, at most `limit`; gives `stdin` to it.
///
/// # Errors
/// When it can't be started. A failure or a timeout of the command itself is in the `Output`.
pub fn capture(command: &mut Command, stdin: Option<&str>, limit: Duration) -> Result<Output> {
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} can't be started", name(command)))?;
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        let text = text.to_owned();
        // In a thread, because a child that answers before it has read all would block both.
        thread::spawn(move || pipe.write_all(text.as_bytes()));
    }
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let code = wait(&mut child, limit)?;
    // A grandchild may hold the pipes for longer: what has come by then is taken.
    let text = |from: mpsc::Receiver<Vec<u8>>| {
        let bytes = from.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut output = Output { code: code.flatten(), stdout: text(stdout), stderr: text(stderr) };
    if code.is_none() {
        output.stderr.push_str(&format!("\n{} took longer than {} s\n", name(command), limit.as_secs()));
    }
    Ok(output)
}

/// As [`capture`], but a failed command is an error that holds what it said.
///
/// # Errors
/// When the command can't be started or does not end with exit code 0 in time.
pub fn succeed(command: &mut Command, stdin: Option<&str>, limit: Duration) -> Result<String> {
    let output = capture(command, stdin, limit)?;
    if !output.ok() {
        bail!("{} failed: {}", line(command), output.text().trim());
    }
    Ok(output.stdout)
}

/// Runs a long command with its output in `log`, and says every 20 s how far it is. `progress` turns the
/// log's text so far into a few words.
///
/// # Errors
/// When it can't be started, or fails: then with the end of the log.
pub fn logged(what: &str, command: &mut Command, log: &Path, progress: fn(&str) -> String) -> Result<()> {
    let out = File::create(log).with_context(|| format!("{} can't be written", log.display()))?;
    let err = out.try_clone()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("{} can't be started", name(command)))?;
    let (start, mut said) = (Instant::now(), Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            let so_far = progress(&std::fs::read_to_string(log).unwrap_or_default());
            terminal::say(format_args!("  {what}: {} s so far{so_far}", start.elapsed().as_secs()));
        }
        thread::sleep(POLL * 10);
    };
    if !status.success() {
        bail!("{what} failed ({status}); the log ends:\n{}", tail(log, 40));
    }
    Ok(())
}

/// The last `lines` lines of a file, or nothing when it can't be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Waits for the child; `None` when it was killed because the limit was reached.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<Option<i32>>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.code()));
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(bytes);
    });
    receive
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(name(command)).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_its_input_and_returns_its_output() {
        let output = capture(&mut Command::new("cat"), Some("hello"), Duration::from_secs(60)).unwrap();
        assert_eq!((output.ok(), output.stdout.as_str()), (true, "hello"));
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_and_says_so() {
        let output = capture(Command::new("sleep").arg("9"), None, Duration::from_millis(50)).unwrap();
        assert_eq!(output.code, None);
        assert!(output.stderr.contains("took longer"));
    }

    #[test]
    fn a_failed_long_command_shows_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo the cause; exit 3"]);
        let error = logged("a build", &mut command, &directory.path().join("log"), |_| String::new());
        assert!(error.unwrap_err().to_string().contains("the cause"));
    }
}
