//! When to merge: once every planned range has ended, and never before.

use crate::types::RangeId;
use std::collections::BTreeSet;

/// Counts completions down.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MergeGate {
    waiting: BTreeSet<RangeId>,
    open: bool,
}

impl MergeGate {
    pub fn new(ranges: impl IntoIterator<Item = RangeId>) -> Self {
        Self { waiting: ranges.into_iter().collect(), open: false }
    }

    /// Takes one end; true exactly once, when the last range has ended.
    pub fn range_ended(&mut self, range: RangeId) -> bool {
        self.waiting.remove(&range);
        let now_open = self.waiting.is_empty() && !self.open;
        self.open |= now_open;
        now_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_once_and_only_when_all_have_ended() {
        let ranges = [RangeId::new(0, 4), RangeId::new(4, 8)];
        let mut gate = MergeGate::new(ranges);
        assert!(!gate.range_ended(ranges[1]));
        assert!(!gate.range_ended(ranges[1]));
        assert!(!gate.range_ended(RangeId::new(90, 91)));
        assert!(gate.range_ended(ranges[0]));
        assert!(!gate.range_ended(ranges[0]));
    }
}
