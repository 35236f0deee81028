//! An image of programs that people really run: PostgreSQL, Redis and curl out of Debian's packages, with a shell.
//! In: the names of packages. Out: an OCI layout as a tar file in the cache, made once for what it is made from.

use super::{cache, debian};
use crate::oci::{self, Image};
use crate::process::succeed;
use crate::terminal;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The image's name.
pub const PROGRAMS_IMAGE: &str = "cinch.local/programs:1";
/// The user of PostgreSQL, which does not run as root; the image knows its name.
pub const PROGRAMS_USER: u32 = 999;

/// `postgresql` depends on the release's own version of it.
const PACKAGES: [&str; 6] = ["postgresql", "redis-server", "redis-tools", "curl", "coreutils", "dash"];
/// Where each program is in its package, and where it shall be.
const PROGRAMS: [(&str, &str); 8] = [
    ("bin/dash", "/bin/sh"),
    ("bin/cat", "/bin/cat"),
    ("bin/sleep", "/bin/sleep"),
    ("usr/bin/wc", "/usr/bin/wc"),
    ("usr/bin/sha256sum", "/usr/bin/sha256sum"),
    ("usr/bin/curl", "/usr/bin/curl"),
    ("usr/bin/redis-server", "/usr/bin/redis-server"),
    ("usr/bin/redis-cli", "/usr/bin/redis-cli"),
];
/// Programs of PostgreSQL, which find each other and their files by their own place.
const POSTGRES: [&str; 3] = ["postgres", "initdb", "psql"];
/// The compiler of queries: as large as all the rest, and done without when it is not there.
const COMPILER: &str = "llvmjit";
const LIMIT: Duration = Duration::from_secs(60);

/// Files of the image, by their absolute paths.
type Files = BTreeMap<String, Vec<u8>>;

/// The image's file, made when the cache does not have it.
///
/// # Errors
/// When a package can't be had, or the cache can't be written.
pub fn programs_image() -> Result<PathBuf> {
    let folder = cache::cache_directory()?.join("images");
    fs::create_dir_all(&folder)?;
    let archive = folder.join(format!("programs-{}.tar", key()?));
    if archive.is_file() {
        return Ok(archive);
    }
    let start = Instant::now();
    let unpacked = folder.join(format!("unpacked-{}", std::process::id()));
    terminal::say(format_args!("images: fetching from Debian: {}", PACKAGES.join(", ")));
    let files = debian::unpack(&PACKAGES, &unpacked, is_wanted).and_then(|()| files(&unpacked.join("root")));
    let _ = fs::remove_dir_all(&unpacked);
    let files = files?;
    let count = files.len();
    let image = Image {
        reference: PROGRAMS_IMAGE.to_owned(),
        entrypoint: vec!["/bin/sh".to_owned()],
        files: files.into_iter().collect(),
    };
    let unfinished = archive.with_extension(std::process::id().to_string());
    oci::write(&image, &unfinished)?;
    fs::rename(&unfinished, &archive).context("the image can't be moved in place")?;
    terminal::say(format_args!(
        "images: {PROGRAMS_IMAGE} of {count} files in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(archive)
}

/// Of what the packages depend on: libraries, and PostgreSQL itself.
fn is_wanted(package: &str) -> bool {
    let version = package.strip_prefix("postgresql-client-").or_else(|| package.strip_prefix("postgresql-"));
    let is_postgres = version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()));
    is_postgres || package.starts_with("lib") && !package.starts_with("libllvm")
}

/// A short hash of what the image is made from: the packages' release, and how it is put together.
fn key() -> Result<String> {
    let mut hash = Sha256::new();
    for part in [include_str!("programs_image.rs"), include_str!("../oci.rs"), std::env::consts::ARCH] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(fs::read("/etc/os-release").unwrap_or_default());
    let mut key = String::new();
    for byte in hash.finalize().iter().take(8) {
        write!(key, "{byte:02x}")?;
    }
    Ok(key)
}

/// Everything that the image holds.
fn files(root: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut linked = Vec::new();
    for (package, image) in PROGRAMS {
        let program = find(root, package)?;
        files.insert(image.to_owned(), fs::read(&program)?);
        linked.push(program);
    }
    linked.extend(postgres(root, &mut files)?);
    for (name, library) in libraries(root, &linked)? {
        // A folder in which the loader looks by itself, whatever the architecture.
        let place = if name.starts_with('/') { name } else { format!("/lib/{name}") };
        files.insert(place, fs::read(&library)?);
    }
    let users = format!("root:x:0:0::/:/bin/sh\npostgres:x:{PROGRAMS_USER}:{PROGRAMS_USER}::/:/bin/sh\n");
    files.insert("/etc/passwd".to_owned(), users.into_bytes());
    Ok(files)
}

/// A file of the packages; or of the machine, which has the same package when it was not fetched.
fn find(root: &Path, path: &str) -> Result<PathBuf> {
    let places = [root, Path::new("/")].map(|place| place.join(path));
    places.into_iter().find(|place| place.exists()).with_context(|| format!("no package has /{path}"))
}

/// PostgreSQL's programs, modules and files at their own places, and links to the programs. Returns what has to be
/// linked with libraries.
fn postgres(root: &Path, files: &mut Files) -> Result<Vec<PathBuf>> {
    let versions = find(root, "usr/lib/postgresql")?;
    let newest = fs::read_dir(&versions)?.flatten().map(|entry| entry.path()).max();
    let version = newest.as_deref().and_then(Path::file_name).context("no version of PostgreSQL")?;
    let version = version.to_string_lossy().into_owned();
    let base = format!("usr/lib/postgresql/{version}");
    let mut linked = Vec::new();
    for name in POSTGRES {
        let program = find(root, &format!("{base}/bin/{name}"))?;
        files.insert(format!("/{base}/bin/{name}"), fs::read(&program)?);
        let script = format!("#!/bin/sh\nexec /{base}/bin/{name} \"$@\"\n");
        files.insert(format!("/usr/bin/{name}"), script.into_bytes());
        linked.push(program);
    }
    let modules = find(root, &format!("{base}/lib"))?;
    for entry in fs::read_dir(&modules)? {
        let (path, name) =
            (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::file_name));
        let (Ok(path), Ok(name)) = (path, name) else { continue };
        let name = name.to_string_lossy().into_owned();
        if name.ends_with(".so") && !name.starts_with(COMPILER) {
            files.insert(format!("/{base}/lib/{name}"), fs::read(&path)?);
            linked.push(path);
        }
    }
    let share = format!("usr/share/postgresql/{version}");
    add_folder(&find(root, &share)?, &format!("/{share}"), files)?;
    Ok(linked)
}

/// All files of a folder and the folders in it, but manuals; links by what they point to, and not those that point to
/// nothing.
fn add_folder(folder: &Path, place: &str, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let place = format!("{place}/{name}");
        if path.is_dir() && name != "man" {
            add_folder(&path, &place, files)?;
        } else if path.is_file() {
            files.insert(place, fs::read(&path)?);
        }
    }
    Ok(())
}

/// The libraries that programs and modules need, as the machine's loader finds them, those of the packages first: by
/// the names under which they are looked for.
fn libraries(root: &Path, linked: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let path = debian::library_folders(root)?.join(":");
    let mut command = Command::new("ldd");
    command.args(linked).env("LD_LIBRARY_PATH", path).env("LC_ALL", "C");
    let mut found = BTreeMap::new();
    for line in succeed(&mut command, None, LIMIT)?.lines() {
        if let Some((name, path)) = library(line)? {
            found.insert(name, path);
        }
    }
    Ok(found)
}

/// Reads a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Result<Option<(String, PathBuf)>> {
    let line = line.trim();
    let Some((line, _)) = line.rsplit_once(" (0x") else {
        if line.ends_with("not found") {
            bail!("a library is in no package: {line}");
        }
        return Ok(None);
    };
    Ok(match line.split_once(" => ") {
        Some((name, path)) => Some((name.to_owned(), PathBuf::from(path))),
        None if line.starts_with('/') => Some((line.to_owned(), PathBuf::from(line))),
        // The kernel's own.
        None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_loader_says() {
        let read = |line| library(line).unwrap().map(|(name, path)| (name, path.display().to_string()));
        let pair = |name: &str, path: &str| Some((name.to_owned(), path.to_owned()));
        assert_eq!(read("\tlibz.so.1 => /u/lib/libz.so.1 (0x00007f)"), pair("libz.so.1", "/u/lib/libz.so.1"));
        let loader = "/lib64/ld-linux-x86-64.so.2";
        assert_eq!(read("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), pair(loader, loader));
        assert_eq!(read("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(read("/usr/bin/curl:"), None);
        assert!(library("\tlibpq.so.5 => not found").is_err());
    }

    #[test]
    fn of_dependencies_only_libraries_and_postgres_are_wanted() {
        for wanted in ["libpq5", "postgresql-15", "postgresql-client-17", "libicu72"] {
            assert!(is_wanted(wanted), "{wanted}");
        }
        for unwanted in ["libllvm14", "locales-all", "postgresql-common", "perl", "postgresql-client-common"]
        {
            assert!(!is_wanted(unwanted), "{unwanted}");
        }
    }
}
