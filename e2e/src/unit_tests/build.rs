//! Cargo as the compiler of tests: its messages in, test binaries out, each when it is ready.

use crate::images::cargo;
use crate::prepare::repository;
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What cargo is told to run it alone: `-p cinch-node --test csi`.
    pub name: String,
    /// The binary.
    pub executable: PathBuf,
    /// The folder of its package, in which cargo runs it.
    pub folder: PathBuf,
}

/// Compiles all tests, hands each to `ready` and each line that cargo says to `heard`. Returns what cargo said if
/// something does not compile.
///
/// # Errors
/// When cargo can't be started or read.
pub fn build(ready: impl Fn(Target), heard: impl Fn(&str) + Sync) -> Result<std::result::Result<(), String>> {
    // Tests that run beside it go first, or their timers would wait for the compiler.
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(cargo());
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    command.current_dir(repository()?).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cargo can't be started")?;
    let (messages, words) = (child.stdout.take(), child.stderr.take());
    let (messages, words) = (messages.context("no output")?, words.context("no output")?);
    let said = thread::scope(|scope| {
        let words = scope.spawn(|| {
            let mut said = String::new();
            for line in BufReader::new(words).split(b'\n').map_while(std::io::Result::ok) {
                let line = String::from_utf8_lossy(&line);
                heard(&line);
                said.push_str(&line);
                said.push('\n');
            }
            said
        });
        for line in BufReader::new(messages).lines() {
            if let Some(target) = serde_json::from_str(&line?).ok().as_ref().and_then(target) {
                ready(target);
            }
        }
        anyhow::Ok(words.join().unwrap_or_default())
    })?;
    let status = child.wait()?;
    Ok(if status.success() { Ok(()) } else { Err(format!("{said}error: cargo ended with {status}")) })
}

/// The tests in the documentation, which only cargo can run.
///
/// # Errors
/// Outside a checkout.
pub fn doc_tests() -> Result<Command> {
    let mut command = Command::new(cargo());
    command.args(["test", "--workspace", "--no-fail-fast", "--doc", "--", "--show-output"]);
    command.current_dir(repository()?);
    Ok(command)
}

/// The test binary that a message of cargo tells of.
fn target(message: &Value) -> Option<Target> {
    let text = |path: &str| message.pointer(path).and_then(Value::as_str);
    if text("/reason") != Some("compiler-artifact") || message.pointer("/profile/test") != Some(&true.into())
    {
        return None;
    }
    let (executable, manifest) = (text("/executable")?, text("/manifest_path")?);
    let which = match (text("/target/kind/0")?, text("/target/name")?) {
        ("test", name) => format!("--test {name}"),
        ("bin", name) => format!("--bin {name}"),
        _ => "--lib".to_owned(),
    };
    Some(Target {
        name: format!("-p {} {which}", package(text("/package_id")?)?),
        executable: executable.into(),
        folder: Path::new(manifest).parent()?.to_path_buf(),
    })
}

/// The name in `path+file:///checkout/node#cinch-node@0.1.0`; in `path+file:///checkout/tar#0.1.0` it is the folder's.
fn package(id: &str) -> Option<&str> {
    let (folder, end) = id.split_once('#')?;
    end.split_once('@').map(|(name, _)| name).or_else(|| folder.rsplit('/').next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(kind: &str, name: &str, id: &str, is_test: bool) -> Value {
        json!({"reason": "compiler-artifact", "package_id": id, "manifest_path": "/c/node/Cargo.toml",
            "target": {"kind": [kind], "name": name}, "profile": {"test": is_test}, "executable": "/t/x"})
    }

    #[test]
    fn a_test_binary_has_the_name_that_runs_it_alone_and_its_packages_folder() {
        let id = "path+file:///c/node#cinch-node@0.1.0";
        for (kind, name, expected) in [
            ("test", "csi", "-p cinch-node --test csi"),
            ("lib", "cinch_node", "-p cinch-node --lib"),
            ("bin", "cinch-node", "-p cinch-node --bin cinch-node"),
        ] {
            let found = target(&message(kind, name, id, true)).unwrap();
            assert_eq!((found.name.as_str(), found.folder.as_path()), (expected, Path::new("/c/node")));
        }
        let named_by_folder = message("test", "csi", "path+file:///c/node#0.1.0", true);
        assert_eq!(target(&named_by_folder).unwrap().name, "-p node --test csi");
    }

    #[test]
    fn programs_and_libraries_are_no_test_binaries() {
        let id = "path+file:///c/node#cinch-node@0.1.0";
        assert_eq!(target(&message("bin", "cinch-node", id, false)), None);
        let mut library = message("lib", "cinch_node", id, true);
        library["executable"] = Value::Null;
        assert_eq!(target(&library), None);
        assert_eq!(target(&json!({"reason": "build-finished", "success": true})), None);
    }
}
