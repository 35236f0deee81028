//! The programs built from Go modules: one binary with all of Kubernetes, Helm from the same module, and
//! CoreDNS. Each is kept under a key of its sources, the Go version and the flags.

use crate::process::{logged, succeed};
use crate::terminal;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Kubernetes tells its version from these variables, and kubectl and Helm warn when they are empty.
const KUBERNETES_VERSION: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.37.1 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=37 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.37.1";

/// Where the built programs are.
pub(super) struct Programs {
    pub cluster: PathBuf,
    pub kubectl: PathBuf,
    pub helm: PathBuf,
    pub dns: PathBuf,
}

struct Program {
    name: &'static str,
    /// Folder of its module, under `e2e/cluster`.
    module: &'static str,
    package: &'static str,
    ldflags: &'static str,
    /// What to expect from a build with empty caches on two cores.
    cold: &'static str,
}

const CLUSTER: Program =
    Program { name: "cluster", module: ".", package: ".", ldflags: KUBERNETES_VERSION, cold: "8 min" };
const HELM: Program = Program {
    name: "helm",
    module: ".",
    package: "helm.sh/helm/v4/cmd/helm",
    ldflags: "-s -w",
    cold: "4 min",
};
const DNS: Program = Program { name: "dns", module: "dns", package: ".", ldflags: "-s -w", cold: "2 min" };

/// Builds what is not in the cache yet.
pub(super) fn programs(cache: &Path, modules: &Path) -> Result<Programs> {
    let go = succeed(Command::new("go").arg("version"), None, Duration::from_secs(60))
        .context("the test cluster is built from Go modules, and go does not run")?;
    let build = |program: &Program| build(program, cache, modules, go.trim());
    let (cluster, helm, dns) = (build(&CLUSTER)?, build(&HELM)?, build(&DNS)?);
    let kubectl = cluster.with_file_name("kubectl");
    if !kubectl.exists() {
        symlink("cluster", &kubectl).context("kubectl's link can't be made")?;
    }
    Ok(Programs { cluster, kubectl, helm, dns })
}

fn build(program: &Program, cache: &Path, modules: &Path, go: &str) -> Result<PathBuf> {
    let module = modules.join(program.module);
    let key = key(&module, &[program.package, program.ldflags, go])?;
    let folder = cache.join("programs").join(format!("{}-{key}", program.name));
    let binary = folder.join(program.name);
    if binary.is_file() {
        return Ok(binary);
    }
    terminal::say(format_args!(
        "prepare: building {} from Go modules (about {} with empty caches on two cores)",
        program.name, program.cold
    ));
    let start = Instant::now();
    fs::create_dir_all(&folder)?;
    let unfinished = folder.join("unfinished");
    let log = folder.join("build.log");
    let mut command = Command::new("go");
    command.args(["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", program.ldflags, "-o"]);
    command.arg(&unfinished).arg(program.package).current_dir(&module).env("CGO_ENABLED", "0");
    logged(&format!("building {}", program.name), &mut command, &log, packages)?;
    fs::rename(&unfinished, &binary)?;
    terminal::say(format_args!("prepare: built {} in {} s", program.name, start.elapsed().as_secs()));
    Ok(binary)
}

/// Packages that `go build -v` has named so far.
fn packages(log: &str) -> String {
    let downloads = log.lines().filter(|line| line.starts_with("go: downloading")).count();
    format!(", {downloads} modules fetched, {} packages compiled", log.lines().count() - downloads)
}

/// A short hash of a module's own files and of `more`.
fn key(module: &Path, more: &[&str]) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(module)
        .with_context(|| format!("{} can't be read", module.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "go" || kind == "mod" || kind == "sum"))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("{} holds no Go module", module.display());
    }
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
        hash.update(fs::read(&path)?);
    }
    for part in more {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut key = String::new();
    for byte in hash.finalize().iter().take(8) {
        write!(key, "{byte:02x}")?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_sources_and_flags_and_nothing_else() {
        let module = tempfile::tempdir().unwrap();
        fs::write(module.path().join("main.go"), "package main").unwrap();
        let first = key(module.path(), &["-s"]).unwrap();
        fs::write(module.path().join("notes.txt"), "unrelated").unwrap();
        assert_eq!(first, key(module.path(), &["-s"]).unwrap());
        assert_ne!(first, key(module.path(), &["-w"]).unwrap());
        fs::write(module.path().join("main.go"), "package other").unwrap();
        assert_ne!(first, key(module.path(), &["-s"]).unwrap());
    }
}
