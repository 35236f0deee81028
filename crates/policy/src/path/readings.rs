//! One request target, normalised: what is forwarded, and what rules are judged under.

use super::form::{Separators, base, decode_separators, has_encoded_separator, merge_slashes};
use super::further::each_further;
use super::{BadPath, FORM_BYTES, PathNormalization};
use crate::text::split_once;
use std::borrow::Cow;

/// A target after normalisation. Nothing is allocated for a path that is already in its normal form and has one
/// reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readings<'a> {
    forward: Cow<'a, str>,
    query: Option<&'a str>,
    /// The further readings that the mode names, distinct.
    named: Vec<String>,
    /// What back ends of other habits could make of the forwarded form, distinct from all above.
    further: Vec<String>,
    /// Bytes of all forms that were made to find them.
    made: usize,
}

impl<'a> Readings<'a> {
    /// What the normalisation has cost and a decision will: bytes that were looked at, of the path and of each form
    /// that was made of it.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.forward.len() + self.made
    }

    /// The path to forward, without the query; also the first reading.
    #[must_use]
    pub fn forward(&self) -> &str {
        &self.forward
    }

    /// The query as sent, without `?`.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// The target to forward when the query stays as it is.
    #[must_use]
    pub fn target(&self) -> Cow<'_, str> {
        match self.query {
            None => Cow::Borrowed(&self.forward),
            Some(query) => Cow::Owned(format!("{}?{query}", self.forward)),
        }
    }

    /// The distinct readings that the mode names, the forwarded form first: for SAFE the forms BASE,
    /// MERGE_SLASHES and DECODE_AND_MERGE_SLASHES, for each other mode its own.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.forward).chain(self.named.iter().map(String::as_str))
    }

    /// What back ends could make of the forwarded form beyond that, for SAFE only, distinct from all that is named:
    /// they decode all escapes or only some, drop `;parameters`, or merge slashes before they resolve dots.
    pub fn further(&self) -> impl Iterator<Item = &str> {
        self.further.iter().map(String::as_str)
    }

    /// Every reading that a decision must hold under, distinct: [`Self::named`], then [`Self::further`].
    pub fn judged(&self) -> impl Iterator<Item = &str> {
        self.named().chain(self.further())
    }

    /// Whether one decision is enough.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.named.is_empty() && self.further.is_empty()
    }

    fn one(forward: Cow<'a, str>, query: Option<&'a str>) -> Self {
        Readings { forward, query, named: Vec::new(), further: Vec::new(), made: 0 }
    }

    /// The three named readings of `path`, whose BASE form is `self.forward`.
    fn add_named(&mut self, path: &str) -> Result<(), BadPath> {
        if let Cow::Owned(merged) = merge_slashes(&self.forward) {
            self.named.push(merged);
        }
        if has_encoded_separator(path, Separators::Both) {
            let decoded = decode_and_merge(path)?.into_owned();
            if !self.judged().any(|known| known == decoded) {
                self.named.push(decoded);
            }
        }
        Ok(())
    }

    fn add_further(&mut self, most: usize) -> Result<(), BadPath> {
        let mut further: Vec<String> = Vec::new();
        let mut made = 0;
        let each = |form: &str| {
            made += form.len();
            if !self.judged().chain(further.iter().map(String::as_str)).any(|known| known == form) {
                further.push(form.to_owned());
            }
        };
        each_further(&self.forward, most, each).map_err(|_| BadPath::TooLong)?;
        self.further = further;
        self.made = made;
        Ok(())
    }
}

/// Normalises `target`, the path of a request with its query and perhaps a fragment (which goes), by `mode`.
/// `*` (RFC 9112, section 3.2.4) stays as it is; an empty path is `/`.
///
/// # Errors
/// [`BadPath`], to be answered with status 400; never in mode NONE.
pub fn normalize(mode: PathNormalization, target: &str) -> Result<Readings<'_>, BadPath> {
    normalize_within(mode, target, FORM_BYTES)
}

/// As [`normalize`], where all forms of a path may have `most` bytes together instead of [`FORM_BYTES`].
///
/// # Errors
/// As [`normalize`].
pub fn normalize_within(mode: PathNormalization, target: &str, most: usize) -> Result<Readings<'_>, BadPath> {
    let (path, query) = parted(target);
    if is_normal(path) {
        return Ok(Readings::one(Cow::Borrowed(path), query));
    }
    let forward = match mode {
        PathNormalization::None => Cow::Borrowed(path),
        PathNormalization::Base | PathNormalization::Safe => base(path)?,
        PathNormalization::MergeSlashes => merged(base(path)?),
        PathNormalization::DecodeAndMergeSlashes => decode_and_merge(path)?,
    };
    let mut readings = Readings::one(forward, query);
    if mode == PathNormalization::Safe {
        readings.add_named(path)?;
        readings.add_further(most)?;
    }
    Ok(readings)
}

/// The path and the query of a target.
fn parted(target: &str) -> (&str, Option<&str>) {
    let end = target.bytes().position(|byte| byte == b'?' || byte == b'#');
    let Some((path, rest)) = end.and_then(|end| target.split_at_checked(end)) else { return (target, None) };
    let query = rest.strip_prefix('?');
    (path, query.map(|query| split_once(query, b'#').map_or(query, |(query, _fragment)| query)))
}

/// Whether every mode leaves `path` as it is and every back end reads it alike: nearly all paths that are asked for.
/// One look at each byte, without branches.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let next = bytes.get(1..).unwrap_or_default();
    let odd = |byte: u8| (byte == b'%') | (byte == b'\\') | (byte == b';') | (byte == 0);
    let single = bytes.iter().fold(false, |found, byte| found | odd(*byte));
    let pair = bytes
        .iter()
        .zip(next)
        .fold(false, |found, (one, next)| found | ((*one == b'/') & ((*next == b'/') | (*next == b'.'))));
    bytes.first() == Some(&b'/') && !single && !pair
}

fn decode_and_merge(path: &str) -> Result<Cow<'_, str>, BadPath> {
    match decode_separators(path, Separators::Both) {
        Cow::Borrowed(same) => Ok(merged(base(same)?)),
        Cow::Owned(decoded) => Ok(Cow::Owned(merged(base(&decoded)?).into_owned())),
    }
}

fn merged(path: Cow<'_, str>) -> Cow<'_, str> {
    match path {
        Cow::Borrowed(path) => merge_slashes(path),
        Cow::Owned(path) if path.contains("//") => Cow::Owned(merge_slashes(&path).into_owned()),
        Cow::Owned(path) => Cow::Owned(path),
    }
}
