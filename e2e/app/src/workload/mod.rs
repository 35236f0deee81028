//! Real workloads in small, on both ends: HTTP of any verb, uploads, WebSocket, gRPC streams, and a protocol in which
//! the server speaks first. Every byte that one end sends is known to the other or told by a checksum, so that a byte
//! that was lost, doubled or changed on the way is an error.

mod bytes;
mod greeting;
mod grpc;
mod upload;
mod web;
mod websocket;

use crate::serve::Stop;
use anyhow::Context;
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, lookup_host};

/// Far longer than any of them takes, but for large uploads.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the servers listen.
#[derive(Debug, Clone, clap::Args)]
pub struct Ports {
    /// Port of HTTP/1 and WebSocket.
    #[arg(long, default_value = "8080")]
    http: u16,
    /// Port of gRPC.
    #[arg(long, default_value = "9000")]
    grpc: u16,
    /// Port on which the server speaks first.
    #[arg(long, default_value = "2525")]
    greeting: u16,
}

/// What a client needs.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The servers' host, a name or an address.
    server: String,
    #[command(flatten)]
    ports: Ports,
    /// How much is uploaded.
    #[arg(long, default_value = "16")]
    upload_mib: u64,
}

/// Serves all of them until SIGTERM.
pub async fn serve(ports: Ports, mut stop: Stop) -> anyhow::Result<()> {
    tokio::select! {
        result = each(ports.http, web::connection) => result,
        result = each(ports.grpc, grpc::connection) => result,
        result = each(ports.greeting, greeting::connection) => result,
        () = stop.wait() => Ok(()),
    }
}

/// Serves the connections of a port, each in a task of its own.
async fn each<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
    port: u16,
    serve: fn(TcpStream) -> F,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
    println!("listening on {port}");
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let serving = serve(stream);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                println!("broken port={port} peer={peer} error={error:#}");
            }
        });
    }
}

/// Plays the clients of all of them against `server`; prints a line for each.
pub async fn play(options: Options) -> anyhow::Result<()> {
    let Options { server, ports, upload_mib } = options;
    let to = |port: u16| connect(&server, port);
    told("greeting", greeting::client(to(ports.greeting).await?)).await?;
    told("grpc", grpc::client(to(ports.grpc).await?)).await?;
    told("websocket", websocket::client(to(ports.http).await?)).await?;
    told("http/1.0", web::old_client(to(ports.http).await?)).await?;
    told("upload", upload::client(to(ports.http).await?, upload_mib << 20)).await
}

async fn connect(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let mut addresses = lookup_host((host, port)).await.with_context(|| format!("look {host} up"))?;
    let address: SocketAddr = addresses.next().with_context(|| format!("{host} has no address"))?;
    let connecting = tokio::time::timeout(LIMIT, TcpStream::connect(address));
    let stream =
        connecting.await.context("connect: no answer")?.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says what a client has seen, or fails with its name.
async fn told(name: &str, client: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let seen =
        tokio::time::timeout(LIMIT, client).await.with_context(|| format!("{name}: takes too long"))?;
    println!("{name}: {} ({} ms)", seen.with_context(|| name.to_owned())?, begun.elapsed().as_millis());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A connection to a server that serves one.
    async fn served<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
        serve: fn(TcpStream) -> F,
    ) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(server));
        client
    }

    #[tokio::test]
    async fn clients_and_servers_agree_on_every_byte() {
        greeting::client(served(greeting::connection).await).await.unwrap();
        grpc::client(served(grpc::connection).await).await.unwrap();
        websocket::client(served(web::connection).await).await.unwrap();
        web::old_client(served(web::connection).await).await.unwrap();
        upload::client(served(web::connection).await, 3 << 20).await.unwrap();
    }

    #[tokio::test]
    async fn one_changed_bit_on_the_way_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut of_client, _) = listener.accept().await.unwrap();
        let mut of_server = served(web::connection).await;
        tokio::spawn(async move {
            let mut bytes = vec![0; 200_000];
            of_client.read_exact(&mut bytes).await.unwrap();
            bytes[150_000] ^= 1;
            of_server.write_all(&bytes).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut of_client, &mut of_server).await;
        });
        let error = upload::client(client, 1 << 20).await.unwrap_err().to_string();
        assert!(error.contains(" 1048576 "), "{error}");
    }
}
