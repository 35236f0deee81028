//! Two reference peers with the filter between them, under random interleavings, refusals, cuts and segmentations:
//! at the end the windows and tables of both agree, and the app has read exactly what was authorised.

use crate::codec::Text;
use crate::peer::Peer;
use crate::raw::*;
use crate::scene::{Scene, texts};
use cinch_http::Filter;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Request {
        kind: usize,
        end: bool,
        seed: usize,
    },
    Head {
        seed: usize,
        end: bool,
        interim: bool,
    },
    Data {
        of_client: bool,
        seed: usize,
        length: usize,
        end: bool,
    },
    Trailers {
        of_client: bool,
        seed: usize,
    },
    Reset {
        of_client: bool,
        seed: usize,
    },
    Grant {
        of_client: bool,
        seed: usize,
    },
    Settings {
        of_client: bool,
        initial: u32,
    },
    Ping {
        of_client: bool,
    },
    Priority {
        seed: usize,
    },
    Tighten,
    /// So many bytes of a side reach the filter.
    Move {
        of_client: bool,
        bytes: usize,
    },
    /// What the filter has said reaches a side.
    Read {
        of_client: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let seed = 0..1_000_000_usize;
    let side = any::<bool>();
    prop_oneof![
        4 => (0..6_usize, any::<bool>(), seed.clone()).prop_map(|(kind, end, seed)| Step::Request { kind, end, seed }),
        4 => (seed.clone(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(seed, end, interim)| Step::Head { seed, end, interim }),
        8 => (side, seed.clone(), prop_oneof![0..50_usize, 0..16_384_usize], prop::bool::weighted(0.2))
            .prop_map(|(of_client, seed, length, end)| Step::Data { of_client, seed, length, end }),
        1 => (side, seed.clone()).prop_map(|(of_client, seed)| Step::Trailers { of_client, seed }),
        1 => (side, seed.clone()).prop_map(|(of_client, seed)| Step::Reset { of_client, seed }),
        4 => (side, seed.clone()).prop_map(|(of_client, seed)| Step::Grant { of_client, seed }),
        1 => (side, 0..100_000_u32).prop_map(|(of_client, initial)| Step::Settings { of_client, initial }),
        1 => side.prop_map(|of_client| Step::Ping { of_client }),
        1 => seed.prop_map(|seed| Step::Priority { seed }),
        1 => Just(Step::Tighten),
        12 => (side, prop_oneof![1..30_usize, 1..3_000_usize, Just(70_000_usize)])
            .prop_map(|(of_client, bytes)| Step::Move { of_client, bytes }),
        6 => side.prop_map(|of_client| Step::Read { of_client }),
    ]
}

/// The whole: two peers and the filter.
struct Model {
    client: Peer,
    app: Peer,
    scene: Scene,
}

impl Model {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Request { kind, end, seed } => self.request(*kind, *end, *seed),
            Step::Head { seed, end, interim } => self.head(*seed, *end, *interim),
            Step::Data { of_client, seed, length, end } => {
                self.peer(*of_client).send_data(*seed, *length, *end)
            }
            Step::Trailers { of_client, seed } => self.peer(*of_client).send_trailers(*seed),
            Step::Reset { of_client, seed } => self.peer(*of_client).send_reset(*seed),
            Step::Grant { of_client, seed } => self.peer(*of_client).grant(*seed),
            Step::Settings { of_client, initial } => self.peer(*of_client).settings(*initial),
            Step::Ping { of_client } => {
                let peer = self.peer(*of_client);
                peer.pings += 1;
                peer.out.extend(frame(PING, 0, 0, &[u8::from(*of_client); 8]));
            }
            Step::Priority { seed } => {
                self.client.out.extend(frame(PRIORITY, 0, 2 * (*seed as u32 % 50) + 1, &[0, 0, 0, 0, 1]));
            }
            Step::Tighten => self.scene.tighten(),
            Step::Move { of_client, bytes } => self.bytes(*of_client, *bytes),
            Step::Read { of_client } => self.read(*of_client),
        }
    }

    fn peer(&mut self, of_client: bool) -> &mut Peer {
        if of_client { &mut self.client } else { &mut self.app }
    }

    fn request(&mut self, kind: usize, end: bool, seed: usize) {
        let id = self.client.next;
        self.client.next += if seed.is_multiple_of(9) { 4 } else { 2 };
        let prefix = ["/a", "/deny", "/cut", "/patch", "/401", "/b"][kind];
        let path = format!("{prefix}/{}", seed % 3);
        let method = ["GET", "POST", "PUT"][seed % 3];
        let mut fields =
            texts(&[(":method", method), (":scheme", "http"), (":path", &path), (":authority", "shop")]);
        fields.push(("user-agent".into(), format!("model/{}", seed % 2)));
        for at in 0..seed % 4 {
            fields.push((format!("x-{at}"), "v".repeat(seed % 700)));
            fields.push(("cookie".into(), format!("c{at}={}", seed % 5)));
        }
        fields.push(("x-gone".into(), "1".into()));
        self.client.block(id, end, &fields, seed);
        let mut stream = self.client.fresh();
        stream.head_sent = true;
        stream.sent_all = end;
        self.client.streams.insert(id, stream);
    }

    fn head(&mut self, seed: usize, end: bool, interim: bool) {
        let Some(id) = self.app.choose(seed, |stream| !stream.head_sent) else { return };
        let status = if interim { "103" } else { ["200", "404", "500"][seed % 3] };
        let stream = texts(&[(":status", status), ("x-app", "one"), ("date", ["now", "then"][seed % 2])]);
        self.app.block(id, end && !interim, &stream, seed);
        if !interim {
            let live = self.app.streams.get_mut(&id).unwrap();
            live.head_sent = true;
            live.sent_all = end;
            self.app.settle(id);
        }
    }

    fn bytes(&mut self, of_client: bool, count: usize) {
        let out = &mut self.peer(of_client).out;
        let bytes: Vec<u8> = out.drain(..count.min(out.len())).collect();
        if bytes.is_empty() {
            return;
        }
        if of_client {
            self.scene.client(&bytes)
        } else {
            self.scene.app(&bytes)
        }
        assert_eq!(self.scene.end(), None, "honest peers are never sent away");
    }

    fn read(&mut self, of_client: bool) {
        let said = std::mem::take(if of_client { &mut self.scene.to_client } else { &mut self.scene.to_app });
        let peer = self.peer(of_client);
        peer.input.extend(said);
        peer.read();
    }

    /// Everything that is on its way arrives.
    fn finish(&mut self) {
        while !(self.client.out.is_empty()
            && self.app.out.is_empty()
            && self.scene.to_client.is_empty()
            && self.scene.to_app.is_empty())
        {
            for of_client in [true, false] {
                self.bytes(of_client, usize::MAX);
                self.read(of_client);
            }
        }
    }

    fn check(&mut self) {
        let (client, app) = (&self.client, &self.app);
        assert_eq!((client.send, app.send), (app.receive, client.receive), "the windows of the connection");
        assert_eq!((client.unacknowledged, app.unacknowledged, client.pings, app.pings), (0, 0, 0, 0));
        assert!(client.input.is_empty() && app.input.is_empty());
        let refused: BTreeSet<u32> = self.scene.rules.answered.iter().map(|(id, _)| *id).collect();
        let open = |peer: &Peer| peer.streams.keys().copied().collect::<BTreeSet<u32>>();
        let rules = &self.scene.rules;
        let finished: BTreeSet<u32> = rules.finished.iter().copied().collect();
        let live: BTreeSet<u32> = rules.allowed.iter().copied().filter(|id| !finished.contains(id)).collect();
        assert_eq!(finished.len(), rules.finished.len(), "each request ends once");
        assert_eq!(
            (open(client), open(app)),
            (live.clone(), live.clone()),
            "the tables of streams; {refused:?}"
        );
        for id in live {
            let (of_client, of_app) = (&client.streams[&id], &app.streams[&id]);
            assert_eq!(
                (of_client.send, of_app.send),
                (of_app.receive, of_client.receive),
                "the windows of {id}"
            );
            assert_eq!((of_client.sent, of_app.sent), (of_app.read, of_client.read), "the bodies of {id}");
        }
        self.check_heads();
    }

    /// The app has read what was authorised, and nothing else; the client what the app said, or the refusal.
    fn check_heads(&self) {
        let rules = &self.scene.rules;
        assert_eq!(self.app.heads.keys().collect::<Vec<_>>(), rules.allowed.iter().collect::<Vec<_>>());
        for seen in &rules.seen {
            let Some(head) = self.app.heads.get(&seen.stream) else {
                assert!(!self.app.bodies.contains_key(&seen.stream));
                match self.client.heads.get(&seen.stream) {
                    None => {
                        assert!(self.client.resets.contains(&seen.stream), "it did not wait for the answer")
                    }
                    Some(head) => {
                        assert_eq!(head[0].1, if seen.target.starts_with("/401") { "401" } else { "403" });
                    }
                }
                continue;
            };
            let patched = seen.target.strip_prefix("/patch").map(|rest| format!("/patched{rest}"));
            let mut expected = texts(&[
                (":method", &seen.method),
                (":scheme", "http"),
                (":path", patched.as_deref().unwrap_or(&seen.target)),
                (":authority", &seen.authority),
            ]);
            let cookies: Vec<&str> =
                seen.header("cookie").into_iter().flat_map(|all| all.split("; ")).collect();
            let others = seen.headers.iter().filter(|(name, _)| name != "host" && name != "cookie");
            expected.extend(others.filter(|(name, _)| patched.is_none() || name != "x-gone").cloned());
            if patched.is_some() {
                expected.extend(texts(&[("x-cinch-peer", "spiffe://td/ns/a/sa/b")]));
            }
            let (read, plain): (Vec<&Text>, Vec<&Text>) = head.iter().partition(|field| field.0 == "cookie");
            assert_eq!(plain, expected.iter().collect::<Vec<_>>());
            assert_eq!(read.iter().map(|field| &*field.1).collect::<Vec<_>>(), cookies);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_ends_agree_and_the_app_reads_what_was_authorised(steps in prop::collection::vec(step(), 1..250)) {
        let mut model = Model { client: Peer::new(true), app: Peer::new(false), scene: Scene::new() };
        for step in &steps {
            model.take(step);
        }
        model.finish();
        model.check();
        prop_assert!(model.scene.filter.wants_client() && model.scene.filter.wants_app());
    }
}
