//! The images: static binaries from a dev build, stripped, each alone in an empty image. Takes a checkout,
//! gives OCI layouts as tar files that `ctr images import` reads.

use crate::oci::{self, Image};
use crate::prepare::repository;
use crate::process::{logged, succeed};
use crate::terminal;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The registry in every image's name. It does not exist: nothing is ever pulled.
pub const REGISTRY: &str = "cinch.local";
/// The tag of every image.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
/// The binary whose image holds the demo's programs and is the sandbox ("pause") image too.
pub const DEMO_APP: &str = "cinch-demo-app";
/// The binaries that become images of their own.
pub const COMPONENTS: [&str; 5] = ["cinch-operator", "cinch-webhook", "cinch-proxy", "cinch-node", DEMO_APP];
/// The command-line tool.
const CLI: &str = "kubectl-cinch";
/// The binaries that a cluster with Cinch needs.
pub const BINARIES: [&str; 6] =
    ["cinch-operator", "cinch-webhook", "cinch-proxy", "cinch-node", DEMO_APP, CLI];
/// The name of the sandbox image.
pub const PAUSE: &str = "cinch-pause";

/// Built binaries: name to path.
pub type Binaries = BTreeMap<String, PathBuf>;

/// The full name of a component's image.
#[must_use]
pub fn reference(component: &str) -> String {
    format!("{REGISTRY}/{component}:{TAG}")
}

/// Builds binaries with cargo's dev profile. The log goes to `log`.
///
/// # Errors
/// When something does not compile: with the compiler's words.
pub fn build(names: &[&str], log: &Path) -> Result<Binaries> {
    let start = Instant::now();
    let mut command = Command::new(cargo());
    // The whole workspace, of which a few binaries are taken: so the dependencies have the same features as in
    // `cargo test --workspace`, and are compiled once.
    command.args(["build", "--workspace", "--message-format=json-render-diagnostics"]);
    command.current_dir(repository()?);
    for name in names {
        command.args(["--bin", name]);
    }
    logged("building the images' binaries", &mut command, log, |text| {
        let built = text.lines().filter(|line| line.starts_with('{')).count();
        match text.lines().last() {
            Some(last) if last.contains("Blocking") => ", waiting for another cargo".into(),
            _ => format!(", {built} crates ready"),
        }
    })?;
    let mut binaries = executables(&fs::read_to_string(log)?);
    binaries.retain(|name, _| names.contains(&name.as_str()));
    if binaries.len() < names.len() {
        bail!("cargo did not build all of {}", names.join(", "));
    }
    terminal::say(format_args!(
        "images: built {} in {:.1} s",
        names.join(", "),
        start.elapsed().as_secs_f64()
    ));
    Ok(binaries)
}

/// The path of the command-line tool among built binaries.
#[must_use]
pub fn cli(binaries: &Binaries) -> Option<&Path> {
    binaries.get(CLI).map(PathBuf::as_path)
}

/// Writes the image of each component among `binaries` into `directory`, and the sandbox image with the demo
/// app's; returns the files.
///
/// # Errors
/// When a binary can't be stripped or a file can't be written.
pub fn write(binaries: &Binaries, directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
    let mut files = Vec::new();
    for (name, binary) in binaries.iter().filter(|(name, _)| COMPONENTS.contains(&name.as_str())) {
        let stripped = strip(binary, &directory.join(name))?;
        files.push(write_one(name, &stripped, directory, &[])?);
        if name == DEMO_APP {
            files.push(write_one(PAUSE, &stripped, directory, &["pause"])?);
        }
        fs::remove_file(&stripped)?;
    }
    Ok(files)
}

fn write_one(image: &str, binary: &Path, directory: &Path, arguments: &[&str]) -> Result<PathBuf> {
    let inside = format!("/{}", binary.file_name().unwrap_or_default().to_string_lossy());
    let mut entrypoint = vec![inside.clone()];
    entrypoint.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let file = directory.join(format!("{image}.tar"));
    let image = Image { reference: reference(image), entrypoint, files: vec![(inside, fs::read(binary)?)] };
    oci::write(&image, &file)?;
    Ok(file)
}

/// A copy without debug information, made by the C compiler's binutils.
fn strip(binary: &Path, to: &Path) -> Result<PathBuf> {
    succeed(Command::new("strip").arg("-o").arg(to).arg(binary), None, Duration::from_secs(60))?;
    Ok(to.to_path_buf())
}

/// The binaries that cargo's messages name.
#[must_use]
pub fn executables(messages: &str) -> Binaries {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pair = |message: serde_json::Value| {
        let name = message.pointer("/target/name")?.as_str()?.to_owned();
        let path = message.get("executable")?.as_str()?;
        Some((name, PathBuf::from(path)))
    };
    parsed.filter_map(pair).collect()
}

/// The cargo that runs us, else the one on the PATH.
#[must_use]
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Each package that is compiled for `edges`, with its features.
    fn features(edges: &str) -> BTreeSet<String> {
        let mut command = Command::new(cargo());
        command.args([
            "tree",
            "--workspace",
            "--offline",
            "--no-dedupe",
            "--prefix=none",
            "--format={p} {f}",
        ]);
        command.args(["--edges", edges]).current_dir(repository().unwrap());
        let told = succeed(&mut command, None, Duration::from_secs(60)).unwrap();
        told.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    }

    /// With such a feature, `cargo test` compiles half of the workspace again, and tests something else than what is
    /// in the images.
    #[test]
    fn tests_switch_on_no_feature_of_what_the_programs_need() {
        let (programs, with_tests) = (features("normal,build"), features("normal,build,dev"));
        let package = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let known: BTreeSet<String> = programs.iter().map(|line| package(line)).collect();
        assert!(known.len() > 100, "only {} packages were found", known.len());
        let changed =
            with_tests.symmetric_difference(&programs).filter(|line| known.contains(&package(line)));
        assert_eq!(changed.collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn executables_are_read_from_among_other_lines() {
        let messages = concat!(
            "   Compiling cinch-proxy v0.1.0\n",
            r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"cinch-proxy"},"executable":"/t/cinch-proxy"}"#,
        );
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["cinch-proxy"], PathBuf::from("/t/cinch-proxy"));
    }
}
