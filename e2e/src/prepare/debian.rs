//! The machine's own programs: used where they are installed, else unpacked from Debian's packages into the
//! cache and run from there behind small wrappers that know their shared libraries.

use crate::process::{capture, succeed};
use crate::terminal;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Program and the package that has it.
const PROGRAMS: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];
const CNI_PACKAGE: &str = "containernetworking-plugins";
const CNI_PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Root's daemons live in folders that an ordinary PATH lacks.
const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Downloads of some 40 MB; a slow mirror is waited for.
const DOWNLOAD: Duration = Duration::from_secs(600);

/// Where the programs are.
pub(super) struct Tools {
    pub path: OsString,
    pub cni: PathBuf,
    pub summary: String,
}

/// Finds all programs, fetching what the machine lacks.
pub(super) fn tools(cache: &Path) -> Result<Tools> {
    let cached = cache.join("debian");
    let path = search_path(&cached.join("bin"));
    let mut fetched = String::new();
    if !lacking(&path, &cached).is_empty() {
        let installed = search_path(Path::new("/nonexistent"));
        let packages = lacking(&installed, Path::new("/nonexistent"));
        fetch(&packages, &cached)?;
        fetched = format!(" (unpacked {} into the cache)", packages.join(", "));
        let still = lacking(&path, &cached);
        if !still.is_empty() {
            bail!("{} could not be found, not even in Debian's packages", still.join(", "));
        }
    }
    let cni = cni_folder(&cached).context("the CNI plugins vanished")?;
    let place = |name| find(&path, name).map(|found| found.display().to_string()).unwrap_or_default();
    let version = succeed(Command::new("containerd").arg("--version").env("PATH", &path), None, DOWNLOAD)?;
    let version = version.split_whitespace().nth(2).unwrap_or("unknown").to_owned();
    let summary =
        format!("containerd {version} at {}, CNI plugins at {}{fetched}", place("containerd"), cni.display());
    Ok(Tools { path, cni, summary })
}

/// Packages of which something is neither on `path` nor, for plugins, in a known folder.
fn lacking(path: &OsString, cached: &Path) -> Vec<&'static str> {
    let programs =
        PROGRAMS.iter().filter(|(name, _)| find(path, name).is_none()).map(|(_, package)| *package);
    let mut packages: Vec<_> = programs.collect();
    packages.dedup();
    if cni_folder(cached).is_none() {
        packages.push(CNI_PACKAGE);
    }
    packages
}

fn search_path(first: &Path) -> OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let mut path = OsString::from(first);
    for more in [inherited, OsString::from(SYSTEM_FOLDERS)] {
        path.push(":");
        path.push(more);
    }
    path
}

fn find(path: &OsString, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn cni_folder(cached: &Path) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = CNI_FOLDERS.iter().map(PathBuf::from).collect();
    folders.push(cached.join("root/usr/lib/cni"));
    folders.into_iter().find(|folder| CNI_PLUGINS.iter().all(|plugin| is_program(&folder.join(plugin))))
}

/// Downloads `packages` and what they depend on and the machine lacks, unpacks them under `into`, and writes
/// the wrappers.
fn fetch(packages: &[&str], into: &Path) -> Result<()> {
    terminal::say(format_args!("prepare: not installed here, fetching from Debian: {}", packages.join(", ")));
    let fresh = into.with_extension("new");
    unpack(packages, &fresh, |_| true)?;
    let _ = fs::remove_dir_all(into);
    fs::rename(&fresh, into).context("the unpacked packages can't be moved in place")?;
    wrap(into)
}

/// Downloads `packages`, and of what they depend on and the machine lacks those that are `wanted`, and unpacks all
/// into the folder `root` of `into`, which is made anew.
///
/// # Errors
/// When a package can't be had.
pub(super) fn unpack(packages: &[&str], into: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let _ = fs::remove_dir_all(into);
    let (downloads, root) = (into.join("packages"), into.join("root"));
    for folder in [&downloads, &root, &into.join("lists/partial"), &into.join("archives/partial")] {
        fs::create_dir_all(folder)?;
    }
    if download(packages, &downloads, &[], &wanted).is_err() {
        // Only now, and into lists of our own: the machine's package lists stay as they are.
        let lists = format!("Dir::State::lists={}", into.join("lists").display());
        let options = ["-o", &lists, "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="];
        terminal::say("prepare: the package lists are missing or old; reading new ones");
        succeed(apt().args(options).arg("update"), None, DOWNLOAD).context("apt-get update")?;
        download(packages, &downloads, &options, &wanted)?;
    }
    for entry in fs::read_dir(&downloads)? {
        let package = entry?.path();
        succeed(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root), None, DOWNLOAD)?;
        terminal::show(&format!("unpacked {}", package.file_name().unwrap_or_default().to_string_lossy()));
    }
    for folder in ["packages", "lists", "archives"] {
        fs::remove_dir_all(into.join(folder))?;
    }
    Ok(())
}

fn download(packages: &[&str], folder: &Path, options: &[&str], wanted: impl Fn(&str) -> bool) -> Result<()> {
    let install = ["-s", "--no-install-recommends", "install"];
    let plan = succeed(apt().args(options).args(install).args(packages), None, DOWNLOAD)?;
    let planned = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
    // What is named is fetched also where the machine has it.
    let mut names = packages.to_vec();
    names.extend(planned.filter(|name| wanted(name) && !packages.contains(name)));
    succeed(apt().args(options).arg("download").args(names).current_dir(folder), None, DOWNLOAD)?;
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Without the sandbox user, who could not write into the cache.
    command.args(["-q", "-o", "APT::Sandbox::User=root"]).env("LC_ALL", "C");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Writes `bin/NAME` for each unpacked program: it starts the program with the unpacked libraries.
fn wrap(unpacked: &Path) -> Result<()> {
    let (root, bin) = (unpacked.join("root"), unpacked.join("bin"));
    fs::create_dir_all(&bin)?;
    let libraries = library_folders(&root)?.join(":");
    for folder in ["bin", "sbin", "usr/bin", "usr/sbin"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let program = entry?.path();
            if !is_program(&program) {
                continue;
            }
            let wrapper = bin.join(program.file_name().unwrap_or_default());
            let set = format!("LD_LIBRARY_PATH={libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}");
            fs::write(&wrapper, format!("#!/bin/sh\n{set} exec {} \"$@\"\n", program.display()))?;
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        }
    }
    let version = capture(Command::new(bin.join("nft")).arg("--version"), None, DOWNLOAD);
    if let Ok(output) = version.as_ref()
        && bin.join("nft").exists()
        && !output.ok()
    {
        bail!("the unpacked nft does not run: {}", output.text().trim());
    }
    Ok(())
}

/// Every folder under the usual library folders of `root` that holds a shared library.
pub(super) fn library_folders(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for base in ["lib", "usr/lib"] {
        let Ok(entries) = fs::read_dir(root.join(base)) else { continue };
        for entry in entries {
            let folder = entry?.path();
            let libraries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut names = libraries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            if names.any(|name| name.contains(".so")) {
                found.push(folder.display().to_string());
            }
        }
    }
    Ok(found)
}
