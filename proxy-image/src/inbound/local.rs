//! A connection of the pod to itself through a Service. Over the network it would meet the app without the
//! proxy, because the kernel keeps it on loopback; so the outbound side hands it over here, under the pod's own
//! identity, and policy decides as for any other peer.

use super::{Watch, admit};
use crate::context::Context;
use crate::copy::{End, Side, TcpSide, relay};
use crate::http_filter::{self, Job};
use crate::limits::note_connect;
use crate::live::{Peer, Subject};
use crate::path_metrics::{ConnectionMetrics, Direction, OpenGauge, Transport};
use crate::refusal;
use crate::socket;
use crate::telemetry::ConnectionRecord;
use cinch_reason::Reason;
use std::net::SocketAddr;

/// Connects `client`, whose address is `from`, to the pod's own app at `to`, if policy allows it. `early`: what
/// was read of it for another endpoint that did not take the connection. `opening` counts it as on its way.
pub async fn serve_local(
    ctx: &Context,
    (client, early, opening): (TcpSide, Vec<u8>, OpenGauge),
    from: SocketAddr,
    to: SocketAddr,
) {
    let refuse = |client: TcpSide, reason: Reason, detail: &str| {
        refusal::refused(&ctx.metrics, Direction::Inbound, reason, (from, to), detail);
        client.abort();
    };
    let own = ctx.credentials.borrow().as_ref().map(|credentials| credentials.svid.id().clone());
    let Some(own) = own else {
        return refuse(client, Reason::ControlUnreachable, "no certificate has come yet");
    };
    let subject = Subject { peer: Peer::Proved(own.clone()), source: to.ip(), destination: to };
    let registered = match admit(ctx, subject, from) {
        Ok(registered) => registered,
        Err(denial) => {
            refusal::denied(&ctx.metrics, &denial, (from, to), Some(own.as_str()));
            return client.abort();
        }
    };
    let app = match socket::connect_app(to, socket::First::Anybody, ctx.limits.connect_timeout).await {
        Ok(app) => app,
        Err(error) => {
            note_connect(&ctx.metrics, &error);
            return refuse(client, Reason::NoListener, &error.to_string());
        }
    };
    let record = ConnectionRecord::inbound(&ctx.metrics.telemetry, &registered, from);
    let metrics = ctx.metrics.connection(Direction::Inbound, Transport::Local).with_record(record);
    drop(opening);
    let (mut client, mut app) = (client, TcpSide::new(app, ctx.kept.share()));
    if registered.is_http() {
        let job = Job { ctx, registered: &registered, from, early };
        return Box::pin(filter_local(job, (client, app), &metrics)).await;
    }
    if !early.is_empty() && registered.denial().is_none() {
        metrics.count_received(early.len());
        if app.send(&early, false).is_err() {
            return client.abort();
        }
    }
    drop(early);
    match relay(&mut client, &mut app, &mut Watch::new(&metrics).judged(&registered)).await {
        End::Finished => {}
        End::Failed(..) => {
            client.abort();
            app.abort();
        }
        End::Cut(reason) => {
            refusal::cut(&ctx.metrics, reason, registered.denial(), from, to);
            client.abort();
            app.abort();
        }
    }
}

/// The same, request by request.
async fn filter_local(job: Job<'_>, (mut client, mut app): (TcpSide, TcpSide), metrics: &ConnectionMetrics) {
    let (ctx, registered, from) = (job.ctx, job.registered, job.from);
    let mut watch = Watch::new(metrics).judged(registered);
    let ended = http_filter::relay(&mut client, &mut app, job, &mut watch).await;
    if let End::Cut(reason) = ended.end {
        refusal::cut(&ctx.metrics, reason, registered.denial(), from, registered.subject().destination);
    }
    if ended.end == End::Finished {
        client.leave();
        app.leave();
    } else {
        client.abort();
        app.abort();
    }
}
