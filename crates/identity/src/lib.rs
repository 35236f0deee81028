//! Workload identities: SPIFFE IDs, X.509 SVIDs, trust bundles, certificate requests, and the rustls
//! configurations that verify them.
//!
//! In go bytes of certificates, requests and IDs from anywhere; out come verified types and TLS
//! configurations, or an [`IdentityError`] with its reason. No I/O; private keys stay in memory.

mod bundle;
mod certificate;
mod error;
mod key;
mod spiffe_id;
mod tls;
mod verify;

pub use bundle::TrustBundle;
pub use certificate::{Svid, peer_id, peer_not_after, to_pem};
pub use error::{IdentityError, handshake_reason};
pub use key::{KeyPair, MAX_CSR, VerifiedCsr};
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use tls::{
    ClientCertificate, Peer, RecordLayer, client_config, provider, require_alpn, server_config, server_name,
    tunnel_client_config, tunnel_server_config,
};
pub use verify::{Usage, verified_issuers, verify_chain, verify_open_chain};
