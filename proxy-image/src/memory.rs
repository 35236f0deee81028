//! Bounds that follow from the memory of the container: in go the limits of the settings and what the container may
//! use, out come limits that it can bear. What the kernel kills for its memory serves nobody.

use crate::limits::Limits;
use std::path::Path;

/// The proxy with nobody connected, and what comes and goes: pages of metrics, policies, key sets.
const ITSELF: u64 = 16 * 1024 * 1024;
/// What a connection through the proxy takes while it is silent, kernel included: its task, and two sockets.
const CONNECTION: u64 = 16 * 1024;
/// Connections have at least one part in so many of the memory, whatever else may be held.
const LEAST: u64 = 4;

/// Where control groups say how much memory the container may use: version 2, then version 1.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// How many bytes the container may use. `None`: nobody says so.
#[must_use]
pub fn of_container() -> Option<u64> {
    LIMITS.iter().find_map(|path| read(Path::new(path)))
}

/// "max" is no number, and what version 1 says instead of it is more than any machine has.
fn read(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `limits` with no more connections on a side than `memory` bytes bear while they are silent and the budgets of what is
/// kept are full. The other side's, and what each slow reader may keep beside the budget, are not counted: who has both
/// full needs more memory. Where one source may not have all of them it may have no more than three quarters.
#[must_use]
pub fn fitting(limits: Limits, memory: u64) -> Limits {
    let wide = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    let held = wide(limits.kept_bytes).saturating_add(wide(limits.http_held_bytes));
    let left = memory.saturating_sub(ITSELF).saturating_sub(held).max(memory / LEAST);
    let connections = usize::try_from((left / CONNECTION).max(1)).unwrap_or(usize::MAX);
    if connections >= limits.connections {
        return limits;
    }
    let of_source = if limits.connections_per_source < limits.connections {
        limits.connections_per_source.min((connections / 4 * 3).max(1))
    } else {
        connections
    };
    tracing::warn!(
        memory,
        setting = limits.connections,
        connections,
        connections_per_source = of_source,
        "the container has too little memory for limits.connections: there may be fewer"
    );
    Limits { connections, connections_per_source: of_source, ..limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn fitted(limits: &Limits, mib: u64) -> (usize, usize) {
        let fitted = fitting(limits.clone(), mib * MIB);
        (fitted.connections, fitted.connections_per_source)
    }

    #[test]
    fn there_are_no_more_connections_than_the_memory_bears() {
        let limits = Limits::default();
        for (mib, expected) in [
            (1024, (16_384, 12_288)),
            (320, (16_384, 12_288)),
            (128, (4096, 3072)),
            // A quarter of it.
            (64, (1024, 768)),
            (0, (1, 1)),
        ] {
            assert_eq!(fitted(&limits, mib), expected, "{mib} MiB");
        }
        assert_eq!(fitting(limits.clone(), u64::MAX), limits);
        for mib in [128, 200, 512] {
            let limits = Limits { connections: 1 << 20, ..limits.clone() };
            let (connections, _) = fitted(&limits, mib);
            let held = (limits.kept_bytes + limits.http_held_bytes) as u64;
            assert!(ITSELF + held + CONNECTION * connections as u64 <= mib * MIB, "{mib} MiB");
        }
    }

    #[test]
    fn a_source_that_may_have_all_still_may_and_one_that_may_not_leaves_a_quarter() {
        let all = Limits { connections: 9000, connections_per_source: 9000, ..Limits::default() };
        assert_eq!(fitted(&all, 128), (4096, 4096));
        let few = Limits { connections_per_source: 10, ..all.clone() };
        assert_eq!(fitted(&few, 128), (4096, 10));
        let less = Limits { connections: 2000, connections_per_source: 1999, ..all };
        assert_eq!(fitted(&less, 128), (2000, 1999), "there is room for what the settings say");
    }

    #[test]
    fn control_groups_say_it_in_bytes_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [("134217728\n", Some(128 * MIB)), ("max\n", None), ("", None)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(read(file.path()), expected, "{text:?}");
        }
        assert_eq!(read(Path::new("/nowhere")), None);
    }
}
