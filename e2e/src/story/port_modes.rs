//! A strict port, a permissive one and a disabled one of one workload, side by side: who is served on each, and
//! what goes over the wire.

use super::Story;
use crate::capture::{self, Flow, Flows};
use crate::place::{MARKER, Outcome, Place, SERVED};
use crate::see::{PODS, See};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, anyhow, ensure};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

const PORTS: &str = include_str!("../../manifests/ports.yaml");
const NAMESPACE: &str = "ports";
/// What the clients send and the server answers.
const MARKERS: [&str; 2] = [MARKER, "cinch-marker-stall"];
const SECONDS: u64 = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// How a port must behave to a client: what comes of a call, and whether its words can be read on the wire.
struct Expected {
    port: u16,
    mode: &'static str,
    client: Client,
    served: bool,
    readable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Meshed,
    Unmeshed,
}

const fn row(port: u16, mode: &'static str, client: Client, served: bool, readable: bool) -> Expected {
    Expected { port, mode, client, served, readable }
}

const TABLE: [Expected; 6] = [
    row(8080, "STRICT", Client::Meshed, true, false),
    row(8080, "STRICT", Client::Unmeshed, false, false),
    row(8081, "PERMISSIVE", Client::Meshed, true, false),
    row(8081, "PERMISSIVE", Client::Unmeshed, true, true),
    row(8082, "DISABLE", Client::Meshed, true, true),
    row(8082, "DISABLE", Client::Unmeshed, true, true),
];

/// Plays it in a namespace of its own, which a user's PeerAuthentication keeps from being promoted.
pub fn side_by_side(story: &mut Story<'_>) -> Result<String> {
    let see = story.see;
    see.apply(PORTS)?;
    let played = modes(&see);
    see.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    Ok(format!("{}; {}", played?, story.web_goes_on(20)?))
}

fn modes(see: &See<'_>) -> Result<String> {
    see.meshed(NAMESPACE, "deployment", "stall")?;
    see.meshed(NAMESPACE, "deployment", "meshed")?;
    see.rolled_out(NAMESPACE, "deployment/unmeshed")?;
    let stall: IpAddr =
        see.addresses(NAMESPACE, "app=stall")?.first().context("stall has no pod")?.parse()?;
    let (meshed, unmeshed) = (place(see, "app=meshed")?, place(see, "app=unmeshed")?);
    let of = |client: Client| if client == Client::Meshed { &meshed } else { &unmeshed };
    let port = SocketAddr::new(stall, 8080);
    wait::until("the strict port to refuse plaintext", PODS, || {
        Ok(match unmeshed.ask(port) {
            Outcome::Reset => Seen::Done(()),
            other => Seen::Not(other.to_string()),
        })
    })?;
    see.shown(&["get", "peerauthentications", "-n", NAMESPACE])?;
    let (outcomes, flows) = watched(see, stall, of)?;
    let mut lines = Vec::new();
    for (expected, outcome) in TABLE.iter().zip(&outcomes) {
        let from = of(expected.client);
        let flow = flow(&flows, from.address, stall, expected.port);
        let who = if expected.client == Client::Meshed { "meshed" } else { "unmeshed" };
        let line = format!(
            "port {} {:<10} {who:<8} client: {outcome}; {} packets, {} readable",
            expected.port, expected.mode, flow.packets, flow.marked
        );
        let wanted = if expected.served { SERVED } else { Outcome::Reset };
        ensure!(*outcome == wanted, "it should be {wanted}: {line}");
        // What a refused client has sent is on the wire, whatever the server's proxy does with it.
        let readable = flow.marked > 0;
        ensure!(!expected.served || readable == expected.readable, "it should be the other way: {line}");
        lines.push(line);
    }
    terminal::show(&lines.join("\n"));
    see.kubectl(&["delete", "peerauthentications", "stall", "-n", NAMESPACE])?;
    wait::until("plaintext to be served on every port", PODS, || {
        Ok(match unmeshed.ask(port) {
            SERVED => Seen::Done(()),
            other => Seen::Not(other.to_string()),
        })
    })?;
    Ok(format!("{}\nthe PeerAuthentication is deleted: plaintext is served on 8080 again", lines.join("\n")))
}

/// Lets every client call every port while the nodes' packets are looked at; the last outcome of each row.
fn watched<'p>(
    see: &See<'_>,
    stall: IpAddr,
    of: impl Fn(Client) -> &'p Place,
) -> Result<(Vec<Outcome>, Flows)> {
    let ports = [8080, 8081, 8082];
    thread::scope(|scope| {
        let capturing = scope.spawn(|| capture::on_all_nodes(see.cluster, SECONDS, &MARKERS, &ports));
        let mut outcomes = Vec::new();
        while !capturing.is_finished() {
            let ask = |row: &Expected| of(row.client).ask(SocketAddr::new(stall, row.port));
            outcomes = TABLE.iter().map(ask).collect();
            thread::sleep(PAUSE);
        }
        let flows = capturing.join().map_err(|_| anyhow!("the capture's thread failed"))??;
        Ok((outcomes, flows))
    })
}

fn flow(flows: &Flows, client: IpAddr, server: IpAddr, port: u16) -> Flow {
    let mut sum = Flow::default();
    for pair in [format!("{client}>{server}:{port}"), format!("{server}:{port}>{client}")] {
        if let Some(flow) = flows.get(&pair) {
            sum.add(flow);
        }
    }
    sum
}

fn place(see: &See<'_>, selector: &str) -> Result<Place> {
    let pods = see.pods(NAMESPACE, selector)?;
    Place::of(see.cluster, pods.first().with_context(|| format!("no pod has {selector}"))?)
}
