//! The binary `cinch-proxy`: parses its arguments and runs one of the library's entry points.

use cinch_proxy::arguments::{self, Command};
use cinch_proxy::{init, process, run};
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

/// What a shell takes for a mistake in the arguments.
const MISUSE: u8 = 2;

fn main() -> ExitCode {
    let command = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprint!("error: {error}\n\n{}", arguments::USAGE);
            return ExitCode::from(MISUSE);
        }
    };
    process::start_logging();
    process::install_crypto();
    match command {
        Command::Run { config: None } => run::in_pod(),
        Command::Run { config: Some(path) } => run::standalone(&path),
        Command::Init => init::run(),
        Command::Version => {
            println!("cinch-proxy {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Help => {
            print!("{}", arguments::USAGE);
            ExitCode::SUCCESS
        }
    }
}
