//! A reference codec of HPACK, written to be plain: with a dynamic table on both sides, and without Huffman.

use std::collections::VecDeque;

pub type Text = (String, String);

const STATIC: &str = ":authority=|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|\
:status=204|:status=206|:status=304|:status=400|:status=404|:status=500|accept-charset=|accept-encoding=gzip, deflate|\
accept-language=|accept-ranges=|accept=|access-control-allow-origin=|age=|allow=|authorization=|cache-control=|\
content-disposition=|content-encoding=|content-language=|content-length=|content-location=|content-range=|content-type=|\
cookie=|date=|etag=|expect=|expires=|from=|host=|if-match=|if-modified-since=|if-none-match=|if-range=|\
if-unmodified-since=|last-modified=|link=|location=|max-forwards=|proxy-authenticate=|proxy-authorization=|range=|\
referer=|refresh=|retry-after=|server=|set-cookie=|strict-transport-security=|transfer-encoding=|user-agent=|vary=|via=|\
www-authenticate=";

fn statics() -> Vec<Text> {
    STATIC.split('|').map(|entry| entry.split_once('=').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
}

pub fn integer(value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(flags | value as u8);
    }
    out.push(flags | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    out.push(rest as u8);
}

pub fn text(text: &[u8], out: &mut Vec<u8>) {
    integer(text.len(), 7, 0, out);
    out.extend(text);
}

/// The dynamic table of either side.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    entries: VecDeque<Text>,
    limit: usize,
}

impl Table {
    pub fn new(limit: usize) -> Table {
        Table { entries: VecDeque::new(), limit }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn size(&self) -> usize {
        self.entries.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
    }

    fn insert(&mut self, field: Text) {
        self.entries.push_front(field);
        self.fit();
    }

    fn fit(&mut self) {
        while self.size() > self.limit {
            self.entries.pop_back();
        }
    }

    fn all(&self) -> Vec<Text> {
        let mut all = statics();
        all.extend(self.entries.iter().cloned());
        all
    }
}

/// Encodes with what the table offers; `choice` varies between the representations that there are.
pub fn encode(table: &mut Table, fields: &[Text], mut choice: usize, out: &mut Vec<u8>) {
    for field in fields {
        choice = choice.wrapping_mul(1_103_515_245).wrapping_add(12_345) >> 3;
        let all = table.all();
        let whole = all.iter().position(|entry| entry == field);
        let name = all.iter().position(|entry| entry.0 == field.0);
        match (choice % 4, whole) {
            (0..=2, Some(whole)) => {
                integer(whole + 1, 7, 0x80, out);
                continue;
            }
            (3, _) => {
                integer(name.map_or(0, |name| name + 1), 4, if choice % 8 == 3 { 0x10 } else { 0 }, out)
            }
            _ => integer(name.map_or(0, |name| name + 1), 6, 0x40, out),
        }
        if name.is_none() {
            text(field.0.as_bytes(), out);
        }
        text(field.1.as_bytes(), out);
        if choice % 4 != 3 {
            table.insert(field.clone());
        }
    }
}

/// Decodes what the filter writes, and panics where it is not HPACK.
pub fn decode(table: &mut Table, mut block: &[u8]) -> Vec<Text> {
    let mut fields = Vec::new();
    while let Some(first) = block.first() {
        match first {
            0x80.. => {
                let index = read_integer(&mut block, 7);
                fields.push(table.all()[index - 1].clone());
            }
            0x20..0x40 => {
                assert!(fields.is_empty(), "a table size within a block");
                table.limit = read_integer(&mut block, 5);
                assert!(table.limit <= 4096);
                table.fit();
            }
            _ => {
                let kept = first & 0x40 != 0;
                let index = read_integer(&mut block, if kept { 6 } else { 4 });
                let name = if index == 0 { read_text(&mut block) } else { table.all()[index - 1].0.clone() };
                let field = (name, read_text(&mut block));
                if kept {
                    table.insert(field.clone());
                }
                fields.push(field);
            }
        }
    }
    fields
}

fn read_integer(block: &mut &[u8], prefix: u32) -> usize {
    let most = (1 << prefix) - 1;
    let mut value = usize::from(block[0]) & most;
    *block = &block[1..];
    let mut factor = 1;
    while value >= most {
        let byte = usize::from(block[0]);
        *block = &block[1..];
        value += byte % 128 * factor;
        factor *= 128;
        if byte < 128 {
            break;
        }
    }
    value
}

fn read_text(block: &mut &[u8]) -> String {
    assert!(block[0] < 128, "the filter does not write Huffman");
    let length = read_integer(block, 7);
    let (text, rest) = block.split_at(length);
    *block = rest;
    String::from_utf8(text.to_vec()).unwrap()
}
