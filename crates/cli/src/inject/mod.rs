//! `inject`: what the webhook would do, offline. In: files of objects, and what is to be assumed about their
//! namespace. Out: the same documents with the sidecar in them, or the JSON Patch of each. The decision is the
//! webhook's own code.

mod offline;
mod workload;

pub use workload::future_pod;

use crate::documents::{self, STDIN};
use anyhow::{Context, Result};
use cinch_injection::Redirect;
use clap::{Args, ValueEnum};
use offline::{Assumed, Reviewed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status of a refusal.
const REFUSED: u8 = 3;

/// Options of `inject`.
#[derive(Debug, Args)]
pub struct Inject {
    /// File of pods and workloads, YAML or JSON; `-` is standard input. May be given more than once.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Labels of the namespace, as key=value pairs with commas between.
    #[arg(long, value_name = "K=V,…", default_value = "", value_parser = labels)]
    pub namespace_labels: Labels,
    /// The service account that the operator makes for the workload is there already.
    #[arg(long)]
    pub service_account_exists: bool,
    /// What to print.
    #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
    pub output: Output,
    /// Image of the sidecar.
    #[arg(long, default_value = concat!("cinch.local/cinch-proxy:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// Who sets the redirect: redirect.mode of the installation.
    #[arg(long, value_enum, default_value_t = RedirectMode::Agent)]
    pub redirect: RedirectMode,
}

/// Who sets the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RedirectMode {
    /// The agent on the node.
    Agent,
    /// The init container.
    Init,
}

impl From<RedirectMode> for Redirect {
    fn from(mode: RedirectMode) -> Self {
        match mode {
            RedirectMode::Agent => Self::Agent,
            RedirectMode::Init => Self::Init,
        }
    }
}

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The documents as YAML.
    Yaml,
    /// The documents as JSON.
    Json,
    /// The JSON Patch of each document, one on a line.
    Patch,
}

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// Reads `key=value` pairs with commas between; a key alone has the empty value.
///
/// # Errors
/// When a pair has no key.
pub fn labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let mut labels = Labels::new();
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() {
            return Err(format!("{pair:?} has no key"));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Prints what the webhook would make of each object, and says what it has to say on standard error.
///
/// # Errors
/// When a file can't be read or the result can't be written.
pub fn run(cinch_namespace: &str, options: &Inject) -> Result<ExitCode> {
    let assumed = Assumed {
        namespace: &options.namespace,
        labels: options.namespace_labels.clone(),
        service_account_exists: options.service_account_exists,
        cinch_namespace,
        image: &options.image,
        trust_domain: &options.trust_domain,
        redirect: options.redirect.into(),
    };
    let mut documents = Vec::new();
    for file in &options.files {
        let read = documents::read(file)?;
        if read.is_empty() && file.as_os_str() == STDIN {
            eprintln!("note: standard input holds no object");
        }
        documents.extend(read);
    }
    let (text, said) = whole(documents, &assumed, options.output)?;
    for note in &said.notes {
        eprintln!("note: {note}");
    }
    if !said.refusals.is_empty() {
        // Nothing is printed: half of a set of objects is not what anybody wants applied.
        for refusal in &said.refusals {
            eprintln!("refused: {refusal}");
        }
        return Ok(ExitCode::from(REFUSED));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the result can not be written")?;
    Ok(ExitCode::SUCCESS)
}

/// What was said about all objects.
#[derive(Debug, Default)]
struct Said {
    notes: Vec<String>,
    refusals: Vec<String>,
}

fn whole(documents: Vec<Value>, assumed: &Assumed<'_>, output: Output) -> Result<(String, Said)> {
    let (mut text, mut said) = (String::new(), Said::default());
    for (index, document) in documents.into_iter().enumerate() {
        let operations = operations(&document, "", "", assumed, &mut said)?;
        let printed = match output {
            Output::Patch => format!("{}\n", Value::Array(operations)),
            Output::Json => format!("{:#}\n", applied(document, operations)?),
            Output::Yaml => {
                let separator = if index == 0 { "" } else { "---\n" };
                let yaml = serde_saphyr::to_string(&applied(document, operations)?)?;
                let end = if yaml.ends_with('\n') { "" } else { "\n" };
                format!("{separator}{yaml}{end}")
            }
        };
        text.push_str(&printed);
    }
    Ok((text, said))
}

/// The operations on a document, which may be a list: pointers begin at the document.
fn operations(
    object: &Value,
    at: &str,
    kind_of_list: &str,
    assumed: &Assumed<'_>,
    said: &mut Said,
) -> Result<Vec<Value>> {
    if let (Some(kind), Some(items)) =
        (documents::list_of(object), object.get("items").and_then(Value::as_array))
    {
        let mut all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            all.extend(operations(item, &format!("{at}/items/{index}"), kind, assumed, said)?);
        }
        return Ok(all);
    }
    let (name, reviewed) = assumed.review(object, kind_of_list);
    let Reviewed { operations, notes, refusal } = reviewed;
    said.notes.extend(notes.into_iter().map(|note| format!("{name}: {note}")));
    said.refusals.extend(refusal.map(|refusal| format!("{name}: {refusal}")));
    operations.into_iter().map(|operation| under(at, serde_json::to_value(operation)?)).collect()
}

/// An operation with its pointer moved under `at`.
fn under(at: &str, mut operation: Value) -> Result<Value> {
    if !at.is_empty()
        && let Some(path) = operation.get_mut("path")
    {
        *path = json!(format!("{at}{}", path.as_str().unwrap_or_default()));
    }
    Ok(operation)
}

fn applied(mut document: Value, operations: Vec<Value>) -> Result<Value> {
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations))?;
    json_patch::patch(&mut document, &patch).context("the patch does not fit the object")?;
    Ok(document)
}

#[cfg(test)]
mod tests;
