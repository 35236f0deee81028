//! A value of `paths`, a line feed, and a path: the narrow reading of a template holds only where the wide one does.
#![no_main]

use cinch_policy::path::{Charset, Template};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (value, path) = text.split_once('\n').unwrap_or((text, "/a/b"));
    match Template::parse(value) {
        Ok(Some(template)) => {
            let wide = template.matches(path, Charset::Any);
            assert!(wide || !template.matches(path, Charset::Strict));
            assert!(value.contains("{*}") || value.contains("{**}"));
        }
        Ok(None) => assert!(!value.contains("{*}") && !value.contains("{**}")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
