//! `relax`: takes the lock away, with the reason in the same update, as the admission policy wants it.

use crate::arguments::Relax;
use crate::cluster::{Cluster, fresh_reason};
use anyhow::{Result, bail};
use cinch_api::names::{INJECTION_LABEL, MODE_LABEL, RELAX_REASON_ANNOTATION};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Relaxes a namespace.
///
/// # Errors
/// When there is nothing to relax, the reason is empty, or the user lacks the verb `relax`.
pub async fn run(cluster: &Cluster, options: Relax) -> Result<()> {
    let name = options.namespace.as_str();
    if options.reason.trim().is_empty() {
        bail!("the reason is empty; it is what others will read later");
    }
    let namespace = cluster.namespace(name).await?;
    let wanted = if options.injection { vec![MODE_LABEL, INJECTION_LABEL] } else { vec![MODE_LABEL] };
    let present: Vec<&str> =
        wanted.into_iter().filter(|label| namespace.labels().contains_key(*label)).collect();
    if present.is_empty() {
        bail!("namespace {name} is not locked");
    }
    let labels = present.iter().map(|label| ((*label).to_owned(), None)).collect();
    let reason = fresh_reason(&namespace, &options.reason, jiff::Timestamp::now());
    let annotations = BTreeMap::from([(RELAX_REASON_ANNOTATION.to_owned(), Some(reason))]);
    cluster.change_namespace(name, &labels, &annotations).await?;
    println!("removed from namespace {name}: {}", present.join(", "));
    println!(
        "it accepts plaintext again and is not promoted until spec.promotion of its Posture is given another value"
    );
    Ok(())
}
