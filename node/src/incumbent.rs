//! Who serves the kubelet on this node at the moment. In goes the path of the socket of the CSI services; out comes
//! who answers there, asked as any client of CSI would ask, and whether an agent should take its place.

use crate::csi::v1::ProbeResponse;
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An agent answers within a millisecond; one whose node is busy, within some hundred.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// So many questions in a row without an answer, and who has the socket is taken for dead.
const SILENCE: u32 = 3;
/// The bytes before a message of gRPC: whether it is compressed, and its length.
const MESSAGE_HEAD: usize = 5;

/// Who answers where the kubelet asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incumbent {
    /// There is no socket, or nobody listens at it.
    Nobody,
    /// Somebody listens and does not answer.
    Silent,
    /// An agent whose node can't do what is asked of it: it refuses every pod.
    Faulty,
    /// An agent that works.
    Works,
}

/// Asks who answers at `socket`.
pub async fn ask(socket: &Path) -> Incumbent {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Incumbent::Nobody;
        }
        Err(_) => return Incumbent::Silent,
    };
    match timeout(ANSWER_TIMEOUT, probe(stream)).await {
        Ok(Ok(true)) => Incumbent::Works,
        Ok(Ok(false)) => Incumbent::Faulty,
        Ok(Err(_)) | Err(_) => Incumbent::Silent,
    }
}

/// `Probe` of the CSI specification, over one connection of its own: whether the other end says that it is ready.
async fn probe(stream: UnixStream) -> Result<bool> {
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let exchange = async {
        let request = Request::post("http://localhost/csi.v1.Identity/Probe")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(&[0; MESSAGE_HEAD])))?;
        let body = requests.send_request(request).await?.into_body().collect().await?.to_bytes();
        // A failure has no message, only trailers.
        let message = body.get(MESSAGE_HEAD..).context("an answer without a message")?;
        // Who says nothing of it is ready, the specification says.
        Ok::<bool, anyhow::Error>(ProbeResponse::decode(message)?.ready.is_none_or(|ready| ready.value))
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => Err(ended.err().map_or_else(|| anyhow!("the connection ended"), Into::into)),
    }
}

/// How an agent that the kubelet does not speak to judges the one that it does.
#[derive(Debug, Default)]
pub struct Patience {
    silent: u32,
}

impl Patience {
    /// Whether to take the place of `incumbent`. An agent that works leaves its place to nobody who does, and one that
    /// `is_faulty` would only refuse in the place of who refuses.
    pub fn is_at_end(&mut self, incumbent: Incumbent, is_faulty: bool) -> bool {
        self.silent = if incumbent == Incumbent::Silent { self.silent + 1 } else { 0 };
        match incumbent {
            Incumbent::Nobody => true,
            Incumbent::Silent => self.silent >= SILENCE,
            Incumbent::Faulty => !is_faulty,
            Incumbent::Works => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Incumbent::{Faulty, Nobody, Silent, Works};
    use super::*;

    #[test]
    fn only_who_does_not_work_is_replaced_and_not_by_who_would_only_refuse() {
        for (incumbent, by_a_working_one, by_a_faulty_one) in
            [(Nobody, true, true), (Faulty, true, false), (Works, false, false), (Silent, false, false)]
        {
            let at_end = |is_faulty| Patience::default().is_at_end(incumbent, is_faulty);
            assert_eq!((at_end(false), at_end(true)), (by_a_working_one, by_a_faulty_one), "{incumbent:?}");
        }
    }

    #[test]
    fn silence_counts_only_in_a_row() {
        let mut patience = Patience::default();
        let all = [Silent, Silent, Works, Silent, Silent, Silent, Silent];
        let ends = all.map(|incumbent| patience.is_at_end(incumbent, true));
        assert_eq!(ends, [false, false, false, false, false, true, true]);
    }
}
