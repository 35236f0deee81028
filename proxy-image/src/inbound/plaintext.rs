//! Plaintext that the port's mode lets in: judged, connected, copied, witnessed.

use super::doubted::Doubted;
use super::{Arrival, Inbound, Watch};
use crate::copy::{End, Side, TcpSide, relay};
use crate::evidence::{Accepted, Outcome};
use crate::http_filter::{self, Job};
use crate::limits::note_connect;
use crate::live::{Peer, Registered};
use crate::path_metrics::{ConnectionMetrics, Direction, Transport};
use crate::refusal;
use crate::sniff::{self, First};
use crate::socket;
use crate::telemetry::ConnectionRecord;
use cinch_reason::Reason;
use std::net::SocketAddr;
use tokio::net::TcpStream;

impl Inbound {
    /// A connection that is plaintext for certain.
    pub(super) async fn plaintext(&self, arrival: Box<Arrival>) {
        let registered = match self.admit(Peer::Unknown, arrival.from, arrival.to) {
            Ok(registered) => registered,
            Err(denial) => return self.deny_plaintext(*arrival, &denial),
        };
        let Some((arrival, app)) = self.reach_app(arrival).await else { return };
        let accepted = self.ctx.evidence.accepted(arrival.from.ip(), arrival.to.port());
        let metrics = self.ctx.metrics.connection(Direction::Inbound, Transport::Plaintext);
        self.copy_plaintext((arrival, metrics), app, accepted, registered).await;
    }

    /// Connects to the app, or resets the connection as the kernel would have done.
    pub(super) async fn reach_app(&self, arrival: Box<Arrival>) -> Option<(Box<Arrival>, TcpStream)> {
        match socket::connect_app(arrival.to, socket::First::Anybody, self.ctx.limits.connect_timeout).await {
            Ok(app) => Some((arrival, app)),
            Err(error) => {
                let Arrival { stream, from, to, .. } = *arrival;
                note_connect(&self.ctx.metrics, &error);
                self.ctx.evidence.refused(from.ip(), to.port(), Outcome::NoListener);
                self.refuse(stream, from, to, Reason::NoListener, &error.to_string());
                None
            }
        }
    }

    /// The connection broke before anybody said a byte.
    pub(super) fn nothing_came(&self, arrival: Arrival) {
        self.ctx.evidence.refused(arrival.from.ip(), arrival.to.port(), Outcome::Empty);
        socket::abort(arrival.stream);
    }

    pub(super) async fn copy_plaintext(
        &self,
        (arrival, metrics): (Box<Arrival>, ConnectionMetrics),
        app: TcpStream,
        mut accepted: Accepted,
        registered: Registered,
    ) {
        let Arrival { stream, from, prefix, doubted, opening, .. } = *arrival;
        socket::reset_on_drop(&stream, false);
        drop(opening);
        let record = ConnectionRecord::inbound(&self.ctx.metrics.telemetry, &registered, from);
        let metrics = metrics.with_record(record);
        let kept = &self.ctx.kept;
        let (client, mut app) = (TcpSide::new(stream, kept.share()), TcpSide::new(app, kept.share()));
        if registered.is_http() {
            let job = Job { ctx: &self.ctx, registered: &registered, from, early: prefix };
            // Boxed, so that connections that are not read are no larger for it.
            return Box::pin(self.filter_plaintext(job, (client, app), &metrics, accepted)).await;
        }
        let spoke = !prefix.is_empty();
        let doubted = doubted && !spoke;
        // A cut that came while we connected must not let these bytes through.
        if spoke && registered.denial().is_none() {
            accepted.served();
            metrics.count_received(prefix.len());
            if app.send(&prefix, false).is_err() {
                client.abort();
                return;
            }
        }
        drop(prefix);
        let mut client = Doubted::new(client, doubted, self.ctx.limits.hello_bytes);
        let mut watch = Watch::new(&metrics).judged(&registered).witnessed(&mut accepted);
        if doubted {
            watch = watch.doubting(self.ctx.limits.handshake_timeout);
        }
        let end = relay(&mut client, &mut app, &mut watch).await;
        let app_spoke = watch.still_doubts();
        let (is_tunnel, client) = (client.is_tunnel(), client.into_inner());
        if is_tunnel {
            // Its proxy tries again, and is then waited for.
            self.ctx.metrics.count_limit("silence_of_peers");
            accepted.became_tunnel();
            client.abort();
            return app.abort();
        }
        if doubted {
            // Plaintext comes from there too, perhaps often: once has been long enough to wait for.
            self.peers.forget(from.ip());
        }
        if app_spoke {
            accepted.served();
        }
        match end {
            End::Finished => {}
            End::Failed(..) => {
                client.abort();
                app.abort();
            }
            End::Cut(reason) => {
                self.cut_plaintext((client, app), reason, &registered, accepted, (from, spoke));
            }
        }
    }

    /// Ends what mode or policy no longer allow. `spoke`: the client has said something.
    fn cut_plaintext(
        &self,
        (mut client, app): (TcpSide, TcpSide),
        reason: Reason,
        registered: &Registered,
        accepted: Accepted,
        (from, spoke): (SocketAddr, bool),
    ) {
        let reason = if reason == Reason::StrictPlaintext { Reason::PlaintextCut } else { reason };
        let to = registered.subject().destination;
        refusal::cut(&self.ctx.metrics, reason, registered.denial(), from, to);
        // A client that has said nothing may be a tunnel's: it counts as plaintext only if its first words, which may
        // have come in this moment, are something else.
        let is_other = |words: &[u8]| {
            matches!(sniff::classify(words, self.ctx.limits.hello_bytes), First::Other | First::TooLong)
        };
        let spoke = spoke || client.read_now().is_ok_and(|words| is_other(&words));
        accepted.cut(spoke);
        client.abort();
        app.abort();
    }

    /// As [`Inbound::copy_plaintext`], request by request.
    async fn filter_plaintext(
        &self,
        job: Job<'_>,
        (mut client, mut app): (TcpSide, TcpSide),
        metrics: &ConnectionMetrics,
        mut accepted: Accepted,
    ) {
        let (registered, from) = (job.registered, job.from);
        let mut watch = Watch::new(metrics).judged(registered).witnessed(&mut accepted);
        let ended = http_filter::relay(&mut client, &mut app, job, &mut watch).await;
        match ended.end {
            End::Finished => {
                accepted.ended(ended.spoke);
                client.leave();
                app.leave();
            }
            End::Failed(..) => {
                accepted.ended(ended.spoke);
                client.abort();
                app.abort();
            }
            End::Cut(reason) => {
                self.cut_plaintext((client, app), reason, registered, accepted, (from, ended.spoke));
            }
        }
    }
}
