//! A filter between a client and an app that the test plays.

use crate::codec::{self, Table, Text};
use crate::raw::{self, Frame, PREFACE};
use cinch_http::h2::Connection;
use cinch_http::{
    Authorizer, End, Filter, Limits, Output, Patch, Refusal, RequestHead, RequestId, Turn, Verdict,
};
use cinch_reason::Reason;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request as the authorizer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub stream: u32,
    pub method: String,
    pub target: String,
    pub authority: String,
    pub headers: Vec<Text>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }
}

/// Decides by the path, and writes down what it hears.
#[derive(Debug, Default)]
pub struct Rules {
    /// From now on, what begins with `/cut` is refused.
    pub tightened: bool,
    /// So many decisions may be made in one call of the filter, and so many were.
    pub patience: Option<usize>,
    pub decided: usize,
    pub seen: Vec<Seen>,
    pub allowed: Vec<u32>,
    pub refused: Vec<(u32, Refusal)>,
    /// Bounds that were passed, whoever passed them.
    pub limits: Vec<&'static str>,
    pub answered: Vec<(u32, u16)>,
    pub finished: Vec<u32>,
}

impl Rules {
    fn verdict(&self, target: &str) -> Verdict {
        match target {
            _ if target.starts_with("/deny") || self.tightened && target.starts_with("/cut") => {
                Verdict::Refuse(Refusal::forbidden(Reason::DeniedByPolicy))
            }
            _ if target.starts_with("/401") => Verdict::Refuse(Refusal::unauthorized(Reason::DeniedByPolicy)),
            _ if target.starts_with("/400") => Verdict::Refuse(Refusal::bad_request("bad path")),
            _ => Verdict::Forward,
        }
    }
}

impl Authorizer for Rules {
    fn decide(&mut self, id: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        self.decided += 1;
        let stream = u32::try_from(id.0).unwrap();
        self.seen.push(Seen {
            stream,
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            authority: head.authority.unwrap().to_owned(),
            headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        });
        if let Some(rest) = head.target.strip_prefix("/patch") {
            patch.set_target(&format!("/patched{rest}")).unwrap();
            patch.remove("x-gone").unwrap();
            patch.set("x-cinch-peer", b"spiffe://td/ns/a/sa/b").unwrap();
        }
        let verdict = self.verdict(head.target);
        if verdict == Verdict::Forward {
            self.allowed.push(stream);
        }
        verdict
    }

    fn decide_again(&mut self, _: RequestId, head: &RequestHead<'_>) -> Verdict {
        self.decided += 1;
        self.verdict(head.target)
    }

    fn is_spent(&self) -> bool {
        self.patience.is_some_and(|patience| self.decided >= patience)
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-user-role"
    }

    fn refused(&mut self, id: RequestId, refusal: &Refusal) {
        self.refused.push((id.0 as u32, *refusal));
        if !refusal.limit.is_empty() {
            self.limits.push(refusal.limit);
        }
    }

    fn over_limit(&mut self, limit: &'static str) {
        self.limits.push(limit);
    }

    fn answered(&mut self, id: RequestId, status: u16) {
        self.answered.push((id.0 as u32, status));
    }

    fn finished(&mut self, id: RequestId) {
        self.finished.push(id.0 as u32);
    }
}

/// The filter, and what came out of it.
pub struct Scene {
    pub filter: Connection,
    pub rules: Rules,
    pub now: Instant,
    pub to_app: Vec<u8>,
    pub to_client: Vec<u8>,
    /// Bytes that were not copied.
    pub passed: usize,
    app_table: Table,
    client_table: Table,
    out: Output,
}

impl Scene {
    /// Before the first byte.
    pub fn new() -> Scene {
        Scene::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Scene {
        let now = Instant::now();
        Scene {
            filter: Connection::new(Arc::new(limits), now),
            rules: Rules::default(),
            now,
            to_app: Vec::new(),
            to_client: Vec::new(),
            passed: 0,
            app_table: Table::new(4096),
            client_table: Table::new(4096),
            out: Output::default(),
        }
    }

    /// Both sides have said what they say first, and it is read.
    pub fn open() -> Scene {
        let mut scene = Scene::new();
        scene.greet();
        scene
    }

    pub fn greet(&mut self) {
        self.client(&[PREFACE, &raw::settings(&[])].concat());
        self.app(&raw::settings(&[]));
        self.app(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[]));
        self.client(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[]));
        self.to_app.clear();
        self.to_client.clear();
    }

    /// One call of the filter; its output is taken.
    pub fn call(&mut self, input: &[u8], call: impl FnOnce(&mut Connection, &mut Turn<'_>)) {
        self.rules.decided = 0;
        let mut turn = Turn { now: self.now, authorizer: &mut self.rules, out: &mut self.out };
        call(&mut self.filter, &mut turn);
        for (outgoing, to) in
            [(&self.out.to_app, &mut self.to_app), (&self.out.to_client, &mut self.to_client)]
        {
            let before = to.len();
            outgoing.slices(input).for_each(|slice| to.extend(slice));
            assert_eq!(to.len() - before, outgoing.len());
            self.passed += outgoing.len() - outgoing.own_len();
        }
        self.out.clear();
    }

    pub fn client(&mut self, input: &[u8]) {
        self.call(input, |filter, turn| filter.client_data(input, turn));
        self.turns();
    }

    pub fn app(&mut self, input: &[u8]) {
        self.call(input, |filter, turn| filter.app_data(input, turn));
        self.turns();
    }

    fn turns(&mut self) {
        while self.filter.wants_turn() {
            self.call(&[], |filter, turn| filter.client_data(&[], turn));
        }
    }

    pub fn tighten(&mut self) {
        self.rules.tightened = true;
        self.call(&[], Filter::reevaluate);
    }

    pub fn pass_time(&mut self, time: Duration) {
        self.now += time;
        self.call(&[], Filter::wake);
    }

    pub fn end(&self) -> Option<End> {
        self.filter.end()
    }

    /// What the app has got since it was last asked.
    pub fn app_frames(&mut self) -> Vec<Frame> {
        raw::frames(&std::mem::take(&mut self.to_app))
    }

    /// What the client has got.
    pub fn client_frames(&mut self) -> Vec<Frame> {
        raw::frames(&std::mem::take(&mut self.to_client))
    }

    /// The fields of a block that the app got.
    pub fn app_fields(&mut self, frame: &Frame) -> Vec<Text> {
        assert_eq!(frame.kind, raw::HEADERS, "{frame:?}");
        codec::decode(&mut self.app_table, &frame.payload)
    }

    /// The fields of a block that the client got.
    pub fn client_fields(&mut self, frame: &Frame) -> Vec<Text> {
        assert_eq!(frame.kind, raw::HEADERS, "{frame:?}");
        codec::decode(&mut self.client_table, &frame.payload)
    }

    /// The one frame that the client got.
    #[track_caller]
    pub fn client_frame(&mut self) -> Frame {
        let frames = self.client_frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.into_iter().next().unwrap()
    }

    /// The one frame that the app got.
    #[track_caller]
    pub fn app_frame(&mut self) -> Frame {
        let frames = self.app_frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.into_iter().next().unwrap()
    }

    /// The client was sent away with `code`, the app heard nothing of what it sent last.
    #[track_caller]
    pub fn assert_goaway(&mut self, code: u32, case: &str) {
        let last = self.client_frames().pop().unwrap_or_else(|| panic!("{case}: nothing was said"));
        assert_eq!(
            (last.kind, last.payload.get(4..8)),
            (raw::GOAWAY, Some(&code.to_be_bytes()[..])),
            "{case}"
        );
        assert_eq!(self.end(), Some(End::Finished), "{case}");
        assert!(!self.filter.wants_client() && self.filter.deadline().is_none(), "{case}");
    }
}

/// Fields as a test writes them.
pub fn texts(fields: &[(&str, &str)]) -> Vec<Text> {
    fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}
