//! Files of Kubernetes objects: YAML or JSON, one document or many, from a path or from standard input. Out:
//! the documents as they stand and in their order; and the objects in them, taken out of their `List`s.

use anyhow::{Context, Result};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Stands for standard input.
pub const STDIN: &str = "-";

/// Reads the documents of a file, or of standard input for [`STDIN`].
///
/// # Errors
/// When it can't be read, or is neither YAML nor JSON.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let mut text = String::new();
    if path == Path::new(STDIN) {
        std::io::stdin().read_to_string(&mut text).context("standard input can not be read")?;
        return parse(&text).context("standard input");
    }
    text = std::fs::read_to_string(path).with_context(|| format!("{} can not be read", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads the documents of a text; empty ones are left out.
///
/// # Errors
/// When it is neither YAML nor JSON.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    // JSON first: it may be indented with tabs, which YAML forbids.
    if text.trim_start().starts_with('{') {
        let stream = serde_json::Deserializer::from_str(text).into_iter();
        if let Ok(documents) = stream.collect::<Result<Vec<Value>, _>>() {
            return Ok(documents);
        }
    }
    // kubectl reads 0644 as octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The kind of the elements, when `object` is a list of objects: empty for a plain `List`, whose elements all
/// say their own.
#[must_use]
pub fn list_of(object: &Value) -> Option<&str> {
    let kind = object.get("kind")?.as_str()?.strip_suffix("List")?;
    object.get("items")?.is_array().then_some(kind)
}

/// The objects in `documents`, in order, lists opened.
#[must_use]
pub fn objects(documents: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::new();
    for mut document in documents {
        let Some(kind) = list_of(&document).map(str::to_owned) else {
            all.push(document);
            continue;
        };
        let version = document.get("apiVersion").cloned();
        let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else { continue };
        let named = items.into_iter().map(|mut item| {
            // The API server leaves both out in its typed lists.
            if let (false, Some(item)) = (kind.is_empty(), item.as_object_mut()) {
                item.entry("kind").or_insert_with(|| Value::from(kind.clone()));
                item.entry("apiVersion").or_insert_with(|| version.clone().unwrap_or_default());
            }
            item
        });
        all.extend(objects(named.collect()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_come_in_order_and_empty_ones_are_left_out() {
        let text = "# first\n---\na: 1\n---\n---\nb: 0644\nc: \"0644\"\n";
        assert_eq!(parse(text).unwrap(), [json!({"a": 1}), json!({"b": 420, "c": "0644"})]);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn json_may_be_indented_with_tabs_and_come_in_many_documents() {
        assert_eq!(parse("{\n\t\"a\": 1\n}\n{\"b\": 2}").unwrap(), [json!({"a": 1}), json!({"b": 2})]);
    }

    #[test]
    fn lists_are_opened_and_their_elements_named() {
        let lists = vec![
            json!({"kind": "List", "apiVersion": "v1", "items": [{"kind": "A"}, {"kind": "List", "items": [{"kind": "B"}]}]}),
            json!({"kind": "PodList", "apiVersion": "v1", "items": [{"x": 1}]}),
        ];
        let want =
            [json!({"kind": "A"}), json!({"kind": "B"}), json!({"kind": "Pod", "apiVersion": "v1", "x": 1})];
        assert_eq!(objects(lists), want);
    }
}
