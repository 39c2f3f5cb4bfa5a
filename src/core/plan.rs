//! How the planned ids are cut into ranges, the first time and again when the number of workers changes.

use crate::types::state::{RangeState, RangeStatus};
use crate::types::{IdRows, Piece, RangeId, Segment};

/// Cuts `ids` (ascending) into at most `count` ranges by index as the original does: each gets n/k ids, the first
/// n%k one more, none is empty. Range i is `[its first id, its last id + 1)`.
pub fn split(ids: &[i64], count: usize) -> Vec<RangeId> {
    let count = count.min(ids.len()).max(1);
    let (each, extra) = (ids.len() / count, ids.len() % count);
    let mut at = 0;
    let mut ranges = Vec::with_capacity(count);
    for i in 0..count {
        let size = each + usize::from(i < extra);
        if let Some((first, last)) = ids[at..at + size].first().zip(ids[at..at + size].last()) {
            ranges.push(RangeId::new(*first, last + 1));
        }
        at += size;
    }
    ranges
}

/// The planned ids of one range, as a sub-slice of all of them.
pub fn ids_of(ids: &[i64], range: RangeId) -> &[i64] {
    let from = ids.partition_point(|id| *id < range.low);
    let to = ids.partition_point(|id| *id < range.high);
    &ids[from..to.max(from)]
}

/// The planned samples of one range.
pub fn samples_of(samples: &[IdRows], range: RangeId) -> &[IdRows] {
    let from = samples.partition_point(|sample| sample.id < range.low);
    let to = samples.partition_point(|sample| sample.id < range.high);
    &samples[from..to.max(from)]
}

/// The planned ids of the range that no piece accepts, ascending.
pub fn ids_left(ids: &[i64], state: &RangeState) -> Vec<i64> {
    ids_of(ids, state.range()).iter().copied().filter(|id| !state.accepts(*id)).collect()
}

/// The first run of neighbouring planned ids that is left to do: what the next attempt is asked for.
pub fn first_gap(ids: &[i64], state: &RangeState) -> Option<RangeId> {
    let own = ids_of(ids, state.range());
    let start = own.iter().position(|id| !state.accepts(*id))?;
    let len = own[start..].iter().take_while(|id| !state.accepts(**id)).count();
    Some(RangeId::new(own[start], own[start + len - 1] + 1))
}

/// What becomes of an earlier plan's ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cut {
    /// Stay as they are, complete or not.
    pub keep: Vec<RangeId>,
    /// Stretches of accepted ids that become complete ranges of their own.
    pub completed: Vec<(RangeId, Vec<Piece>)>,
    /// No longer part of the plan.
    pub superseded: Vec<RangeId>,
    /// New, nothing accepted yet.
    pub fresh: Vec<RangeId>,
}

impl Cut {
    /// All ranges of the new plan, ascending.
    pub fn ranges(&self) -> Vec<RangeId> {
        let completed = self.completed.iter().map(|(range, _)| *range);
        let mut all: Vec<_> =
            self.keep.iter().copied().chain(completed).chain(self.fresh.iter().copied()).collect();
        all.sort();
        all
    }
}

/// Cuts again: with the same ids and the same number of workers (`same`, the ranges of the plan on disk) everything
/// stays. Otherwise complete ranges stay, what others had accepted becomes complete ranges, and the rest is cut into
/// `count` new ones, broken where accepted ids lie between.
pub fn recut(ids: &[i64], count: usize, states: &[RangeState], same: Option<&[RangeId]>) -> Cut {
    if let Some(ranges) = same
        && ranges
            .iter()
            .all(|r| states.iter().all(|s| s.range() != *r || s.status != RangeStatus::Superseded))
    {
        return Cut { keep: ranges.to_vec(), ..Cut::default() };
    }
    let mut cut = Cut::default();
    let mut covered: Vec<RangeId> = Vec::new();
    for state in states.iter().filter(|state| state.status == RangeStatus::Complete) {
        cut.keep.push(state.range());
        covered.push(state.range());
    }
    let mut others: Vec<&RangeState> = states.iter().filter(|s| s.status != RangeStatus::Complete).collect();
    others.sort_by_key(|state| (state.status == RangeStatus::Superseded, state.range()));
    for state in others {
        for (range, pieces) in stretches(ids, state, &covered) {
            covered.push(range);
            cut.completed.push((range, pieces));
        }
        if state.status != RangeStatus::Superseded {
            cut.superseded.push(state.range());
        }
    }
    let left: Vec<i64> =
        ids.iter().copied().filter(|id| !covered.iter().any(|range| range.contains(*id))).collect();
    if !left.is_empty() {
        for range in split(&left, count) {
            cut.fresh.extend(unbroken(ids, &covered, range));
        }
    }
    let again: Vec<RangeId> = cut.fresh.clone();
    cut.superseded
        .retain(|range| !again.contains(range) && !cut.completed.iter().any(|(done, _)| done == range));
    cut
}

/// Accepted segments of `state` that no range in `covered` touches, joined where no planned id lies between.
fn stretches(ids: &[i64], state: &RangeState, covered: &[RangeId]) -> Vec<(RangeId, Vec<Piece>)> {
    let free = |segment: &Segment| {
        !covered.iter().any(|range| segment.ids.0 < range.high && range.low <= segment.ids.1)
            && ids.binary_search(&segment.ids.0).is_ok()
            && ids.binary_search(&segment.ids.1).is_ok()
    };
    let mut found: Vec<(&Piece, &Segment)> = state
        .pieces
        .iter()
        .flat_map(|piece| piece.segments.iter().map(move |segment| (piece, segment)))
        .filter(|(_, segment)| free(segment))
        .collect();
    found.sort_by_key(|(_, segment)| segment.ids);
    let mut joined: Vec<(RangeId, Vec<Piece>)> = Vec::new();
    for (piece, segment) in found {
        let part = Piece { segments: vec![segment.clone()], ..piece.clone() };
        match joined.last_mut() {
            Some((range, parts)) if ids_of(ids, RangeId::new(range.high, segment.ids.0)).is_empty() => {
                range.high = segment.ids.1 + 1;
                match parts.last_mut() {
                    Some(last) if last.file == piece.file && last.attempt == piece.attempt => {
                        last.segments.push(segment.clone());
                    }
                    _ => parts.push(part),
                }
            }
            _ => joined.push((RangeId::new(segment.ids.0, segment.ids.1 + 1), vec![part])),
        }
    }
    joined
}

/// `range` without the ids in `covered`, as ranges between which planned ids of `covered` lie.
fn unbroken(ids: &[i64], covered: &[RangeId], range: RangeId) -> Vec<RangeId> {
    let mut parts: Vec<RangeId> = Vec::new();
    let mut open = false;
    for id in ids_of(ids, range) {
        let taken = covered.iter().any(|c| c.contains(*id));
        match parts.last_mut() {
            Some(part) if open && !taken => part.high = id + 1,
            _ if !taken => parts.push(RangeId::new(*id, id + 1)),
            _ => {}
        }
        open = !taken;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Attempt;
    use proptest::prelude::*;

    fn piece(attempt: u32, ids: (i64, i64)) -> Piece {
        let segments = vec![Segment { ids, spans: vec![(10, 20)], rows: 1 }];
        Piece { attempt: Attempt(attempt), file: format!("a{attempt}").into(), len: 20, crc: 0, segments }
    }

    fn state(low: i64, high: i64, status: RangeStatus, pieces: Vec<Piece>) -> RangeState {
        RangeState { status, pieces, ..RangeState::new(RangeId::new(low, high)) }
    }

    #[test]
    fn ranges_are_those_of_the_original() {
        let ids: Vec<i64> = (0..10).collect();
        let cut: Vec<_> = split(&ids, 4).iter().map(|r| (r.low, r.high)).collect();
        assert_eq!(cut, [(0, 3), (3, 6), (6, 8), (8, 10)]);
        let gaps: Vec<_> = split(&[3, 7, 8, 20], 2).iter().map(|r| (r.low, r.high)).collect();
        assert_eq!(gaps, [(3, 8), (8, 21)]);
        assert_eq!(split(&[5], 8), [RangeId::new(5, 6)]);
    }

    #[test]
    fn the_next_attempt_gets_the_first_gap() {
        let ids = [1, 2, 3, 4, 8, 9];
        let partly = state(1, 10, RangeStatus::Pending, vec![piece(1, (1, 2)), piece(2, (4, 8))]);
        assert_eq!(first_gap(&ids, &partly), Some(RangeId::new(3, 4)));
        assert_eq!(ids_left(&ids, &partly), [3, 9]);
        let done = state(1, 3, RangeStatus::Pending, vec![piece(1, (1, 2))]);
        assert_eq!(first_gap(&ids, &done), None);
    }

    #[test]
    fn the_same_plan_keeps_ranges_and_names() {
        let ids: Vec<i64> = (0..8).collect();
        let ranges = split(&ids, 2);
        let states = [state(0, 4, RangeStatus::Pending, vec![piece(1, (0, 1))])];
        assert_eq!(recut(&ids, 2, &states, Some(&ranges)), Cut { keep: ranges, ..Cut::default() });
    }

    #[test]
    fn another_number_of_workers_keeps_what_was_accepted() {
        let ids: Vec<i64> = (0..12).collect();
        let states = [
            state(0, 4, RangeStatus::Complete, vec![piece(1, (0, 3))]),
            state(4, 8, RangeStatus::GivenUp, vec![piece(1, (4, 4)), piece(2, (5, 5))]),
            state(8, 12, RangeStatus::Pending, vec![]),
        ];
        let cut = recut(&ids, 3, &states, None);
        assert_eq!(cut.keep, [RangeId::new(0, 4)]);
        assert_eq!(cut.completed, [(RangeId::new(4, 6), vec![piece(1, (4, 4)), piece(2, (5, 5))])]);
        assert_eq!(cut.superseded, [RangeId::new(4, 8), RangeId::new(8, 12)]);
        assert_eq!(cut.fresh, [RangeId::new(6, 8), RangeId::new(8, 10), RangeId::new(10, 12)]);
    }

    #[test]
    fn a_new_range_never_reaches_over_accepted_ids() {
        let ids: Vec<i64> = (0..6).collect();
        let states = [state(0, 6, RangeStatus::Pending, vec![piece(1, (2, 3))])];
        let cut = recut(&ids, 1, &states, None);
        assert_eq!(cut.ranges(), [RangeId::new(0, 2), RangeId::new(2, 4), RangeId::new(4, 6)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn ranges_tile_the_planned_ids(
            ids in proptest::collection::btree_set(-50i64..200, 1..60),
            first in 1usize..9,
            second in 1usize..9,
            fates in proptest::collection::vec((0u8..4, 0usize..20), 9),
        ) {
            let ids: Vec<i64> = ids.into_iter().collect();
            let states: Vec<RangeState> = split(&ids, first).into_iter().zip(fates).map(|(range, (fate, prefix))| {
                let own = ids_of(&ids, range);
                let taken = &own[..prefix.min(own.len())];
                let done = taken.first().zip(taken.last());
                let (status, done) = match fate {
                    0 => (RangeStatus::Complete, own.first().zip(own.last())),
                    1 => (RangeStatus::Superseded, done),
                    2 => (RangeStatus::GivenUp, done),
                    _ => (RangeStatus::Pending, None),
                };
                let pieces = done.map(|(a, b)| piece(1, (*a, *b))).into_iter().collect();
                state(range.low, range.high, status, pieces)
            }).collect();
            let cut = recut(&ids, second, &states, None);
            let mut covered: Vec<i64> = Vec::new();
            for range in cut.ranges() {
                prop_assert!(!ids_of(&ids, range).is_empty());
                covered.extend(ids_of(&ids, range));
            }
            prop_assert_eq!(covered, ids);
        }
    }
}
