//! One range's attempt from its naming to its verdict, and what the verdict makes of the range's state.

use super::coverage::{AttemptEnd, Judgement};
use super::invariants;
use super::plan;
use super::restart;
use super::supervisor::AttemptReport;
use crate::types::state::{LastFailure, OpenAttempt, RangeState, RangeStatus};
use crate::types::{Attempt, FailureClass, IdRows, Lease, Piece, RangeId, ShardFacts};
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Run {
        attempt: Attempt,
        lease: Lease,
    },
    Stop {
        attempt: Attempt,
        kill_now: bool,
    },
    /// The state that names the attempt is on disk, or could not be written.
    Named {
        attempt: Attempt,
        ok: bool,
    },
    /// The shim is running, or could not be started.
    Started {
        attempt: Attempt,
        ok: bool,
    },
    /// The shim and everything below it is gone.
    Gone {
        attempt: Attempt,
    },
    /// The verdict is on disk.
    Settled {
        attempt: Attempt,
    },
    /// Judging or writing failed; the attempt's files are still there.
    SettleFailed {
        attempt: Attempt,
    },
    RetryDue {
        attempt: Attempt,
    },
    Close,
    Closed {
        ok: bool,
    },
    CloseRetryDue,
}

#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the state that names the attempt.
    Name {
        attempt: Attempt,
        lease: Lease,
    },
    Start {
        attempt: Attempt,
    },
    Signal {
        attempt: Attempt,
        kill_now: bool,
    },
    TellTreeGone {
        attempt: Attempt,
    },
    /// Judge, accept, write.
    Settle {
        attempt: Attempt,
        stop_requested: bool,
    },
    TellSettled {
        attempt: Attempt,
    },
    /// The attempt could not begin, or could not be judged before the stop; nothing was lost.
    TellTrouble {
        attempt: Attempt,
    },
    RetryLater {
        attempt: Attempt,
    },
    WriteClosed,
    TellClosed,
    RetryCloseLater,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    #[default]
    Idle,
    Naming,
    Starting,
    Running,
    Settling,
    Closing,
}

/// The life of one range's attempts, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Worker {
    pub phase: Phase,
    attempt: Attempt,
    stop: Option<bool>,
    /// This attempt's process has been started and not been seen gone.
    pub alive: bool,
}

impl Worker {
    /// One step; events of another attempt than the current one are dropped.
    pub fn decide(&mut self, event: Event) -> Vec<Action> {
        let attempt = self.attempt;
        match (&self.phase, event) {
            (Phase::Idle, Event::Run { attempt, lease }) if attempt > self.attempt => {
                *self = Self { phase: Phase::Naming, attempt, stop: None, alive: false };
                vec![Action::Name { attempt, lease }]
            }
            (Phase::Idle, Event::Close) | (Phase::Closing, Event::CloseRetryDue) => {
                self.phase = Phase::Closing;
                vec![Action::WriteClosed]
            }
            (Phase::Closing, Event::Closed { ok: true }) => {
                self.phase = Phase::Idle;
                vec![Action::TellClosed]
            }
            (Phase::Closing, Event::Closed { ok: false }) => vec![Action::RetryCloseLater],
            (_, Event::Stop { attempt: of, kill_now }) if of == attempt => self.stop(kill_now),
            (Phase::Naming, Event::Named { attempt: of, ok }) if of == attempt => match (ok, self.stop) {
                (true, None) => {
                    self.phase = Phase::Starting;
                    vec![Action::Start { attempt }]
                }
                _ => self.trouble(),
            },
            (Phase::Starting, Event::Started { attempt: of, ok }) if of == attempt => {
                if !ok {
                    return self.trouble();
                }
                self.phase = Phase::Running;
                self.alive = true;
                // A stop that came while the process was being started.
                self.stop.map(|kill_now| Action::Signal { attempt, kill_now }).into_iter().collect()
            }
            (Phase::Running, Event::Gone { attempt: of }) if of == attempt => {
                self.phase = Phase::Settling;
                self.alive = false;
                let settle = Action::Settle { attempt, stop_requested: self.stop.is_some() };
                vec![Action::TellTreeGone { attempt }, settle]
            }
            (Phase::Settling, Event::Settled { attempt: of }) if of == attempt => {
                self.phase = Phase::Idle;
                vec![Action::TellSettled { attempt }]
            }
            (Phase::Settling, Event::SettleFailed { attempt: of }) if of == attempt => match self.stop {
                Some(_) => self.trouble(),
                None => vec![Action::RetryLater { attempt }],
            },
            (Phase::Settling, Event::RetryDue { attempt: of }) if of == attempt => {
                vec![Action::Settle { attempt, stop_requested: self.stop.is_some() }]
            }
            _ => Vec::new(),
        }
    }

    fn stop(&mut self, kill_now: bool) -> Vec<Action> {
        let kill_now = kill_now || self.stop == Some(true);
        self.stop = Some(kill_now);
        match self.phase {
            Phase::Running => vec![Action::Signal { attempt: self.attempt, kill_now }],
            _ => Vec::new(),
        }
    }

    fn trouble(&mut self) -> Vec<Action> {
        self.phase = Phase::Idle;
        let attempt = self.attempt;
        vec![Action::TellTreeGone { attempt }, Action::TellTrouble { attempt }]
    }
}

/// Names the next attempt in the state document, before any process of it may exist.
pub fn name_attempt(
    state: &mut RangeState,
    attempt: Attempt,
    gap: RangeId,
    lease: &Lease,
    command: Vec<String>,
) {
    state.status = RangeStatus::Running;
    state.attempts = attempt.max(state.attempts);
    state.gpu_ids = lease.gpus.iter().map(|gpu| gpu.ordinal).collect();
    state.command = command;
    let gpu_uuids = lease.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    state.open = Some(OpenAttempt { number: attempt, gap, gpu_uuids });
}

/// Folds a judged attempt into the range's state: pieces, counters, the last failure, what is left.
pub fn apply(
    state: &mut RangeState,
    open: &OpenAttempt,
    judgement: Judgement,
    end: AttemptEnd,
    file: Option<(&Path, &ShardFacts)>,
    stop_requested: bool,
) -> Option<(FailureClass, String)> {
    let failure = restart::classify(end, &judgement, stop_requested);
    let mut highest = state.counters.highest_accepted;
    if let Some(segment) = judgement.accepted {
        highest = highest.max(Some(segment.ids.1));
        let (file, len, crc) = match file {
            Some((path, facts)) if !segment.spans.is_empty() => (path.to_path_buf(), facts.len, facts.crc),
            _ => Default::default(),
        };
        state.pieces.push(Piece { attempt: open.number, file, len, crc, segments: vec![segment] });
    }
    let class = failure.as_ref().map(|(class, _)| *class);
    state.counters = restart::count(state.counters, class, highest);
    if !matches!(class, Some(FailureClass::GpuBusy | FailureClass::Environment)) {
        state.counters.starts += 1;
    }
    if let Some((class, message)) = &failure {
        let (class, message, outcome) = (*class, message.clone(), end.outcome.clone());
        state.last_failure = Some(LastFailure { attempt: open.number, class, outcome, message });
    }
    state.open = None;
    state.status = RangeStatus::Pending;
    debug_assert!(invariants::accepted_once(state));
    failure
}

/// What the supervisor needs to know after a verdict.
pub fn report(state: &RangeState, ids: &[IdRows], failure: Option<(FailureClass, String)>) -> AttemptReport {
    let complete = state.status == RangeStatus::Complete;
    let rows_left = if complete { 0 } else { rows_left(state, ids) };
    let accepted = complete || state.counters.highest_accepted.is_some();
    AttemptReport { rows_left, complete, accepted, failure, counters: state.counters }
}

/// Input rows of the ids that are not accepted yet.
pub fn rows_left(state: &RangeState, ids: &[IdRows]) -> u64 {
    let own = plan::samples_of(ids, state.range());
    own.iter().filter(|sample| !state.accepts(sample.id)).map(|sample| sample.rows).sum()
}

/// True when every planned id of the range is accepted.
pub fn all_accepted(state: &RangeState, ids: &[i64]) -> bool {
    plan::first_gap(ids, state).is_none()
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
