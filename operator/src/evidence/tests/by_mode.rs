//! Whose refusal it was: the mode's or a policy's.

use super::*;

#[test]
fn only_what_the_mode_alone_refused_counts_as_its_refusal_and_of_older_proxies_any() {
    let refused = |denied: u64, by_mode: Option<u64>| v1::PlaintextSource {
        last_denied_by_mode_age_ms: by_mode,
        ..source(9, counts(0, denied, 0))
    };
    let mut desk = desk();
    let mut newest = |second: u64, told: v1::PlaintextSource| {
        desk.report(second, "a", report(1, second, vec![told]));
        let sources = desk.ledger.namespace("shop").sources;
        (sources[0].last_denied_unix_ms, sources[0].last_denied_by_mode_unix_ms)
    };
    assert_eq!(newest(1, refused(1, Some(NEVER))), (Some(1_000_900), None));
    assert_eq!(newest(2, refused(2, Some(100))), (Some(1_001_900), Some(1_001_900)));
    assert_eq!(newest(3, refused(3, Some(1_100))), (Some(1_002_900), Some(1_001_900)), "policy's again");
    assert_eq!(newest(4, refused(4, None)), (Some(1_003_900), Some(1_003_900)), "nobody says whose");
}
