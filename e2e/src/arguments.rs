//! The command line: what there is, and what each word means.

use crate::bench;
use crate::cluster::Options;
use crate::install::Redirect;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The command line.
#[derive(Parser)]
#[command(
    bin_name = "cargo e2e",
    about = "The embedded Kubernetes, the demo, the tests and the images of Cinch"
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What there is to do.
#[derive(Subcommand)]
pub enum Command {
    /// Start a cluster, install Cinch, play the story, check every line
    Demo {
        /// What cluster.
        #[command(flatten)]
        cluster: ClusterArguments,
        /// Who sets the redirect of pods
        #[arg(long, value_enum, default_value_t)]
        redirect: Redirect,
        /// Leave the cluster running, reachable through a loopback port
        #[arg(long)]
        keep: bool,
    },
    /// Run all tests; the last line says how many passed, failed and were skipped
    Test {
        /// Only the cluster tests and lines of the story that have one of these words, with commas between, in
        /// their names; not the whole, so the last line does not count as a run of the tests
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Play the chosen cluster tests on this kept cluster instead of one of their own
        #[arg(long, requires = "only")]
        on: Option<String>,
        /// Only the cluster tests and the story, on a release in which this sets the redirect of pods; what depends
        /// on another way is skipped, with the reason
        #[arg(long, value_enum, conflicts_with = "on")]
        redirect: Option<Redirect>,
    },
    /// Start a cluster with Cinch installed and leave it running
    Up {
        /// What cluster.
        #[command(flatten)]
        cluster: ClusterArguments,
        /// Without Cinch
        #[arg(long)]
        bare: bool,
    },
    /// Build images again and bring them into a running cluster
    Reload {
        /// operator, webhook, node, proxy or demo-app; all when not given
        component: Option<String>,
        /// The cluster's name
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Print figures of the redirect: what the sidecar adds to the start of a pod, by the node agent and by the init
    /// container; many pods that start at once, what their agent needs, how long flushed tables are gone, and how the
    /// pods end while the agent is replaced
    Figures {
        /// Pairs of pods for each way
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// Pods that start at once, one number after the other; the last ones then run, and end
        #[arg(long, value_delimiter = ',', default_value = "50,100", value_parser = clap::value_parser!(u32).range(1..=150))]
        at_once: Vec<u32>,
        /// On this kept cluster instead of one of their own
        #[arg(long)]
        on: Option<String>,
    },
    /// Remove every trace of the clusters, and check that
    Down {
        /// Only this one
        #[arg(long)]
        name: Option<String>,
    },
    /// Write the images as OCI layouts
    Images {
        /// Where to
        #[arg(default_value = "target/images")]
        folder: PathBuf,
    },
    /// Write what is generated from code: CRDs, manifests, chart parts
    Generate {
        /// Only compare with what is there
        #[arg(long)]
        check: bool,
    },
    /// Run the fuzz targets; the exit status says whether nothing was found
    Fuzz {
        /// Only this one
        target: Option<String>,
        /// For how long, each
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Measure what the data path costs, beside bare proxies and Envoy: prints a table, writes JSON
    Bench(BenchArguments),
    /// Let traffic go on while pods, policies and certificates change; the exit status says whether nothing failed
    /// and no proxy grew
    Soak {
        /// For how long
        #[arg(long, default_value_t = 20)]
        minutes: u64,
        /// The name of the cluster, which is started for it and taken down after it
        #[arg(long, default_value = "soak")]
        name: String,
    },
    /// The first process of a namespace
    #[command(hide = true)]
    Init {
        /// End when standard input does.
        #[arg(long)]
        guarded: bool,
        /// Its steps.
        plan: PathBuf,
    },
    /// A loopback port that leads into a cluster's network
    #[command(hide = true)]
    Forward {
        /// A process in that network.
        #[arg(long)]
        pid: i32,
        /// The address in it.
        #[arg(long)]
        target: SocketAddr,
        /// Where the port's number is written.
        #[arg(long)]
        port_file: PathBuf,
    },
    /// Packets between pairs of addresses, as JSON
    #[command(hide = true)]
    Capture {
        /// For how long.
        #[arg(long)]
        seconds: u64,
        /// Words to look for in them.
        #[arg(long = "word")]
        words: Vec<String>,
        /// Only TCP packets of these ports; of all when none is given.
        #[arg(long = "port")]
        ports: Vec<u16>,
    },
    /// The operator's answer to a request for a first certificate
    #[command(hide = true)]
    Ask {
        /// Its address.
        operator: SocketAddr,
        /// Its SPIFFE ID.
        id: String,
        /// Ask for another's name and for the right to sign, too
        #[arg(long)]
        ambitious: bool,
    },
}

/// What to measure.
#[derive(Args)]
pub struct BenchArguments {
    /// How often each peer has its turn
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Multiplies the time of every measurement
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Only these peers, with commas between
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Only these workloads, with commas between
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Take cinch-proxy and cinch-load from this folder instead of building them
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where the numbers are written
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

impl From<BenchArguments> for bench::Options {
    fn from(arguments: BenchArguments) -> Self {
        let BenchArguments { repetitions, scale, peers, workloads, programs, output } = arguments;
        Self { repetitions, scale, peers, workloads, programs, output }
    }
}

/// What cluster.
#[derive(Args)]
pub struct ClusterArguments {
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Clusters of different names can run beside each other
    #[arg(long, default_value = "demo")]
    name: String,
}

impl From<ClusterArguments> for Options {
    fn from(arguments: ClusterArguments) -> Self {
        Self { name: arguments.name, nodes: arguments.nodes }
    }
}
