//! Whatever a pod can write into the files and sockets that the agent reads: no panic, nothing passes that is not
//! exactly right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_node::cgroup::container_of;
use cinch_node::mounts::PodsDirectory;
use cinch_redirect::request::{Answer, MAX_ANSWER, MAX_REQUEST, Request};
use proptest::prelude::*;

const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/".to_owned()),
        Just("0::".to_owned()),
        Just("\n".to_owned()),
        Just(" ".to_owned()),
        Just("..".to_owned()),
        Just(".slice".to_owned()),
        Just(".scope".to_owned()),
        Just("cri-containerd-".to_owned()),
        Just(":cri-containerd:".to_owned()),
        Just("pod".to_owned()),
        Just("-pod".to_owned()),
        Just(UID.to_owned()),
        Just(UID.replace('-', "_")),
        Just("f".repeat(64)),
        Just("254:0".to_owned()),
        Just("/pods/".to_owned()),
        Just("/containers/".to_owned()),
        Just("cinch-proxy".to_owned()),
        Just("/dev/termination-log".to_owned()),
        "\\PC{0,8}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_cgroup_that_is_found_is_the_pods_and_no_way_out(text in text()) {
        if let Ok(found) = container_of(&text, UID) {
            let parts: Vec<&str> = found.path.split('/').skip(1).collect();
            prop_assert_eq!(parts.len(), found.level as usize);
            prop_assert!(parts.iter().all(|part| !part.is_empty() && *part != ".."));
            prop_assert!(found.path.contains(UID) || found.path.contains(&UID.replace('-', "_")));
            prop_assert!(text.contains(&found.path));
        }
    }

    #[test]
    fn mounts_of_any_kind_are_read(own in text(), peer in text()) {
        if let Ok(directory) = PodsDirectory::learn(&own) {
            let _ = directory.container(&peer, UID);
        }
        let log = format!("1 2 254:0 /k/pods/{UID}/containers/cinch-node/ab /dev/termination-log rw - x\n");
        let directory = PodsDirectory::learn(&log).unwrap();
        if let Ok(name) = directory.container(&peer, UID) {
            let wanted = format!("/k/pods/{UID}/containers/{name}/");
            prop_assert!(peer.contains(&wanted));
        }
    }

    #[test]
    fn bytes_of_any_kind_are_decoded_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400), ours in any::<bool>()) {
        let mut bytes = bytes;
        if ours && bytes.len() > 4 {
            bytes[..4].copy_from_slice(b"cnch");
        }
        if let Ok(Some(_)) = Request::decode(&bytes) {
            prop_assert!(bytes.len() <= MAX_REQUEST);
        }
        if let Ok(Some(answer)) = Answer::decode(&bytes) {
            prop_assert!(answer.encode().len() <= MAX_ANSWER);
        }
        // Once it is wrong no further byte may mend it, or a reader would wait for ever.
        for cut in 0..bytes.len() {
            if Request::decode(&bytes[..cut]).is_err() {
                prop_assert!(Request::decode(&bytes).is_err());
            }
        }
    }
}
