//! What the program is asked to do: in go its arguments, out comes the command, or what is wrong with them. There are
//! too few to spend a fiftieth of the program, in each pod, on a library for them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What `--help` prints, and what follows a mistake.
pub const USAGE: &str = "\
The sidecar proxy of Cinch

Usage: cinch-proxy <COMMAND>

Commands:
  run      Run the proxy: in a pod with the operator, or by a file
             --config <FILE>  Take everything from this file instead of a control plane
  init     Set the redirect of this network namespace and prove it
  version  Print the version
  help     Print this
";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the proxy: in a pod with the operator, or by a file.
    Run {
        /// The file that says everything, instead of a control plane.
        config: Option<PathBuf>,
    },
    /// Set the redirect of this network namespace and prove it.
    Init,
    /// Print the version.
    Version,
    /// Print [`USAGE`].
    Help,
}

/// Arguments that say nothing that the program can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// There are none.
    #[error("a command is needed")]
    NoCommand,
    /// The first is no command.
    #[error("there is no command {0:?}")]
    NotACommand(OsString),
    /// One that the command does not take, or not again.
    #[error("{0:?} is not expected here")]
    Unexpected(OsString),
    /// `--config` stands last.
    #[error("--config needs a file")]
    NoFile,
}

/// Reads the arguments, without the program's name.
///
/// # Errors
/// [`ArgumentError`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ArgumentError> {
    let mut rest = arguments.into_iter();
    let first = rest.next().ok_or(ArgumentError::NoCommand)?;
    let mut command = match first.to_str() {
        Some("run") => Command::Run { config: None },
        Some("init") => Command::Init,
        Some("version") => Command::Version,
        Some("help" | "-h" | "--help") => return Ok(Command::Help),
        _ => return Err(ArgumentError::NotACommand(first)),
    };
    while let Some(argument) = rest.next() {
        if argument == "-h" || argument == "--help" {
            return Ok(Command::Help);
        }
        let Command::Run { config: config @ None } = &mut command else {
            return Err(ArgumentError::Unexpected(argument));
        };
        let file = if argument == "--config" {
            rest.next()
        } else if let Some(file) = argument.as_bytes().strip_prefix(b"--config=") {
            Some(OsStr::from_bytes(file).to_owned())
        } else {
            return Err(ArgumentError::Unexpected(argument));
        };
        *config = Some(file.filter(|file| !file.is_empty()).ok_or(ArgumentError::NoFile)?.into());
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Command, String> {
        parse(words.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn each_command_is_read() {
        let by_file = |file: &str| Ok(Command::Run { config: Some(file.into()) });
        for (words, expected) in [
            ("run", Ok(Command::Run { config: None })),
            ("run --config a.yaml", by_file("a.yaml")),
            ("run --config=a=b.yaml", by_file("a=b.yaml")),
            ("run --config --help", by_file("--help")),
            ("init", Ok(Command::Init)),
            ("version", Ok(Command::Version)),
            ("help", Ok(Command::Help)),
            ("-h", Ok(Command::Help)),
            ("--help", Ok(Command::Help)),
            ("run --help", Ok(Command::Help)),
            ("init -h", Ok(Command::Help)),
        ] {
            assert_eq!(of(words), expected, "{words}");
        }
    }

    #[test]
    fn a_file_may_have_any_name() {
        let name = OsStr::from_bytes(b"\xff\xfe.yaml");
        let together = OsStr::from_bytes(b"--config=\xff\xfe.yaml").to_owned();
        for arguments in
            [vec!["run".into(), "--config".into(), name.to_owned()], vec!["run".into(), together]]
        {
            assert_eq!(parse(arguments), Ok(Command::Run { config: Some(name.into()) }));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (words, named) in [
            ("", "a command is needed"),
            ("Run", "\"Run\""),
            ("--config a.yaml run", "\"--config\""),
            ("--version", "\"--version\""),
            ("run a.yaml", "\"a.yaml\""),
            ("run --conf a.yaml", "\"--conf\""),
            ("run --config", "--config needs a file"),
            ("run --config=", "--config needs a file"),
            ("run --config a --config b", "\"--config\""),
            ("init --config a", "\"--config\""),
            ("version init", "\"init\""),
        ] {
            let error = of(words).unwrap_err();
            assert!(error.contains(named), "{words}: {error}");
        }
    }
}
