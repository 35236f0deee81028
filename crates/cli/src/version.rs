//! `version`: of this program and of the operator.

use crate::cluster::Cluster;
use anyhow::Result;
use cinch_api::names::{OPERATOR, WEBHOOK};
use k8s_openapi::api::apps::v1::Deployment;

/// Prints the versions.
///
/// # Errors
/// When the Deployments may not be read.
pub async fn run(cluster: &Cluster) -> Result<()> {
    println!("client: {}", env!("CARGO_PKG_VERSION"));
    for name in [OPERATOR, WEBHOOK] {
        let found = cluster.of::<Deployment>(&cluster.cinch).get_opt(name).await?;
        match found {
            None => println!("{name}: not installed in namespace {}", cluster.cinch),
            Some(deployment) => {
                let status = deployment.status.unwrap_or_default();
                let (ready, all) = (status.ready_replicas.unwrap_or(0), status.replicas.unwrap_or(0));
                let pod = deployment.spec.template.spec;
                let container = pod.and_then(|pod| pod.containers.into_iter().next());
                let image = container.and_then(|container| container.image).unwrap_or_default();
                println!("{name}: {image}, {ready} of {all} ready");
            }
        }
    }
    Ok(())
}
