//! The authenticated stream, from Hello to its end.

use super::connection::Connection;
use super::{Control, ControlError, FromOperator, Renewal, ToOperator, missing_keys};
use crate::credentials;
use crate::discovery::{Change, ip_address, ip_bytes, networks_of};
use crate::workload_policy::{self, Target};
use cinch_control::v1;
use cinch_identity::KeyPair;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

/// From Hello to Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Each report is acknowledged; an operator silent for so many of them is gone.
const SILENT_REPORTS: u32 = 3;
/// No silence shorter than this ends a stream.
const SILENCE_FLOOR: Duration = Duration::from_secs(30);
/// From Renew to the certificate.
const RENEW_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the end of the process waits for the acknowledgement of the last report.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Reports no closer and no further apart than this, whatever the operator asks for.
const REPORT_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
/// Addresses in one Subscribe: far below the largest message.
const SUBSCRIBE_CHUNK: usize = 1_000;

/// What only this stream knows.
struct Session<'a> {
    control: &'a Control,
    connection: Connection,
    /// The key whose certificate was asked for, and when.
    pending: Option<(KeyPair, Instant)>,
    /// The mesh in force, as this operator counts.
    mesh_version: u64,
    /// A policy was taken, and live connections have not yet been judged by it.
    unjudged: bool,
}

impl Control {
    /// Speaks on an authenticated connection until [`Control::finish`] (`Ok`) or an error.
    pub(super) async fn session(
        &self,
        connection: Connection,
        renewal: &mut Renewal,
    ) -> Result<(), ControlError> {
        let mut session =
            Session { control: self, connection, pending: None, mesh_version: 0, unjudged: false };
        let report_interval = session.greet().await?;
        self.metrics.connected.set(1);
        self.metrics.streams.inc();
        *self.last_error.lock() = None;
        let ended = session.serve(report_interval, renewal).await;
        self.records.end_stream();
        if ended.is_ok() {
            session.connection.close().await;
        }
        ended
    }
}

impl Session<'_> {
    /// Hello and Welcome; returns how often to report.
    async fn greet(&mut self) -> Result<Duration, ControlError> {
        let control = self.control;
        let (policy_version, _) = self.in_force();
        let hello = v1::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pod_ips: control.settings.pod_ips.iter().copied().map(ip_bytes).collect(),
            features: workload_policy::FEATURES.iter().map(|feature| (*feature).to_owned()).collect(),
            boot_id: control.evidence.boot_id(),
            policy_version,
            trust_bundle_version: control.credentials.current().map_or(0, |held| held.bundle_version),
            pod_uid: control.settings.pod_uid.clone(),
        };
        self.connection.send(ToOperator::Hello(hello)).await?;
        let answer = timeout(WELCOME_TIMEOUT, self.connection.receive())
            .await
            .map_err(|_| ControlError::Silent("Hello"))??;
        match answer {
            FromOperator::Welcome(welcome) => {
                tracing::info!(operator = %welcome.operator_version, "control stream stands");
                let (shortest, longest) = REPORT_BOUNDS;
                Ok(Duration::from_millis(welcome.report_interval_ms).clamp(shortest, longest))
            }
            FromOperator::Refused(refused) => Err(ControlError::Refused(refused)),
            _ => Err(ControlError::Unexpected("another message than Welcome")),
        }
    }

    async fn serve(&mut self, every: Duration, renewal: &mut Renewal) -> Result<(), ControlError> {
        let control = self.control;
        control.interval.send_replace(every);
        control.readiness.expect_proofs_every(every.min(crate::selftest::LONGEST_INTERVAL));
        self.subscribe(control.records.begin_stream()).await?;
        let patience = (every * SILENT_REPORTS).max(SILENCE_FLOOR);
        let mut heard = Instant::now();
        let mut judged = control.judged.clone();
        let mut reports = interval(every);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let renewal_step = self.renewal_step(renewal);
            tokio::select! {
                message = self.connection.receive() => {
                    heard = Instant::now();
                    self.handle(message?, renewal).await?;
                }
                changes = control.records.changes() => {
                    let changes = changes.ok_or(ControlError::Silent("subscriptions"))?;
                    self.send_changes(&changes).await?;
                }
                key = control.unknown_keys.next() => {
                    let key = v1::UnknownKey { source: key.source.to_string(), kid: key.kid.into() };
                    self.connection.send(ToOperator::UnknownKey(key)).await?;
                }
                Ok(()) = judged.changed(), if self.unjudged => self.acknowledge_policy().await?,
                _ = reports.tick() => self.report(false).await.map(drop)?,
                () = sleep_until(renewal_step) => self.renew().await?,
                () = sleep_until(heard + patience) => return Err(ControlError::Silent("reports")),
                () = control.finish.cancelled() => return self.last_word(renewal).await,
            }
        }
    }

    /// When to ask for a certificate, or to give up waiting for it.
    fn renewal_step(&self, renewal: &Renewal) -> Instant {
        self.pending.as_ref().map_or(renewal.at, |(_, asked)| *asked + RENEW_TIMEOUT)
    }

    async fn renew(&mut self) -> Result<(), ControlError> {
        if self.pending.is_some() {
            return Err(ControlError::Silent("the renewal of the certificate"));
        }
        let key = KeyPair::generate()?;
        let csr = key.csr()?;
        self.pending = Some((key, Instant::now()));
        self.connection.send(ToOperator::Renew(v1::Renew { csr: csr.into() })).await
    }

    async fn report(&mut self, last: bool) -> Result<u64, ControlError> {
        let (version, _) = self.in_force();
        let report = self.control.evidence.report(version, last);
        let sequence = report.sequence;
        self.connection.send(ToOperator::Evidence(report)).await?;
        Ok(sequence)
    }

    /// The last report, and a short wait until the operator has it: what is not reported counts as unobserved.
    async fn last_word(&mut self, renewal: &mut Renewal) -> Result<(), ControlError> {
        let sequence = self.report(true).await?;
        let acknowledged = async {
            loop {
                match self.connection.receive().await? {
                    FromOperator::EvidenceAck(ack) if ack.sequence >= sequence => return Ok(()),
                    FromOperator::EvidenceAck(_) => {}
                    other => self.handle(other, renewal).await?,
                }
            }
        };
        // An operator that is gone now changes nothing: the process ends.
        timeout(LAST_WORD, acknowledged).await.unwrap_or(Ok(()))
    }

    async fn handle(&mut self, message: FromOperator, renewal: &mut Renewal) -> Result<(), ControlError> {
        let control = self.control;
        match message {
            FromOperator::Refused(refused) => return Err(ControlError::Refused(refused)),
            FromOperator::Certificate(certificate) => {
                let (key, _) =
                    self.pending.take().ok_or(ControlError::Unexpected("a certificate unasked"))?;
                control.take_certificate(certificate, key, renewal)?;
                return self.acknowledge().await;
            }
            FromOperator::TrustBundle(message) => {
                let bundle = credentials::bundle_from(message, &control.settings.trust_domain)?;
                control.credentials.install_bundle(bundle)?;
                return self.acknowledge().await;
            }
            FromOperator::Policy(policy) => return self.take_policy(policy).await,
            FromOperator::Mesh(mesh) => {
                let networks =
                    networks_of(&mesh).ok_or(ControlError::Unexpected("a network that is none"))?;
                control.records.set_mesh(&networks);
                self.mesh_version = mesh.version;
                return self.acknowledge().await;
            }
            FromOperator::Record(record) => control.records.set_record(record),
            FromOperator::Indexed(indexed) => {
                let known: Vec<_> = indexed.pod_ips.iter().filter_map(|ip| ip_address(ip)).collect();
                if control.settings.pod_ips.iter().all(|own| known.contains(&own.to_canonical())) {
                    control.readiness.set_indexed();
                }
            }
            FromOperator::Welcome(_) => return Err(ControlError::Unexpected("a second Welcome")),
            FromOperator::EvidenceAck(_) => {}
        }
        Ok(())
    }

    /// Puts a policy in force, and acknowledges it as soon as live connections have been judged by it.
    async fn take_policy(&mut self, message: v1::WorkloadPolicy) -> Result<(), ControlError> {
        let settings = &self.control.settings;
        let target = Target {
            namespace: settings.namespace.clone(),
            trust_domain: settings.trust_domain.as_str().to_owned(),
        };
        let mut received = workload_policy::receive(message, &target);
        if let Some(former) = &*self.control.policy.borrow() {
            received.keep_keys_of(former, std::time::Instant::now(), settings.tuning.limits.keys_kept);
        }
        missing_keys::tell(&received, &self.control.metrics);
        let (policy_version, mode) = (received.version, received.modes.default_mode());
        if received.nack.is_empty() {
            tracing::info!(policy_version, %mode, "policy in force");
        } else {
            tracing::error!(policy_version, %mode, fault = received.nack, "policy in force, closed in part");
        }
        self.control.policy.send_replace(Some(Arc::new(received)));
        self.unjudged = true;
        self.acknowledge_policy().await
    }

    /// Says so once the policy that was taken is in force on live connections too.
    async fn acknowledge_policy(&mut self) -> Result<(), ControlError> {
        let taken = self.control.policy.borrow().as_ref().map_or(0, |policy| policy.version);
        if *self.control.judged.borrow() != taken {
            return Ok(());
        }
        self.unjudged = false;
        self.acknowledge().await
    }

    /// The version of the policy in force, on live connections too, and what of it could not be used; 0 while there
    /// is none, or the newest one is not there yet: then nothing is said of the policy.
    fn in_force(&self) -> (u64, String) {
        let judged = *self.control.judged.borrow();
        let policy = self.control.policy.borrow();
        let policy = policy.as_ref().filter(|policy| policy.version == judged);
        policy.map_or((0, String::new()), |policy| (policy.version, policy.nack.clone()))
    }

    /// Every acknowledgement says all that is in force, so that the newest one is enough.
    async fn acknowledge(&mut self) -> Result<(), ControlError> {
        let (policy_version, nack) = self.in_force();
        let ack = v1::Ack {
            policy_version,
            trust_bundle_version: self.control.credentials.current().map_or(0, |held| held.bundle_version),
            mesh_version: self.mesh_version,
            nack,
        };
        self.connection.send(ToOperator::Ack(ack)).await
    }

    async fn subscribe(&mut self, addresses: Vec<SocketAddr>) -> Result<(), ControlError> {
        for chunk in addresses.chunks(SUBSCRIBE_CHUNK) {
            let addresses = chunk.iter().map(to_message).collect();
            self.connection.send(ToOperator::Subscribe(v1::Subscribe { addresses })).await?;
        }
        Ok(())
    }

    /// Sends changes in their order, neighbours of one kind as one message.
    async fn send_changes(&mut self, changes: &[Change]) -> Result<(), ControlError> {
        let same_kind = |a: &Change, b: &Change| std::mem::discriminant(a) == std::mem::discriminant(b);
        for group in changes.chunk_by(same_kind).flat_map(|group| group.chunks(SUBSCRIBE_CHUNK)) {
            let addresses = group.iter().map(|change| match change {
                Change::Subscribe(address) | Change::Unsubscribe(address) => to_message(address),
            });
            let addresses = addresses.collect();
            let message = match group.first() {
                Some(Change::Unsubscribe(_)) => ToOperator::Unsubscribe(v1::Unsubscribe { addresses }),
                _ => ToOperator::Subscribe(v1::Subscribe { addresses }),
            };
            self.connection.send(message).await?;
        }
        Ok(())
    }
}

fn to_message(address: &SocketAddr) -> v1::Address {
    v1::Address { ip: ip_bytes(address.ip()), port: address.port().into() }
}
