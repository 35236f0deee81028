//! Has the linker make the program small, where it can: the addresses that are put right when the program starts are
//! packed (DT_RELR), a quarter of a megabyte less in the program and in the memory of every sidecar; and in what is
//! released, functions that are the same to the last byte are there once.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The C library that first understands packed addresses, also in programs that hold it themselves.
const FIRST: (u32, u32) = (2, 36);
/// What folds equal functions. It leaves data alone: nothing that is compared by its address is a function.
const FOLD: &str = "-Wl,--icf=all";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Programs are built for the system that builds them (see .cargo/config.toml).
    if c_library().is_some_and(|version| version >= FIRST) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && links_with(FOLD).is_some_and(|links| links)
    {
        println!("cargo:rustc-link-arg-bins={FOLD}");
    }
}

/// The version of glibc, where that is the C library.
fn c_library() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?.stdout;
    let (major, minor) = std::str::from_utf8(&said).ok()?.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

/// Whether the linker that programs get takes `argument`: which one that is differs between targets and toolchains.
fn links_with(argument: &str) -> Option<bool> {
    let out = env::var_os("OUT_DIR")?;
    let mut command = Command::new(env::var_os("RUSTC")?);
    command.args(["--crate-name", "probe", "--crate-type", "bin", "--target"]).arg(env::var_os("TARGET")?);
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    command.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut chosen = OsString::from("linker=");
        chosen.push(linker);
        command.arg("-C").arg(chosen);
    }
    command
        .arg("-C")
        .arg(format!("link-arg={argument}"))
        .arg("-o")
        .arg(Path::new(&out).join("probe"))
        .arg("-");
    let quiet = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = quiet.spawn().ok()?;
    child.stdin.take()?.write_all(b"fn main() {}").ok()?;
    Some(child.wait().ok()?.success())
}
