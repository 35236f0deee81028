//! The programs that are measured: built as they are released, or fetched.

use super::envoy;
use crate::images::{cargo, executables};
use crate::prepare::repository;
use crate::process::{logged, succeed};
use crate::terminal;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PROXY: &str = "cinch-proxy";
const LOAD: &str = "cinch-load";

/// Paths of the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `cinch-proxy`.
    pub proxy: PathBuf,
    /// `cinch-load`.
    pub load: PathBuf,
    /// Envoy, where it can be had.
    pub envoy: Option<PathBuf>,
}

/// A peer that could not be had, and why.
pub type LeftOut = Vec<(&'static str, String)>;

impl Programs {
    /// Builds ours.
    ///
    /// # Errors
    /// When something does not compile: with the compiler's words.
    pub fn build() -> Result<Self> {
        Ok(Self { proxy: build(PROXY)?, load: build(LOAD)?, envoy: None })
    }

    /// Takes ours as they lie in a folder.
    ///
    /// # Errors
    /// When they are not there.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let [proxy, load] = [PROXY, LOAD].map(|name| folder.join(name));
        for program in [&proxy, &load] {
            ensure!(program.is_file(), "there is no {}", program.display());
        }
        Ok(Self { proxy, load, envoy: None })
    }

    /// Also Envoy, if it is wanted and can be had.
    #[must_use]
    pub fn with_envoy(mut self, wanted: bool) -> (Self, LeftOut) {
        let mut left_out = LeftOut::new();
        if wanted {
            match envoy::fetch() {
                Ok(program) => self.envoy = Some(program),
                Err(error) => {
                    terminal::say(format_args!("bench: without Envoy: {error:#}"));
                    left_out.push(("envoy", format!("{error:#}")));
                }
            }
        }
        (self, left_out)
    }

    /// How large the proxy is, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn proxy_size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.proxy)?.len())
    }

    /// What Envoy says of itself.
    #[must_use]
    pub fn envoy_version(&self) -> Option<String> {
        let said =
            succeed(Command::new(self.envoy.as_ref()?).arg("--version"), None, Duration::from_secs(20))
                .ok()?;
        said.split_whitespace().find(|word| word.matches('/').count() > 2).map(str::to_owned)
    }
}

/// Each package by itself: together with others it would get the features that those want of its dependencies.
fn build(name: &str) -> Result<PathBuf> {
    let repository = repository()?;
    let log = repository.join(format!("target/bench-build-{name}.log"));
    fs::create_dir_all(log.parent().unwrap_or(Path::new(".")))?;
    terminal::say(format_args!("bench: building {name} as it is released"));
    let mut command = Command::new(cargo());
    command.args(["build", "--release", "--package", name, "--message-format=json-render-diagnostics"]);
    logged(&format!("building {name}"), command.current_dir(repository), &log, |_| String::new())?;
    let built = executables(&fs::read_to_string(&log)?).remove(name);
    fs::remove_file(&log)?;
    built.with_context(|| format!("cargo did not build {name}"))
}
