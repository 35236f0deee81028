//! One large upload over HTTP/1.1, whose checksum both ends make.

use super::bytes::{Run, Sum};
use crate::http;
use anyhow::{Context, ensure};
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Sends so many bytes, and compares what the server says of them.
pub async fn client(mut stream: TcpStream, length: u64) -> anyhow::Result<String> {
    let begun = Instant::now();
    let head = format!("PUT /sum HTTP/1.1\r\nHost: try\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut sent = Sum::new();
    for piece in Run::new(5, length) {
        sent.add(&piece);
        stream.write_all(&piece).await.context("write")?;
    }
    let answer = http::read(&mut stream, &mut Vec::new()).await?.context("closed without an answer")?;
    let wanted = format!("PUT /sum HTTP/1.1 {}", sent.told());
    ensure!(
        answer.header("x-seen") == Some(&wanted),
        "{} {:?}, not {wanted}",
        answer.start,
        answer.header("x-seen")
    );
    let rate = length as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
    Ok(format!("{} MiB arrived as they were sent, {rate:.0} MiB/s", length >> 20))
}
