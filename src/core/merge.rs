//! When to merge: once every planned range has ended, and never before.

use super::supervisor::End;
use crate::types::RangeId;
use std::collections::{BTreeMap, BTreeSet};

/// Counts completions down.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MergeGate {
    waiting: BTreeSet<RangeId>,
    ended: BTreeMap<RangeId, End>,
    open: bool,
}

impl MergeGate {
    pub fn new(ranges: impl IntoIterator<Item = RangeId>) -> Self {
        Self { waiting: ranges.into_iter().collect(), ended: BTreeMap::new(), open: false }
    }

    /// Takes one end; true exactly once, when the last range has ended.
    pub fn range_ended(&mut self, range: RangeId, end: End) -> bool {
        if self.waiting.remove(&range) {
            self.ended.insert(range, end);
        }
        let now_open = self.waiting.is_empty() && !self.open;
        self.open |= now_open;
        now_open
    }

    /// Ranges that ended without all their ids.
    pub fn given_up(&self) -> Vec<RangeId> {
        self.ended.iter().filter(|(_, end)| **end == End::GivenUp).map(|(range, _)| *range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_once_and_only_when_all_have_ended() {
        let ranges = [RangeId::new(0, 4), RangeId::new(4, 8)];
        let mut gate = MergeGate::new(ranges);
        assert!(!gate.range_ended(ranges[1], End::GivenUp));
        assert!(!gate.range_ended(ranges[1], End::Complete));
        assert!(!gate.range_ended(RangeId::new(90, 91), End::Complete));
        assert!(gate.range_ended(ranges[0], End::Complete));
        assert!(!gate.range_ended(ranges[0], End::Complete));
        assert_eq!(gate.given_up(), [ranges[1]]);
    }
}
