//! How far a run is, counted in input rows, and what that says about its end.

use crate::types::RangeId;
use crate::types::words::duration_words;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Counts of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Input rows: all, done before this run began, and left per range.
    rows_total: u64,
    rows_before: u64,
    rows_left: BTreeMap<RangeId, u64>,
    complete: usize,
    given_up: usize,
    running: BTreeSet<RangeId>,
}

impl Progress {
    /// `rows_left` has an entry for every range.
    pub fn new(rows_left: BTreeMap<RangeId, u64>, rows_total: u64) -> Self {
        let rows_before = rows_total - rows_left.values().sum::<u64>();
        Self { rows_total, rows_before, rows_left, complete: 0, given_up: 0, running: BTreeSet::new() }
    }

    pub fn started(&mut self, range: RangeId) {
        self.running.insert(range);
    }

    /// An attempt ended, or could not even begin.
    pub fn ended(&mut self, range: RangeId, rows_left: u64) {
        self.running.remove(&range);
        self.rows_left.insert(range, rows_left);
    }

    pub fn completed(&mut self) {
        self.complete += 1;
    }

    pub fn gave_up(&mut self) {
        self.given_up += 1;
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Every range has ended.
    pub fn is_over(&self) -> bool {
        self.complete + self.given_up == self.rows_left.len()
    }

    /// One line for people. The time left is what the rows left take at the pace of this run.
    pub fn line(&self, elapsed: Duration) -> String {
        let left: u64 = self.rows_left.values().sum();
        let done = self.rows_total.saturating_sub(left);
        let eta = match done.saturating_sub(self.rows_before) {
            0 => String::new(),
            now => format!(", about {} left", duration_words(elapsed.mul_f64(left as f64 / now as f64))),
        };
        let given_up =
            if self.given_up > 0 { format!(", {} given up", self.given_up) } else { String::new() };
        format!(
            "Progress: {}/{} completed, {} running{given_up}, {done} of {} input rows, elapsed: {:.1}s{eta}",
            self.complete,
            self.rows_left.len(),
            self.running.len(),
            self.rows_total,
            elapsed.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_pace_and_time_left() {
        let (a, b) = (RangeId::new(0, 4), RangeId::new(4, 8));
        let mut progress = Progress::new(BTreeMap::from([(a, 100), (b, 300)]), 1000);
        progress.started(a);
        progress.started(b);
        let start = "Progress: 0/2 completed, 2 running, 600 of 1000 input rows, elapsed: 1.0s";
        assert_eq!(progress.line(Duration::from_secs(1)), start);
        progress.ended(a, 0);
        progress.completed();
        let later =
            "Progress: 1/2 completed, 1 running, 700 of 1000 input rows, elapsed: 10.0s, about 30 s left";
        assert_eq!(progress.line(Duration::from_secs(10)), later);
        progress.ended(b, 300);
        progress.gave_up();
        assert!(progress.is_over() && progress.is_idle());
    }

    #[test]
    fn an_attempt_that_could_not_begin_does_not_lower_the_number_of_running_ones() {
        let (a, b) = (RangeId::new(0, 4), RangeId::new(4, 8));
        let mut progress = Progress::new(BTreeMap::from([(a, 8), (b, 8)]), 16);
        progress.started(a);
        progress.ended(b, 8);
        assert!(progress.line(Duration::ZERO).contains("0/2 completed, 1 running"));
    }
}
