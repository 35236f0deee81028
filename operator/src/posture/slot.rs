//! Whether a promotion may begin beside those of other namespaces. In go their memories, out comes the word. Pure.

use crate::settings::PromotionSettings;
use cinch_promotion::{Memory, Millis, Slot};
use std::time::Duration;

/// What a promotion may take longer than the settings of the installation say, before others get its slot.
const SLACK: Duration = Duration::from_secs(600);

/// Judges at `now` by the memories of the `others`, each with whether its namespace says that a promotion is under way.
pub(super) fn beside<'a>(
    others: impl Iterator<Item = (&'a Memory, bool)>,
    settings: &PromotionSettings,
    now: Millis,
) -> Slot {
    // One that takes longer than promotions do here, because its spec says so or nobody reports there any more,
    // must not keep all others waiting.
    let longest = millis(settings.probation + settings.settle * 10 + SLACK);
    let (mut under_way, mut last) = (0, 0);
    for (memory, annotated) in others {
        under_way += u32::from(memory.holds_slot(now, longest) || !memory.under_way() && annotated);
        last = last.max(memory.locked_since.unwrap_or_default());
    }
    let interval = millis(settings.min_interval);
    let rested = interval == 0 || now >= last.saturating_add(interval);
    if under_way < settings.max_concurrent && rested { Slot::Free } else { Slot::Taken }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_promotion::Phase;

    const NOW: Millis = 1_700_000_000_000;

    fn settings(max_concurrent: u32, min_interval: Duration) -> PromotionSettings {
        PromotionSettings { max_concurrent, min_interval, ..PromotionSettings::default() }
    }

    fn probation(since: Millis) -> Memory {
        let mut memory = Memory::default();
        memory.phase = Phase::Probation { since };
        memory.locked_since = Some(since);
        memory
    }

    #[test]
    fn so_many_promotions_are_under_way_at_once_and_so_far_apart() {
        let slot = |others: &[(&Memory, bool)], settings: &PromotionSettings| {
            beside(others.iter().copied(), settings, NOW)
        };
        let (none, young, old) = (Memory::default(), probation(NOW - 1_000), probation(1));
        let two = settings(2, Duration::ZERO);
        assert_eq!(slot(&[(&young, true), (&none, false)], &two), Slot::Free);
        assert_eq!(slot(&[(&young, true), (&young, true)], &two), Slot::Taken);
        assert_eq!(slot(&[(&young, true), (&none, true)], &two), Slot::Taken, "a leader before began it");
        assert_eq!(slot(&[(&young, true), (&old, true)], &two), Slot::Free, "it takes too long");
        let apart = |seconds| settings(2, Duration::from_secs(seconds));
        assert_eq!(slot(&[(&young, true)], &apart(1)), Slot::Free);
        assert_eq!(slot(&[(&young, true)], &apart(2)), Slot::Taken);
    }

    #[test]
    fn a_clock_that_is_set_forward_gives_nobody_the_slot_of_another() {
        let jump = 8 * 24 * 3_600_000;
        let mut other = probation(NOW - 1_000);
        other.skip(jump);
        let one = settings(1, Duration::ZERO);
        assert_eq!(beside([(&other, true)].into_iter(), &one, NOW + jump), Slot::Taken);
    }
}
