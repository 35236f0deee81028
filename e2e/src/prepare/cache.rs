//! Where built and unpacked things are kept: outside the checkout, shared by all checkouts, one writer at a
//! time.

use crate::terminal;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Folders that a node covers with empty ones of its own, so that nothing in them is seen there.
const COVERED: [&str; 4] = ["/run", "/var/run", "/var/lib", "/var/log"];

/// `$CINCH_CACHE`, else `$XDG_CACHE_HOME/cinch`, else `~/.cache/cinch`; made when missing.
///
/// # Errors
/// When it can't be made, or lies where a node's own folders would cover it.
pub fn cache_directory() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("CINCH_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("cinch")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/cinch")))
        .context("neither CINCH_CACHE nor HOME is set")?;
    if COVERED.iter().any(|covered| directory.starts_with(covered)) {
        bail!(
            "the cache {} would be hidden from the nodes: set CINCH_CACHE to another folder",
            directory.display()
        );
    }
    fs::create_dir_all(&directory).with_context(|| format!("{} can't be made", directory.display()))?;
    fs::canonicalize(&directory).with_context(|| format!("{} can't be read", directory.display()))
}

/// The checkout that this command belongs to: the package's parent under `cargo run`, else the first folder
/// above the current one that has `e2e/cluster`.
///
/// # Errors
/// When there is none.
pub fn repository() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().context("no current folder")?;
    package
        .iter()
        .flat_map(|package| package.ancestors())
        .chain(here.ancestors())
        .find(|folder| folder.join("e2e/cluster/go.mod").is_file())
        .map(Path::to_path_buf)
        .context("run this inside a checkout of Cinch")
}

/// Takes the cache for this run until the returned file is closed.
pub(super) fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("{} can't be made", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => terminal::say("prepare: another run prepares; waiting for it"),
        Err(TryLockError::Error(error)) => return Err(error).context("the cache can't be locked"),
    }
    file.lock().context("the cache can't be locked")?;
    Ok(file)
}
