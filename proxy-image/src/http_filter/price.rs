//! What it costs to judge requests, so that one connection leaves time for the others. In go heads and tokens, out come
//! prices; and when a client has sent more forged tokens than anybody does in good faith.

use cinch_http::RequestHead;
use std::time::{Duration, Instant};

/// What the decisions of one turn may cost before others have theirs, in bytes of paths and of the forms that back
/// ends could make of them: about a millisecond. No setting, nor are the prices: nothing is refused by them, and what is
/// left is judged in the next turn.
pub(super) const TURN: usize = 64 * 1024;
/// What any request costs in the same measure: its decision, its metrics, its line in the log, our answer.
const REQUEST: usize = 256;
/// And each of its fields, beside its bytes.
const FIELD: usize = 8;
/// So many bytes of fields are decoded and checked at the price of one of a path.
const FIELD_BYTES: usize = 4;
/// A head that could not be understood, whose length nobody tells: as one of 16 KiB.
pub(super) const UNREADABLE: usize = 4 * 1024;
/// A signature.
const SIGNATURE: usize = 4 * 1024;
/// A byte of a token that is taken apart: base64, a hash, and JSON into a tree.
const TOKEN_BYTE: usize = 2;

/// What a request costs before anybody looks at its path or its tokens.
pub(super) fn of_head(head: &RequestHead<'_>) -> usize {
    let fields = head.headers.iter().map(|(name, value)| FIELD + (name.len() + value.len()) / FIELD_BYTES);
    REQUEST + head.target.len() / FIELD_BYTES + fields.sum::<usize>()
}

/// What tokens cost of which so many `signatures` were looked at and so many bytes `parsed`.
pub(super) fn of_tokens(signatures: u32, parsed: usize) -> usize {
    SIGNATURE * signatures as usize + TOKEN_BYTE * parsed
}

/// In this time half of the forged tokens are forgotten: a gateway's connection lasts, and carries the tokens of many. No
/// setting: how many there may be is one.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// The forged tokens that a connection carried lately.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Forged {
    count: u32,
    since: Option<Instant>,
}

impl Forged {
    /// With one more, at `now`.
    #[must_use]
    pub(super) fn and_one(self, now: Instant) -> Forged {
        let since = self.since.unwrap_or(now);
        let halvings = now.saturating_duration_since(since).as_secs() / HALF_LIFE.as_secs();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        let left = self.count.checked_shr(halvings).unwrap_or(0);
        Forged { count: left.saturating_add(1), since: Some(since + HALF_LIFE.saturating_mul(halvings)) }
    }

    /// As many as `most`, after which a connection is drained. Tokens that have run out or are for somebody else are none,
    /// and those that come again neither.
    pub(super) fn are_too_many(self, most: u32) -> bool {
        self.count >= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_http::Version;

    fn head<'a>(target: &'a str, headers: &'a [(&'a str, &'a [u8])]) -> usize {
        let (method, authority) = ("GET", Some("shop"));
        of_head(&RequestHead { version: Version::Http2, method, target, authority, headers, upgrade: false })
    }

    #[test]
    fn no_request_is_free_and_the_largest_fill_a_turn_in_a_few() {
        assert!((100..=256).contains(&(TURN / head("/", &[]))));
        let value = [b'x'; 240];
        assert!((3..=5).contains(&(TURN / head("/", &[("x", &value[..]); 250]))), "60 KiB of them");
        let empty: &[u8] = b"";
        assert!((10..=30).contains(&(TURN / head("/", &[("x", empty); 256]))), "many of no length");
        let long = "/".repeat(60_000);
        assert!((3..=5).contains(&(TURN / head(&long, &[]))));
    }

    #[test]
    fn tokens_cost_what_is_looked_at_of_them() {
        assert_eq!(of_tokens(0, 0), 0, "known ones");
        assert!((5..=10).contains(&(TURN / of_tokens(0, 4000))), "refused for their claims");
        assert!((4..=16).contains(&(TURN / of_tokens(1, 1000))));
    }

    #[test]
    fn forged_tokens_are_forgotten_by_halves() {
        let start = Instant::now();
        let mut forged = Forged::default();
        for number in 1..=64 {
            assert!(!forged.are_too_many(64), "{number}");
            forged = forged.and_one(start + HALF_LIFE.mul_f64(0.9));
        }
        assert!(forged.are_too_many(64) && !forged.are_too_many(65));

        let mut slow = Forged::default();
        for minute in 0..1000 {
            for _ in 0..30 {
                slow = slow.and_one(start + HALF_LIFE * minute);
                assert!(!slow.are_too_many(64), "minute {minute}");
            }
        }
        assert_eq!(slow.and_one(start + HALF_LIFE * 100_000).count, 1);
    }
}
