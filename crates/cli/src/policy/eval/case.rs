//! What a case may hold, as it is written.

use cinch_policy::{Answer, Connection};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A header's name and value.
pub type Named = (String, String);

/// One request, or one connection that carries no HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestCase {
    /// What is spoken; left out: HTTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The SPIFFE ID of the peer; none for plaintext.
    #[serde(default)]
    pub peer: Option<String>,
    /// The direct connection's other end.
    pub source: Place,
    /// The client's address, where trusted proxies stand before the workload.
    #[serde(default)]
    pub remote_ip: Option<IpAddr>,
    /// The workload's end.
    pub destination: Place,
    /// The server name of the TLS handshake.
    #[serde(default)]
    pub sni: Option<String>,
    /// The method; left out: GET.
    #[serde(default)]
    pub method: Option<String>,
    /// The path with its query; left out: `/`.
    #[serde(default)]
    pub path: Option<String>,
    /// `Host` or `:authority`.
    #[serde(default)]
    pub host: Option<String>,
    /// All other headers.
    #[serde(default, deserialize_with = "or_default")]
    pub headers: Vec<Named>,
    /// The payload of a token that was verified already.
    #[serde(default)]
    pub claims: Option<Map<String, Value>>,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP of any version.
    #[default]
    Http,
    /// Anything else.
    Tcp,
}

/// An address and a port.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    #[serde(default)]
    pub port: u16,
}

/// What each provider of CUSTOM policies answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Providers(BTreeMap<String, ProviderAnswer>);

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProviderAnswer {
    Allow,
    Deny,
}

impl Providers {
    /// The answer of `name`.
    pub fn ask(&self, name: &str) -> Answer {
        match self.0.get(name) {
            Some(ProviderAnswer::Allow) => Answer::Allow,
            Some(ProviderAnswer::Deny) => Answer::Deny,
            None => Answer::Unreachable,
        }
    }
}

impl RequestCase {
    /// What is known of the connection.
    pub fn connection(&self) -> Connection<'_> {
        let destination = SocketAddr::new(self.destination.ip, self.destination.port);
        Connection {
            remote: self.remote_ip,
            sni: self.sni.as_deref(),
            ..Connection::new(self.peer.as_deref(), self.source.ip, destination)
        }
    }

    /// What contradicts itself or is no identity.
    ///
    /// # Errors
    /// A sentence that says so.
    pub fn check(&self) -> Result<(), String> {
        if let Some(peer) = &self.peer {
            cinch_identity::SpiffeId::parse(peer).map_err(|error| format!("request.peer: {error}"))?;
        }
        Ok(())
    }
}

/// A field whose `null` is the same as none.
pub fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
