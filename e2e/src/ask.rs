//! Asks the operator for a first certificate, as a sidecar does, with a token of the caller's choice
//! (`cinch-e2e ask`, run inside a pod's network namespace): shows how bad tokens and requests are answered.

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use cinch_control::v1::{FirstCertificate, OperatorMessage, ProxyMessage, operator_message, proxy_message};
use cinch_control::{ALPN, Decoder, MAX_MESSAGE, encode};
use cinch_identity::{KeyPair, Peer, SpiffeId, TrustBundle, TrustDomain, client_config, server_name};
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Sends the token that stands on standard input (its first line) and prints the operator's answer: the
/// reason and message of a refusal, or `Certificate` with the number of certificates. The bundle, PEM,
/// follows on the other lines. An ambitious request asks for a name and for the right to sign, too.
///
/// # Errors
/// When the operator can't be reached or does not keep to the protocol.
pub fn run(operator: SocketAddr, id: &str, ambitious: bool) -> Result<()> {
    // A second installation of the provider in one process is no fault.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let (token, bundle) = input.split_once('\n').context("a token and a bundle on standard input")?;
    let id = SpiffeId::parse(id)?;
    let trust_domain: TrustDomain = id.trust_domain();
    let bundle = TrustBundle::from_pem(trust_domain, bundle)?;
    let config = client_config(None, &bundle, Peer::Exactly(id), &[ALPN])?;
    let socket = TcpStream::connect_timeout(&operator, LIMIT)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let mut stream = StreamOwned::new(ClientConnection::new(config, server_name())?, socket);
    let csr = if ambitious { ambitious_csr()? } else { KeyPair::generate()?.csr()? };
    let request = FirstCertificate { token: token.to_owned(), csr: csr.into() };
    let mut wire = BytesMut::new();
    encode(&ProxyMessage { kind: Some(proxy_message::Kind::FirstCertificate(request)) }, &mut wire)?;
    stream.write_all(&wire)?;
    println!("{}", answer(&mut stream)?);
    Ok(())
}

/// A request for a certificate authority's certificate in the name of somebody else.
fn ambitious_csr() -> Result<Vec<u8>> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let admin = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into()?;
    params.subject_alt_names = vec![rcgen::SanType::URI(admin)];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Ok(params.serialize_request(&rcgen::KeyPair::generate()?)?.der().to_vec())
}

fn answer(stream: &mut impl Read) -> Result<String> {
    let (decoder, mut buffer, mut piece) =
        (Decoder::<OperatorMessage>::new(MAX_MESSAGE), BytesMut::new(), [0u8; 4096]);
    loop {
        if let Some(message) = decoder.next(&mut buffer)? {
            return match message.kind {
                Some(operator_message::Kind::Refused(refused)) => {
                    Ok(format!("{}: {}", refused.reason, refused.message))
                }
                Some(operator_message::Kind::Certificate(issued)) => {
                    Ok(format!("Certificate: {}", issued.chain.len()))
                }
                other => bail!("an unexpected answer: {other:?}"),
            };
        }
        let length = stream.read(&mut piece).context("no answer")?;
        if length == 0 {
            bail!("closed without an answer");
        }
        buffer.extend_from_slice(piece.get(..length).unwrap_or_default());
    }
}
