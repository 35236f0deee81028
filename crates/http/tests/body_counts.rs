//! What the filter says of the sizes of bodies is what the peers wrote, however their bytes are cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

use cinch_http::{Authorizer, Filter, Limits, Output, Patch, RequestHead, RequestId, Turn, Verdict, h1};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// Lets everything pass, and adds up what it hears, by request.
#[derive(Default)]
struct Sums {
    requests: Vec<usize>,
    answers: Vec<usize>,
}

fn add(sums: &mut Vec<usize>, id: RequestId, bytes: usize) {
    let place = usize::try_from(id.0).unwrap();
    sums.resize(sums.len().max(place + 1), 0);
    sums[place] += bytes;
}

impl Authorizer for Sums {
    fn decide(&mut self, _: RequestId, _: &RequestHead<'_>, _: &mut Patch) -> Verdict {
        Verdict::Forward
    }

    fn is_guarded(&self, _: &str) -> bool {
        false
    }

    fn request_body(&mut self, id: RequestId, bytes: usize) {
        add(&mut self.requests, id, bytes);
    }

    fn answer_body(&mut self, id: RequestId, bytes: usize) {
        add(&mut self.answers, id, bytes);
    }
}

/// A body as its sender frames it, in the chunked coding when `chunks` says of how many.
fn framed(body: usize, chunks: Option<usize>) -> String {
    let text = "b".repeat(body);
    let Some(size) = chunks else { return format!("content-length: {body}\r\n\r\n{text}") };
    let pieces = text.as_bytes().chunks(size);
    let chunks: String =
        pieces.map(|piece| format!("{:x}\r\n{}\r\n", piece.len(), str::from_utf8(piece).unwrap())).collect();
    format!("transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

/// Gives `bytes` to `work` in pieces that `cuts` say.
fn cut(bytes: &[u8], cuts: &[usize], mut work: impl FnMut(&[u8])) {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    for pair in places.windows(2) {
        work(&bytes[pair[0]..pair[1]]);
    }
}

type Exchange = (usize, Option<usize>, usize, Option<usize>);

proptest! {
    #[test]
    fn sizes_of_bodies_do_not_depend_on_how_bytes_are_cut(
        exchanges in prop::collection::vec((0..300_usize, prop::option::of(1..64_usize), 0..300_usize, prop::option::of(1..64_usize)), 1..5),
        cuts in prop::collection::vec(0..5000_usize, 0..40),
        answer_cuts in prop::collection::vec(0..5000_usize, 0..40),
    ) {
        let join = |of: &dyn Fn(&Exchange) -> String| exchanges.iter().map(of).collect::<String>();
        let requests = join(&|(body, chunks, ..)| format!("POST / HTTP/1.1\r\nhost: a\r\n{}", framed(*body, *chunks)));
        let answers = join(&|(.., body, chunks)| format!("HTTP/1.1 200 OK\r\n{}", framed(*body, *chunks)));
        let now = Instant::now();
        let mut filter = h1::Connection::new(Arc::new(Limits::default()), now);
        let (mut sums, mut out) = (Sums::default(), Output::default());
        cut(requests.as_bytes(), &cuts, |piece| {
            filter.client_data(piece, &mut Turn { now, authorizer: &mut sums, out: &mut out });
            out.clear();
        });
        cut(answers.as_bytes(), &answer_cuts, |piece| {
            filter.app_data(piece, &mut Turn { now, authorizer: &mut sums, out: &mut out });
            out.clear();
        });
        let heard = |sums: &[usize], at: usize| sums.get(at).copied().unwrap_or(0);
        for (at, (request, _, answer, _)) in exchanges.iter().enumerate() {
            prop_assert_eq!((heard(&sums.requests, at), heard(&sums.answers, at)), (*request, *answer));
        }
    }
}
