//! One bound stream, without I/O: messages of the proxy and changes of the cluster go in, what is to be sent
//! comes out. It remembers what was sent last, so that only differences travel.

use super::view::ClusterView;
use crate::index::PodInfo;
use crate::issuing::{Refusal, wire};
use crate::metrics::ConnectionEnd;
use bytes::Bytes;
use cinch_control::v1;
use cinch_control::v1::operator_message::Kind;
use cinch_control::v1::proxy_message::Kind as Request;
use cinch_control::v1::record::Kind as RecordKind;
use cinch_identity::{SpiffeId, TrustBundle, TrustDomain};
use cinch_reason::Reason;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Addresses that one proxy may follow; its own cache is smaller.
pub const MAX_SUBSCRIPTIONS: usize = 20_000;
/// A pod has one address of each family.
const MAX_POD_IPS: usize = 8;
/// Bounds of what may be asked for by an unknown key: admission takes no longer jwksUri or issuer.
const MAX_SOURCE: usize = 2048;
const MAX_KID: usize = 256;

/// What the stream does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send it.
    Send(Kind),
    /// Ask with a consistent read, then call [`Session::resolved`].
    Resolve(SocketAddr),
    /// Issue a certificate for this request.
    Renew(v1::Renew),
    /// Note what the proxy has in force.
    Acknowledged(v1::Ack),
}

/// Why the stream ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Close {
    /// How it is counted.
    pub end: ConnectionEnd,
    /// What the proxy is told, where it can be expected to understand.
    pub refusal: Option<Refusal>,
    /// For the log.
    pub why: &'static str,
}

impl Close {
    fn garbage(why: &'static str) -> Self {
        Self { end: ConnectionEnd::Garbage, refusal: None, why }
    }

    fn refused(reason: Reason, why: &'static str) -> Self {
        Self { end: ConnectionEnd::Refused, refusal: Some(Refusal::new(reason, why)), why }
    }
}

/// What a Hello says, checked for form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The pod that it claims to be.
    pub pod_uid: String,
    /// Its addresses.
    pub pod_ips: BTreeSet<IpAddr>,
    /// The policy that it holds; 0 for none.
    pub policy_version: u64,
    /// The trust bundle that it holds; 0 for none.
    pub trust_bundle_version: u64,
    /// It knows policies that are evaluated and not enforced.
    pub knows_dry_runs: bool,
}

/// The feature of proxies that know dry runs. Others would enforce them, so they don't get them.
const DRY_RUN: &str = "dry-run";

impl Introduction {
    /// Reads a Hello.
    ///
    /// # Errors
    /// When an address is malformed, or there are none or too many.
    pub fn of(hello: &v1::Hello) -> Result<Self, Close> {
        if hello.pod_ips.is_empty() || hello.pod_ips.len() > MAX_POD_IPS {
            return Err(Close::garbage("a Hello without addresses, or with too many"));
        }
        let pod_ips = hello.pod_ips.iter().map(|ip| address_of(ip)).collect::<Option<BTreeSet<_>>>();
        Ok(Self {
            pod_uid: hello.pod_uid.clone(),
            pod_ips: pod_ips.ok_or(Close::garbage("a Hello with a malformed address"))?,
            policy_version: hello.policy_version,
            trust_bundle_version: hello.trust_bundle_version,
            knows_dry_runs: hello.features.iter().any(|feature| feature == DRY_RUN),
        })
    }
}

/// Whether the pod may have this stream: `None` when the index does not know it yet.
///
/// # Errors
/// [`Close`] when the identity or the addresses are not the pod's, or another pod dialled.
pub fn bind(
    hello: &Introduction,
    id: &SpiffeId,
    trust_domain: &TrustDomain,
    source: IpAddr,
    view: &dyn ClusterView,
) -> Result<Option<Arc<PodInfo>>, Close> {
    let Some(pod) = view.pod(&hello.pod_uid) else { return Ok(None) };
    let expected = SpiffeId::workload(trust_domain, &pod.namespace, &pod.service_account).ok();
    if expected.as_ref() != Some(id) {
        return Err(Close::refused(Reason::PodMismatch, "the certificate is not of the pod's identity"));
    }
    if !pod.injected {
        return Err(Close::refused(Reason::PodNotMeshed, "the pod does not have the sidecar in first place"));
    }
    check_addresses(&hello.pod_ips, &pod)?;
    let source = source.to_canonical();
    if !hello.pod_ips.contains(&source) && view.pod_by_ip(source).is_some_and(|other| other.uid != pod.uid) {
        return Err(Close::refused(Reason::PodMismatch, "the stream came from another pod"));
    }
    Ok(Some(pod))
}

/// As soon as the index knows addresses, they must be the ones that the proxy says to have.
fn check_addresses(told: &BTreeSet<IpAddr>, pod: &PodInfo) -> Result<(), Close> {
    let known: BTreeSet<IpAddr> = pod.ips.iter().map(IpAddr::to_canonical).collect();
    if !known.is_empty() && known != *told {
        return Err(Close::refused(Reason::PodMismatch, "the pod has other addresses"));
    }
    Ok(())
}

/// The state of a bound stream.
#[derive(Debug)]
pub struct Session {
    pod_uid: String,
    pod_ips: BTreeSet<IpAddr>,
    knows_dry_runs: bool,
    indexed: bool,
    policy: Option<u64>,
    mesh: Option<u64>,
    bundle: Option<u64>,
    /// What was sent last for an address; `None` while nothing was.
    records: HashMap<SocketAddr, Option<Sent>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    version: u64,
    unknown: bool,
}

impl Session {
    /// A stream that is bound to the pod of `hello`. Everything but its trust bundle is sent anew: it is
    /// little, and a version that was held before says nothing of what this operator knows.
    #[must_use]
    pub fn new(hello: &Introduction) -> Self {
        Self {
            pod_uid: hello.pod_uid.clone(),
            pod_ips: hello.pod_ips.clone(),
            knows_dry_runs: hello.knows_dry_runs,
            indexed: false,
            policy: None,
            mesh: None,
            bundle: None,
            records: HashMap::new(),
        }
    }

    /// The pod.
    #[must_use]
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// A message of the proxy.
    ///
    /// # Errors
    /// [`Close`] when it is out of place, malformed or too much.
    pub fn message(&mut self, request: Request, view: &dyn ClusterView) -> Result<Vec<Output>, Close> {
        match request {
            Request::FirstCertificate(_) => Err(Close::garbage("a first certificate on a bound stream")),
            Request::Hello(_) => Err(Close::garbage("a second Hello")),
            Request::Renew(renew) => Ok(vec![Output::Renew(renew)]),
            Request::Ack(ack) => Ok(vec![Output::Acknowledged(ack)]),
            Request::Subscribe(subscribe) => self.subscribe(&subscribe.addresses, view),
            Request::Unsubscribe(unsubscribe) => {
                for address in &unsubscribe.addresses {
                    self.records.remove(&socket_address(address)?);
                }
                if self.records.capacity() > 2 * self.records.len().max(64) {
                    self.records.shrink_to_fit();
                }
                Ok(Vec::new())
            }
            Request::Evidence(evidence) => {
                let ack = v1::EvidenceAck { boot_id: evidence.boot_id, sequence: evidence.sequence };
                view.report(&self.pod_uid, evidence);
                Ok(vec![Output::Send(Kind::EvidenceAck(ack))])
            }
            Request::UnknownKey(unknown) => {
                // Nothing that can be meant is longer; what is, is dropped: the token has been refused anyway.
                if unknown.source.len() <= MAX_SOURCE && unknown.kid.len() <= MAX_KID {
                    view.unknown_key(&self.pod_uid, &unknown.source, &unknown.kid);
                }
                Ok(Vec::new())
            }
        }
    }

    fn subscribe(&mut self, addresses: &[v1::Address], view: &dyn ClusterView) -> Result<Vec<Output>, Close> {
        let mut out = Vec::new();
        for address in addresses {
            let address = socket_address(address)?;
            if self.records.len() >= MAX_SUBSCRIPTIONS && !self.records.contains_key(&address) {
                return Err(Close::refused(Reason::Overloaded, "too many subscriptions"));
            }
            // A Subscribe is always answered, also when the proxy has forgotten that it asked before.
            self.records.insert(address, None);
            let record = view.record(&self.pod_uid, address);
            match record.kind() {
                RecordKind::Endpoints | RecordKind::PassThrough => out.extend(self.send(address, record)),
                RecordKind::Unknown | RecordKind::Unspecified => out.push(Output::Resolve(address)),
            }
        }
        Ok(out)
    }

    /// The answer of a consistent read.
    pub fn resolved(&mut self, address: SocketAddr, record: v1::Record) -> Option<Output> {
        self.send(address, record)
    }

    /// Sends a record where it is subscribed, says something, and differs from the last one.
    fn send(&mut self, address: SocketAddr, record: v1::Record) -> Option<Output> {
        if record.kind() == RecordKind::Unspecified {
            return None;
        }
        let last = self.records.get_mut(&address)?;
        let sent = Sent { version: record.version, unknown: record.kind() == RecordKind::Unknown };
        if *last == Some(sent) {
            return None;
        }
        *last = Some(sent);
        Some(Output::Send(Kind::Record(record)))
    }

    /// Everything that differs from what was sent last, but for records.
    ///
    /// # Errors
    /// [`Close`] when the pod turned out to have other addresses.
    pub fn refresh(&mut self, view: &dyn ClusterView, bundle: &TrustBundle) -> Result<Vec<Output>, Close> {
        let mut out = Vec::new();
        if self.bundle != Some(bundle.version()) {
            self.bundle = Some(bundle.version());
            out.push(Output::Send(Kind::TrustBundle(wire::trust_bundle(bundle))));
        }
        let mesh = view.mesh();
        if self.mesh != Some(mesh.version) {
            self.mesh = Some(mesh.version);
            out.push(Output::Send(Kind::Mesh(mesh)));
        }
        if let Some(policy) = view.workload_policy(&self.pod_uid)
            && self.policy != Some(policy.version)
        {
            self.policy = Some(policy.version);
            out.push(Output::Send(Kind::Policy(self.readable(&policy))));
        }
        out.extend(self.indexed(view)?);
        Ok(out)
    }

    /// The policy as this proxy can read it. A dry run decides nothing, so without it the same is in force, under
    /// the same version.
    fn readable(&self, policy: &v1::WorkloadPolicy) -> v1::WorkloadPolicy {
        let mut policy = policy.clone();
        if !self.knows_dry_runs {
            policy.policies.retain(|policy| !policy.dry_run);
        }
        policy
    }

    /// Every record that differs from what was sent last. The time that this takes grows with what the proxy follows.
    pub fn refresh_records(&mut self, view: &dyn ClusterView) -> Vec<Output> {
        let (mut out, mut changed) = (Vec::new(), Vec::new());
        for (address, last) in &self.records {
            let record = view.record(&self.pod_uid, *address);
            match record.kind() {
                // A watch may lag behind: only a consistent read makes an address unknown. One that was
                // never answered is being resolved, or is tried again now.
                RecordKind::Unknown | RecordKind::Unspecified => {
                    if last.is_none_or(|sent| !sent.unknown) {
                        out.push(Output::Resolve(*address));
                    }
                }
                RecordKind::Endpoints | RecordKind::PassThrough => changed.push((*address, record)),
            }
        }
        for (address, record) in changed {
            out.extend(self.send(address, record));
        }
        out
    }

    /// Tells the proxy once that peers who ask for its addresses get a true answer.
    fn indexed(&mut self, view: &dyn ClusterView) -> Result<Option<Output>, Close> {
        if self.indexed {
            return Ok(None);
        }
        let Some(pod) = view.pod(&self.pod_uid) else { return Ok(None) };
        check_addresses(&self.pod_ips, &pod)?;
        let held = |ip: &IpAddr| view.pod_by_ip(*ip).is_some_and(|holder| holder.uid == pod.uid);
        if !self.pod_ips.iter().all(held) {
            return Ok(None);
        }
        self.indexed = true;
        let pod_ips = self.pod_ips.iter().map(|ip| bytes_of(*ip)).collect();
        Ok(Some(Output::Send(Kind::Indexed(v1::IndexedIp { pod_ips }))))
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)
    };
    Some(ip.to_canonical())
}

fn bytes_of(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

fn socket_address(address: &v1::Address) -> Result<SocketAddr, Close> {
    let ip = address_of(&address.ip);
    let port = u16::try_from(address.port).ok().filter(|port| *port != 0);
    match (ip, port) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err(Close::garbage("a malformed address")),
    }
}
