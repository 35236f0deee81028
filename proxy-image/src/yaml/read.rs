//! What serde asks a tree for. A scalar without quotes is null, a boolean (also as YAML 1.1 writes them), a number or
//! text, whichever it looks like; where a type is asked for, it is read as that, quotes or not.

use super::YamlError;
use super::tree::{Content, Node};
use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use std::vec::IntoIter;

pub(super) fn read<T: DeserializeOwned>(node: Node) -> Result<T, YamlError> {
    let place = node.place;
    T::deserialize(node).map_err(|error| error.at(place))
}

impl Node {
    /// It says nothing.
    fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true } if is_null(text))
    }

    /// Quotes do not count: something else than text is asked for.
    fn unquoted(mut self) -> Node {
        if let Content::Scalar { plain, .. } = &mut self.content {
            *plain = true;
        }
        self
    }
}

macro_rules! scalars {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
            self.unquoted().deserialize_any(visitor)
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
            if self.is_null() {
                return visitor.visit_unit();
            }
            match self.content {
                Content::Scalar { text, .. } => visitor.visit_string(text),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = YamlError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        match self.content {
            Content::Scalar { text, plain: false } => visitor.visit_string(text),
            Content::Scalar { text, plain: true } => plain(text, visitor),
            Content::Sequence(items) => {
                let (length, mut items) = (items.len(), Items(items.into_iter()));
                let value = visitor.visit_seq(&mut items)?;
                match items.0.next() {
                    None => Ok(value),
                    Some(_) => Err(de::Error::invalid_length(length, &"fewer items")),
                }
            }
            Content::Mapping(entries) => {
                visitor.visit_map(Entries { entries: entries.into_iter(), value: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, YamlError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, YamlError> {
        match self.content {
            Content::Scalar { text, .. } => {
                let text: StringDeserializer<YamlError> = text.into_deserializer();
                visitor.visit_enum(text)
            }
            _ => self.deserialize_any(visitor),
        }
    }

    scalars! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
    }

    texts! { deserialize_str deserialize_string deserialize_char deserialize_identifier }

    forward_to_deserialize_any! {
        bytes byte_buf unit unit_struct seq tuple tuple_struct map struct ignored_any
    }
}

struct Items(IntoIter<Node>);

impl<'de> SeqAccess<'de> for Items {
    type Error = YamlError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, YamlError> {
        let Some(item) = self.0.next() else { return Ok(None) };
        let place = item.place;
        seed.deserialize(item).map(Some).map_err(|error| error.at(place))
    }
}

struct Entries {
    entries: IntoIter<(Node, Node)>,
    /// The name of the key that was taken, and what stands behind it.
    value: Option<(String, Node)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = YamlError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, YamlError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let place = key.place;
        let name = match &key.content {
            Content::Scalar { text, .. } => text.clone(),
            _ => String::new(),
        };
        self.value = Some((name, value));
        seed.deserialize(key).map(Some).map_err(|error| error.at(place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, YamlError> {
        let (name, value) = self.value.take().unwrap_or_else(|| (String::new(), Node::null()));
        let place = value.place;
        seed.deserialize(value).map_err(|error| error.at(place).within(name))
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// A scalar without quotes, as what it looks like.
fn plain<'de, V: Visitor<'de>>(text: String, visitor: V) -> Result<V::Value, YamlError> {
    if is_null(&text) {
        return visitor.visit_unit();
    }
    if let Some(value) = boolean(&text) {
        return visitor.visit_bool(value);
    }
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    match magnitude(digits) {
        Some(magnitude) if !is_negative => return visitor.visit_u64(magnitude),
        Some(magnitude) => {
            if let Some(value) = 0_i64.checked_sub_unsigned(magnitude) {
                return visitor.visit_i64(value);
            }
        }
        None => {}
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => visitor.visit_f64(value),
        _ => visitor.visit_string(text),
    }
}

fn boolean(text: &str) -> Option<bool> {
    let is = |word: &&str| text.eq_ignore_ascii_case(word);
    if ["true", "yes", "y", "on"].iter().any(is) {
        return Some(true);
    }
    ["false", "no", "n", "off"].iter().any(is).then_some(false)
}

/// A whole number without its sign. One that begins with a superfluous 0 is none: it could be meant as an octal one.
fn magnitude(digits: &str) -> Option<u64> {
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
        [b'0', b'o' | b'O', ..] => (8, digits.get(2..)?),
        [b'0', b'b' | b'B', ..] => (2, digits.get(2..)?),
        [b'0', _, ..] => return None,
        _ => (10, digits),
    };
    // Underscores stand between digits only.
    let groups = digits.split('_');
    if groups.clone().any(|group| group.is_empty() || !group.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    {
        return None;
    }
    u64::from_str_radix(&groups.collect::<String>(), radix).ok()
}
