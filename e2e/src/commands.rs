//! The commands: each is a few steps of the other modules.

use crate::cluster::{self, Cluster, Layout, Options, Record};
use crate::images;
use crate::install::{self, Redirect, install};
use crate::prepare::prepare;
use crate::terminal;
use crate::{bench, cluster_tests, report, signals, soak, story};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Plays the whole story on a fresh cluster. Returns whether every line held.
///
/// # Errors
/// When a cluster can't be had at all.
pub fn demo(options: &Options, redirect: Redirect, keep: bool) -> Result<bool> {
    root()?;
    let cluster = installed(options, redirect)?;
    let memory = cluster.watch_memory();
    let mut story = story::Story::begin(&cluster, redirect)?;
    let mut steps = story.play(story::LINES);
    steps.extend(story.play(story::ENDING));
    let held = report::table(&steps);
    terminal::say(format_args!("demo: {} MiB of memory at the peak, all processes", memory.peak_mib()));
    finish(cluster, keep)?;
    terminal::say(if held { "demo: every line held" } else { "demo: not every line held" });
    Ok(held)
}

/// Starts a cluster, with Cinch installed unless `bare`, and leaves it.
///
/// # Errors
/// When it can't be started.
pub fn up(options: &Options, bare: bool) -> Result<()> {
    root()?;
    let cluster =
        if bare { started(options, &[images::DEMO_APP])? } else { installed(options, Redirect::Agent)? };
    finish(cluster, true)
}

/// Prints figures of the redirect, from the kept cluster `on` or from one of their own.
///
/// # Errors
/// When a cluster can't be had, or something on it does not start or end.
pub fn figures(rounds: usize, at_once: &[u32], on: Option<&str>) -> Result<()> {
    root()?;
    if let Some(name) = on {
        return cluster_tests::figures::run(&Cluster::attach(name, &prepare()?)?, rounds, at_once);
    }
    let cluster = installed(&Options { name: "figures".to_owned(), nodes: 1 }, Redirect::Agent)?;
    cluster_tests::figures::run(&cluster, rounds, at_once)?;
    finish(cluster, false)
}

/// Takes a cluster down, or all that no other run is using; says what was checked.
///
/// # Errors
/// When something is left.
pub fn take_down(name: Option<&str>) -> Result<()> {
    root()?;
    let layouts = name.map_or_else(cluster::clusters, |name| vec![Layout::new(name)]);
    if layouts.is_empty() {
        terminal::say("down: there is no cluster");
    }
    for layout in layouts {
        let (each, start) = (layout.name(), Instant::now());
        match Record::read(&layout).used_by() {
            Some(pid) if name.is_none() => terminal::say(format_args!(
                "down: cluster {each} is in use by process {pid}; `--name {each}` takes it down all the same"
            )),
            _ => {
                cluster::down(&layout)?;
                gone(each, start);
            }
        }
    }
    Ok(())
}

/// Removes what killed runs have left of clusters whose names begin with `prefix`.
///
/// # Errors
/// When something is left.
pub fn remove_abandoned(prefix: &str) -> Result<()> {
    cluster::abandoned(prefix).iter().try_for_each(cluster::down)
}

/// Builds the images again, of all components or of one, imports them into a kept cluster, and restarts what runs
/// them; sidecars are their pods' own.
///
/// # Errors
/// When it does not compile or no cluster runs.
pub fn reload(name: &str, component: Option<&str>) -> Result<()> {
    root()?;
    let cluster = Cluster::attach(name, &prepare()?)?;
    let chosen: Vec<&str> = match component {
        Some(one) => images::COMPONENTS.into_iter().filter(|name| name.ends_with(one)).collect(),
        None => images::COMPONENTS.to_vec(),
    };
    if chosen.is_empty() {
        bail!("no such component; there are {}", images::COMPONENTS.join(", "));
    }
    let binaries = images::build(&chosen, &cluster.state_dir().join("build.log"))?;
    for archive in images::write(&binaries, &cluster.state_dir().join("images"))? {
        cluster.import_image(&archive)?;
    }
    for deployment in ["cinch-operator", "cinch-webhook"].into_iter().filter(|name| chosen.contains(name)) {
        cluster.kubectl_ok(&["rollout", "restart", "deployment", deployment, "-n", install::NAMESPACE])?;
        install::deployment_ready(&cluster, install::NAMESPACE, deployment, 2)?;
    }
    if chosen.contains(&"cinch-node") {
        cluster.kubectl_ok(&["rollout", "restart", install::AGENT, "-n", install::NAMESPACE])?;
        install::agents_ready(&cluster)?;
    }
    terminal::say(format_args!("reload: {} imported", chosen.join(", ")));
    Ok(())
}

/// Measures what the data path costs. Returns whether every request was answered.
///
/// # Errors
/// When nothing can be measured here.
pub fn bench(options: &bench::Options) -> Result<bool> {
    root()?;
    bench::run(options)
}

/// Lets traffic go on for so many minutes on a cluster of its own while everything around it changes. Returns
/// whether nothing failed that should not, and no proxy grew.
///
/// # Errors
/// When a cluster can't be had at all.
pub fn soak(name: &str, minutes: u64) -> Result<bool> {
    root()?;
    let cluster = installed(&Options { name: name.to_owned(), nodes: 1 }, Redirect::Agent)?;
    let held = soak::run(&cluster, minutes);
    if !held.as_ref().is_ok_and(|held| *held) {
        cluster.print_what_matters();
    }
    finish(cluster, false)?;
    held
}

/// Writes the images as OCI layouts into a folder.
///
/// # Errors
/// When something does not compile or the folder can't be written.
pub fn write_images(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let log = folder.join("build.log");
    let binaries = images::build(&images::BINARIES, &log)?;
    for file in images::write(&binaries, folder)? {
        let size = fs::metadata(&file)?.len() / 1024 / 1024;
        terminal::say(format_args!("images: {} ({size} MiB, {})", file.display(), std::env::consts::ARCH));
    }
    fs::remove_file(log).context("the build's log can't be removed")
}

/// A cluster with Cinch installed, whose pods' redirect is set as `redirect` says.
///
/// # Errors
/// When it can't be started or installed: then nothing is left of it.
pub fn installed(options: &Options, redirect: Redirect) -> Result<Cluster> {
    let cluster = started(options, &images::BINARIES)?;
    if let Err(error) = install(&cluster, redirect) {
        cluster.print_what_matters();
        return Err(error);
    }
    Ok(cluster)
}

/// A cluster whose nodes have the images of `binaries`, which are built while its control plane starts.
fn started(options: &Options, binaries: &[&str]) -> Result<Cluster> {
    signals::guard(&options.name)?;
    let begun = Instant::now();
    let prepared = prepare()?;
    let log = Layout::new(&options.name).logs().join("cargo.log");
    let cluster = Cluster::start(options, &prepared, |folder| {
        let start = Instant::now();
        let binaries = images::build(binaries, &log)?;
        images::write(&binaries, folder)?;
        if let Some(cli) = images::cli(&binaries) {
            fs::copy(cli, folder.with_file_name("bin").join("kubectl-cinch"))?;
        }
        terminal::say(format_args!("images: written in {:.1} s", start.elapsed().as_secs_f64()));
        Ok(())
    })?;
    terminal::say(format_args!(
        "start: the cluster is up, {:.1} s after the run began with it, programs and images included (a second run: \
         under 60 s)",
        begun.elapsed().as_secs_f64()
    ));
    Ok(cluster)
}

/// Leaves the cluster with a word how to reach it, or takes it down.
fn finish(cluster: Cluster, keep: bool) -> Result<()> {
    if keep {
        let bin = cluster.state_dir().join("bin");
        let kubeconfig = cluster.keep()?;
        terminal::say("the cluster is kept; to reach it, and to remove it:");
        terminal::show(&format!("export KUBECONFIG={} PATH={}:$PATH", kubeconfig.display(), bin.display()));
        terminal::show("cargo e2e down");
        return Ok(());
    }
    let (name, start) = (cluster.name().to_owned(), Instant::now());
    cluster.stop()?;
    gone(&name, start);
    Ok(())
}

fn gone(name: &str, start: Instant) {
    terminal::say(format_args!(
        "down: no process, mount, link, cgroup or file of cluster {name} is left (checked; {:.1} s)",
        start.elapsed().as_secs_f64()
    ));
}

/// Namespaces and cgroups are root's.
///
/// # Errors
/// When this is somebody else.
pub fn root() -> Result<()> {
    if !is_root() {
        bail!("this needs root: it makes namespaces and cgroups; `cargo e2e test` runs the rest without");
    }
    Ok(())
}

/// Whether this process may make namespaces and cgroups.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
