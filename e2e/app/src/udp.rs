//! UDP, which no proxy carries: a listener that sends each datagram back, and a speaker that keeps one socket connected
//! to its peer and asks over it. In goes where; out come lines that say whether it was heard.

use anyhow::Context;
use std::future::pending;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

/// Nobody here sends longer ones.
const LONGEST: usize = 1500;
const WORD: &[u8] = b"is anybody there?";

#[derive(clap::Args)]
pub struct Options {
    /// Port to listen on; each datagram goes back to who sent it.
    #[arg(long)]
    at: Option<u16>,
    /// `host:port` to speak to.
    #[arg(long)]
    to: Option<String>,
    /// How long an answer is waited for, and the pause until the next word.
    #[arg(long, default_value = "500ms", value_parser = crate::duration)]
    interval: Duration,
}

/// Listens, speaks or both, until SIGTERM.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listening = async {
        let Some(port) = options.at else { return pending().await };
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
        println!("listening on {port}/udp");
        send_back(&socket).await
    };
    let speaking = async {
        let Some(to) = &options.to else { return pending().await };
        let socket = connect(to).await?;
        let mut heard = None;
        loop {
            let now = is_heard(&socket, options.interval).await;
            if heard.replace(now) != Some(now) {
                println!("udp to={to} heard={now}");
            }
            tokio::time::sleep(options.interval).await;
        }
    };
    tokio::select! {
        ended = listening => ended,
        ended = speaking => ended,
        ended = crate::terminated() => ended,
    }
}

async fn send_back(socket: &UdpSocket) -> anyhow::Result<()> {
    let mut datagram = [0; LONGEST];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).await?;
        // Who has left needs no answer.
        let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), peer).await;
    }
}

async fn connect(to: &str) -> anyhow::Result<UdpSocket> {
    let peer = lookup_host(to).await?.next().with_context(|| format!("{to} has no address"))?;
    let any = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await?;
    Ok(socket)
}

/// Whether a word comes back in time.
async fn is_heard(socket: &UdpSocket, patience: Duration) -> bool {
    let mut datagram = [0; LONGEST];
    let exchange = async {
        socket.send(WORD).await?;
        socket.recv(&mut datagram).await
    };
    matches!(timeout(patience, exchange).await, Ok(Ok(length)) if datagram.get(..length) == Some(WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_word_comes_back_and_without_a_listener_none_does() {
        let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let listening = tokio::spawn(async move { send_back(&listener).await });
        let speaker = connect(&at.to_string()).await.unwrap();
        assert!(is_heard(&speaker, Duration::from_secs(60)).await);
        listening.abort();
        assert!(listening.await.unwrap_err().is_cancelled());
        assert!(!is_heard(&speaker, Duration::from_millis(50)).await);
    }
}
