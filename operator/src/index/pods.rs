//! The pods: by UID, by namespace, by IP. An IP belongs to the newest live pod that claims it: ended pods
//! keep theirs in the API while it is given away again.

use super::memory::Memory;
use super::model::PodInfo;
use super::owner::{OwnerRef, Owners, resolve};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
struct Entry {
    info: Arc<PodInfo>,
    owner: Option<OwnerRef>,
}

/// A node's address as its pods tell it, with the number of pods that do.
#[derive(Debug)]
struct HostIp {
    node: Arc<str>,
    pods: usize,
}

/// Where a port of a node leads.
#[derive(Debug)]
pub(super) struct AtHostPort<'a> {
    pub(super) pod: &'a Arc<PodInfo>,
    /// The pod's address of the family that was asked for.
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// All pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: HashMap<Arc<str>, Entry>,
    by_namespace: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// UIDs of pods with a network of their own, in the order in which they came to the address.
    by_ip: HashMap<IpAddr, Vec<Arc<str>>>,
    host_ips: HashMap<IpAddr, HostIp>,
    /// UIDs of pods that ask for a port of their node, by node and port.
    by_host_port: HashMap<(Arc<str>, u16), BTreeSet<Arc<str>>>,
    memory: Memory,
}

impl Pods {
    pub(super) fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.by_uid.get(uid).map(|entry| &entry.info)
    }

    pub(super) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_uid.keys()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|uid| self.get(uid))
    }

    /// Every address that a pod holds.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_ip.keys().copied().filter(|ip| self.holder(*ip).is_some())
    }

    /// Addresses of nodes, as pods tell them.
    pub(super) fn host_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.host_ips.keys().copied()
    }

    /// The node that has `ip`, as its pods tell.
    pub(super) fn host(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.host_ips.get(&ip).map(|host| &host.node)
    }

    /// The pod that holds `ip` now: live, rather not terminating, the newest.
    pub(super) fn holder(&self, ip: IpAddr) -> Option<&Arc<PodInfo>> {
        self.claims(ip)
            .filter(|pod| pod.owns_its_ips())
            .max_by_key(|pod| (!pod.terminating, pod.created_unix_ms))
    }

    /// The pod to which `port` of a node's address leads, and to which of its ports: live, rather not terminating, the
    /// newest. Pods on the node's network have the port themselves, and are no pods behind it; nor is one that has no
    /// address of that family (yet): to prefer it would hide the one that is reached.
    pub(super) fn at_host_port(&self, node: &Arc<str>, ip: IpAddr, port: u16) -> Option<AtHostPort<'_>> {
        let asking = self.by_host_port.get(&(Arc::clone(node), port))?.iter().filter_map(|uid| self.get(uid));
        let leading = asking.filter(|pod| pod.owns_its_ips()).filter_map(|pod| {
            let leads = |on: Option<IpAddr>| on.is_none_or(|on| on.to_canonical() == ip);
            let found = pod.ports.iter().find(|p| matches!(p.host, Some((n, on)) if n == port && leads(on)));
            let own = pod.ips.iter().map(IpAddr::to_canonical).find(|own| own.is_ipv4() == ip.is_ipv4());
            Some(AtHostPort { pod, ip: own?, port: found?.number })
        });
        leading.max_by_key(|found| (!found.pod.terminating, found.pod.created_unix_ms))
    }

    /// The workload behind `ip`: of its holder, else of whoever held it last.
    pub(super) fn workload(&self, ip: IpAddr, now: Instant) -> Option<(super::WorkloadName, u64)> {
        let of = |pod: &Arc<PodInfo>| (pod.workload.clone(), pod.workload_created_unix_ms);
        let ended = || self.claims(ip).max_by_key(|pod| pod.created_unix_ms).map(of);
        self.holder(ip).map(of).or_else(|| self.memory.recall(ip, now)).or_else(ended)
    }

    /// Among equals `max_by_key` takes the last, which came last to the address.
    fn claims(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_ip.get(&ip).into_iter().flatten().filter_map(|uid| self.get(uid))
    }

    /// Takes a pod's newest state; says whether anything changed.
    pub(super) fn apply(
        &mut self,
        mut info: PodInfo,
        owner: Option<OwnerRef>,
        owners: &Owners,
        now: Instant,
    ) -> bool {
        let before = self.by_uid.get(&info.uid).map(|entry| Arc::clone(&entry.info));
        resolve(&mut info, owner.as_ref(), owners, before.as_deref());
        self.replace(Arc::new(info), owner, before, now)
    }

    /// Forgets a pod, but remembers for a while who held its IPs.
    pub(super) fn remove(&mut self, uid: &str, now: Instant) -> bool {
        let Some(entry) = self.by_uid.remove(uid) else { return false };
        self.unlink(&entry.info, None, now);
        if let Some(uids) = self.by_namespace.get_mut(&entry.info.namespace) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_namespace.remove(&entry.info.namespace);
            }
        }
        true
    }

    /// Looks up the workloads of pods of `namespace` again whose owner is `owner_uid`.
    pub(super) fn owner_changed(
        &mut self,
        namespace: &str,
        owner_uid: &str,
        owners: &Owners,
        now: Instant,
    ) -> bool {
        let owned = |entry: &Entry| entry.owner.as_ref().is_some_and(|owner| *owner.uid == *owner_uid);
        self.rewrite(namespace, owned, |info, owner| resolve(info, owner, owners, None), now)
    }

    /// Tells the pods of a node whether it is ready.
    pub(super) fn node_changed(&mut self, node: &str, ready: bool, now: Instant) -> bool {
        let namespaces: Vec<Arc<str>> = self.by_namespace.keys().cloned().collect();
        let on_node = |entry: &Entry| *entry.info.node == *node && entry.info.node_ready != ready;
        let mut changed = false;
        for namespace in namespaces {
            changed |= self.rewrite(&namespace, on_node, |info, _| info.node_ready = ready, now);
        }
        changed
    }

    fn rewrite(
        &mut self,
        namespace: &str,
        which: impl Fn(&Entry) -> bool,
        edit: impl Fn(&mut PodInfo, Option<&OwnerRef>),
        now: Instant,
    ) -> bool {
        let uids = self.by_namespace.get(namespace).into_iter().flatten();
        let picked: Vec<_> = uids
            .filter_map(|uid| self.by_uid.get(uid))
            .filter(|entry| which(entry))
            .map(|entry| (Arc::clone(&entry.info), entry.owner.clone()))
            .collect();
        let mut changed = false;
        for (before, owner) in picked {
            let mut info = PodInfo::clone(&before);
            edit(&mut info, owner.as_ref());
            changed |= self.replace(Arc::new(info), owner, Some(before), now);
        }
        changed
    }

    fn replace(
        &mut self,
        info: Arc<PodInfo>,
        owner: Option<OwnerRef>,
        before: Option<Arc<PodInfo>>,
        now: Instant,
    ) -> bool {
        if before.as_ref() == Some(&info) {
            return false;
        }
        let uid = Arc::clone(&info.uid);
        self.by_namespace.entry(Arc::clone(&info.namespace)).or_default().insert(Arc::clone(&uid));
        self.by_uid.insert(Arc::clone(&uid), Entry { info: Arc::clone(&info), owner });
        self.link(&info);
        if let Some(before) = before {
            self.unlink(&before, Some(&info), now);
        }
        true
    }

    fn link(&mut self, pod: &PodInfo) {
        for (port, _) in host_ports(pod) {
            let key = (Arc::clone(&pod.node), port);
            self.by_host_port.entry(key).or_default().insert(Arc::clone(&pod.uid));
        }
        if !pod.host_network {
            for ip in &pod.ips {
                let uids = self.by_ip.entry(*ip).or_default();
                if !uids.contains(&pod.uid) {
                    uids.push(Arc::clone(&pod.uid));
                }
            }
        }
        for ip in &pod.host_ips {
            let host =
                self.host_ips.entry(*ip).or_insert_with(|| HostIp { node: Arc::clone(&pod.node), pods: 0 });
            host.pods += 1;
        }
    }

    /// Takes back what `link` did for `pod`, but for what `after` (its next state) still claims.
    fn unlink(&mut self, pod: &PodInfo, after: Option<&PodInfo>, now: Instant) {
        for (port, _) in host_ports(pod) {
            let still = |after: &PodInfo| {
                after.node == pod.node && host_ports(after).any(|(claimed, _)| claimed == port)
            };
            let key = (Arc::clone(&pod.node), port);
            if !after.is_some_and(still)
                && let Some(uids) = self.by_host_port.get_mut(&key)
            {
                uids.remove(&pod.uid);
                if uids.is_empty() {
                    self.by_host_port.remove(&key);
                }
            }
        }
        for ip in &pod.host_ips {
            if let Some(host) = self.host_ips.get_mut(ip) {
                host.pods = host.pods.saturating_sub(1);
                if host.pods == 0 {
                    self.host_ips.remove(ip);
                }
            }
        }
        if pod.host_network {
            return;
        }
        for ip in &pod.ips {
            let claimed = after.is_some_and(|after| after.ips.contains(ip));
            if !claimed && let Some(uids) = self.by_ip.get_mut(ip) {
                uids.retain(|uid| *uid != pod.uid);
                if uids.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
            let held = claimed && after.is_some_and(PodInfo::owns_its_ips);
            if pod.owns_its_ips() && !held {
                self.memory.remember(*ip, pod, now);
            }
        }
    }
}

/// Ports of the node that a pod asks for.
fn host_ports(pod: &PodInfo) -> impl Iterator<Item = (u16, Option<IpAddr>)> + '_ {
    pod.ports.iter().filter_map(|port| port.host)
}
