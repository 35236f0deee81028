//! The nodes' cgroups, in every hierarchy that the machine has mounted: version 1 hierarchies, the version 2
//! one, or both beside each other.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Processes that were just killed keep their cgroup for a moment.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

struct Hierarchy {
    root: PathBuf,
    version: u8,
}

/// The mounted hierarchies, as this process sees them.
fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(hierarchy).collect()
}

fn hierarchy(mount: &str) -> Option<Hierarchy> {
    let mut fields = mount.split(' ').skip(1);
    let root = PathBuf::from(fields.next()?);
    match fields.next()? {
        "cgroup" => Some(Hierarchy { root, version: 1 }),
        "cgroup2" => Some(Hierarchy { root, version: 2 }),
        _ => None,
    }
}

/// Makes the cgroup `name` below the root of every hierarchy. Returns the controllers that the root did not
/// hand down before, for [`take_back`].
///
/// # Errors
/// When there is no hierarchy, or one can't be written.
pub fn create(name: &str) -> Result<Vec<String>> {
    let hierarchies = hierarchies();
    if hierarchies.is_empty() {
        bail!("no cgroup hierarchy is mounted; kubelet needs one at /sys/fs/cgroup");
    }
    // Where version 1 hierarchies carry the controllers, the version 2 one beside them has none to hand down.
    let mut added = Vec::new();
    let unified = hierarchies.iter().all(|hierarchy| hierarchy.version == 2);
    for hierarchy in hierarchies {
        let made = hierarchy.root.join(name);
        fs::create_dir_all(&made).with_context(|| format!("the cgroup {} can't be made", made.display()))?;
        if unified {
            added.extend(hand_down(&hierarchy.root)?);
            hand_down(&made)?;
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Version 1's cpuset starts empty, and no process may enter such a one.
            if hierarchy.version == 1 && made.join(file).exists() {
                fs::write(made.join(file), fs::read(hierarchy.root.join(file))?)?;
            }
        }
    }
    Ok(added)
}

/// Stops the root's handing down of controllers that [`create`] began.
pub fn take_back(controllers: &[String]) {
    for root in
        hierarchies().iter().filter(|hierarchy| hierarchy.version == 2).map(|hierarchy| &hierarchy.root)
    {
        for controller in controllers {
            // Somebody else may need it by now: then the kernel refuses, rightly.
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("-{controller}"));
        }
    }
}

/// Lets the children of `cgroup` have every controller that it has itself, and returns those that they had not.
/// Where systemd runs, most are handed down already.
fn hand_down(cgroup: &Path) -> Result<Vec<String>> {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let control = cgroup.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control)?;
    let mut added = Vec::new();
    for controller in available.split_whitespace() {
        if enabled.split_whitespace().any(|name| name == controller) {
            continue;
        }
        fs::write(&control, format!("+{controller}")).with_context(|| {
            format!("the controller {controller} can't be enabled in {}", cgroup.display())
        })?;
        added.push(controller.to_owned());
    }
    Ok(added)
}

/// The cgroups below the hierarchies' roots whose names begin with `prefix`.
#[must_use]
pub fn named(prefix: &str) -> Vec<PathBuf> {
    let below = |root: PathBuf| fs::read_dir(root).into_iter().flatten().flatten();
    hierarchies()
        .into_iter()
        .flat_map(|hierarchy| below(hierarchy.root))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the cgroups whose names begin with `prefix`, with everything below, once their processes are gone.
/// What is left then is for the caller to see.
pub fn remove(prefix: &str) {
    let start = Instant::now();
    loop {
        let left = named(prefix);
        if left.is_empty() || start.elapsed() > EMPTY_WITHIN {
            return;
        }
        left.iter().for_each(|cgroup| remove_tree(cgroup));
        thread::sleep(Duration::from_millis(50));
    }
}

/// A cgroup's files can't be removed, only its folders, the innermost first.
fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// The processes in the cgroup of a container, wherever it is below those that begin with `prefix`; their
/// numbers are those of the reader's PID namespace.
#[must_use]
pub fn processes(prefix: &str, container: &str) -> Vec<i32> {
    named(prefix).iter().find_map(|root| find(root, container)).unwrap_or_default()
}

fn find(cgroup: &Path, container: &str) -> Option<Vec<i32>> {
    for entry in fs::read_dir(cgroup).ok()?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(container) {
            let text = fs::read_to_string(entry.path().join("cgroup.procs")).ok()?;
            let found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            if !found.is_empty() {
                return Some(found);
            }
        } else if let Some(found) = find(&entry.path(), container) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_recognised_and_other_mounts_are_not() {
        let versions = |line| hierarchy(line).map(|found| found.version);
        assert_eq!(versions("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0"), Some(1));
        assert_eq!(versions("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"), Some(2));
        assert_eq!(versions("tmpfs /sys/fs/cgroup tmpfs rw 0 0"), None);
    }
}
