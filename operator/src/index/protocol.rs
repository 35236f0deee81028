//! What a port is declared to speak: by the Service in front of it (`appProtocol`, else the prefix of the port's
//! name), else by the name of the container's port.

use super::model::{PodInfo, Protocol};
use super::state::State;
use cinch_control::v1;
use std::collections::BTreeMap;

/// By a Service's `appProtocol` (KEP-1507). A protocol that we don't know is declared all the same: whatever it is,
/// it is not to be read as HTTP.
pub(super) fn by_app_protocol(word: &str) -> Protocol {
    match word.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Protocol::Http,
        "http2" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" | "grpc-web" => Protocol::Grpc,
        _ => Protocol::Other,
    }
}

/// Declared ports of one pod that its proxy is told; nobody serves more.
const PORTS: usize = 1024;

/// Prefixes of port names that declare something other than HTTP in the clear, as Istio's users know them.
const OTHER_PREFIXES: [&str; 9] =
    ["https", "tls", "tcp", "udp", "mongo", "mysql", "redis", "postgres", "sctp"];

/// By a port's name: the protocol itself, or the protocol, a hyphen and anything. Other names declare nothing.
pub(super) fn by_port_name(name: &str) -> Option<Protocol> {
    match name.split('-').next()? {
        "http" => Some(Protocol::Http),
        "http2" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        other => OTHER_PREFIXES.contains(&other).then_some(Protocol::Other),
    }
}

/// `None` where Services don't agree: what one of them sends through may be no HTTP, so nobody's connection is read as
/// such; and it may be HTTP, so tokens are looked for.
fn agreed(one: Protocol, other: Protocol) -> Option<Protocol> {
    match (one, other) {
        _ if one == other => Some(one),
        (Protocol::Other, _) | (_, Protocol::Other) => None,
        // Either is told from the other by its first bytes.
        _ => Some(Protocol::Http),
    }
}

impl State {
    /// What the ports of a pod are declared to speak, in order.
    pub(super) fn declared(&self, pod: &PodInfo) -> Vec<(u16, Protocol)> {
        let mut ports: BTreeMap<u16, Option<Protocol>> = BTreeMap::new();
        let slices = self.services.slices_with(&pod.uid).filter(|slice| slice.name.0 == pod.namespace);
        for slice in slices {
            let Some(service) = self.services.get(&slice.service) else { continue };
            for (name, number) in &slice.ports {
                let declared = service.ports.iter().find(|port| port.name == *name);
                let Some(protocol) = declared.and_then(|port| port.protocol) else { continue };
                let join = |held: &mut Option<Protocol>| *held = held.and_then(|held| agreed(held, protocol));
                ports.entry(*number).and_modify(join).or_insert(Some(protocol));
            }
        }
        for port in pod.ports.iter() {
            if let Some(protocol) = port.protocol {
                ports.entry(port.number).or_insert(Some(protocol));
            }
        }
        ports.into_iter().filter_map(|(port, protocol)| Some((port, protocol?))).take(PORTS).collect()
    }
}

/// The wire's word for a protocol.
pub(super) fn wire(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Http => v1::Protocol::Http,
        Protocol::Http2 => v1::Protocol::Http2,
        Protocol::Grpc => v1::Protocol::Grpc,
        Protocol::Other => v1::Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_says_by_word_or_by_name_what_its_port_speaks() {
        use Protocol::{Grpc, Http, Http2, Other};
        for (word, protocol) in [
            ("http", Http),
            ("HTTP", Http),
            ("kubernetes.io/ws", Http),
            ("http2", Http2),
            ("kubernetes.io/h2c", Http2),
            ("grpc", Grpc),
            ("https", Other),
            ("kubernetes.io/wss", Other),
            ("tcp", Other),
            ("example.com/own", Other),
        ] {
            assert_eq!(by_app_protocol(word), protocol, "{word}");
        }
        for (name, protocol) in [
            ("http", Some(Http)),
            ("http-web", Some(Http)),
            ("http2-api", Some(Http2)),
            ("grpc-web", Some(Grpc)),
            ("https", Some(Other)),
            ("tcp-http", Some(Other)),
            ("redis", Some(Other)),
            ("httpx", None),
            ("web-http", None),
            ("", None),
        ] {
            assert_eq!(by_port_name(name), protocol, "{name}");
        }
    }

    #[test]
    fn services_that_do_not_agree_are_read_as_http_only_where_all_of_them_say_http() {
        use Protocol::{Grpc, Http, Http2, Other};
        for (one, other, want) in [
            (Http, Http, Some(Http)),
            (Grpc, Grpc, Some(Grpc)),
            (Http2, Grpc, Some(Http)),
            (Http, Other, None),
        ] {
            assert_eq!((agreed(one, other), agreed(other, one)), (want, want));
        }
    }
}
