//! `policy eval`: JSON Lines in, one JSON line out for each, in the same order. A line that can't be understood
//! is answered with an error and the run goes on. Other programs speak this: its fields are a contract.

mod authorize;
mod case;
mod lines;
mod operation;
mod tokens;

pub use operation::{Case, answer};

use anyhow::{Context, Result};
use lines::{Line, Lines};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufWriter, Write};
use std::process::ExitCode;

/// Answers standard input on standard output.
///
/// # Errors
/// When reading or writing fails.
pub fn run() -> Result<ExitCode> {
    let input = std::io::stdin().lock();
    let output = std::io::stdout().lock();
    answer_all(input, output)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers each line of `input`. What is answered is written out before more input is waited for.
fn answer_all(input: impl BufRead, output: impl Write) -> Result<()> {
    let mut lines = Lines::new(input);
    let mut output = BufWriter::new(output);
    loop {
        if lines.must_wait() {
            output.flush().context("standard output can not be written")?;
        }
        let Some(line) = lines.next().context("standard input can not be read")? else { break };
        let answered = match line {
            Line::Whole(bytes) => answer_line(bytes),
            Line::TooLong => failed(None, &format!("the line has more than {} bytes", lines::LONGEST)),
        };
        writeln!(output, "{answered}").context("standard output can not be written")?;
    }
    output.flush().context("standard output can not be written")
}

/// What is read first, so that the id can be echoed whatever else is wrong.
#[derive(Deserialize)]
struct Envelope<'l> {
    #[serde(borrow, default, deserialize_with = "even_null")]
    id: Option<&'l RawValue>,
}

/// `null` is an id like any other.
fn even_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn answer_line(line: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(line) else { return failed(None, "the line is not UTF-8") };
    let id = match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(Envelope { id }) => id,
        Err(error) => return failed(None, &format!("the line is no case: {error}")),
    };
    match serde_json::from_str::<Case>(text).map_err(|error| error.to_string()).and_then(answer) {
        Ok(answer) => with_id(id, answer),
        Err(error) => failed(id, &error),
    }
}

fn failed(id: Option<&RawValue>, error: &str) -> String {
    with_id(id, Map::from_iter([("error".to_owned(), json!(error))]))
}

/// The answer as text, with the id exactly as it came: no number loses a digit.
fn with_id(id: Option<&RawValue>, answer: Map<String, Value>) -> String {
    let text = Value::Object(answer).to_string();
    match (id, text.strip_prefix('{')) {
        (Some(id), Some("}")) => format!("{{\"id\":{}}}", id.get()),
        (Some(id), Some(rest)) => format!("{{\"id\":{},{rest}", id.get()),
        _ => text,
    }
}

#[cfg(test)]
mod tests;
