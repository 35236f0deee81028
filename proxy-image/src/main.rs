//! The binary `cinch-proxy`: parses its arguments and runs one of the library's entry points.

use cinch_proxy::{init, process, run};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One arena, because one thread does nearly all the work. Memory goes back to the system within a second or two,
/// by a thread of the allocator's own: else nothing goes back once nothing happens, and a proxy is idle most of the
/// time.
// SAFETY: jemalloc reads this symbol once, as a pointer to a string that ends with NUL; that is what a reference
// to an array of bytes is, and nothing else defines the name.
#[allow(unsafe_code)]
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8; 95] =
    b"narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true,max_background_threads:1\0";

#[derive(Parser)]
#[command(name = "cinch-proxy", about = "The sidecar proxy of Cinch", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy: in a pod with the operator, or by a file.
    Run {
        /// Take everything from this file instead of a control plane.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Set the redirect of this network namespace and prove it.
    Init,
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::start_logging();
    process::install_crypto();
    match arguments.command {
        Command::Run { config: None } => run::in_pod(),
        Command::Run { config: Some(path) } => run::standalone(&path),
        Command::Init => init::run(),
        Command::Version => {
            println!("cinch-proxy {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}
