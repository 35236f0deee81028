//! Fetches one document: a URL goes in, its bytes and how long they may be kept come out. All of it is bounded:
//! time, size, redirects. The name is resolved here and the address that is dialled is the one that was judged,
//! so a name that answers differently the second time gains nothing.

use super::address;
use super::fault::{Fault, quoted};
use super::schedule::max_age;
use super::trust::Trust;
use super::url::{Plain, Url};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls_pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// As much as a key set may have; discovery documents are far smaller.
pub(super) const LARGEST: usize = 256 * 1024;
/// Issuers behind a moved name redirect once.
const MOST_REDIRECTS: usize = 3;
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;
const LARGEST_HEAD: usize = 64 * 1024;
const AGENT: &str = concat!("cinch-operator/", env!("CARGO_PKG_VERSION"));

/// Turns a name into addresses.
pub(super) type Resolve =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
pub(super) fn system_resolver() -> Resolve {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// What may be fetched, and how.
pub(super) struct Fetcher {
    /// Whom TLS trusts.
    pub(super) trust: Trust,
    /// Ranges that may be dialled though they are not public.
    pub(super) allowed: Vec<IpNet>,
    /// Whether plain HTTP will do.
    pub(super) plain: Plain,
    /// Where names are resolved.
    pub(super) resolve: Resolve,
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetched {
    /// The body.
    pub(super) body: Bytes,
    /// What `Cache-Control` says.
    pub(super) max_age: Option<Duration>,
}

/// The bounds of one fetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    /// Ranges of the cluster.
    pub(super) cluster: &'a [IpNet],
    /// When it must be done.
    pub(super) deadline: Instant,
    /// How long that was from the begin, for the message.
    pub(super) timeout: Duration,
}

impl Fetcher {
    /// Fetches `url`, following a few redirects.
    pub(super) async fn get(&self, url: &Url, bounds: Bounds<'_>) -> Result<Fetched, Fault> {
        let slow = || Fault::Slow {
            host: quoted(url.host()),
            milliseconds: u64::try_from(bounds.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        tokio::time::timeout_at(bounds.deadline, self.follow(url, bounds.cluster))
            .await
            .unwrap_or_else(|_| Err(slow()))
    }

    async fn follow(&self, url: &Url, cluster: &[IpNet]) -> Result<Fetched, Fault> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let (response, _connection) = self.ask(&url, cluster).await?;
            if !is_redirect(response.status()) {
                return read(&url, response).await;
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| Fault::Http(quoted(url.host())))?;
            url = url.join(location, self.plain)?;
        }
        Err(Fault::Redirects(quoted(url.host())))
    }

    /// One request on a connection of its own, which ends when the handle is dropped.
    async fn ask(
        &self,
        url: &Url,
        cluster: &[IpNet],
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Fault> {
        let stream = self.dial(url, cluster).await?;
        if !url.encrypted {
            return exchange(url, stream).await;
        }
        let host = quoted(url.host());
        let tls = |problem: String| Fault::Tls { host: host.clone(), problem };
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|_| tls("the host can not stand in a certificate".to_owned()))?;
        let connector = TlsConnector::from(self.trust.config().await?);
        let stream = connector.connect(name, stream).await.map_err(|error| tls(error.to_string()))?;
        exchange(url, stream).await
    }

    /// Connects to an address that may be dialled.
    async fn dial(&self, url: &Url, cluster: &[IpNet]) -> Result<TcpStream, Fault> {
        let addresses = self.addresses(url).await?;
        let judge = |ip: IpAddr| address::refusal(ip, &self.allowed, cluster);
        let may: Vec<_> =
            addresses.iter().filter(|to| judge(to.ip()).is_none()).take(MOST_ADDRESSES).collect();
        let mut fault = match addresses.iter().find_map(|to| Some((to.ip().to_canonical(), judge(to.ip())?)))
        {
            Some((address, word)) => Fault::Refused { host: quoted(url.host()), address, word },
            None => Fault::Unresolved(quoted(url.host())),
        };
        for to in may {
            match TcpStream::connect(to).await {
                Ok(stream) => {
                    // A request is one small packet.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => {
                    fault =
                        Fault::Unreachable { host: quoted(url.host()), problem: error.kind().to_string() };
                }
            }
        }
        Err(fault)
    }

    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Fault> {
        if let Some(ip) = url.address() {
            return Ok(vec![SocketAddr::new(ip, url.port)]);
        }
        let found = (self.resolve)(url.host().to_owned(), url.port).await;
        found.map_err(|_| Fault::Unresolved(quoted(url.host())))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Sends the request and waits for the head of the answer.
async fn exchange<S>(url: &Url, stream: S) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let fault = || Fault::Http(quoted(url.host()));
    let request = Request::get(url.target())
        .header(header::HOST, url.authority())
        .header(header::USER_AGENT, AGENT)
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| fault())?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| fault())?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong on it the request or its body is told.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(|_| fault())?;
    Ok((response, connection))
}

async fn read(url: &Url, response: Response<Incoming>) -> Result<Fetched, Fault> {
    let host = || quoted(url.host());
    let status = response.status();
    if status != StatusCode::OK {
        return Err(Fault::Status { host: host(), status: status.as_u16() });
    }
    let headers = response.headers();
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Fault::Http(host()));
    }
    let max_age = headers.get(header::CACHE_CONTROL).and_then(|value| max_age(value.to_str().ok()?));
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Fault::TooLarge { host: host(), limit: LARGEST }
        } else {
            Fault::Http(host())
        }
    })?;
    Ok(Fetched { body: body.to_bytes(), max_age })
}
