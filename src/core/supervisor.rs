//! The order in which ranges run, what happens after each end, and how a run stops. Pure: events in, actions out.

use super::invariants;
use super::restart::{self, RestartPolicy};
use crate::types::state::Counters;
use crate::types::{Attempt, FailureClass, Lease, LeaseId, RangeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// What the user's flags say about dispatch and restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub max_parallel: usize,
    pub start_stagger: Duration,
    /// How long to wait for GPUs while nothing runs; `None` = for ever.
    pub wait_timeout: Option<Duration>,
    pub restart: RestartPolicy,
}

/// A range as the plan hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    pub range: RangeId,
    /// Input rows of the ids that are left: longest first.
    pub rows_left: u64,
    pub complete: bool,
    /// Some id of it was accepted in this or an earlier run.
    pub accepted: bool,
    pub attempts: Attempt,
}

/// What is left of a range after an attempt was judged and the verdict written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptReport {
    pub rows_left: u64,
    pub complete: bool,
    /// At least one id was accepted, or the range is complete.
    pub accepted: bool,
    pub failure: Option<(FailureClass, String)>,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Complete,
    GivenUp,
}

/// Who asked the run to stop; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopCause {
    Interrupt,
    Terminate,
    HangUp,
    /// Waited for resources longer than `--wait-timeout`.
    WaitedTooLong,
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Every range is terminal and the merge has had its say.
    Merged,
    Stopped(StopCause),
    /// The worker's configuration can never work; the cause, once.
    Broken(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Began(Vec<Brief>),
    LeaseGranted {
        range: RangeId,
        lease: Lease,
    },
    /// No process of the attempt is left; its GPUs may go.
    TreeGone {
        range: RangeId,
        attempt: Attempt,
    },
    AttemptEnded {
        range: RangeId,
        attempt: Attempt,
        report: AttemptReport,
        jitter: u16,
    },
    BackoffOver {
        range: RangeId,
        attempt: Attempt,
    },
    StaggerOver,
    /// A given-up range's state is on disk.
    RangeClosed {
        range: RangeId,
    },
    StopRequested(StopCause),
    MergeEnded,
    /// Time has passed.
    Ticked,
}

#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    RequestLease {
        range: RangeId,
    },
    CancelLease {
        range: RangeId,
    },
    ReleaseLease(LeaseId),
    RunAttempt {
        range: RangeId,
        attempt: Attempt,
        lease: Lease,
    },
    StopAttempt {
        range: RangeId,
        attempt: Attempt,
        kill_now: bool,
    },
    WakeAfter {
        range: RangeId,
        attempt: Attempt,
        delay: Duration,
    },
    StaggerAfter(Duration),
    CloseRange {
        range: RangeId,
    },
    /// For the merge, which waits for all of them.
    RangeEnded {
        range: RangeId,
        end: End,
    },
    Finish(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Ready,
    Leasing,
    /// Holds a lease, waits for its turn to start.
    Granted(Lease),
    Running(Option<Lease>),
    BackingOff,
    Closing,
    Ended(End),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    rows_left: u64,
    pub(crate) attempt: Attempt,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Supervisor {
    pub(crate) slots: BTreeMap<RangeId, Slot>,
    pub(crate) stop: Option<Ending>,
    kill_now: bool,
    ever_accepted: bool,
    next_start: Duration,
    stagger_armed: bool,
    /// Since when ranges wait for GPUs while nothing runs.
    waiting_since: Option<Duration>,
    merging: bool,
    pub(crate) finished: bool,
}

impl Supervisor {
    /// One step. `now` is monotonic time since the run began. Events of an attempt that is not the current one
    /// are dropped.
    pub fn decide(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let before = cfg!(debug_assertions).then(|| self.clone());
        let actions = self.step(event, now, policy);
        if let Some(before) = before {
            debug_assert_eq!(invariants::broken_by(&before, &actions, self, policy.max_parallel), None);
        }
        actions
    }

    fn step(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return self.refuse_late_lease(event);
        }
        match event {
            Event::Began(briefs) => self.begin(briefs, &mut actions),
            Event::LeaseGranted { range, lease } => self.lease_granted(range, lease, &mut actions),
            Event::TreeGone { range, attempt } => self.tree_gone(range, attempt, &mut actions),
            Event::AttemptEnded { range, attempt, report, jitter } => {
                self.attempt_ended(range, attempt, report, jitter, policy, &mut actions);
            }
            Event::BackoffOver { range, attempt } => {
                if let Some(slot) = self.current(range, attempt)
                    && slot.phase == Phase::BackingOff
                {
                    slot.phase = Phase::Ready;
                }
            }
            Event::StaggerOver => self.stagger_armed = false,
            Event::RangeClosed { range } => {
                if let Some(slot) = self.slots.get_mut(&range)
                    && slot.phase == Phase::Closing
                {
                    slot.phase = Phase::Ended(End::GivenUp);
                    actions.push(Action::RangeEnded { range, end: End::GivenUp });
                }
            }
            Event::StopRequested(cause) => self.stop_requested(Ending::Stopped(cause), &mut actions),
            Event::MergeEnded => {
                self.finished = true;
                actions.push(Action::Finish(Ending::Merged));
            }
            Event::Ticked => {}
        }
        self.dispatch(now, policy, &mut actions);
        self.watch_waiting(now, policy, &mut actions);
        self.settle(&mut actions);
        actions
    }

    /// Ranges that hold or wait for a place among `--max-parallel-workers`.
    pub fn active(&self) -> usize {
        self.slots.values().filter(|slot| is_active(&slot.phase)).count()
    }

    fn current(&mut self, range: RangeId, attempt: Attempt) -> Option<&mut Slot> {
        self.slots.get_mut(&range).filter(|slot| slot.attempt == attempt)
    }

    fn refuse_late_lease(&self, event: Event) -> Vec<Action> {
        match event {
            Event::LeaseGranted { lease, .. } => vec![Action::ReleaseLease(lease.id)],
            _ => Vec::new(),
        }
    }

    fn begin(&mut self, briefs: Vec<Brief>, actions: &mut Vec<Action>) {
        for brief in briefs {
            let phase = if brief.complete { Phase::Ended(End::Complete) } else { Phase::Ready };
            self.ever_accepted |= brief.accepted;
            if brief.complete {
                actions.push(Action::RangeEnded { range: brief.range, end: End::Complete });
            }
            self.slots
                .insert(brief.range, Slot { phase, rows_left: brief.rows_left, attempt: brief.attempts });
        }
    }

    fn lease_granted(&mut self, range: RangeId, lease: Lease, actions: &mut Vec<Action>) {
        match self.slots.get_mut(&range) {
            Some(slot) if slot.phase == Phase::Leasing => slot.phase = Phase::Granted(lease),
            _ => actions.push(Action::ReleaseLease(lease.id)),
        }
    }

    fn tree_gone(&mut self, range: RangeId, attempt: Attempt, actions: &mut Vec<Action>) {
        if let Some(slot) = self.current(range, attempt)
            && let Phase::Running(lease) = &mut slot.phase
            && let Some(lease) = lease.take()
        {
            actions.push(Action::ReleaseLease(lease.id));
        }
    }

    fn attempt_ended(
        &mut self,
        range: RangeId,
        attempt: Attempt,
        report: AttemptReport,
        jitter: u16,
        policy: &Policy,
        actions: &mut Vec<Action>,
    ) {
        self.tree_gone(range, attempt, actions);
        let stopping = self.stop.is_some();
        let ever_accepted = self.ever_accepted || report.accepted;
        let Some(slot) = self.current(range, attempt) else { return };
        if !matches!(slot.phase, Phase::Running(_)) {
            return;
        }
        slot.rows_left = report.rows_left;
        let configuration = matches!(report.failure, Some((FailureClass::Configuration, _)));
        let exhausted = report.counters.charged_in_a_row >= policy.restart.max_failures.max(1);
        let mut broken = None;
        slot.phase = if report.complete {
            actions.push(Action::RangeEnded { range, end: End::Complete });
            Phase::Ended(End::Complete)
        } else if stopping {
            Phase::Ready
        } else if configuration && !ever_accepted {
            broken = report.failure.map(|(_, message)| message);
            Phase::Ready
        } else if configuration || exhausted {
            actions.push(Action::CloseRange { range });
            Phase::Closing
        } else {
            let delay = match report.failure {
                Some(_) => restart::backoff(&policy.restart, &report.counters, jitter),
                None => Duration::ZERO,
            };
            actions.push(Action::WakeAfter { range, attempt, delay });
            Phase::BackingOff
        };
        self.ever_accepted = ever_accepted;
        if let Some(cause) = broken {
            self.stop_requested(Ending::Broken(cause), actions);
        }
    }

    fn watch_waiting(&mut self, now: Duration, policy: &Policy, actions: &mut Vec<Action>) {
        let any = |wanted: fn(&Phase) -> bool| self.slots.values().any(|slot| wanted(&slot.phase));
        let waits = any(|phase| *phase == Phase::Leasing) && !any(|phase| matches!(phase, Phase::Running(_)));
        self.waiting_since = waits.then(|| self.waiting_since.unwrap_or(now));
        if let (Some(since), Some(limit), None) = (self.waiting_since, policy.wait_timeout, &self.stop)
            && now - since >= limit
        {
            self.stop_requested(Ending::Stopped(StopCause::WaitedTooLong), actions);
        }
    }

    /// The first request stops with grace, any later one at once; the first decides the ending.
    fn stop_requested(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        if self.merging {
            self.finished = true;
            actions.push(Action::Finish(ending));
            return;
        }
        self.kill_now = self.stop.is_some();
        self.stop.get_or_insert(ending);
        for (range, slot) in &mut self.slots {
            match &mut slot.phase {
                Phase::Leasing => {
                    actions.push(Action::CancelLease { range: *range });
                    slot.phase = Phase::Ready;
                }
                Phase::Granted(lease) => {
                    actions.push(Action::ReleaseLease(lease.id));
                    slot.phase = Phase::Ready;
                }
                Phase::Running(_) => actions.push(Action::StopAttempt {
                    range: *range,
                    attempt: slot.attempt,
                    kill_now: self.kill_now,
                }),
                Phase::BackingOff => slot.phase = Phase::Ready,
                Phase::Ready | Phase::Closing | Phase::Ended(_) => {}
            }
        }
    }

    /// Fills free places, the range with the most rows left first, and starts what holds a lease.
    fn dispatch(&mut self, now: Duration, policy: &Policy, actions: &mut Vec<Action>) {
        if self.stop.is_some() || self.finished {
            return;
        }
        let mut free = policy.max_parallel.max(1).saturating_sub(self.active());
        while free > 0
            && let Some((range, slot)) = self
                .slots
                .iter_mut()
                .filter(|(_, slot)| slot.phase == Phase::Ready)
                .max_by_key(|(range, slot)| (slot.rows_left, std::cmp::Reverse(**range)))
        {
            slot.phase = Phase::Leasing;
            actions.push(Action::RequestLease { range: *range });
            free -= 1;
        }
        while let Some((range, slot)) =
            self.slots.iter_mut().find(|(_, slot)| matches!(slot.phase, Phase::Granted(_)))
        {
            if now < self.next_start {
                if !self.stagger_armed {
                    self.stagger_armed = true;
                    actions.push(Action::StaggerAfter(self.next_start - now));
                }
                return;
            }
            let Phase::Granted(lease) = std::mem::replace(&mut slot.phase, Phase::Running(None)) else {
                return;
            };
            slot.phase = Phase::Running(Some(lease.clone()));
            slot.attempt = Attempt(slot.attempt.0 + 1);
            self.next_start = now + policy.start_stagger;
            actions.push(Action::RunAttempt { range: *range, attempt: slot.attempt, lease });
        }
    }

    /// Notices that nothing is left to wait for.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        if self.finished || self.slots.is_empty() {
            return;
        }
        if self.slots.values().all(|slot| matches!(slot.phase, Phase::Ended(_))) {
            self.merging = true;
        } else if let Some(ending) = &self.stop
            && !self.slots.values().any(|slot| self.is_awaited(&slot.phase))
        {
            self.finished = true;
            actions.push(Action::Finish(ending.clone()));
        }
    }
}

impl Supervisor {
    /// What a stop waits for. Writing down that a range is given up may never succeed (a full disk), so a second
    /// request does not wait for that.
    fn is_awaited(&self, phase: &Phase) -> bool {
        is_active(phase) || (*phase == Phase::Closing && !self.kill_now)
    }
}

fn is_active(phase: &Phase) -> bool {
    matches!(phase, Phase::Leasing | Phase::Granted(_) | Phase::Running(_))
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
