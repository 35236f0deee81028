//! `cinch-node run`: flags in, the running agent out.

use cinch_node::run::{Settings, run};
use cinch_node::serve::KubeletPaths;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Node agent of Cinch.
#[derive(Parser)]
#[command(disable_version_flag = true)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the kubelet and the pods of this node until SIGTERM.
    Run {
        /// Name of the node.
        #[arg(long, env = "NODE_NAME")]
        node: String,
        /// Root directory of the kubelet.
        #[arg(long, default_value = "/var/lib/kubelet")]
        kubelet: PathBuf,
        /// Where the cgroups of the node are mounted.
        #[arg(long, default_value = "/sys/fs/cgroup")]
        cgroups: PathBuf,
        /// Port of health and metrics.
        #[arg(long, default_value_t = 8080)]
        health_port: u16,
    },
    /// Print the version.
    Version,
}

fn main() -> anyhow::Result<()> {
    match Flags::parse().command {
        Command::Version => {
            println!("cinch-node {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Run { node, kubelet, cgroups, health_port } => {
            let filter = EnvFilter::try_from_env("CINCH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .with_writer(std::io::stderr)
                .init();
            run(Settings { node, kubelet: KubeletPaths::below(&kubelet), cgroups, health_port })
        }
    }
}
