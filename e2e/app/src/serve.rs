//! The server: answers every path with a body that holds a marker, logs who asked, drains on SIGTERM.

use crate::http;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub struct Options {
    /// Ports to listen on.
    #[arg(long, default_value = "8080", value_delimiter = ',')]
    ports: Vec<u16>,
    /// What the body of each answer holds.
    #[arg(long, default_value = "hello")]
    marker: String,
    /// How long to go on accepting after SIGTERM, until every peer has seen that the endpoint goes.
    #[arg(long, default_value = "4s", value_parser = crate::duration)]
    drain: Duration,
}

impl Options {
    /// A server beside a client, on one port.
    pub fn on(port: u16, marker: String, drain: Duration) -> Self {
        Self { ports: vec![port], marker, drain }
    }
}

/// Tells when the process has been asked to end.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Turns true at SIGTERM or SIGINT.
    pub fn on_sigterm() -> anyhow::Result<Self> {
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            if crate::terminated().await.is_ok() {
                println!("asked to end");
                sender.send_replace(true);
            }
        });
        Ok(Self(receiver))
    }

    pub fn asked(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn wait(&mut self) {
        // The sender lives as long as the process: an error can't come before the end.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}

/// Serves until SIGTERM and the drain time have passed and every open request is answered.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    let mut listeners = JoinSet::new();
    let (sender, mut accepted) = tokio::sync::mpsc::channel::<(TcpStream, SocketAddr)>(64);
    for port in &options.ports {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).await?;
        println!("listening on {port}");
        let sender = sender.clone();
        listeners.spawn(async move {
            while let Ok(connection) = listener.accept().await {
                if sender.send(connection).await.is_err() {
                    return;
                }
            }
        });
    }
    let end = async {
        let mut stop = stop.clone();
        stop.wait().await;
        tokio::time::sleep(options.drain).await;
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some((stream, peer)) = accepted.recv() => {
                let (marker, stop) = (options.marker.clone(), stop.clone());
                connections.spawn(async move { connection(stream, peer, &marker, &stop).await });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    listeners.shutdown().await;
    let finished = tokio::time::timeout(Duration::from_secs(3), async {
        while connections.join_next().await.is_some() {}
    });
    println!("drained: {}", finished.await.is_ok());
    Ok(())
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, marker: &str, stop: &Stop) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    loop {
        let request = match http::read(&mut stream, &mut buffer).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                println!("broken peer={peer} bytes={} error={error:#}", buffer.len());
                return;
            }
        };
        let client = request.header("x-client").unwrap_or("-");
        println!("request client={client} peer={peer} line={:?}", request.start);
        let close = request.closes() || stop.asked();
        let (status, body) = if request.start.starts_with("GET /fail") {
            ("503 Service Unavailable", String::from("failing as asked\n"))
        } else {
            ("200 OK", format!("{marker} {}\n", hostname()))
        };
        let connection = if close { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() || close {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

fn hostname() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| String::from("unknown"))
}
