//! Targets of requests in every mode: readings are what they promise to be, and normalising twice changes nothing.
#![no_main]

use cinch_policy::{PathNormalization, normalize};
use libfuzzer_sys::fuzz_target;

const MODES: [PathNormalization; 5] = [
    PathNormalization::Safe,
    PathNormalization::DecodeAndMergeSlashes,
    PathNormalization::MergeSlashes,
    PathNormalization::Base,
    PathNormalization::None,
];

fuzz_target!(|target: &str| {
    for mode in MODES {
        let Ok(readings) = normalize(mode, target) else {
            assert_ne!(mode, PathNormalization::None);
            continue;
        };
        let forward = readings.forward().to_owned();
        assert!(!forward.contains(['?', '#']));
        if mode == PathNormalization::None {
            continue;
        }
        assert!(forward.starts_with('/') || forward == "*");
        assert!(!forward.contains(['\\', '\0']));
        let mut judged: Vec<&str> = readings.judged().collect();
        assert_eq!(judged.first(), Some(&forward.as_str()));
        let count = judged.len();
        judged.sort_unstable();
        judged.dedup();
        assert_eq!(judged.len(), count);
        assert!(count == 1 || mode == PathNormalization::Safe);
        assert!(judged.iter().all(|path| path.starts_with('/') || *path == "*"));
        if let Ok(again) = normalize(mode, &forward) {
            assert_eq!(again.forward(), forward);
        } else {
            panic!("{forward} was a normal form");
        }
    }
});
