//! From an endpoint with its identity to a tunnel that takes the connection: from the pool, or by a handshake
//! that accepts this identity and no other.

use crate::context::{Context, Credentials};
use crate::gate::{Gate, Turn};
use crate::limits::note_connect;
use crate::path_metrics::{Direction, Outcome};
use crate::pool::{Key, Pool};
use crate::presence::Presence;
use crate::refusal;
use crate::socket;
use crate::tunnel_io::{self, Answer, Bounds, HandshakeError, Tunnel, TunnelError};
use cinch_identity::{SpiffeId, tunnel_client_config};
use cinch_reason::Reason;
use cinch_tunnel::{ALPN, RefuseCode, ResetCode};
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Configurations kept, one for each peer identity; beyond that they are made anew.
const CONFIGS: usize = 1024;

/// A tunnel whose server has said OPENED.
pub(super) struct Opened {
    pub(super) key: Key,
    pub(super) tunnel: Tunnel,
}

/// Why an endpoint did not take the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It could not be connected; another endpoint may.
    Unreachable(Reason),
    /// It said that another tunnel may do, or the handshake failed: once, another try is harmless.
    Retry(Reason),
    /// Final.
    Refused(Reason),
    /// It proved another identity.
    Mismatch,
    /// The app has reset its connection meanwhile.
    AppGone,
}

/// How long a connection may wait in all for turns and places, whatever endpoints it tries: where everybody waits,
/// whoever tries three times as often must not wait three times as long. Only the waiting counts: an endpoint that is
/// slow to answer takes nothing from the next one.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    waited: Duration,
}

impl Patience {
    /// One in so many parts of the limit is there for each further endpoint, however long the others took: where those
    /// who waited for a frozen one come to a healthy one all at once, a moment is enough for each.
    const LAST: u32 = 10;

    pub(super) fn new(limit: Duration) -> Patience {
        Patience { limit, waited: Duration::ZERO }
    }

    /// What is left of it.
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited).max(self.limit / Patience::LAST)
    }

    /// Waits, and counts how long.
    async fn count<T>(&mut self, waiting: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let came = waiting.await;
        self.waited += began.elapsed();
        came
    }
}

#[derive(Default)]
struct Configs {
    generation: u64,
    bundle_version: u64,
    by_peer: HashMap<SpiffeId, Arc<ClientConfig>>,
}

/// Makes and keeps tunnels.
pub(super) struct Dialler {
    ctx: Arc<Context>,
    pool: Arc<Pool>,
    gate: Arc<Gate>,
    presence: Arc<Presence>,
    configs: Mutex<Configs>,
}

impl Dialler {
    pub(super) fn new(ctx: &Arc<Context>) -> Dialler {
        let limits = &ctx.limits;
        Dialler {
            pool: Pool::new(limits, ctx.metrics.clone()),
            // All connections of the apps may wait, be it for one peer: how many there are is bounded already.
            gate: Gate::new(
                limits.handshakes,
                limits.handshakes_per_source,
                limits.connections.saturating_mul(4),
            ),
            presence: Presence::new(limits.peer_timeout),
            configs: Mutex::default(),
            ctx: ctx.clone(),
        }
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Closes idle tunnels that are past their time, of other credentials than the current ones, or lead to an endpoint
    /// that is gone; and looks whether the peers of all tunnels are there.
    pub(super) fn keep_swept(&self) -> impl Future<Output = ()> + Send + 'static {
        let (credentials, discovery) = (self.ctx.credentials.clone(), self.ctx.discovery.clone());
        let sweeping = self.pool.clone().keep_swept(move |key| {
            let current = credentials.borrow().as_ref().is_some_and(|held| {
                (held.generation, held.bundle_version) == (key.generation, key.bundle_version)
            });
            current && discovery.leads_to(key.address)
        });
        let watching = self.presence.clone().keep_watch();
        async move {
            tokio::join!(sweeping, watching);
        }
    }

    /// An idle tunnel to `address`, or a new one when there is none or it shall be `fresh`.
    pub(super) async fn tunnel(
        &self,
        address: SocketAddr,
        identity: &SpiffeId,
        fresh: bool,
        patience: &mut Patience,
    ) -> Result<(Key, Tunnel), Trouble> {
        let credentials = self.ctx.credentials.borrow().clone();
        let credentials = credentials.ok_or(Trouble::Refused(Reason::ControlUnreachable))?;
        let key = Key {
            generation: credentials.generation,
            bundle_version: credentials.bundle_version,
            peer: identity.clone(),
            address,
        };
        if !fresh && let Some(tunnel) = self.pool.take(&key) {
            return Ok((key, tunnel));
        }
        // Many connections to one new peer at once shake hands a few at a time, and the others take what has become
        // idle by then.
        let left = patience.left();
        let Ok(turn) = patience.count(self.gate.queue(address.ip(), left)).await else {
            self.ctx.metrics.count_limit("handshakes_per_source");
            // Of this address too many are frozen; another one may not be.
            return Err(Trouble::Unreachable(Reason::Overloaded));
        };
        if !fresh && let Some(tunnel) = self.pool.take(&key) {
            return Ok((key, tunnel));
        }
        let tunnel = self.dial(&key, &credentials, turn, patience).await?;
        Ok((key, tunnel))
    }

    async fn dial(
        &self,
        key: &Key,
        credentials: &Credentials,
        turn: Turn,
        patience: &mut Patience,
    ) -> Result<Tunnel, Trouble> {
        let (limits, metrics) = (&self.ctx.limits, &self.ctx.metrics);
        // Before there is a place for the handshake: an endpoint that swallows packets must not keep places from
        // those that answer.
        let stream = socket::connect(key.address, limits.connect_timeout, limits.peer_timeout)
            .await
            .inspect_err(|error| note_connect(metrics, error))
            .map_err(|_| Trouble::Unreachable(Reason::NoListener))?;
        socket::prepare_tunnel(&stream, limits.peer_timeout);
        let left = limits.handshake_timeout.min(patience.left());
        let Some(pass) = patience.count(turn.enter(left)).await else {
            metrics.count_limit("handshakes");
            // All places are taken. Another endpoint may need none: a tunnel to it may be idle.
            return Err(Trouble::Unreachable(Reason::Overloaded));
        };
        let config = self.config(key, credentials)?;
        let gauge = metrics.tunnel_open(Direction::Outbound);
        let bounds = Bounds { handshake: limits.handshake_timeout, age: limits.tunnel_age };
        let shaken = tunnel_io::dial(stream, config, credentials, bounds, gauge).await;
        drop(pass);
        let outcome = if shaken.is_ok() { Outcome::Ok } else { Outcome::Failed };
        metrics.count_handshake(Direction::Outbound, outcome);
        if matches!(shaken, Err(HandshakeError::Timeout)) {
            metrics.count_limit("handshake_timeout");
        }
        let mut tunnel = shaken.map_err(|error| trouble(&error, key))?;
        tunnel.attend(&self.presence);
        tunnel.hold_proof(&self.ctx.proofs, &credentials.bundle);
        tunnel.count_kept(&self.ctx.kept);
        Ok(tunnel)
    }

    fn config(&self, key: &Key, credentials: &Credentials) -> Result<Arc<ClientConfig>, Trouble> {
        let mut configs = self.configs.lock();
        if (configs.generation, configs.bundle_version) != (key.generation, key.bundle_version)
            || configs.by_peer.len() >= CONFIGS
        {
            *configs = Configs {
                generation: key.generation,
                bundle_version: key.bundle_version,
                by_peer: HashMap::new(),
            };
        }
        if let Some(config) = configs.by_peer.get(&key.peer) {
            return Ok(config.clone());
        }
        let Credentials { svid, bundle, records, .. } = credentials;
        let config = tunnel_client_config(svid, bundle, key.peer.clone(), ALPN, *records)
            .map_err(|error| Trouble::Refused(error.reason()))?;
        configs.by_peer.insert(key.peer.clone(), config.clone());
        Ok(config)
    }

    /// Waits for the answer to the OPEN that `tunnel` has begun with.
    pub(super) async fn answered(&self, key: Key, mut tunnel: Tunnel) -> Result<Opened, Trouble> {
        let answer = tokio::time::timeout(self.ctx.limits.open_timeout, tunnel.answer()).await;
        match answer {
            Ok(Ok(Answer::Opened)) => Ok(Opened { key, tunnel }),
            Ok(Ok(Answer::Refused(code))) => {
                // The app need not wait until the tunnel is clean again.
                tokio::spawn(settle(self.ctx.clone(), self.pool.clone(), key, tunnel, None));
                Err(refused(code))
            }
            Ok(Err(TunnelError::Closed)) => Err(Trouble::Retry(Reason::TunnelBroken)),
            Ok(Err(error)) => {
                if let TunnelError::Protocol(_) | TunnelError::Tls(_) = error {
                    self.ctx.metrics.count_protocol_error(Direction::Outbound);
                }
                if error.is_vanished() {
                    self.ctx.metrics.count_limit("peer_timeout");
                    self.pool.forget(&key);
                }
                tunnel.abort();
                Err(Trouble::Refused(Reason::TunnelBroken))
            }
            Err(_) => {
                self.ctx.metrics.count_limit("open_timeout");
                self.pool.forget(&key);
                tunnel.abort();
                Err(Trouble::Refused(Reason::Overloaded))
            }
        }
    }

    /// Ends a stream that did not end by itself, and keeps the tunnel if it can be used again.
    pub(super) async fn settle(&self, key: Key, tunnel: Tunnel, why: Option<ResetCode>) {
        settle(self.ctx.clone(), self.pool.clone(), key, tunnel, why).await;
    }
}

async fn settle(ctx: Arc<Context>, pool: Arc<Pool>, key: Key, mut tunnel: Tunnel, why: Option<ResetCode>) {
    match tokio::time::timeout(ctx.limits.settle, tunnel.settle(why)).await {
        Ok(Ok(())) => pool.put(key, tunnel),
        Ok(Err(_)) => tunnel.abort(),
        Err(_) => {
            ctx.metrics.count_limit("settle");
            tunnel.abort();
        }
    }
}

fn trouble(error: &HandshakeError, key: &Key) -> Trouble {
    let reason = error.reason();
    if refusal::may_tell() {
        tracing::info!(%reason, peer = %key.peer, address = %key.address, %error, "no tunnel");
    }
    match error {
        HandshakeError::Refused(Reason::PeerIdentityMismatch, _) => Trouble::Mismatch,
        _ => Trouble::Retry(reason),
    }
}

/// What follows from a server's refusal. That its app could not be reached means, as a refused connection, that
/// nobody was handed anything: where the Service has other endpoints, one of them may serve, and nothing is done twice.
/// The server is not asked again, since it takes other tunnels and would say the same.
fn refused(code: RefuseCode) -> Trouble {
    let reason = reason(code);
    match code {
        RefuseCode::NoListener | RefuseCode::Unreachable => Trouble::Unreachable(reason),
        code if code.may_retry() => Trouble::Retry(reason),
        _ => Trouble::Refused(reason),
    }
}

/// The word for a server's refusal, as the client sees it.
fn reason(code: RefuseCode) -> Reason {
    match code {
        RefuseCode::NoListener | RefuseCode::Unreachable => Reason::NoListener,
        RefuseCode::Denied => Reason::DeniedByPolicy,
        RefuseCode::Draining | RefuseCode::Limit => Reason::Overloaded,
        _ => Reason::TunnelBroken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_waited_at_one_endpoint_is_not_there_for_the_next() {
        let (seconds, moment) = (Duration::from_secs, Duration::from_millis(20));
        let mut patience = Patience::new(seconds(1000));
        assert_eq!(patience.left(), seconds(1000));
        tokio::time::sleep(moment).await;
        assert_eq!(patience.left(), seconds(1000), "only waiting for a turn or a place counts");
        patience.count(tokio::time::sleep(moment)).await;
        assert!(patience.left() <= seconds(1000).checked_sub(moment).unwrap());
        patience.waited += seconds(700);
        assert!(patience.left() < seconds(300) && patience.left() > seconds(100));
        patience.waited += seconds(700);
        assert_eq!(patience.left(), seconds(100), "a moment for each that is still to be tried");
    }
}
