//! One look at a pod: what passes by its proxy, with the processes that do it.
//!
//! In go the node and the sidecar that asked; the calling thread is in the pod's network namespace. Out come the
//! sightings. A pod of which everything meets the proxy costs a few lists of the kernel and nothing else.

use crate::bypass::{Proxy, Scene, Suspect, has_open_udp, in_both, suspects};
use crate::host::Host;
use crate::owner::{self, Container};
use crate::sockets::{self, Protocol};
use cinch_redirect::sighting::{Sighting, Sightings};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

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

/// Looks at the network namespace of the calling thread.
///
/// # Errors
/// The system's error; `NotFound` when this kernel can't list sockets.
pub fn look(host: &Host, subject: &Subject) -> io::Result<Sightings> {
    let container = Container::at(&host.cgroup_root.join(subject.group.trim_start_matches('/')));
    let once = || {
        let proxy = proxy(host, subject, &container);
        Ok::<_, io::Error>(suspects(&scene(&host.proc, &proxy)?, &proxy))
    };
    let first = once()?;
    if first.is_empty() {
        return Ok(Sightings::default());
    }
    std::thread::sleep(BETWEEN);
    let seen = in_both(&first, once()?);
    Ok(Sightings::of(name(host, subject, &seen)))
}

fn scene(proc: &Path, proxy: &Proxy) -> io::Result<Scene> {
    let mut sockets = sockets::sockets(Protocol::Tcp)?;
    // A kernel may lack the part that lists UDP, and that which lists flows.
    sockets.extend(sockets::sockets(Protocol::Udp).unwrap_or_default());
    let flows = if has_open_udp(&sockets, proxy) { sockets::flows().unwrap_or_default() } else { Vec::new() };
    let ports = fs::read_to_string(proc.join(EPHEMERAL_PORTS)).unwrap_or_default();
    Ok(Scene {
        sockets,
        flows,
        addresses: sockets::addresses()?,
        ephemeral: Some(range(&ports).unwrap_or(USUAL_EPHEMERAL_PORTS)),
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

fn proxy(host: &Host, subject: &Subject, container: &Container) -> Proxy {
    let others = container.processes.iter().filter(|process| **process != subject.proxy);
    let mut foreign: HashSet<u32> =
        others.flat_map(|process| owner::inodes_of(&host.proc, *process)).collect();
    if !foreign.is_empty() {
        // What both hold is the proxy's.
        let own = owner::inodes_of(&host.proc, subject.proxy);
        foreign.retain(|inode| !own.contains(inode));
    }
    Proxy { cgroups: container.cgroups.clone(), foreign, outbound_port: subject.outbound_port }
}

/// Finds the process and the container of each suspect.
fn name(host: &Host, subject: &Subject, seen: &[Suspect]) -> Vec<Sighting> {
    let containers = owner::containers(host, &subject.group, &subject.uid);
    let mut names = HashMap::new();
    let mut holders: HashMap<i32, HashSet<u32>> = HashMap::new();
    let mut sighting = |suspect: &Suspect| {
        let of_cgroup = |id: u64| containers.iter().position(|container| container.cgroups.contains(&id));
        let at = suspect.cgroup.and_then(of_cgroup);
        let container = at.and_then(|at| containers.get(at));
        let process = container.and_then(|container| {
            container.processes.iter().copied().find(|process| {
                let held = holders.entry(*process).or_insert_with(|| owner::inodes_of(&host.proc, *process));
                suspect.inode != 0 && held.contains(&suspect.inode)
            })
        });
        let of_container = |at: usize| {
            let container = containers.get(at);
            container.map(|container| owner::name(host, container, &subject.uid)).unwrap_or_default()
        };
        Sighting {
            way: suspect.way,
            peer: suspect.peer(),
            port: suspect.port(),
            process: process.map(|process| owner::command(&host.proc, process)).unwrap_or_default(),
            container: at
                .map(|at| names.entry(at).or_insert_with(|| of_container(at)).clone())
                .unwrap_or_default(),
        }
    };
    seen.iter().map(&mut sighting).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        assert_eq!(range("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "1", "x y", "1 70000"] {
            assert_eq!(range(text), None, "{text:?}");
        }
    }
}
