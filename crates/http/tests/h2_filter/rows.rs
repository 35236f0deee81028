//! What a client may send over HTTP/2, frame by frame, and what becomes of it: the known families of attacks and
//! ambiguities (RFC 9113, sections 5 to 8 and 10). Each row has a number that stays with it, above those of HTTP/1.

use super::raw::*;

/// What the client's frames, which begin with stream 1, lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Stream 1 reaches the app and is complete.
    Passed,
    /// Stream 1 is answered with this status, and nothing of it reaches the app.
    Answered(&'static str),
    /// Stream 1 is reset with this code, and nothing of it reaches the app.
    Reset(u32),
    /// Stream 1 has reached the app and is reset on both sides, before the app has its end.
    Broken(u32),
    /// The connection ends with this code; what reached the app before was authorised.
    Goaway(u32),
}

use Then::{Answered, Broken, Goaway, Passed, Reset};

pub type Row = (u32, &'static str, Vec<u8>, Then);

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

const MALFORMED: Then = Reset(PROTOCOL_ERROR);

/// A request that has ended, of exactly these fields.
fn of(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_STREAM, fields)
}

/// A GET with one field more.
fn with(name: &str, value: &str) -> Vec<u8> {
    of(&request("GET", "/", &[(name, value)]))
}

/// A GET with another pseudo-field in place of its own.
fn instead(name: &'static str, value: &'static str) -> Vec<u8> {
    let mut fields = request("GET", "/", &[]);
    fields.iter_mut().filter(|field| field.0 == name).for_each(|field| field.1 = value);
    of(&fields)
}

/// A GET without a pseudo-field.
fn without(name: &str) -> Vec<u8> {
    let mut fields = request("GET", "/", &[]);
    fields.retain(|field| field.0 != name);
    of(&fields)
}

/// A POST whose body is to come, with one field more.
fn open(name: &str, value: &str) -> Vec<u8> {
    headers(1, 0, &request("POST", "/upload", &[(name, value)]))
}

/// Pseudo-fields: order, number, and what they hold.
pub fn pseudo_fields() -> Vec<Row> {
    let base = request("GET", "/", &[]);
    let mixed = [&base[..3], &[("x-a", "1")], &base[3..]].concat();
    let ordered = [base[2], base[0], base[3], base[1]];
    let both = [&base[..], &[("host", "shop:8080")]].concat();
    let connect = [(":method", "CONNECT"), (":authority", "a:443")];
    vec![
        (200, "a pseudo-field behind others", of(&[&[("x-a", "1")], &base[..]].concat()), MALFORMED),
        (201, "a pseudo-field between others", of(&mixed), MALFORMED),
        (202, "two methods", with(":method", "GET"), MALFORMED),
        (203, "two methods that differ", with(":method", "POST"), MALFORMED),
        (204, "two paths", with(":path", "/deny"), MALFORMED),
        (205, "two authorities", with(":authority", "b"), MALFORMED),
        (206, "two schemes", with(":scheme", "https"), MALFORMED),
        (207, "an unknown pseudo-field", with(":x", "1"), MALFORMED),
        (208, "a status", with(":status", "200"), MALFORMED),
        (209, "no method", without(":method"), MALFORMED),
        (210, "no path", without(":path"), MALFORMED),
        (211, "no scheme", without(":scheme"), MALFORMED),
        (212, "no authority and no host", without(":authority"), MALFORMED),
        (213, "an empty path", instead(":path", ""), MALFORMED),
        (214, "a path without a slash", instead(":path", "admin"), MALFORMED),
        (215, "an absolute path", instead(":path", "http://b/"), MALFORMED),
        (
            216,
            "a request line in the path",
            instead(":path", "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /b"),
            MALFORMED,
        ),
        (217, "a space in the path", instead(":path", "/a b"), MALFORMED),
        (218, "a request line in the method", instead(":method", "GET /admin HTTP/1.1\r\nx:"), MALFORMED),
        (219, "a star for GET", instead(":path", "*"), MALFORMED),
        (220, "user information", instead(":authority", "shop@b"), MALFORMED),
        (221, "a path in the authority", instead(":authority", "shop/b"), MALFORMED),
        (222, "two hosts in one", instead(":authority", "shop, b"), MALFORMED),
        (223, "a host that is another", with("host", "b"), MALFORMED),
        (224, "two hosts", of(&[&both[..], &[("host", "shop:8080")]].concat()), MALFORMED),
        (225, "CONNECT", of(&connect), Answered("405")),
        (
            226,
            "extended CONNECT",
            of(&[&connect[..], &base[1..3], &[(":protocol", "websocket")]].concat()),
            Answered("405"),
        ),
        (227, "a protocol without CONNECT", with(":protocol", "websocket"), MALFORMED),
        (228, "another order", of(&ordered), Passed),
        (229, "an authority and an equal host", of(&both), Passed),
        (
            230,
            "a host in place of an authority",
            of(&[&base[..3], &[("host", "shop:8080")]].concat()),
            Passed,
        ),
        (231, "OPTIONS *", of(&request("OPTIONS", "*", &[])), Passed),
    ]
}

/// Fields: names, values, those of one hop, those that another field could be taken for.
pub fn fields() -> Vec<Row> {
    let cookies = [("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2")];
    vec![
        (240, "a capital in a name", with("X-Role", "1"), MALFORMED),
        (241, "an empty name", with("", "1"), MALFORMED),
        (242, "a space in a name", with("x a", "1"), MALFORMED),
        (243, "a colon in a name", with("x:a", "1"), MALFORMED),
        (244, "a line end in a name", with("x\r\nhost", "b"), MALFORMED),
        (245, "a control in a name", with("x\u{1}", "1"), MALFORMED),
        (246, "a byte beyond ASCII in a name", with("x\u{fc}", "1"), MALFORMED),
        (247, "CR and LF in a value", with("x-a", "1\r\ntransfer-encoding: chunked"), MALFORMED),
        (248, "LF in a value", with("x-a", "1\nx-b: 2"), MALFORMED),
        (249, "CR in a value", with("x-a", "1\r2"), MALFORMED),
        (250, "NUL in a value", with("x-a", "1\0"), MALFORMED),
        (251, "a space before a value", with("x-a", " 1"), MALFORMED),
        (252, "a tab behind a value", with("x-a", "1\t"), MALFORMED),
        (253, "connection", with("connection", "close"), MALFORMED),
        (254, "connection that names a field", with("connection", "x-user-role"), MALFORMED),
        (255, "keep-alive", with("keep-alive", "5"), MALFORMED),
        (256, "proxy-connection", with("proxy-connection", "close"), MALFORMED),
        (257, "transfer-encoding", open("transfer-encoding", "chunked"), MALFORMED),
        (258, "upgrade to h2c", with("upgrade", "h2c"), MALFORMED),
        (259, "upgrade to websocket", with("upgrade", "websocket"), MALFORMED),
        (260, "te that asks for more", with("te", "trailers, chunked"), MALFORMED),
        (261, "identity with underscores", with("x_forwarded_client_cert", "me"), Answered("400")),
        (262, "a field that a policy reads, with underscores", with("x_user_role", "admin"), Answered("400")),
        (263, "the same with dots", with("x.user.role", "admin"), Answered("400")),
        (264, "content-length with an underscore", with("content_length", "5"), Answered("400")),
        (265, "transfer-encoding with an underscore", with("transfer_encoding", "chunked"), Answered("400")),
        (266, "te: trailers", with("te", "trailers"), Passed),
        (267, "cookies in pieces", of(&request("GET", "/", &cookies)), Passed),
        (268, "identity is removed", with("x-forwarded-client-cert", "me"), Passed),
        (269, "values beyond ASCII", with("x-a", "\u{e9}"), Passed),
        (270, "settings of h2c are removed", with("http2-settings", "AAMAAABk"), Passed),
    ]
}

/// Bodies and trailers: where a request ends.
pub fn bodies() -> Vec<Row> {
    let body =
        |length: &str, body: &[u8]| [open("content-length", length), data(1, END_STREAM, body)].concat();
    let trailers = |name: &str| {
        let fields = [(name, "1")];
        [open("x-a", "1"), data(1, 0, b"abc"), headers(1, END_STREAM, &fields)].concat()
    };
    let twice = request("POST", "/", &[("content-length", "3"), ("content-length", "3")]);
    let padded = data(1, PADDED | END_STREAM, b"\x02abc\0\0");
    vec![
        (280, "a body shorter than its length", body("5", b"abc"), Broken(PROTOCOL_ERROR)),
        (281, "a body longer than its length", body("2", b"abc"), Broken(PROTOCOL_ERROR)),
        (282, "a body that should be none", body("0", b"GET /admin"), Broken(PROTOCOL_ERROR)),
        (283, "a length of no body", with("content-length", "3"), MALFORMED),
        (284, "two lengths", headers(1, 0, &twice), MALFORMED),
        (285, "a length with a sign", open("content-length", "+3"), MALFORMED),
        (286, "a list of lengths", open("content-length", "3, 3"), MALFORMED),
        (287, "an empty length", open("content-length", ""), MALFORMED),
        (288, "a length beyond 2^53", open("content-length", "9007199254740993"), MALFORMED),
        (289, "trailers with a pseudo-field", trailers(":path"), Broken(PROTOCOL_ERROR)),
        (290, "trailers with a length", trailers("content-length"), Broken(PROTOCOL_ERROR)),
        (291, "trailers with a host", trailers("host"), Broken(PROTOCOL_ERROR)),
        (292, "trailers with transfer-encoding", trailers("transfer-encoding"), Broken(PROTOCOL_ERROR)),
        (293, "trailers that a policy reads", trailers("x-user-role"), Broken(PROTOCOL_ERROR)),
        (294, "trailers of identity", trailers("x-forwarded-client-cert"), Broken(PROTOCOL_ERROR)),
        (
            295,
            "trailers that do not end the stream",
            [open("x-a", "1"), headers(1, 0, &[("x-b", "1")])].concat(),
            Broken(PROTOCOL_ERROR),
        ),
        (296, "a body of its length", body("3", b"abc"), Passed),
        (
            297,
            "a request for HTTP/1 as a body",
            body("22", b"GET /admin HTTP/1.1\r\n\r\n"[..22].as_ref()),
            Passed,
        ),
        (298, "padding does not count", [open("content-length", "3"), padded].concat(), Passed),
        (299, "trailers", trailers("x-sum"), Passed),
        (300, "no length", [open("x-a", "1"), data(1, 0, b"abc"), data(1, END_STREAM, b"")].concat(), Passed),
    ]
}

/// Frames: sizes, places, blocks in pieces.
pub fn frames_and_blocks() -> Vec<Row> {
    let block = literals(&request("GET", "/", &[]));
    let (first, second) = block.split_at(7);
    let begun = frame(HEADERS, END_STREAM, 1, first);
    let go_on = |flags, bytes: &[u8]| frame(CONTINUATION, flags, 1, bytes);
    let bomb = [&block[..], &[0x40, 1, b'a', 0x7f, 0xa1, 0x1e], &[b'b'; 4000], &[0xbe; 16]].concat();
    let padding = frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[&[200][..], &block].concat());
    let dependent =
        frame(HEADERS, END_STREAM | END_HEADERS | PRIORITISED, 1, &[&[0, 0, 0, 1, 1][..], &block].concat());
    let pushed = frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block].concat());
    let whole = |payload: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, payload);
    vec![
        (310, "a block in two pieces", [&begun[..], &go_on(END_HEADERS, second)].concat(), Passed),
        (
            311,
            "an empty CONTINUATION",
            [&begun[..], &go_on(END_HEADERS, b"")].concat(),
            Goaway(ENHANCE_YOUR_CALM),
        ),
        (
            312,
            "CONTINUATION without end",
            [&begun[..], &go_on(0, &[0]).repeat(17)].concat(),
            Goaway(ENHANCE_YOUR_CALM),
        ),
        (
            313,
            "a block of 64 KiB and more",
            [&begun[..], &go_on(0, &[0; 16_384]).repeat(4)].concat(),
            Goaway(ENHANCE_YOUR_CALM),
        ),
        (
            314,
            "a block that another stream interrupts",
            [&begun[..], &get(3, "/")].concat(),
            Goaway(PROTOCOL_ERROR),
        ),
        (
            315,
            "a block continued on another stream",
            [&begun[..], &frame(CONTINUATION, END_HEADERS, 3, second)].concat(),
            Goaway(PROTOCOL_ERROR),
        ),
        (316, "CONTINUATION of nothing", go_on(END_HEADERS, &block), Goaway(PROTOCOL_ERROR)),
        (317, "a bomb of indexes", whole(&bomb), Goaway(ENHANCE_YOUR_CALM)),
        (318, "an index of nothing", whole(&[0xff, 0x7f]), Goaway(COMPRESSION_ERROR)),
        (
            319,
            "an integer without end",
            whole(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Goaway(COMPRESSION_ERROR),
        ),
        (
            320,
            "a table larger than allowed",
            whole(&[&[0x3f, 0xe2, 0x1f][..], &block].concat()),
            Goaway(COMPRESSION_ERROR),
        ),
        (
            321,
            "a size of the table within a block",
            whole(&[&block[..], &[0x20]].concat()),
            Goaway(COMPRESSION_ERROR),
        ),
        (
            322,
            "Huffman with padding of zeros",
            whole(&[&block[..], &[0, 0x81, 0x18, 0]].concat()),
            Goaway(COMPRESSION_ERROR),
        ),
        (323, "padding longer than the frame", padding, Goaway(PROTOCOL_ERROR)),
        (
            324,
            "a frame of 16385 bytes",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0; 16_385]),
            Goaway(FRAME_SIZE_ERROR),
        ),
        (325, "a stream that depends on itself", dependent, Goaway(PROTOCOL_ERROR)),
        (326, "PUSH_PROMISE", pushed, Goaway(PROTOCOL_ERROR)),
        (327, "a request on an even stream", get(2, "/"), Goaway(PROTOCOL_ERROR)),
        (328, "a request on stream 0", get(0, "/"), Goaway(PROTOCOL_ERROR)),
        (329, "DATA of a stream that never was", data(1, 0, b"x"), Goaway(PROTOCOL_ERROR)),
        (330, "DATA behind the end", [get(1, "/"), data(1, 0, b"x")].concat(), Goaway(STREAM_CLOSED)),
        (
            331,
            "a second request on the stream",
            [get(1, "/"), get(1, "/deny")].concat(),
            Goaway(STREAM_CLOSED),
        ),
        (332, "a window of 0 more", [get(1, "/"), window_update(1, 0)].concat(), Goaway(PROTOCOL_ERROR)),
        (
            333,
            "a window that overflows",
            [get(1, "/"), window_update(0, 0x7fff_ffff)].concat(),
            Goaway(FLOW_CONTROL_ERROR),
        ),
        (334, "SETTINGS of half an entry", frame(SETTINGS, 0, 0, &[0; 5]), Goaway(FRAME_SIZE_ERROR)),
        (335, "an ACK of nothing", frame(SETTINGS, ACK, 0, &[]).repeat(2), Goaway(PROTOCOL_ERROR)),
        (
            336,
            "unknown frames and priorities between",
            [get(1, "/"), frame(0x42, 9, 5, b"x"), frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1])].concat(),
            Passed,
        ),
        (337, "a window beyond 2^31", settings(&[(4, 0xbf00_0000)]), Goaway(FLOW_CONTROL_ERROR)),
        (338, "a frame size below 2^14", settings(&[(3, 1), (5, 100)]), Goaway(PROTOCOL_ERROR)),
    ]
}

/// Floods: much work for few bytes.
pub fn floods() -> Vec<Row> {
    let streams =
        |each: &dyn Fn(u32) -> Vec<u8>| (0..600).flat_map(|stream| each(2 * stream + 1)).collect::<Vec<u8>>();
    let opened = post(1, "/upload");
    let of = |flood: Vec<u8>| [&opened[..], &flood.repeat(1500)].concat();
    vec![
        (
            340,
            "rapid reset",
            streams(&|stream| [get(stream, "/"), reset(stream, 8)].concat()),
            Goaway(ENHANCE_YOUR_CALM),
        ),
        (341, "PING", of(frame(PING, 0, 0, &[0; 8])), Goaway(ENHANCE_YOUR_CALM)),
        (342, "SETTINGS", of(settings(&[])), Goaway(ENHANCE_YOUR_CALM)),
        (343, "SETTINGS that change", of(settings(&[(4, 65_535)])), Goaway(ENHANCE_YOUR_CALM)),
        (344, "empty DATA", of(data(1, 0, b"")), Goaway(ENHANCE_YOUR_CALM)),
        (345, "DATA of padding alone", of(data(1, PADDED, &[1, 0])), Goaway(ENHANCE_YOUR_CALM)),
        (346, "PRIORITY", of(frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1])), Goaway(ENHANCE_YOUR_CALM)),
        (347, "unknown frames", of(frame(0x42, 0, 0, b"")), Goaway(ENHANCE_YOUR_CALM)),
        (348, "GOAWAY", of(goaway(0, 0)), Goaway(ENHANCE_YOUR_CALM)),
    ]
}

/// All of them.
pub fn rows() -> Vec<Row> {
    [pseudo_fields(), fields(), bodies(), frames_and_blocks(), floods()].concat()
}
