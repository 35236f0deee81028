//! The scanner: connects, sends nothing, closes, as a port scan does.

use std::time::Duration;
use tokio::net::TcpStream;

#[derive(clap::Args)]
pub struct Options {
    /// `host:port`; may be given several times.
    #[arg(long = "to", required = true)]
    targets: Vec<String>,
    /// Wait so long with the open connection before it is closed.
    #[arg(long, default_value = "50ms", value_parser = crate::duration)]
    hold: Duration,
}

pub async fn run(options: &Options) -> anyhow::Result<()> {
    for target in &options.targets {
        match tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(target)).await {
            Ok(Ok(stream)) => {
                tokio::time::sleep(options.hold).await;
                drop(stream);
                println!("scan target={target} open");
            }
            Ok(Err(error)) => println!("scan target={target} closed: {error}"),
            Err(_) => println!("scan target={target} no answer"),
        }
    }
    Ok(())
}
