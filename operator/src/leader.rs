//! Who leads: the Lease `cinch-operator`.
//!
//! [`Elector`] is the pure part: what was seen of the lease and when, on this process's monotonic clock, goes
//! in; what to do comes out. Clocks of other machines are never compared: a foreign lease is stale when it
//! did not change for its whole duration *while we watched*. Each write is conditioned on the resourceVersion
//! that the decision was made from. A leader that could not renew in time ends its process, well before
//! anybody else may take over.

use crate::settings::LeaseSettings;
use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Name of the Lease.
pub const LEASE: &str = "cinch-operator";

/// What was read of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Of the whole object: it changes with each renewal.
    pub resource_version: String,
    /// Empty or missing: nobody holds it.
    pub holder: Option<String>,
    /// How long its holder may be silent.
    pub duration: Duration,
}

/// What a candidate does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There is no lease: create it.
    Create,
    /// Nobody holds it any more: write our name, if it still has this version.
    TakeOver {
        /// The condition of the write.
        resource_version: String,
    },
    /// Somebody leads: look again later.
    Wait,
}

/// The pure part of a candidate.
#[derive(Debug)]
pub struct Elector {
    me: String,
    own_duration: Duration,
    /// The foreign lease as last seen, and since when it has not changed.
    unchanged: Option<(Observed, Instant)>,
}

impl Elector {
    /// A candidate with the name `me`, unique among the replicas.
    #[must_use]
    pub fn new(me: &str, own_duration: Duration) -> Self {
        Self { me: me.to_owned(), own_duration, unchanged: None }
    }

    /// Decides from what was read at `now`.
    pub fn decide(&mut self, observed: Option<Observed>, now: Instant) -> Step {
        let Some(observed) = observed else {
            self.unchanged = None;
            return Step::Create;
        };
        let resource_version = observed.resource_version.clone();
        match observed.holder.as_deref() {
            None | Some("") => return Step::TakeOver { resource_version },
            // An earlier process of this pod: the kubelet starts a container only when the last one has ended.
            Some(holder) if holder == self.me => return Step::TakeOver { resource_version },
            Some(_) => {}
        }
        let since = match &self.unchanged {
            Some((seen, since)) if *seen == observed => *since,
            _ => now,
        };
        // The holder believes in its own duration; ours may have been configured shorter since.
        let patience = observed.duration.max(self.own_duration);
        self.unchanged = Some((observed, since));
        if now.saturating_duration_since(since) >= patience {
            return Step::TakeOver { resource_version };
        }
        Step::Wait
    }
}

/// When a leader whose renewals fail must stop: the rest of the duration is the margin in which it ends.
#[must_use]
pub fn renew_deadline(settings: &LeaseSettings) -> Duration {
    settings.duration.saturating_sub(settings.renew)
}

/// A lease that was given back is taken this soon, however seldom it is renewed: until then nobody leads.
const LOOK_AT_MOST: Duration = Duration::from_secs(1);

/// How often a candidate looks at the lease.
fn look_every(settings: &LeaseSettings) -> Duration {
    (settings.renew / 2).min(LOOK_AT_MOST)
}

/// The lease in our hands.
pub struct Leadership {
    api: Api<Lease>,
    me: String,
    settings: LeaseSettings,
    current: Lease,
    renewed: Instant,
}

/// Waits until this process leads; `None` when `shutdown` came first.
///
/// # Errors
/// Only when the API server refuses us for good (no permission); anything else is tried again.
pub async fn acquire(
    client: Client,
    namespace: &str,
    me: &str,
    settings: &LeaseSettings,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Leadership>> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut elector = Elector::new(me, settings.duration);
    loop {
        let begun = Instant::now();
        match tokio::time::timeout(settings.duration, candidate(&api, &mut elector, settings)).await {
            Ok(Ok(Some(current))) => {
                info!(lease = LEASE, holder = me, "this operator leads now");
                let (me, settings) = (me.to_owned(), settings.clone());
                return Ok(Some(Leadership { api, me, settings, current, renewed: begun }));
            }
            Ok(Ok(None)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                bail!("the lease {LEASE} is not ours to use: {}", status.message);
            }
            Ok(Err(error)) => warn!(%error, "the lease could not be read or written; trying again"),
            Err(_) => warn!("the API server did not answer about the lease in time; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(look_every(settings)) => {}
        }
    }
}

/// One look at the lease; returns it when it is ours now.
async fn candidate(
    api: &Api<Lease>,
    elector: &mut Elector,
    settings: &LeaseSettings,
) -> Result<Option<Lease>, kube::Error> {
    let lease = api.get_opt(LEASE).await?;
    let observed = lease.as_ref().map(observe);
    let step = elector.decide(observed, Instant::now());
    let params = PostParams::default();
    let written = match step {
        Step::Wait => return Ok(None),
        Step::Create => {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(taken(&elector.me, settings, None)) };
            api.create(&params, &lease).await
        }
        Step::TakeOver { resource_version } => {
            let mut lease = lease.unwrap_or_default();
            lease.metadata.resource_version = Some(resource_version);
            lease.metadata.managed_fields = None;
            let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
            lease.spec = Some(taken(&elector.me, settings, transitions));
            api.replace(LEASE, &params, &lease).await
        }
    };
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            debug!("another candidate was faster");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn observe(lease: &Lease) -> Observed {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    Observed {
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.and_then(|spec| spec.holder_identity.clone()),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
    }
}

fn taken(me: &str, settings: &LeaseSettings, transitions: Option<i32>) -> LeaseSpec {
    let now = MicroTime(jiff::Timestamp::now());
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(i32::try_from(settings.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
        lease_transitions: Some(transitions.map_or(0, |count| count.saturating_add(1))),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        ..LeaseSpec::default()
    }
}

impl Leadership {
    /// Renews until `shutdown`, then gives the lease back, so that a standby takes over at once.
    ///
    /// # Errors
    /// When the lease is lost: the process must end, because another may lead already.
    pub async fn hold(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let deadline = renew_deadline(&self.settings);
        let mut interval = tokio::time::interval(self.settings.renew);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return self.release().await,
                _ = interval.tick() => {}
            }
            let left = deadline.saturating_sub(self.renewed.elapsed());
            let begun = Instant::now();
            match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(lease)) => {
                    self.current = lease;
                    self.renewed = begun;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                    self.reread().await.context("the lease was taken or deleted")?;
                }
                Ok(Err(error)) => warn!(%error, "the lease could not be renewed; trying again"),
                Err(_) => {}
            }
            if self.renewed.elapsed() >= deadline {
                bail!("the lease could not be renewed for {deadline:?}");
            }
        }
    }

    async fn renew(&self) -> Result<Lease, kube::Error> {
        let mut lease = self.current.clone();
        lease.metadata.managed_fields = None;
        if let Some(spec) = lease.spec.as_mut() {
            spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
        }
        self.api.replace(LEASE, &PostParams::default(), &lease).await
    }

    /// After a conflict: a renewal whose answer was lost, or a label that somebody wrote, is no loss.
    async fn reread(&mut self) -> anyhow::Result<()> {
        let lease = tokio::time::timeout(self.settings.renew, self.api.get(LEASE)).await??;
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(self.me.as_str()) {
            bail!("the lease is held by {}", holder.unwrap_or("nobody"));
        }
        self.current = lease;
        Ok(())
    }

    /// Clears the holder. Failing to is no error: the lease runs out by itself.
    async fn release(mut self) -> anyhow::Result<()> {
        for _ in 0..2 {
            let mut lease = self.current.clone();
            lease.metadata.managed_fields = None;
            if let Some(spec) = lease.spec.as_mut() {
                spec.holder_identity = None;
            }
            let params = PostParams::default();
            let write = self.api.replace(LEASE, &params, &lease);
            match tokio::time::timeout(self.settings.renew, write).await {
                Ok(Ok(_)) => {
                    info!(lease = LEASE, "gave the lease back");
                    return Ok(());
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => self.reread().await?,
                Ok(Err(error)) => warn!(%error, "the lease could not be given back; it runs out by itself"),
                Err(_) => warn!("the lease could not be given back in time; it runs out by itself"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(version: &str, holder: Option<&str>) -> Option<Observed> {
        Some(Observed {
            resource_version: version.to_owned(),
            holder: holder.map(str::to_owned),
            duration: SECOND * 5,
        })
    }

    fn take(version: &str) -> Step {
        Step::TakeOver { resource_version: version.to_owned() }
    }

    #[test]
    fn a_missing_lease_is_created_and_a_released_one_taken_at_once() {
        let mut elector = Elector::new("me", SECOND * 5);
        let now = Instant::now();
        assert_eq!(elector.decide(None, now), Step::Create);
        assert_eq!(elector.decide(seen("1", None), now), take("1"));
        assert_eq!(elector.decide(seen("2", Some("")), now), take("2"));
        assert_eq!(elector.decide(seen("3", Some("me")), now), take("3"));
    }

    #[test]
    fn a_foreign_lease_is_taken_only_after_it_stood_still_for_its_duration_before_our_eyes() {
        let mut elector = Elector::new("me", SECOND * 5);
        let start = Instant::now();
        assert_eq!(elector.decide(seen("1", Some("other")), start), Step::Wait);
        assert_eq!(elector.decide(seen("1", Some("other")), start + SECOND * 4), Step::Wait);
        // A renewal starts the count anew.
        assert_eq!(elector.decide(seen("2", Some("other")), start + SECOND * 6), Step::Wait);
        assert_eq!(elector.decide(seen("2", Some("other")), start + SECOND * 10), Step::Wait);
        assert_eq!(elector.decide(seen("2", Some("other")), start + SECOND * 11), take("2"));
    }

    #[test]
    fn a_holder_with_a_longer_duration_gets_it() {
        let mut elector = Elector::new("me", SECOND);
        let start = Instant::now();
        assert_eq!(elector.decide(seen("1", Some("other")), start), Step::Wait);
        assert_eq!(elector.decide(seen("1", Some("other")), start + SECOND * 2), Step::Wait);
        assert_eq!(elector.decide(seen("1", Some("other")), start + SECOND * 5), take("1"));
    }

    #[test]
    fn a_lease_that_vanished_in_between_is_counted_anew() {
        let mut elector = Elector::new("me", SECOND * 5);
        let start = Instant::now();
        elector.decide(seen("1", Some("other")), start);
        assert_eq!(elector.decide(None, start + SECOND), Step::Create);
        assert_eq!(elector.decide(seen("1", Some("other")), start + SECOND * 6), Step::Wait);
    }

    #[test]
    fn a_leader_stops_before_anybody_else_may_begin() {
        let settings = LeaseSettings { duration: SECOND * 5, renew: SECOND };
        assert!(renew_deadline(&settings) < settings.duration);
    }

    #[test]
    fn a_lease_that_was_given_back_is_seen_within_a_second() {
        let looks = |duration, renew| look_every(&LeaseSettings { duration, renew });
        assert_eq!(looks(SECOND * 5, SECOND), SECOND / 2);
        assert_eq!(looks(SECOND * 60, SECOND * 20), SECOND);
    }
}
