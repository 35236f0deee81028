//! `cargo e2e fuzz`: bytes at random, led by the code that they reach, against every parser of `fuzz/`. Needs a C++
//! compiler for libFuzzer, and no other toolchain than ours: what instruments the code are stable flags of rustc.

use crate::images::cargo;
use crate::prepare::repository;
use crate::terminal;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What cargo-fuzz passes, but for the sanitizers of memory, which need another toolchain; our code is safe Rust.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Longest input, in bytes.
const LONGEST: u32 = 4096;

/// Builds the targets and runs `target`, or each in turn, for so many seconds. Returns whether nothing was found.
///
/// # Errors
/// When there is no such target, or it can't be built or started.
pub fn run(target: Option<&str>, seconds: u64) -> Result<bool> {
    let repository = repository()?;
    let all = targets(&repository)?;
    if let Some(name) = target
        && !all.iter().any(|known| known == name)
    {
        bail!("there is no fuzz target {name}; there are {}", all.join(", "));
    }
    let built = build(&repository, target)?;
    let chosen = all.iter().filter(|name| target.is_none_or(|target| target == *name));
    let mut clean = true;
    for name in chosen {
        clean &= fuzz(&repository, &built, name, seconds)?;
    }
    Ok(clean)
}

/// The names of the files in `fuzz/fuzz_targets`, sorted.
fn targets(repository: &Path) -> Result<Vec<String>> {
    let folder = repository.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("{} can't be read", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the folder of the programs. A target is named, or build scripts would be instrumented too.
fn build(repository: &Path, target: Option<&str>) -> Result<PathBuf> {
    let host = "host-tuple";
    let folder = repository.join("target/fuzz");
    let mut command = Command::new(cargo());
    command
        .args(["build", "--release", "--target", host, "--manifest-path", "fuzz/Cargo.toml"])
        .args(target.iter().flat_map(|target| ["--bin", target]))
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", &folder)
        .current_dir(repository);
    terminal::say("fuzz: building the targets");
    if !command.status().context("cargo can't be started")?.success() {
        bail!("the fuzz targets can't be built");
    }
    // The folder has the name of the target; beside it lies what was built for the build itself.
    let mut of_targets = fs::read_dir(&folder)?.flatten().map(|entry| entry.path().join("release"));
    let built = of_targets.find(|path| path.join("build").is_dir());
    built.with_context(|| format!("nothing was built in {}", folder.display()))
}

/// One target: the seeds of the checkout and what earlier runs have found on top; findings stay in the folder that
/// is named.
fn fuzz(repository: &Path, built: &Path, name: &str, seconds: u64) -> Result<bool> {
    let of_target = repository.join("target/fuzz/runs").join(name);
    let (corpus, findings, log) =
        (of_target.join("corpus"), of_target.join("findings"), of_target.join("log"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&findings)?;
    let file = File::create(&log).with_context(|| format!("{} can't be written", log.display()))?;
    let status = Command::new(built.join(name))
        .arg(&corpus)
        .arg(repository.join("fuzz/seeds").join(name))
        .args([format!("-max_total_time={seconds}"), format!("-max_len={LONGEST}")])
        .args(["-print_final_stats=1".to_owned(), format!("-artifact_prefix={}/", findings.display())])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("{name} can't be started"))?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    let runs = runs(&said).unwrap_or_default();
    if status.success() {
        terminal::say(format_args!("fuzz: {name}: {runs} runs in {seconds} s, nothing found"));
        return Ok(true);
    }
    terminal::say(format_args!(
        "fuzz: {name}: FAILED after {runs} runs; the input is in {}",
        findings.display()
    ));
    terminal::show(&crate::process::tail(&log, 30));
    Ok(false)
}

/// How many inputs were run, as libFuzzer says it at the end.
fn runs(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_from_the_statistics() {
        let said =
            "#2\tINITED\nstat::number_of_executed_units: 30613\nstat::average_exec_per_sec:     3061\n";
        assert_eq!(runs(said), Some(30_613));
        assert_eq!(runs("nothing"), None);
    }

    #[test]
    fn every_target_has_seeds_and_a_program() {
        let repository = repository().unwrap();
        let manifest = fs::read_to_string(repository.join("fuzz/Cargo.toml")).unwrap();
        for name in targets(&repository).unwrap() {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name} is in no [[bin]]"
            );
            assert!(fs::read_dir(repository.join("fuzz/seeds").join(&name)).unwrap().count() > 0, "{name}");
        }
    }
}
