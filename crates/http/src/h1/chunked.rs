//! The chunked coding (RFC 9112, section 7.1): which bytes belong to a body. Nothing is held: bytes are taken as
//! they come.

/// The most digits of a chunk's size: what no server can overflow on.
const MAX_DIGITS: u8 = 15;
/// Bytes of an extension that are skipped in an answer.
const MAX_EXTENSION: u16 = 4096;

/// Who sends the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rigour {
    /// A client: extensions are refused, and the decoder stops before the trailers.
    Request,
    /// The app: extensions are skipped, and trailers too.
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Size,
    Extension(u16),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line of the trailers.
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
}

/// Where the body stands after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// All bytes were taken, and more belong to it.
    More,
    /// The last chunk is over; the trailers follow (only for a request).
    Trailers,
    /// The body is over.
    Done,
    /// The byte after those taken can't stand there.
    Bad(&'static str),
}

/// One body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunked {
    rigour: Rigour,
    place: Place,
    digits: u8,
    left: u64,
    /// Bytes of the body itself since they were last asked for.
    text: usize,
}

impl Chunked {
    pub(super) fn new(rigour: Rigour) -> Chunked {
        Chunked { rigour, place: Place::Size, digits: 0, left: 0, text: 0 }
    }

    /// Takes bytes; says how many, and what comes then.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, Step) {
        let mut taken = 0;
        while let Some(byte) = bytes.get(taken) {
            if self.place == Place::Data {
                let rest = u64::try_from(bytes.len() - taken).unwrap_or(u64::MAX);
                let step = rest.min(self.left);
                self.left -= step;
                let step = usize::try_from(step).unwrap_or(usize::MAX);
                (taken, self.text) = (taken + step, self.text + step);
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            match self.byte(*byte) {
                Step::Bad(fault) => return (taken, Step::Bad(fault)),
                Step::More => taken += 1,
                over => return (taken + 1, over),
            }
        }
        (taken, Step::More)
    }

    /// Bytes of the body itself, without its coding, that were taken since the last call.
    pub(super) fn take_text(&mut self) -> usize {
        std::mem::take(&mut self.text)
    }

    fn byte(&mut self, byte: u8) -> Step {
        match (self.place, byte) {
            (Place::Size, _) => return self.size(byte),
            (Place::Extension(_), b'\r') => self.place = Place::SizeLf,
            (Place::Extension(count), b'\t' | b' '..=b'~' | 0x80..) if count < MAX_EXTENSION => {
                self.place = Place::Extension(count + 1);
            }
            (Place::SizeLf, b'\n') if self.left > 0 => self.place = Place::Data,
            (Place::SizeLf, b'\n') if self.rigour == Rigour::Request => return Step::Trailers,
            (Place::SizeLf, b'\n') | (Place::TrailerLf, b'\n') => self.place = Place::Trailer,
            (Place::DataCr, b'\r') => self.place = Place::DataLf,
            (Place::DataLf, b'\n') => {
                self.place = Place::Size;
                self.digits = 0;
            }
            (Place::Trailer, b'\r') => self.place = Place::EndLf,
            (Place::TrailerLine, b'\r') => self.place = Place::TrailerLf,
            (Place::Trailer | Place::TrailerLine, b'\t' | b' '..=b'~' | 0x80..) => {
                self.place = Place::TrailerLine
            }
            (Place::EndLf, b'\n') => return Step::Done,
            (Place::Extension(_), _) => return Step::Bad("a chunk extension is malformed"),
            (Place::DataCr | Place::DataLf, _) => return Step::Bad("a chunk is longer than its size"),
            _ => return Step::Bad("a line of the chunked coding does not end with CRLF"),
        }
        Step::More
    }

    fn size(&mut self, byte: u8) -> Step {
        if let Some(digit) = char::from(byte).to_digit(16) {
            if self.digits == MAX_DIGITS {
                return Step::Bad("a chunk size has more than 15 digits");
            }
            self.digits += 1;
            self.left = self.left << 4 | u64::from(digit);
            return Step::More;
        }
        match byte {
            _ if self.digits == 0 => return Step::Bad("a chunk has no size"),
            b'\r' => self.place = Place::SizeLf,
            b';' | b' ' | b'\t' if self.rigour == Rigour::Response => self.place = Place::Extension(0),
            b';' => return Step::Bad("a chunk has an extension"),
            _ => return Step::Bad("a chunk size is not hexadecimal"),
        }
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rigour: Rigour, bytes: &[u8]) -> (usize, Step) {
        let whole = Chunked::new(rigour).advance(bytes);
        let mut decoder = Chunked::new(rigour);
        let mut taken = 0;
        let mut step = Step::More;
        for byte in bytes.chunks(1) {
            let (count, next) = decoder.advance(byte);
            taken += count;
            step = next;
            if next != Step::More {
                break;
            }
        }
        assert_eq!((taken, step), whole, "byte by byte: {:?}", String::from_utf8_lossy(bytes));
        whole
    }

    #[test]
    fn a_body_ends_where_it_says() {
        assert_eq!(all(Rigour::Request, b"5\r\nhello\r\n0\r\n\r\nGET"), (13, Step::Trailers));
        assert_eq!(all(Rigour::Request, b"00a\r\n0123456789\r\n000\r\nX: y\r\n\r\n"), (22, Step::Trailers));
        assert_eq!(all(Rigour::Response, b"5;a=b\r\nhello\r\n0 \r\nX: y\r\n\r\nHTTP"), (26, Step::Done));
        assert_eq!(all(Rigour::Response, b"0\r\n\r\n"), (5, Step::Done));
        assert_eq!(all(Rigour::Request, b"fffffffffffffff\r\nabc"), (20, Step::More));
    }

    #[test]
    fn a_body_that_can_be_read_two_ways_is_bad() {
        let cases: [(&[u8], usize); 12] = [
            (b"\r\n", 0),
            (b"5;a\r\n", 1),
            (b"5 \r\n", 1),
            (b" 5\r\n", 0),
            (b"0x5\r\n", 1),
            (b"-1\r\n", 0),
            (b"+5\r\n", 0),
            (b"5\nhello", 1),
            (b"5\r\nhelloX", 8),
            (b"5\r\nhello\n0", 8),
            (b"5\r\rhello", 2),
            (b"0000000000000005\r\n", 15),
        ];
        for (bytes, at) in cases {
            let (taken, step) = all(Rigour::Request, bytes);
            assert!(matches!(step, Step::Bad(_)), "{:?}", String::from_utf8_lossy(bytes));
            assert_eq!(taken, at, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
