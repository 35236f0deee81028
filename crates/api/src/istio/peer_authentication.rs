//! `PeerAuthentication`.

use super::Kind;
use super::schema::{described, map, open, ruled, selector, words};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// As many ports as there are.
const MOST_PORTS: i64 = 65535;

const PORTS_NEED_PODS: (&str, &str) = (
    "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0)",
    "portLevelMtls needs a selector with matchLabels: ports belong to workloads, a whole namespace has none",
);
const PORTS: (&str, &str) =
    ("self.all(port, 0 < int(port) && int(port) <= 65535)", "the keys are port numbers between 1 and 65535");

pub(super) fn kind() -> Kind {
    Kind {
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short: "pa",
        columns: &[("Mode", ".spec.mtls.mode")],
        description: "Whether the workloads that it selects accept mutual TLS, plaintext or both.",
        spec: spec(),
    }
}

fn spec() -> JSONSchemaProps {
    let ports = JSONSchemaProps {
        min_properties: Some(1),
        max_properties: Some(MOST_PORTS),
        ..map(mtls("The mode of this port."), "Modes of single ports of the workload, by number.")
    };
    let schema = open([
        ("selector", selector()),
        ("mtls", mtls("The mode of all ports.")),
        ("portLevelMtls", ruled(ports, &[PORTS])),
    ]);
    ruled(schema, &[PORTS_NEED_PODS])
}

fn mtls(description: &str) -> JSONSchemaProps {
    let mode = words(
        &["UNSET", "DISABLE", "PERMISSIVE", "STRICT"],
        "DISABLE: plaintext only; PERMISSIVE: both; STRICT: mutual TLS only; UNSET or left out: as the wider scope says.",
    );
    described(open([("mode", mode)]), description)
}
