//! Names that the injected pod and the agent must agree on. The injection has them too; a test compares, so that
//! this program need not carry what the injection is made of.

/// The CSI driver that the agent is.
pub const AGENT_DRIVER: &str = "node.cinch.dev";
/// The name of the socket in a pod's volume.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The container that is answered.
pub const PROXY_CONTAINER: &str = "cinch-proxy";
/// The user that it runs as.
pub const PROXY_UID: u32 = 1507;

#[cfg(test)]
mod tests {
    /// Read as text: what the injection needs to be built is more than this whole program.
    const INJECTION: &str = include_str!("../../crates/injection/src/sidecar.rs");

    #[test]
    fn names_are_those_of_the_injection() {
        let text = |name: &str, value: &str| format!("pub const {name}: &str = {value:?};");
        for line in [
            text("AGENT_DRIVER", super::AGENT_DRIVER),
            text("AGENT_SOCKET", super::AGENT_SOCKET),
            text("PROXY_CONTAINER", super::PROXY_CONTAINER),
            format!("pub const PROXY_UID: u32 = {};", super::PROXY_UID),
        ] {
            assert!(INJECTION.contains(&line), "{line}");
        }
    }
}
