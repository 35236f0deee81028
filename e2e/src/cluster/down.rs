//! Takes a cluster down and looks whether anything of it is left: processes, mounts, links, cgroups, files.

use super::cgroups;
use super::layout::{Layout, STATES};
use super::processes::{self, Process};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Killing a PID namespace's first process takes the kernel some milliseconds for each process in it, and more on a
/// loaded machine.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// So many looks in a row that find nothing are believed: one may miss a child whose parent is being killed, and a
/// process between two programs.
const QUIET_LOOKS: u32 = 2;

/// What runs for a cluster, as it is written into its state directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The `cargo e2e` that started it and will take it down; nobody's when it is kept.
    pub owner: Option<Process>,
    /// The first process of the cluster's namespaces. With it everything inside ends.
    pub machine: Option<Process>,
    /// The first process of each node's namespaces, by the node's name.
    pub nodes: Vec<(String, Process)>,
    /// Processes in the machine's own namespaces: those that wait for the above, and the forwarder.
    pub outside: Vec<Process>,
    /// Controllers that the machine's root cgroup hands down for us only.
    pub controllers: Vec<String>,
    /// The loopback port that leads to the API server, when the cluster is kept.
    pub port: Option<u16>,
}

impl Record {
    /// Reads a cluster's record; an empty one when there is none.
    #[must_use]
    pub fn read(layout: &Layout) -> Self {
        let bytes = fs::read(layout.file("record.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// The process of another run to which the cluster belongs, as long as that runs.
    #[must_use]
    pub fn used_by(&self) -> Option<i32> {
        let own = i32::try_from(std::process::id()).ok();
        self.owner.filter(|owner| owner.runs() && Some(owner.pid) != own).map(|owner| owner.pid)
    }

    /// Whether it was begun, is not kept, and nobody will take it down.
    #[must_use]
    pub fn abandoned(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.runs())
    }

    /// Writes it into the state directory.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        fs::write(layout.file("record.json"), serde_json::to_vec_pretty(self)?)
            .context("the record can't be written")
    }
}

/// Ends everything of the cluster, removes its cgroups and its state directory. Nothing is stopped gently: the
/// data is disposable.
///
/// # Errors
/// When something is left: with what it is.
pub fn down(layout: &Layout) -> Result<()> {
    let record = Record::read(layout);
    let nodes = record.nodes.iter().map(|(_, process)| process);
    let recorded: Vec<Process> = nodes.chain(&record.machine).chain(&record.outside).copied().collect();
    end(|| {
        // A record may be missing when the starter was killed early: the mark tells as well whose a process is.
        let marked = processes::belonging_to(&layout.state).into_iter();
        recorded.iter().copied().chain(marked).filter(|process| process.runs()).collect()
    });
    cgroups::remove(&layout.cgroup_prefix());
    cgroups::take_back(&record.controllers);
    if layout.state.exists() {
        fs::remove_dir_all(&layout.state)
            .with_context(|| format!("{} can't be removed", layout.state.display()))?;
    }
    // Only when no other cluster has its state there.
    let _ = layout.state.parent().map(fs::remove_dir);
    let left = left_of(layout);
    if !left.is_empty() {
        bail!("left of the cluster:\n{}", left.join("\n"));
    }
    Ok(())
}

/// Kills what `look` finds, until it finds nothing any more. Of a process that forks meanwhile no child is missed for
/// good: the kernel begins no fork for one that is killed, and the children that were made before are seen next time.
fn end(mut look: impl FnMut() -> Vec<Process>) {
    let (start, mut quiet) = (Instant::now(), 0);
    loop {
        let found = look();
        found.iter().copied().for_each(Process::kill);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET_LOOKS || start.elapsed() > GONE_WITHIN {
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// Everything of the cluster that is still there, one line each.
#[must_use]
pub fn left_of(layout: &Layout) -> Vec<String> {
    let mut left = Vec::new();
    for process in processes::belonging_to(&layout.state) {
        left.push(format!("process {}: {}", process.pid, process.command()));
    }
    let folder = format!("{}/", layout.state.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount: {line}")));
    for cgroup in cgroups::named(&layout.cgroup_prefix()) {
        left.push(format!("cgroup: {}", cgroup.display()));
    }
    // Links are made inside the cluster's own network namespace only.
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("cinch") {
            left.push(format!("link: {}", entry.path().display()));
        }
    }
    if layout.state.exists() {
        left.push(format!("state: {}", layout.state.display()));
    }
    left
}

/// All clusters that have a state directory.
#[must_use]
pub fn clusters() -> Vec<Layout> {
    clusters_in(Path::new(STATES))
}

fn clusters_in(states: &Path) -> Vec<Layout> {
    let entries = fs::read_dir(states).into_iter().flatten().flatten();
    entries.map(|entry| Layout::within(states, &entry.file_name().to_string_lossy())).collect()
}

/// The clusters whose names begin with `prefix` that killed runs have left.
#[must_use]
pub fn abandoned(prefix: &str) -> Vec<Layout> {
    abandoned_in(Path::new(STATES), prefix)
}

fn abandoned_in(states: &Path, prefix: &str) -> Vec<Layout> {
    let mut layouts = clusters_in(states);
    layouts.retain(|layout| layout.name().starts_with(prefix) && Record::read(layout).abandoned());
    layouts
}

#[cfg(test)]
mod tests {
    use super::processes::MARK;
    use super::*;
    use std::process::{Child, Command};

    /// A process that would go on for longer than any test, and does not go on after it.
    struct Sleeper {
        child: Child,
        process: Process,
    }

    impl Sleeper {
        fn of(layout: &Layout) -> Self {
            let child = Command::new("sleep").arg("600").env(MARK, &layout.state).spawn().unwrap();
            let process = Process::now(child.id().cast_signed()).unwrap();
            Self { child, process }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn cluster(states: &Path, name: &str, record: &Record) -> Layout {
        let layout = Layout::within(states, name);
        fs::create_dir(&layout.state).unwrap();
        record.write(&layout).unwrap();
        layout
    }

    #[test]
    fn a_cluster_is_in_use_while_its_owner_runs_and_abandoned_after_it() {
        let states = tempfile::tempdir().unwrap();
        let owner = Sleeper::of(&Layout::within(states.path(), "elsewhere"));
        let owned = Record { owner: Some(owner.process), ..Record::default() };
        let layout = cluster(states.path(), "test-1", &owned);
        cluster(states.path(), "test-kept", &Record::default());
        cluster(states.path(), "demo", &owned);
        let abandoned = || {
            abandoned_in(states.path(), "test-")
                .iter()
                .map(|layout| layout.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(Record::read(&layout).used_by(), Some(owner.process.pid));
        assert_eq!(abandoned(), [""; 0]);
        drop(owner);
        assert_eq!(Record::read(&layout).used_by(), None);
        assert_eq!(abandoned(), ["test-1"], "not the kept one, and not one of another name");
    }

    #[test]
    fn our_own_cluster_is_not_in_use_by_another() {
        let own = Process::now(std::process::id().cast_signed());
        let record = Record { owner: own, ..Record::default() };
        assert_eq!((record.used_by(), record.abandoned()), (None, false));
    }

    #[test]
    fn an_owner_whose_number_another_process_has_now_is_gone() {
        let owner = Sleeper::of(&Layout::new("elsewhere"));
        // The same number, of a process that started at another time.
        let earlier: Process =
            serde_json::from_value(serde_json::json!({"pid": owner.process.pid, "start": 1})).unwrap();
        let record = Record { owner: Some(earlier), ..Record::default() };
        assert_eq!((record.used_by(), record.abandoned()), (None, true));
    }

    #[test]
    fn taking_down_ends_the_recorded_and_the_marked_and_removes_the_state() {
        let states = tempfile::tempdir().unwrap();
        let other = Layout::within(states.path(), "other");
        let layout = Layout::within(states.path(), "down-test");
        let [machine, marked] = [(); 2].map(|()| Sleeper::of(&layout));
        let (recorded, foreign) = (Sleeper::of(&other), Sleeper::of(&other));
        let outside = vec![recorded.process];
        let record = Record { machine: Some(machine.process), outside, ..Record::default() };
        cluster(states.path(), "down-test", &record);
        down(&layout).unwrap();
        let ended = [&machine, &marked, &recorded].map(|sleeper| !sleeper.process.runs());
        assert_eq!((ended, layout.state.exists()), ([true; 3], false));
        assert!(foreign.process.runs(), "a process of another cluster was killed");
    }

    #[test]
    fn what_is_left_of_a_cluster_is_named() {
        let states = tempfile::tempdir().unwrap();
        let layout = cluster(states.path(), "left-test", &Record::default());
        let marked = Sleeper::of(&layout);
        // Its program may take a moment to be loaded.
        let expected = format!("process {}: sleep 600", marked.process.pid);
        let start = Instant::now();
        while !left_of(&layout).contains(&expected) {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", left_of(&layout));
        }
        assert!(left_of(&layout).contains(&format!("state: {}", layout.state.display())));
    }

    #[test]
    fn what_shows_itself_late_is_killed_and_one_look_that_finds_nothing_is_not_believed() {
        let elsewhere = Layout::new("elsewhere");
        let [first, late] = [(); 2].map(|()| Sleeper::of(&elsewhere));
        let script: [&[&Sleeper]; 6] = [&[&first], &[], &[&late], &[], &[], &[]];
        let mut looks = script.iter();
        end(|| looks.next().unwrap().iter().map(|sleeper| sleeper.process).collect());
        assert_eq!(looks.len(), 1, "two in a row that find nothing are the end");
        for sleeper in [&first, &late] {
            let start = Instant::now();
            while sleeper.process.runs() {
                assert!(start.elapsed() < Duration::from_secs(60));
            }
        }
    }
}
