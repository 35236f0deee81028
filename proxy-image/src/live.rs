//! The open inbound connections, and the judgement on them: at the open, and again whenever the policy changes.
//! In go what is known of a connection and the policy, out comes whether it may go on. The copy of a connection
//! only looks at a flag.

use crate::inbound_policy::InboundPolicy;
use cinch_identity::SpiffeId;
use cinch_policy::{Connection, Mode, Partial, Report, no_providers};
use cinch_reason::Reason;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use tokio::sync::watch;

/// Who a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Plaintext: nobody knows.
    Unknown,
    /// Proved in a tunnel's handshake, or the pod itself.
    Proved(SpiffeId),
}

/// What is known of an inbound connection.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Who it comes from.
    pub peer: Peer,
    /// From where.
    pub source: IpAddr,
    /// To which own address and port.
    pub destination: SocketAddr,
}

/// A connection that may not be, or not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// Which policy says so (`namespace/name`), where one does.
    pub policy: Option<Arc<str>>,
    /// Which of its rules, from 0, where one matched.
    pub rule: Option<u32>,
}

impl Denial {
    /// One for which no policy speaks.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        Denial { reason, policy: None, rule: None }
    }
}

impl Subject {
    fn connection<'a>(&self, peer: Option<&'a str>) -> Connection<'a> {
        Connection::new(peer, self.source, self.destination)
    }
}

/// How a connection may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// As it is, whatever it carries, for this reason.
    Plain(Reason),
    /// Read as HTTP, request by request.
    Http,
}

/// Judges a connection by mode and policy; whether and how it may be. Tunnels outlive a change to DISABLE: they are
/// no weaker than what it asks for.
///
/// # Errors
/// The [`Denial`], when it may not be.
pub fn judge(policy: &InboundPolicy, subject: &Subject) -> Result<Pass, Denial> {
    let peer = match &subject.peer {
        Peer::Unknown if policy.modes.mode(subject.destination.port()) == Mode::Strict => {
            return Err(Denial::of(Reason::StrictPlaintext));
        }
        Peer::Unknown => None,
        Peer::Proved(id) => Some(id.as_str()),
    };
    judge_by_policies(policy, &subject.connection(peer))
}

fn judge_by_policies(policy: &InboundPolicy, connection: &Connection<'_>) -> Result<Pass, Denial> {
    let Some(policies) = &policy.policies else { return Ok(Pass::Plain(Reason::AllowedByDefault)) };
    match policies.connection(connection) {
        Partial::Allow(decision) => Ok(Pass::Plain(decision.reason)),
        Partial::Deny(decision) => Err(policy.denial(&decision)),
        Partial::NeedsHttp => Ok(Pass::Http),
    }
}

/// Whether policies would let plaintext of `subject` through, or some of it, were it not for the mode.
#[must_use]
pub fn policies_may_admit(policy: &InboundPolicy, subject: &Subject) -> bool {
    judge_by_policies(policy, &subject.connection(None)).is_ok()
}

/// As [`judge`], for a connection that is being opened. On a port that is declared to speak HTTP it is read as such
/// from its first byte on; one that was open when that was declared goes on as it is.
///
/// # Errors
/// As [`judge`].
pub fn judge_new(policy: &InboundPolicy, subject: &Subject) -> Result<Pass, Denial> {
    match judge(policy, subject)? {
        Pass::Plain(_) if policy.speaks_http(subject.destination.port()) => Ok(Pass::Http),
        pass => Ok(pass),
    }
}

/// What AUDIT policies and dry runs say of a connection that is being opened and not read as HTTP; `None` where there
/// are none.
#[must_use]
pub fn report<'p>(policy: &'p InboundPolicy, subject: &Subject) -> Option<Report<'p>> {
    let policies = policy.reports.as_ref().or(policy.policies.as_ref());
    let policies = policies.filter(|policies| policies.reports())?;
    let peer = match &subject.peer {
        Peer::Unknown => None,
        Peer::Proved(id) => Some(id.as_str()),
    };
    Some(policies.report_tcp(&subject.connection(peer), &no_providers))
}

/// All open inbound connections.
#[derive(Debug, Default)]
pub struct Live {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
    judged: watch::Sender<u64>,
    draining: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    subject: Subject,
    /// Its requests are judged one by one.
    http: AtomicBool,
    cut: OnceLock<Denial>,
    waker: AtomicWaker,
}

impl Live {
    /// Remembers a connection until the returned handle is dropped. Judge it *after* this: then no change of
    /// policy can pass unseen between the two.
    #[must_use]
    pub fn register(self: &Arc<Self>, subject: Subject) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            subject,
            http: AtomicBool::new(false),
            cut: OnceLock::new(),
            waker: AtomicWaker::new(),
        });
        self.entries.lock().insert(id, entry.clone());
        Registered { live: self.clone(), id, entry }
    }

    /// The version of the policy by which every open connection has been judged: those that it denies hand over no
    /// further byte. 0 until there is one.
    #[must_use]
    pub fn judged(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// Judges every open connection by `policy`; cuts those that it denies, and those that it wants to read as HTTP
    /// and that are not. Those that are look at their requests again before they hand over a further byte.
    pub fn review(&self, policy: &InboundPolicy) {
        for entry in self.entries.lock().values() {
            let is_http = entry.http.load(Ordering::Relaxed);
            let denial = match judge(policy, &entry.subject) {
                Ok(Pass::Http) if !is_http => Some(Denial::of(Reason::HttpNeeded)),
                Ok(_) => None,
                Err(denial) => Some(denial),
            };
            if denial.is_some_and(|denial| entry.cut.set(denial).is_ok()) || is_http {
                entry.waker.wake();
            }
        }
    }

    /// Tells those whose requests are judged one by one to take no further request. The others end by themselves.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        for entry in self.entries.lock().values().filter(|entry| entry.http.load(Ordering::Relaxed)) {
            entry.waker.wake();
        }
    }

    /// Reviews whenever the policy changes, until nobody can change it any more. It runs in the thread that copies,
    /// so that between two bytes of a connection a review is over or has not begun.
    pub async fn follow(self: Arc<Self>, mut policy: watch::Receiver<Option<Arc<InboundPolicy>>>) {
        loop {
            let current = policy.borrow_and_update().clone();
            if let Some(current) = current {
                self.review(&current);
                self.judged.send_replace(current.version);
            }
            if policy.changed().await.is_err() {
                return;
            }
        }
    }
}

/// An open connection in [`Live`].
#[derive(Debug)]
pub struct Registered {
    live: Arc<Live>,
    id: u64,
    entry: Arc<Entry>,
}

impl Registered {
    /// What is known of it.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.entry.subject
    }

    /// From now on its requests are judged one by one.
    pub fn set_http(&self) {
        self.entry.http.store(true, Ordering::Relaxed);
    }

    /// Its requests are judged one by one.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.entry.http.load(Ordering::Relaxed)
    }

    /// It should take no further request ([`Live::drain`]); who was polled for a cut is woken when that changes.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.live.draining.load(Ordering::Relaxed)
    }

    /// Why it must end, if it must; else `cx` is woken when it must.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Option<&Denial> {
        if let Some(denial) = self.entry.cut.get() {
            return Some(denial);
        }
        self.entry.waker.register(cx.waker());
        self.entry.cut.get()
    }

    /// Why it was cut, if it was.
    #[must_use]
    pub fn denial(&self) -> Option<&Denial> {
        self.entry.cut.get()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.live.entries.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Protocol;
    use cinch_policy::{
        AuthorizationPolicy, Enforcement, MeshConfig, ObjectName, PolicyObject, PortModes, Workload,
        WorkloadPolicies,
    };

    fn policy(mode: Mode, ports: &[(u16, Mode)]) -> InboundPolicy {
        let modes = PortModes::uniform(mode, ports.iter().copied());
        InboundPolicy::of_modes(1, modes)
    }

    fn subject(peer: Peer) -> Subject {
        Subject {
            peer,
            source: IpAddr::from([10, 0, 0, 9]),
            destination: SocketAddr::from(([10, 0, 0, 1], 80)),
        }
    }

    fn proved() -> Peer {
        Peer::Proved(SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap())
    }

    #[test]
    fn strict_denies_plaintext_and_nothing_else_does() {
        use Mode::{Disable, Permissive, Strict};
        for (mode, port_mode, peer, allowed) in [
            (Strict, None, Peer::Unknown, false),
            (Permissive, None, Peer::Unknown, true),
            (Disable, None, Peer::Unknown, true),
            (Permissive, Some(Strict), Peer::Unknown, false),
            (Strict, Some(Permissive), Peer::Unknown, true),
            (Strict, None, proved(), true),
            (Disable, None, proved(), true),
        ] {
            let ports: Vec<_> = port_mode.map(|mode| (80, mode)).into_iter().collect();
            let verdict = judge(&policy(mode, &ports), &subject(peer.clone()));
            assert_eq!(verdict.is_ok(), allowed, "{mode} {port_mode:?} {peer:?}");
        }
    }

    fn policy_that_needs_http() -> InboundPolicy {
        let rules = serde_json::json!([{"to": [{"operation": {"methods": ["PUT"]}}]}]);
        policy_of(&serde_json::json!({"action": "DENY", "rules": rules}))
    }

    fn policy_of(spec: &serde_json::Value) -> InboundPolicy {
        let name = ObjectName { namespace: "shop".into(), name: "policy".into() };
        let object =
            PolicyObject::AuthorizationPolicy(AuthorizationPolicy::new(name, Enforcement::Enforced, spec));
        let workload = Workload { namespace: "shop".into(), ..Workload::default() };
        let policies = WorkloadPolicies::compile(&MeshConfig::default(), [&object], &workload);
        InboundPolicy { policies: Some(Arc::new(policies)), ..policy(Mode::Permissive, &[]) }
    }

    #[test]
    fn what_policies_would_admit_does_not_ask_the_mode() {
        let may = |policy: &InboundPolicy| policies_may_admit(policy, &subject(Peer::Unknown));
        assert!(may(&policy(Mode::Strict, &[])), "nothing is forbidden");
        let strict =
            |named: InboundPolicy| InboundPolicy { policies: named.policies, ..policy(Mode::Strict, &[]) };
        assert!(may(&strict(policy_that_needs_http())), "some of it would pass");
        let of_web = serde_json::json!({"rules": [{"from": [{"source": {"principals": ["*/sa/web"]}}]}]});
        assert!(!may(&strict(policy_of(&of_web))), "only who is known passes");
    }

    #[test]
    fn a_policy_that_needs_http_cuts_those_that_are_not_read_and_wakes_those_that_are() {
        let live = Arc::new(Live::default());
        let (plain, http) = (live.register(subject(proved())), live.register(subject(proved())));
        http.set_http();
        assert_eq!(judge(&policy_that_needs_http(), http.subject()), Ok(Pass::Http));
        live.review(&policy_that_needs_http());
        assert_eq!(plain.denial().map(|denial| denial.reason), Some(Reason::HttpNeeded));
        assert!(http.denial().is_none() && !http.is_draining());
        live.drain();
        assert!(http.is_draining());
    }

    #[test]
    fn a_declared_port_is_read_from_the_start_and_what_is_open_goes_on_as_it_is() {
        let mut declared = policy(Mode::Permissive, &[]);
        declared.declared = [(80, Protocol::Grpc), (81, Protocol::Tcp)].into();
        let to = |port: u16| Subject { destination: ([10, 0, 0, 1], port).into(), ..subject(proved()) };
        assert_eq!(judge_new(&declared, &to(80)), Ok(Pass::Http));
        for port in [81, 82] {
            assert_eq!(judge_new(&declared, &to(port)), Ok(Pass::Plain(Reason::AllowedByDefault)));
        }
        let live = Arc::new(Live::default());
        let open = live.register(to(80));
        live.review(&declared);
        assert!(open.denial().is_none());
        // A declaration opens nothing.
        let strict = InboundPolicy { declared: declared.declared, ..policy(Mode::Strict, &[]) };
        let plaintext = Subject { peer: Peer::Unknown, ..to(80) };
        assert_eq!(judge_new(&strict, &plaintext).unwrap_err().reason, Reason::StrictPlaintext);
    }

    #[tokio::test]
    async fn a_stricter_policy_cuts_open_plaintext_and_leaves_tunnels() {
        let (sender, receiver) = watch::channel(Some(Arc::new(policy(Mode::Permissive, &[]))));
        let live = Arc::new(Live::default());
        tokio::spawn(live.clone().follow(receiver));
        let (plain, tunnel) = (live.register(subject(Peer::Unknown)), live.register(subject(proved())));
        tokio::task::yield_now().await;
        assert!(plain.denial().is_none());
        sender.send(Some(Arc::new(policy(Mode::Strict, &[])))).unwrap();
        let reason = std::future::poll_fn(|cx| match plain.poll_cut(cx) {
            Some(denial) => std::task::Poll::Ready(denial.reason),
            None => std::task::Poll::Pending,
        })
        .await;
        assert_eq!(reason, Reason::StrictPlaintext);
        assert_eq!(*live.judged().borrow(), 1);
        assert!(tunnel.denial().is_none());
        drop((plain, tunnel));
        assert!(live.entries.lock().is_empty());
    }
}
