//! Bytes over the node agent's socket, from a pod that may send anything and from an agent of another version: no
//! panic, nothing is taken that does not come back as it was, and what is wrong once stays wrong.
#![no_main]

use cinch_redirect::request::{Answer, MAX_ANSWER, MAX_REQUEST, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(request)) = Request::decode(bytes) {
        assert!(bytes.len() <= MAX_REQUEST);
        assert_eq!(Request::decode(&request.encode()), Ok(Some(request)));
    }
    if let Ok(Some(answer)) = Answer::decode(bytes) {
        let again = answer.encode();
        assert!(again.len() <= MAX_ANSWER);
        // Names may be cut by the first encoding, never by a second.
        let once = Answer::decode(&again).ok().flatten().expect("what we wrote");
        assert_eq!(Answer::decode(&once.encode()), Ok(Some(once)));
    }
    for cut in 0..bytes.len() {
        let Some(first) = bytes.get(..cut) else { return };
        if Request::decode(first).is_err() {
            assert!(Request::decode(bytes).is_err());
        }
        if Answer::decode(first).is_err() {
            assert!(Answer::decode(bytes).is_err());
        }
    }
});
