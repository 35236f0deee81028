//! A mail server in small (RFC 5321): the server speaks first, both sides speak in turn, and the server ends the
//! connection.

use super::bytes::{Run, Sum};
use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const GREETING: &str = "220 demo ready";
/// How much a message holds.
const MESSAGE: u64 = 300_000;

/// Greets, takes messages, tells their checksums.
pub async fn connection(stream: TcpStream) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    say(&mut stream, GREETING).await?;
    loop {
        let Some(line) = heard(&mut stream).await? else { return Ok(()) };
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("HELO", name) => say(&mut stream, &format!("250 hello {name}")).await?,
            ("BDAT", length) => {
                let sum = sum(&mut stream, length.parse().context("BDAT")?).await?;
                say(&mut stream, &format!("250 {sum}")).await?;
            }
            ("QUIT", _) => {
                say(&mut stream, "221 bye").await?;
                return stream.shutdown().await.context("shutdown");
            }
            _ => say(&mut stream, "500 what?").await?,
        }
    }
}

/// Listens until it is greeted, then delivers a message (RFC 3030).
pub async fn client(stream: TcpStream) -> anyhow::Result<String> {
    let mut stream = BufReader::new(stream);
    expect(&mut stream, GREETING).await?;
    say(&mut stream, "HELO try").await?;
    expect(&mut stream, "250 hello try").await?;
    say(&mut stream, &format!("BDAT {MESSAGE}")).await?;
    let mut sent = Sum::new();
    for piece in Run::new(3, MESSAGE) {
        sent.add(&piece);
        stream.write_all(&piece).await?;
    }
    expect(&mut stream, &format!("250 {}", sent.told())).await?;
    say(&mut stream, "QUIT").await?;
    expect(&mut stream, "221 bye").await?;
    ensure!(heard(&mut stream).await?.is_none(), "the server should have ended the connection");
    Ok(format!("greeted first, {MESSAGE} bytes delivered"))
}

async fn sum(stream: &mut BufReader<TcpStream>, mut left: usize) -> anyhow::Result<String> {
    let (mut sum, mut buffer) = (Sum::new(), vec![0; 16 * 1024]);
    while left > 0 {
        let room = left.min(buffer.len());
        let count = stream.read(buffer.get_mut(..room).unwrap_or_default()).await?;
        if count == 0 {
            bail!("the message ended early");
        }
        sum.add(buffer.get(..count).unwrap_or_default());
        left -= count;
    }
    Ok(sum.told())
}

async fn say(stream: &mut BufReader<TcpStream>, line: &str) -> anyhow::Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await.context("write")
}

/// A line; `None` at the end of the stream.
async fn heard(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Option<String>> {
    let mut line = String::new();
    let count = stream.read_line(&mut line).await.context("read")?;
    Ok((count > 0).then(|| line.trim_end().to_owned()))
}

async fn expect(stream: &mut BufReader<TcpStream>, wanted: &str) -> anyhow::Result<()> {
    let line = heard(stream).await?;
    ensure!(line.as_deref() == Some(wanted), "heard {line:?} in place of {wanted:?}");
    Ok(())
}
