//! The open inbound connections, and the judgement on them: at the open, and again whenever the policy changes.
//! In go what is known of a connection and the policy, out comes whether it may go on. The copy of a connection
//! only looks at a flag.

use crate::context::InboundPolicy;
use cinch_identity::SpiffeId;
use cinch_policy::{Connection, Mode, no_providers};
use cinch_reason::Reason;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Which policy says so, where one does.
    pub policy: Option<Arc<str>>,
}

/// Judges a connection by mode and policy. Tunnels outlive a change to DISABLE: they are no weaker than what it
/// asks for.
///
/// # Errors
/// The [`Denial`], when it may not be.
pub fn judge(policy: &InboundPolicy, subject: &Subject) -> Result<(), Denial> {
    let peer = match &subject.peer {
        Peer::Unknown if policy.modes.mode(subject.destination.port()) == Mode::Strict => {
            return Err(Denial { reason: Reason::StrictPlaintext, policy: None });
        }
        Peer::Unknown => None,
        Peer::Proved(id) => Some(id.as_str()),
    };
    let Some(policies) = &policy.policies else { return Ok(()) };
    let connection = Connection::new(peer, subject.source, subject.destination);
    let decision = policies.tcp(&connection, &no_providers);
    if decision.is_allowed() {
        return Ok(());
    }
    Err(Denial { reason: decision.reason, policy: decision.policy.cloned() })
}

/// All open inbound connections.
#[derive(Debug, Default)]
pub struct Live {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    subject: Subject,
    cut: OnceLock<Denial>,
    waker: AtomicWaker,
}

impl Live {
    /// Remembers a connection until the returned handle is dropped. Judge it *after* this: then no change of
    /// policy can pass unseen between the two.
    #[must_use]
    pub fn register(self: &Arc<Self>, subject: Subject) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry { subject, cut: OnceLock::new(), waker: AtomicWaker::new() });
        self.entries.lock().insert(id, entry.clone());
        Registered { live: self.clone(), id, entry }
    }

    /// Judges every open connection by `policy` and cuts those that it denies.
    pub fn review(&self, policy: &InboundPolicy) {
        for entry in self.entries.lock().values() {
            if let Err(denial) = judge(policy, &entry.subject)
                && entry.cut.set(denial).is_ok()
            {
                entry.waker.wake();
            }
        }
    }

    /// Reviews whenever the policy changes, until nobody can change it any more.
    pub async fn follow(self: Arc<Self>, mut policy: watch::Receiver<Option<Arc<InboundPolicy>>>) {
        loop {
            let current = policy.borrow_and_update().clone();
            if let Some(current) = current {
                self.review(&current);
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
    use cinch_policy::PortModes;

    fn policy(mode: Mode, ports: &[(u16, Mode)]) -> InboundPolicy {
        let modes = PortModes::uniform(mode, ports.iter().copied());
        InboundPolicy { version: 1, modes, policies: None, locked: false }
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
        assert!(tunnel.denial().is_none());
        drop((plain, tunnel));
        assert!(live.entries.lock().is_empty());
    }
}
