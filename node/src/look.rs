//! One look at a pod: what passes by its proxy, with the processes that do it.
//!
//! In go the node and the sidecar that asked; the calling thread is in the pod's network namespace. Out come the
//! sightings. A pod of which everything meets the proxy costs a few lists of the kernel and nothing else; what any
//! pod may cost is bounded ([`crate::bounds`]), and what was left for that is told.

use crate::bounds::{Budget, Listed};
use crate::bypass::{Proxy, Scene, Suspect, Suspects, has_open_udp, in_both, leaves, matters, suspects};
use crate::host::Host;
use crate::owner::{self, Container};
use crate::sockets::{self, Protocol, Socket};
use cinch_redirect::sighting::{Sighting, Sightings};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks, of which both must see it: longer than a connection takes to be opened or closed.
const BETWEEN: Duration = Duration::from_millis(200);
/// Of the thread that reads it: each network namespace has its own.
const EPHEMERAL_PORTS: &str = "sys/net/ipv4/ip_local_port_range";
/// Linux's own.
const USUAL_EPHEMERAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Whose pod is looked at.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The pod.
    pub uid: String,
    /// The proxy's process.
    pub proxy: i32,
    /// The cgroup of its container, from the root of the hierarchy.
    pub group: String,
    /// Where it accepts what the pod's processes dial.
    pub outbound_port: u16,
}

/// What came of a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What was seen, and whether all of it was. Where a list was cut, its count of what is besides has one more: that
    /// is not known exactly.
    pub sightings: Sightings,
    /// The look reached one of its bounds: not everything was listed, or not all processes were found.
    pub is_short: bool,
}

/// Looks at the network namespace of the calling thread.
///
/// # Errors
/// The system's error; `NotFound` when this kernel can't list sockets.
pub fn look(host: &Host, subject: &Subject) -> io::Result<Look> {
    look_within(host, subject, &mut Budget::of_a_look(Instant::now()))
}

fn look_within(host: &Host, subject: &Subject, budget: &mut Budget) -> io::Result<Look> {
    let container = Container::at(&host.cgroup_root.join(subject.group.trim_start_matches('/')));
    let mut once = || {
        let proxy = proxy(host, subject, &container, budget);
        Ok::<_, io::Error>(suspects(&scene(&host.proc, &proxy, budget)?, &proxy))
    };
    let first = once()?;
    let second = if first.all.is_empty() {
        Suspects::default()
    } else {
        std::thread::sleep(BETWEEN);
        once()?
    };
    let is_late = budget.is_exceeded();
    let is_cut = first.is_cut || second.is_cut || is_late;
    let hides_tcp = first.hides_tcp || second.hides_tcp || is_late;
    let seen = in_both(&first.all, second.all);
    let named = if seen.is_empty() { Vec::new() } else { name(host, subject, &seen, budget) };
    let mut sightings = Sightings::of(named);
    sightings.more = sightings.more.saturating_add(u16::from(is_cut));
    // What was cut of UDP, and names that were not found, hide nothing that the proxy should have met.
    sightings.is_cut = hides_tcp;
    Ok(Look { sightings, is_short: is_cut || budget.is_exceeded() })
}

fn scene(proc: &Path, proxy: &Proxy, budget: &mut Budget) -> io::Result<Scene> {
    let addresses = sockets::addresses()?;
    let mut list =
        |protocol| sockets::sockets(protocol, budget, |socket: &Socket| matters(socket, &addresses, proxy));
    let tcp = list(Protocol::Tcp)?;
    // A kernel may lack the part that lists UDP, and that which lists flows.
    let udp = list(Protocol::Udp).unwrap_or_default();
    let flows = if has_open_udp(&udp.all, proxy) {
        sockets::flows(budget, |flow| leaves(flow, &addresses)).unwrap_or_default()
    } else {
        Listed::default()
    };
    let ports = fs::read_to_string(proc.join(EPHEMERAL_PORTS)).unwrap_or_default();
    let ephemeral = Some(range(&ports).unwrap_or(USUAL_EPHEMERAL_PORTS));
    Ok(Scene { tcp, udp, flows, addresses, ephemeral })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

fn proxy(host: &Host, subject: &Subject, container: &Container, budget: &mut Budget) -> Proxy {
    let mut foreign = HashSet::new();
    for process in container.processes.iter().filter(|process| **process != subject.proxy) {
        foreign.extend(owner::inodes_of(&host.proc, *process, budget));
    }
    if !foreign.is_empty() {
        // What both hold is the proxy's.
        for inode in owner::inodes_of(&host.proc, subject.proxy, budget) {
            foreign.remove(&inode);
        }
    }
    // What the proxy holds was not all seen: none of it may be taken for somebody else's.
    if budget.is_exceeded() {
        foreign.clear();
    }
    Proxy { cgroups: container.cgroups.clone(), foreign, outbound_port: subject.outbound_port }
}

/// Finds the process and the container of each suspect, as far as the budget goes.
fn name(host: &Host, subject: &Subject, seen: &[Suspect], budget: &mut Budget) -> Vec<Sighting> {
    let containers = owner::containers(host, &subject.group, &subject.uid);
    let of_cgroup = |id: u64| containers.iter().position(|container| container.cgroups.contains(&id));
    let mut wanted: HashMap<usize, HashSet<u32>> = HashMap::new();
    for suspect in seen {
        if let Some(at) = suspect.cgroup.and_then(of_cgroup) {
            wanted.entry(at).or_default().insert(suspect.inode);
        }
    }
    // All names before any process: those are few reads, and these can be as many as a pod likes.
    let names: HashMap<usize, String> = wanted
        .keys()
        .filter_map(|at| Some((*at, owner::name(host, containers.get(*at)?, &subject.uid, budget))))
        .collect();
    let mut processes: HashMap<u32, String> = HashMap::new();
    for (at, inodes) in wanted {
        let Some(container) = containers.get(at) else { continue };
        let holders = owner::holders(&host.proc, &container.processes, inodes, budget);
        let command = |(inode, process)| (inode, owner::command(&host.proc, process));
        processes.extend(holders.into_iter().map(command));
    }
    let sighting = |suspect: &Suspect| Sighting {
        way: suspect.way,
        peer: suspect.peer(),
        port: suspect.port(),
        process: processes.get(&suspect.inode).cloned().unwrap_or_default(),
        container: suspect
            .cgroup
            .and_then(of_cgroup)
            .and_then(|at| names.get(&at))
            .cloned()
            .unwrap_or_default(),
    };
    seen.iter().map(sighting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::PodsDirectory;
    use crate::owner::tests::{ample, held};

    const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";

    fn subject() -> Subject {
        Subject { uid: UID.to_owned(), proxy: 1, group: "/none/none".to_owned(), outbound_port: 15_001 }
    }

    fn host(proc: &Path) -> Host {
        let log = format!("1 2 8:1 /k/pods/{UID}/containers/a/ab /dev/termination-log rw - x");
        Host {
            proc: proc.to_owned(),
            cgroup_root: proc.join("cgroup"),
            pods_directory: PodsDirectory::learn(&log).unwrap(),
            network_namespace: fs::metadata("/").unwrap(),
        }
    }

    #[test]
    fn what_was_not_all_read_makes_nothing_of_the_proxys_somebody_elses() {
        let proc = held(&[(1, &[5, 6, 7]), (2, &[5, 6, 8])]);
        let container = Container { cgroups: HashSet::new(), processes: vec![1, 2] };
        // Two lists and six descriptors.
        for (reads, foreign) in [(8, vec![8]), (7, vec![]), (5, vec![]), (2, vec![]), (0, vec![])] {
            let mut budget = ample(reads);
            let proxy = proxy(&host(proc.path()), &subject(), &container, &mut budget);
            assert_eq!(proxy.foreign, foreign.iter().copied().collect(), "{reads} reads");
            assert_eq!(budget.is_exceeded(), reads < 8, "{reads} reads");
        }
    }

    /// This thread's namespace is that of the machine.
    #[test]
    fn a_look_without_time_sees_nothing_and_says_that_there_is_more() {
        let proc = tempfile::tempdir().unwrap();
        let _listed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let look = look_within(&host(proc.path()), &subject(), &mut Budget::new(Instant::now(), 9)).unwrap();
        let sightings = Sightings { seen: Vec::new(), more: 1, is_cut: true };
        assert_eq!(look, Look { sightings, is_short: true });
        let metrics = crate::metrics::Metrics::default();
        metrics.looked(|| Ok(look)).unwrap();
        metrics.looked(|| Ok(Look::default())).unwrap();
        assert!(metrics.text().contains("looks_cut_total 1\n"));
    }

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        assert_eq!(range("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "1", "x y", "1 70000"] {
            assert_eq!(range(text), None, "{text:?}");
        }
    }
}
