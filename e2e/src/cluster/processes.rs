//! The machine's processes, read from `/proc`: parents, start times, memory.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
    start: u64,
    zombie: bool,
}

/// Reads `/proc/PID/stat`; the program's name in it may hold blanks and parentheses.
fn stat(pid: i32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let (state, parent, start) = (fields.first()?, fields.get(1)?, fields.get(19)?);
    Some(Stat {
        parent: parent.parse().ok()?,
        start: start.parse().ok()?,
        zombie: matches!(*state, "Z" | "X"),
    })
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
#[must_use]
pub fn belonging_to(state: &Path) -> Vec<(i32, String)> {
    let mark = format!("{MARK}={}", state.display());
    let folder = format!("{}/", state.display());
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let read = |pid: i32, name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let belongs = |pid: &i32| {
        read(*pid, "environ").split('\0').any(|variable| variable == mark)
            || read(*pid, "mountinfo").contains(&folder)
    };
    let others = all().into_iter().filter(|pid| *pid != own);
    others.filter(belongs).map(|pid| (pid, read(pid, "cmdline").replace('\0', " "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) (b c) S 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let stat = parse(line).unwrap();
        assert_eq!((stat.parent, stat.start, stat.zombie), (3, 4711, false));
    }

    #[test]
    fn this_process_runs_and_one_with_another_start_does_not() {
        let own = Process::now(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.runs());
        assert!(!Process { start: own.start + 1, ..own }.runs());
    }
}
