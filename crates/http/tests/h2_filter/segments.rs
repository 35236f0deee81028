//! Any segmentation of the same bytes gives the same result, and no bytes do harm.

use crate::raw::*;
use crate::scene::Scene;
use cinch_http::{End, Filter};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What a side got, however it was framed: bodies joined by stream, refunds added up, other frames in their order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    frames: Vec<Frame>,
    bodies: BTreeMap<u32, (Vec<u8>, bool)>,
    refunds: u64,
}

fn heard(bytes: &[u8]) -> Heard {
    let mut heard = Heard::default();
    for frame in frames(bytes) {
        match frame.kind {
            DATA if frame.flags & PADDED == 0 => {
                let (body, end) = heard.bodies.entry(frame.stream).or_default();
                assert!(!*end);
                body.extend(&frame.payload);
                *end = frame.flags & END_STREAM != 0;
            }
            WINDOW_UPDATE if frame.stream == 0 => {
                heard.refunds += u64::from(u32::from_be_bytes(frame.payload[..].try_into().unwrap()));
            }
            _ => heard.frames.push(frame),
        }
    }
    heard
}

/// Feeds the client's bytes in pieces of the given lengths, over and over; then answers, likewise.
fn run(client: &[u8], app: &[u8], cuts: &[usize]) -> (Heard, Heard, Option<End>, usize) {
    let mut scene = Scene::new();
    let pieces = |mut bytes: &[u8], feed: &mut dyn FnMut(&[u8])| {
        for cut in cuts.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (piece, rest) = bytes.split_at((*cut).min(bytes.len()));
            feed(piece);
            bytes = rest;
        }
    };
    scene.app(&settings(&[]));
    pieces(client, &mut |piece| scene.client(piece));
    pieces(app, &mut |piece| scene.app(piece));
    let held = scene.filter.held();
    (heard(&scene.to_app), heard(&scene.to_client), scene.end(), held)
}

fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let path = prop_oneof![Just("/a"), Just("/deny"), Just("/401"), Just("/patch/x")];
    let stream = (0..12_u32).prop_map(|stream| 2 * stream + 1);
    let body =
        prop_oneof![prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 900..5000)];
    prop_oneof![
        4 => (stream.clone(), path, any::<bool>()).prop_map(|(stream, path, end)| if end { get(stream, path) } else { post(stream, path) }),
        4 => (stream.clone(), body, any::<bool>()).prop_map(|(stream, body, end)| data(stream, u8::from(end), &body)),
        1 => stream.clone().prop_map(|stream| data(stream, PADDED, &[&[2][..], &[9; 1500]].concat())),
        1 => stream.clone().prop_map(|stream| headers(stream, END_STREAM, &[("x-a", "1")])),
        1 => stream.clone().prop_map(|stream| [frame(HEADERS, END_STREAM, stream, &literals(&request("GET", "/", &[]))), frame(CONTINUATION, END_HEADERS, stream, &literals(&[("x", "y")]))].concat()),
        1 => stream.clone().prop_map(|stream| reset(stream, 8)),
        1 => stream.prop_map(|stream| window_update(stream, 5)),
        1 => Just(frame(PING, 0, 0, &[1; 8])),
        1 => Just(frame(0x55, 0, 3, &[1; 2000])),
    ]
}

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let stream = (0..12_u32).prop_map(|stream| 2 * stream + 1);
    let body = prop::collection::vec(any::<u8>(), 0..3000);
    prop_oneof![
        3 => stream.clone().prop_map(|stream| headers(stream, 0, &[(":status", "200")])),
        3 => (stream.clone(), body, any::<bool>()).prop_map(|(stream, body, end)| data(stream, u8::from(end), &body)),
        1 => stream.prop_map(|stream| headers(stream, END_STREAM, &[("grpc-status", "0")])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_segmentation_gives_the_same_result(
        client in prop::collection::vec(fragment(), 0..30),
        app in prop::collection::vec(answer(), 0..20),
        cuts in prop::collection::vec(prop_oneof![1..12_usize, 1..4000_usize], 1..20),
    ) {
        let client = [PREFACE, &settings(&[(4, 100_000)]), &client.concat()].concat();
        let app = app.concat();
        let whole = run(&client, &app, &[usize::MAX]);
        let cut = run(&client, &app, &cuts);
        prop_assert_eq!((&whole.0, &whole.1, whole.2), (&cut.0, &cut.1, cut.2));
        let bytes = run(&client, &app, &[1]);
        prop_assert_eq!((&whole.0, &whole.1, whole.2), (&bytes.0, &bytes.1, bytes.2));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        client in prop::collection::vec(prop_oneof![fragment(), noise()], 0..40),
        app in prop::collection::vec(prop_oneof![answer(), noise()], 0..40),
        cuts in prop::collection::vec(1..300_usize, 1..8),
    ) {
        let client = [PREFACE, &settings(&[]), &client.concat()].concat();
        let (_, _, _, held) = run(&client, &app.concat(), &cuts);
        prop_assert!(held < 1 << 20, "{held}");
    }
}

/// Frames of any type with any payload, and bytes that are no frames.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        6 => (0..12_u8, any::<u8>(), 0..9_u32, payload.clone()).prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload)),
        1 => payload,
    ]
}
