//! The machine's processes, read from `/proc`: parents, groups, start times, memory, whose they are.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Loading a program takes the kernel less than a millisecond of computing, which it may have to wait for.
const LOADED_WITHIN: Duration = Duration::from_secs(1);
/// The kernel's `PF_KTHREAD` (`include/linux/sched.h`): a thread of its own, which never has a program.
const OF_KERNEL: u32 = 0x0020_0000;

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number in our PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    start: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn now(pid: i32) -> Option<Self> {
        Some(Self { pid, start: stat(pid)?.start })
    }

    /// Its command line as it is now; the name in brackets when it has none, as `ps` writes it.
    #[must_use]
    pub fn command(self) -> String {
        loaded(self.pid);
        let line = read(self.pid, "cmdline").replace('\0', " ");
        if line.trim().is_empty() {
            format!("[{}]", read(self.pid, "comm").trim())
        } else {
            line.trim().to_owned()
        }
    }

    /// Whether it still runs: a zombie does not.
    #[must_use]
    pub fn runs(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start == self.start && !stat.zombie)
    }

    /// Kills it, if it is still the same one.
    pub fn kill(self) {
        if self.runs()
            && let Some(pid) = rustix::process::Pid::from_raw(self.pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

struct Stat {
    parent: i32,
    group: i32,
    start: u64,
    zombie: bool,
    of_kernel: bool,
}

/// Reads `/proc/PID/stat`; the program's name in it may hold blanks and parentheses.
fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let (state, parent, group) = (fields.first()?, fields.get(1)?, fields.get(2)?);
    let (flags, start) = (fields.get(6)?.parse::<u32>().ok()?, fields.get(19)?);
    Some(Stat {
        parent: parent.parse().ok()?,
        group: group.parse().ok()?,
        start: start.parse().ok()?,
        zombie: matches!(*state, "Z" | "X"),
        of_kernel: flags & OF_KERNEL != 0,
    })
}

/// A file of a process as text; nothing when it can't be read.
fn read(pid: i32, name: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits while a process has no program: `execve` has let go of the old one's memory, and has not yet written the
/// new one's arguments and environment into its own. One that is about to end is in the same state.
fn loaded(pid: i32) {
    let start = Instant::now();
    let is_between =
        || read(pid, "cmdline").is_empty() && stat(pid).is_some_and(|stat| !stat.zombie && !stat.of_kernel);
    while is_between() && start.elapsed() < LOADED_WITHIN {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Every process number there is.
#[must_use]
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process.
#[must_use]
pub fn children(of: i32) -> Vec<i32> {
    all().into_iter().filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == of)).collect()
}

/// The processes of `roots` and everything below them.
#[must_use]
pub fn descendants(roots: &[i32]) -> Vec<i32> {
    let mut by_parent: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid) {
            by_parent.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut found, mut open) = (Vec::new(), roots.to_vec());
    while let Some(pid) = open.pop() {
        open.extend(by_parent.remove(&pid).unwrap_or_default());
        found.push(pid);
    }
    found
}

/// The processes of a process group that run.
#[must_use]
pub fn of_group(group: i32) -> Vec<Process> {
    let running =
        |pid: i32| stat(pid).filter(|stat| stat.group == group && !stat.zombie).map(|stat| (pid, stat));
    all().into_iter().filter_map(running).map(|(pid, stat)| Process { pid, start: stat.start }).collect()
}

/// The processes other than ourselves that hold a file open, which is named as `/proc/PID/fd` names it: `pipe:[4711]`.
/// A child of ours that has not yet begun its own program holds all that we hold, and does not count.
#[must_use]
pub fn holding(file: &str) -> Vec<Process> {
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let ours = program(own());
    let is_other = |pid: i32, stat: &Stat| pid != own() && !(stat.parent == own() && program(pid) == ours);
    let holds = |pid: i32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == file)
    };
    let running = all().into_iter().filter_map(|pid| Some((pid, stat(pid).filter(|stat| !stat.zombie)?)));
    let others = running.filter(|(pid, stat)| is_other(*pid, stat) && holds(*pid));
    others.map(|(pid, stat)| Process { pid, start: stat.start }).collect()
}

fn own() -> i32 {
    std::process::id().cast_signed()
}

/// Resident memory of a process in KiB, of which pages shared with others count in full.
#[must_use]
pub fn resident_kib(pid: i32) -> Option<u64> {
    field(Path::new(&format!("/proc/{pid}/status")), "VmRSS:")
}

/// Memory of a process in KiB, of which a page shared by n processes counts for 1/n: a sum over processes
/// counts no page twice.
#[must_use]
pub fn proportional_kib(pid: i32) -> Option<u64> {
    field(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Environment variable that everything started for a cluster inherits; its value is the state directory.
pub const MARK: &str = "CINCH_E2E_STATE";

/// Processes other than ourselves that were started for the cluster in `state`: those that inherited the
/// [`MARK`], and those in containers, which have something mounted from there.
///
/// One look may miss one: a child that its parent made while the look went on, and a new program in a process
/// whose memory was its parent's a moment ago.
#[must_use]
pub fn belonging_to(state: &Path) -> Vec<Process> {
    let mark = format!("{MARK}={}", state.display());
    let folder = format!("{}/", state.display());
    let mounts = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let our_mounts = mounts(own());
    let belongs = |process: &Process| {
        let pid = process.pid;
        loaded(pid);
        read(pid, "environ").split('\0').any(|variable| variable == mark)
            // What is mounted where we are says nothing of the others who are there.
            || mounts(pid) != our_mounts && read(pid, "mountinfo").contains(&folder)
    };
    let others = all().into_iter().filter(|pid| *pid != own());
    others.filter_map(Process::now).filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) (b c) S 3 6 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let stat = parse(line).unwrap();
        assert_eq!((stat.parent, stat.group, stat.start), (3, 6, 4711));
        assert!(!stat.zombie && !stat.of_kernel);
        // kthreadd of a running machine.
        let line = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 2 0 0 20 0 1 0 1 0 0";
        assert!(parse(line).unwrap().of_kernel);
    }

    #[test]
    fn this_process_runs_and_one_with_another_start_does_not() {
        let own = Process::now(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.runs());
        assert!(!Process { start: own.start + 1, ..own }.runs());
    }

    #[test]
    fn a_process_is_found_by_its_group_and_by_what_it_holds_and_named_by_its_command() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new("sleep");
        let mut child = command.arg("600").process_group(0).stdout(writer).spawn().unwrap();
        drop(command);
        let pipe = fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
        let pid = child.id().cast_signed();
        let process = Process::now(pid).unwrap();
        // It may take a moment until it is no longer a copy of ours.
        let start = Instant::now();
        while process.command() != "sleep 600" && start.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        let (command, of_group) = (process.command(), of_group(pid));
        let holding = holding(pipe.to_str().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_group, [process]);
        assert!(holding.contains(&process) && holding.iter().all(|process| process.pid != own()));
        assert_eq!(command, "sleep 600");
    }
}
