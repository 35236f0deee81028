//! One command of tests, from its start to the end of its output. In: the command. Out: what it said, how it failed, and
//! the processes that it left behind, which are killed.

use super::output::Heard;
use crate::cluster::processes::{self, Process};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long after a command's end its output may go on, and its processes may take to end.
pub const AFTERWARDS: Duration = Duration::from_secs(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of a command.
#[derive(Debug, Default)]
pub struct Came {
    /// What it said.
    pub heard: Heard,
    /// How it ended, when not well.
    pub ended: Option<String>,
    /// What it left behind, one line each.
    pub left: Vec<String>,
}

/// The process groups of the commands that run: each has one of its own, so that what it leaves can be told from
/// everything else.
#[derive(Debug, Default)]
pub struct Groups(Mutex<Vec<Pid>>);

impl Groups {
    /// Kills all that runs.
    pub fn kill(&self) {
        for group in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = kill_process_group(*group, Signal::KILL);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Pid>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs a command in a process group of its own, which is among `groups` as long as it runs. Waits for its end, and then
/// at most `afterwards` for the end of its output and of its processes: what goes on is killed and named.
///
/// # Errors
/// When it can't be started.
pub fn hear(mut command: Command, groups: &Groups, afterwards: Duration) -> Result<Came> {
    let (reader, writer) = std::io::pipe()?;
    let pipe = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn().with_context(|| format!("{name} can't be started"))?;
    // The command holds the pipe's other end, without which reading would never end.
    drop(command);
    let group = Pid::from_child(&child);
    groups.change(|groups| groups.push(group));
    let (send, lines) = mpsc::channel();
    // Not waited for: it reads for as long as anything holds the pipe.
    thread::spawn(move || {
        let lines = BufReader::new(reader).split(b'\n').map_while(std::io::Result::ok);
        lines.map(|line| send.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    let listened = listen(&mut child, &lines, afterwards);
    groups.change(|groups| groups.retain(|other| *other != group));
    let (heard, status, end) = listened?;
    let left = left(group.as_raw_pid(), &pipe.to_string_lossy(), || end.elapsed() > afterwards);
    let left = left.into_iter().map(|process| {
        let line = format!("left a process behind: {}: {}", process.pid, process.command());
        process.kill();
        line
    });
    let ended = how(status, &heard).map(|how| format!("error: {name} {how}"));
    Ok(Came { left: left.collect(), heard, ended })
}

/// Takes the lines until there are no more, or for so long after the child has ended; how it ended, and when.
fn listen(
    child: &mut Child,
    lines: &mpsc::Receiver<Vec<u8>>,
    afterwards: Duration,
) -> Result<(Heard, ExitStatus, Instant)> {
    let (mut heard, mut end) = (Heard::default(), None);
    loop {
        match lines.recv_timeout(PAUSE) {
            Ok(line) => heard.line(&String::from_utf8_lossy(&line)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if end.is_none() && child.try_wait()?.is_some() {
            end = Some(Instant::now());
        }
        if end.is_some_and(|end| end.elapsed() > afterwards) {
            break;
        }
    }
    let status = child.wait()?;
    Ok((heard, status, end.unwrap_or_else(Instant::now)))
}

/// How a command failed that has not said itself that a test did.
fn how(status: ExitStatus, heard: &Heard) -> Option<String> {
    let told = heard.counts().failed > 0 && status.signal().is_none();
    (!status.success() && !told).then(|| format!("ended with {status}"))
}

/// The processes of a group and those that hold its output, once they have had their time, and are seen twice: a process
/// that another thread of ours is just making holds all that we hold.
fn left(group: i32, pipe: &str, is_over: impl Fn() -> bool) -> Vec<Process> {
    let look = || {
        let (mut found, mut holding) = (processes::of_group(group), processes::holding(pipe));
        holding.retain(|process| !found.contains(process));
        found.append(&mut holding);
        found
    };
    let mut before: Vec<Process> = Vec::new();
    loop {
        let mut found = look();
        if found.is_empty() {
            return found;
        }
        if is_over() && !before.is_empty() {
            found.retain(|process| before.contains(process));
            return found;
        }
        before = found;
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counts;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(300);

    fn sh(script: &str, afterwards: Duration) -> Came {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        hear(command, &Groups::default(), afterwards).unwrap()
    }

    /// That each of the processes that were named has ended, and how many they are.
    fn all_ended(came: &Came) -> usize {
        for line in &came.left {
            let pid = line.split(": ").nth(1).and_then(|pid| pid.parse().ok()).unwrap();
            let start = Instant::now();
            while Process::now(pid).is_some_and(Process::runs) {
                assert!(start.elapsed() < LONG, "{line} goes on");
                thread::sleep(PAUSE);
            }
        }
        came.left.len()
    }

    #[test]
    fn a_command_that_ends_well_has_said_all_and_leaves_nothing() {
        let came = sh("echo one; echo two >&2; printf three", LONG);
        assert_eq!(came.heard.text, "one\ntwo\nthree\n");
        assert_eq!((came.ended, came.left), (None, Vec::new()));
    }

    #[test]
    fn what_holds_the_output_of_a_command_that_has_ended_is_named_and_killed() {
        let came = sh("sleep 120 & echo 'test result: ok. 1 passed; 0 failed; 0 ignored'", SHORT);
        assert_eq!(came.heard.counts(), Counts { passed: 1, ..Counts::default() });
        assert!(came.left[0].contains("sleep 120"), "{:?}", came.left);
        assert_eq!((came.ended.as_deref(), all_ended(&came)), (None, 1));
    }

    #[test]
    fn what_left_the_group_is_found_by_the_output_and_what_left_the_output_by_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        let there = there.display();
        let elsewhere = format!("setsid sh -c 'touch {there}; exec sleep 120' &");
        let came = sh(&format!("{elsewhere} while [ ! -e {there} ]; do sleep 0.05; done"), SHORT);
        assert_eq!(all_ended(&came), 1, "{:?}", came.left);
        let came = sh("sleep 120 >/dev/null 2>&1 & exit 0", SHORT);
        assert_eq!(all_ended(&came), 1, "{:?}", came.left);
    }

    #[test]
    fn what_ends_soon_after_its_command_is_waited_for_and_heard() {
        let came = sh("(sleep 0.3; echo late) & echo early", LONG);
        assert_eq!((came.heard.text.as_str(), came.left.len()), ("early\nlate\n", 0));
    }

    #[test]
    fn a_signal_is_a_failure_of_its_own_and_an_exit_status_only_where_no_test_failed() {
        let failed = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'";
        let ended = |script: &str| sh(script, LONG).ended;
        assert_eq!(ended("exit 3").unwrap(), "error: sh ended with exit status: 3");
        assert_eq!(ended(&format!("{failed}; exit 101")), None);
        assert!(ended(&format!("{failed}; kill -9 $$")).unwrap().contains("signal: 9"));
    }

    #[test]
    fn all_groups_that_run_are_killed_at_once() {
        let (groups, start) = (Groups::default(), Instant::now());
        let came = thread::scope(|scope| {
            let heard = scope.spawn(|| {
                let mut command = Command::new("sh");
                command.args(["-c", "sleep 120 & wait"]);
                hear(command, &groups, LONG).unwrap()
            });
            while !heard.is_finished() && start.elapsed() < LONG {
                groups.kill();
                thread::sleep(PAUSE);
            }
            heard.join().unwrap()
        });
        assert!(came.ended.unwrap().contains("signal: 9"));
        assert_eq!(came.left.len(), 0);
    }
}
