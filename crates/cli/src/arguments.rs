//! The command line: `kubectl cinch VERB [NAMESPACE] …`. Verbs that need no cluster keep their options beside
//! their code.

use crate::inject::Inject;
use crate::policy::Policy;
use clap::{Args, Parser, Subcommand};

/// Enrols namespaces into the Cinch mesh, shows where they stand, and relaxes them.
#[derive(Debug, Parser)]
#[command(name = "kubectl cinch", bin_name = "kubectl cinch")]
pub struct Arguments {
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Which cluster, and where Cinch is in it.
#[derive(Debug, Args)]
pub struct Global {
    /// The kubeconfig context to use; without it, the current one of KUBECONFIG.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace in which Cinch is installed.
    #[arg(long, global = true, default_value = "cinch-system")]
    pub cinch_namespace: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Says what enrolment would change, labels the namespace and, if asked, restarts its workloads.
    Enroll(Enroll),
    /// Takes a namespace out of the mesh.
    Unenroll(Unenroll),
    /// Checks that every part of Cinch is ready and which nodes can have meshed pods.
    Check,
    /// Shows postures, what blocks them, and who sends plaintext.
    Status(Status),
    /// Takes the STRICT lock of a namespace away. Needs the verb relax and a reason.
    Relax(Relax),
    /// Shows what the webhook would make of pods and workloads, without a cluster.
    Inject(Inject),
    /// Evaluates, tests and explains policies.
    Policy(Policy),
    /// Shows the version of this program and of the operator.
    Version,
}

/// Options of `enroll`.
#[derive(Debug, Args)]
pub struct Enroll {
    /// The namespace.
    pub namespace: String,
    /// Restart the Deployments, StatefulSets and DaemonSets whose pods have no sidecar yet.
    #[arg(long)]
    pub restart: bool,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// How to follow the restart.
    #[command(flatten)]
    pub wait: Wait,
}

/// Options of `unenroll`.
#[derive(Debug, Args)]
pub struct Unenroll {
    /// The namespace.
    pub namespace: String,
    /// Restart the workloads whose pods have a sidecar.
    #[arg(long)]
    pub restart: bool,
    /// Why, where the namespace is locked or requires injection.
    #[arg(long)]
    pub reason: Option<String>,
    /// How to follow the restart.
    #[command(flatten)]
    pub wait: Wait,
}

/// How to follow a restart.
#[derive(Debug, Args)]
pub struct Wait {
    /// Return at once, without following the restart.
    #[arg(long)]
    pub no_wait: bool,
    /// Follow the restart for at most so many seconds.
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The namespace; without it, all that have a posture.
    pub namespace: Option<String>,
}

/// Options of `relax`.
#[derive(Debug, Args)]
pub struct Relax {
    /// The namespace.
    pub namespace: String,
    /// Why. It is written to the namespace and to the audit log.
    #[arg(long)]
    pub reason: String,
    /// Also stop requiring injection.
    #[arg(long)]
    pub injection: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn labels_of_a_namespace_are_pairs_with_commas_between() {
        let parse = |labels: &str| {
            Arguments::try_parse_from(["kubectl-cinch", "inject", "-f", "-", "--namespace-labels", labels])
        };
        let Verb::Inject(options) = parse("a=1,b=x=y,c").unwrap().verb else { panic!("another verb") };
        let labels: Vec<_> = options.namespace_labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("a", "1"), ("b", "x=y"), ("c", "")]);
        assert!(parse("").is_ok());
        assert!(parse("=1").is_err());
    }

    #[test]
    fn a_relaxation_without_a_reason_is_refused() {
        assert!(Arguments::try_parse_from(["kubectl-cinch", "relax", "shop"]).is_err());
        assert!(
            Arguments::try_parse_from(["kubectl-cinch", "relax", "shop", "--reason", "incident 7"]).is_ok()
        );
    }
}
