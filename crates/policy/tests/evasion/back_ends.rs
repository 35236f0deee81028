//! How back ends read the target that they get.

/// One reading of a target.
#[derive(Debug, Clone, Copy)]
pub enum BackEnd {
    /// Takes the path as it stands.
    Raw,
    /// Merges slashes, then resolves dots, and decodes nothing.
    Merging,
    /// Decodes every escape so many times, then resolves dots; before or after decoding it may drop parameters.
    Decoding { times: u8, parameters: Parameters, backslash: Backslash, slashes: Slashes },
}

/// What `;x=1` behind a segment is to a back end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Parameters {
    Letters,
    DroppedFirst,
    DroppedLast,
}

/// What a backslash is to a back end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Backslash {
    Letter,
    Slash,
}

/// What a back end does with empty segments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slashes {
    Kept,
    MergedFirst,
    MergedLast,
}

/// All of them: the raw, the merging, and every kind of decoding.
pub fn all() -> Vec<BackEnd> {
    let mut all = vec![BackEnd::Raw, BackEnd::Merging];
    for times in 0..=2 {
        for parameters in [Parameters::Letters, Parameters::DroppedFirst, Parameters::DroppedLast] {
            for backslash in [Backslash::Letter, Backslash::Slash] {
                for slashes in [Slashes::Kept, Slashes::MergedFirst, Slashes::MergedLast] {
                    all.push(BackEnd::Decoding { times, parameters, backslash, slashes });
                }
            }
        }
    }
    all
}

impl BackEnd {
    /// Decodes once, and takes backslashes and empty segments as they are.
    pub const DECODING: BackEnd = BackEnd::Decoding {
        times: 1,
        parameters: Parameters::Letters,
        backslash: Backslash::Slash,
        slashes: Slashes::Kept,
    };

    /// As servlet containers read: parameters go, then it is decoded.
    pub const SERVLET: BackEnd = BackEnd::Decoding {
        times: 1,
        parameters: Parameters::DroppedFirst,
        backslash: Backslash::Letter,
        slashes: Slashes::MergedFirst,
    };

    /// The resource that this back end serves for `path`, as bytes: decoded escapes need not be text.
    pub fn resolve(self, path: &[u8]) -> Vec<u8> {
        match self {
            BackEnd::Raw => path.to_vec(),
            BackEnd::Merging => resolve_dots(&merge(path)),
            BackEnd::Decoding { times, parameters, backslash, slashes } => {
                let mut decoded = path.to_vec();
                if parameters == Parameters::DroppedFirst {
                    decoded = without_parameters(&decoded);
                }
                for _ in 0..times {
                    decoded = unescape(&decoded);
                }
                if parameters == Parameters::DroppedLast {
                    decoded = without_parameters(&decoded);
                }
                if backslash == Backslash::Slash {
                    decoded.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
                }
                match slashes {
                    Slashes::Kept => resolve_dots(&decoded),
                    Slashes::MergedFirst => resolve_dots(&merge(&decoded)),
                    Slashes::MergedLast => merge(&resolve_dots(&decoded)),
                }
            }
        }
    }
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match escaped {
            Some(digits) if path[at] == b'%' => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap());
                at += 3;
            }
            _ => {
                decoded.push(path[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// From each `;` up to the next slash.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut dropping = false;
    let mut kept = Vec::new();
    for byte in path {
        dropping = *byte != b'/' && (dropping || *byte == b';');
        if !dropping {
            kept.push(*byte);
        }
    }
    kept
}

fn merge(path: &[u8]) -> Vec<u8> {
    let mut merged: Vec<u8> = path.to_vec();
    merged.dedup_by(|one, before| *one == b'/' && *before == b'/');
    merged
}

/// A stack of segments, as file systems walk.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut stack: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/').collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            b"." => {}
            b".." => {
                stack.pop();
            }
            other => {
                stack.push(other);
                continue;
            }
        }
        if index + 1 == segments.len() {
            stack.push(b"");
        }
    }
    let mut resolved = Vec::new();
    for segment in stack {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    resolved
}
