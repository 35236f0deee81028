//! Path templates: `{*}` is a segment, `{**}` any rest, everything else is literal.

/// Which characters the operators of a template span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charset {
    /// Those that Istio lets them span: where a match widens what passes.
    Strict,
    /// Any but `/` in a segment, any at all in `{**}`: where a match narrows what passes.
    Any,
}

impl Charset {
    fn holds_all(self, bytes: &[u8]) -> bool {
        match self {
            Charset::Any => true,
            Charset::Strict => {
                bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@/".contains(byte))
            }
        }
    }
}

/// Why a string with `{*}` or `{**}` is no template. Each sentence follows the field's path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// An operator or brace inside a segment.
    #[error("{0:?} has braces inside a segment; {{*}} and {{**}} must each stand alone between slashes")]
    NotAlone(String),
    /// An operator after `{**}`.
    #[error("{0:?} has an operator after {{**}}; {{**}} may stand once, and only literals may follow it")]
    AfterRest(String),
    /// A `*` wildcard in the same string.
    #[error("{0:?} mixes the wildcard * with a template; write {{*}} or {{**}} instead of *")]
    Wildcard(String),
}

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What comes before `{**}`, or everything.
    head: Vec<Piece>,
    /// The literal after `{**}`; `None` without one.
    tail: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    Segment,
}

impl Template {
    /// Reads a value of `paths`; `None` when it holds neither `{*}` nor `{**}` and is an ordinary string rule.
    ///
    /// # Errors
    /// [`TemplateError`] when it holds an operator and breaks the rules for templates.
    pub fn parse(text: &str) -> Result<Option<Self>, TemplateError> {
        if !text.contains("{*}") && !text.contains("{**}") {
            return Ok(None);
        }
        let (mut head, mut literal, mut rest) = (Vec::new(), String::new(), false);
        for (index, segment) in text.split('/').enumerate() {
            if index > 0 {
                literal.push('/');
            }
            match segment {
                "{*}" | "{**}" if rest => return Err(TemplateError::AfterRest(text.to_owned())),
                "{*}" => {
                    head.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    head.push(Piece::Segment);
                }
                "{**}" => {
                    head.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    rest = true;
                }
                _ if segment.contains(['{', '}']) => return Err(TemplateError::NotAlone(text.to_owned())),
                _ if segment.contains('*') => return Err(TemplateError::Wildcard(text.to_owned())),
                _ => literal.push_str(segment),
            }
        }
        if rest {
            return Ok(Some(Template { head, tail: Some(literal.into()) }));
        }
        head.push(Piece::Literal(literal.into()));
        Ok(Some(Template { head, tail: None }))
    }

    /// The literals between the operators, the one that it begins with first.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        let head = self.head.iter().filter_map(|piece| match piece {
            Piece::Literal(literal) => Some(&**literal),
            Piece::Segment => None,
        });
        head.chain(self.tail.as_deref())
    }

    /// The same template with each literal changed.
    pub(crate) fn with(&self, change: impl Fn(&str) -> String) -> Self {
        let piece = |piece: &Piece| match piece {
            Piece::Literal(literal) => Piece::Literal(change(literal).into()),
            Piece::Segment => Piece::Segment,
        };
        let tail = self.tail.as_ref().map(|tail| change(tail).into());
        Template { head: self.head.iter().map(piece).collect(), tail }
    }

    /// Whether `path`, a whole path without query, is one that the template describes.
    #[must_use]
    pub fn matches(&self, path: &str, charset: Charset) -> bool {
        let mut rest = path.as_bytes();
        for piece in &self.head {
            match piece {
                Piece::Literal(literal) => match rest.strip_prefix(literal.as_bytes()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Piece::Segment => {
                    let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
                    let (segment, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                    if segment.is_empty() || !charset.holds_all(segment) {
                        return false;
                    }
                    rest = after;
                }
            }
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest.strip_suffix(tail.as_bytes()).is_some_and(|span| charset.holds_all(span)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        let cases = [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a/b/", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}/", "/a/b/", true),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{*}/c", "/a//c", false),
            ("/{*}/{*}/x", "/a/b/x", true),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a", false),
            ("/a/{**}", "/a/b/c/", true),
            ("/store/{**}/cart", "/store/x/y/cart", true),
            ("/store/{**}/cart", "/store//cart", true),
            ("/store/{**}/cart", "/store/cart", false),
            ("/store/{**}/cart", "/store/x/cart/", false),
            ("/{*}/b/{**}", "/a/b/", true),
            ("/{**}", "/", true),
            ("{**}", "/x", true),
            ("/a/{*}", "/A/b", false),
            ("/a/{*}", "/a/b?c", false),
        ];
        for (text, path, expected) in cases {
            let template = Template::parse(text).unwrap().unwrap();
            assert_eq!(template.matches(path, Charset::Strict), expected, "{text} on {path}");
        }
    }

    #[test]
    fn the_character_set_is_narrow_only_where_told() {
        for odd in ["/a/b=c", "/a/b*c", "/a/b c", "/a/ü", "/a/b\"", "/a/{x}"] {
            for text in ["/a/{*}", "/a/{**}"] {
                let template = Template::parse(text).unwrap().unwrap();
                assert!(!template.matches(odd, Charset::Strict), "{text} on {odd}");
                assert!(template.matches(odd, Charset::Any), "{text} on {odd}");
            }
        }
        let literal = Template::parse("/a=b/{*}").unwrap().unwrap();
        assert!(literal.matches("/a=b/c", Charset::Strict), "the set is about operators, not literals");
        let every = Template::parse("/{*}").unwrap().unwrap();
        assert!(every.matches("/azAZ09-._~%!$&'()+,;:@", Charset::Strict));
    }

    #[test]
    fn what_is_no_template_is_told_apart_from_what_is_a_broken_one() {
        for plain in ["/a", "/a/*", "*", "/a/{id}", "/a/{", ""] {
            assert_eq!(Template::parse(plain), Ok(None), "{plain}");
        }
        let broken = [
            ("/a{*}", TemplateError::NotAlone("/a{*}".into())),
            ("/{*}{*}", TemplateError::NotAlone("/{*}{*}".into())),
            ("/{*}/{id}", TemplateError::NotAlone("/{*}/{id}".into())),
            ("/{**}/{*}", TemplateError::AfterRest("/{**}/{*}".into())),
            ("/{**}/{**}", TemplateError::AfterRest("/{**}/{**}".into())),
            ("/{*}/*", TemplateError::Wildcard("/{*}/*".into())),
            ("*/{*}", TemplateError::Wildcard("*/{*}".into())),
        ];
        for (text, expected) in broken {
            assert_eq!(Template::parse(text), Err(expected.clone()), "{text}");
            assert!(expected.to_string().contains(text), "{expected}");
        }
    }
}
