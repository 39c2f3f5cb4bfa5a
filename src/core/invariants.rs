//! The rules that must never break, as named predicates over the cores. Shared by the exhaustive searches, by
//! simulations and by debug builds; the GPU pool's own are in [`super::pool::invariants`].

use super::supervisor::{Action, Phase, Supervisor};
use super::worker::Worker;
use crate::types::state::RangeState;
use std::collections::BTreeSet;

/// Rule 1, the supervisor's half: no lease serves two ranges.
pub fn each_lease_serves_one_range(supervisor: &Supervisor) -> bool {
    let mut seen = BTreeSet::new();
    supervisor.slots.values().all(|slot| match &slot.phase {
        Phase::Granted(lease) | Phase::Running(Some(lease)) => seen.insert(lease.id),
        _ => true,
    })
}

/// Rule 1: a lease goes back only when nobody in its range may still be using it.
pub fn leases_are_released_once_idle(actions: &[Action], after: &Supervisor) -> bool {
    actions.iter().all(|action| match action {
        Action::ReleaseLease(id) => after.slots.values().all(|slot| match &slot.phase {
            Phase::Granted(lease) | Phase::Running(Some(lease)) => lease.id != *id,
            _ => true,
        }),
        _ => true,
    })
}

/// Rule 2: an attempt is only started for a range that has none, under a number higher than any before.
pub fn attempts_start_one_at_a_time(before: &Supervisor, actions: &[Action]) -> bool {
    actions.iter().all(|action| match action {
        Action::RunAttempt { range, attempt, .. } => before
            .slots
            .get(range)
            .is_some_and(|slot| !matches!(slot.phase, Phase::Running(_)) && *attempt > slot.attempt),
        _ => true,
    })
}

/// Rule 3: a process is only started after the state that names it was written, and never twice.
pub fn named_before_started(before: &Worker, actions: &[super::worker::Action]) -> bool {
    use super::worker::{Action, Phase};
    actions.iter().all(|action| match action {
        Action::Start { .. } => before.phase == Phase::Naming && !before.alive,
        Action::Settle { .. } => matches!(before.phase, Phase::Running | Phase::Settling),
        _ => true,
    })
}

/// Rule 4: no id is accepted twice. (What is left to do is the rest, so there can be no gap.)
pub fn accepted_once(state: &RangeState) -> bool {
    let mut taken: Vec<(i64, i64)> =
        state.pieces.iter().flat_map(|piece| &piece.segments).map(|segment| segment.ids).collect();
    taken.sort_unstable();
    taken.windows(2).all(|pair| pair[0].1 < pair[1].0)
}

/// Rule 6: a range that has ended stays as it ended.
pub fn ends_absorb(before: &Supervisor, after: &Supervisor) -> bool {
    before.slots.iter().all(|(range, slot)| match slot.phase {
        Phase::Ended(_) => after.slots.get(range).is_some_and(|now| now.phase == slot.phase),
        _ => true,
    })
}

/// Rule 7: once a stop was asked for, nothing is started and no lease is asked for.
pub fn nothing_starts_after_a_stop(after: &Supervisor, actions: &[Action]) -> bool {
    after.stop.is_none()
        || !actions.iter().any(|a| matches!(a, Action::RunAttempt { .. } | Action::RequestLease { .. }))
}

/// `--max-parallel-workers` holds.
pub fn within_the_cap(supervisor: &Supervisor, max_parallel: usize) -> bool {
    supervisor.active() <= max_parallel
}

/// All of the supervisor's rules for one step.
pub fn broken_by(
    before: &Supervisor,
    actions: &[Action],
    after: &Supervisor,
    max_parallel: usize,
) -> Option<&'static str> {
    let rules = [
        ("each lease serves one range", each_lease_serves_one_range(after)),
        ("leases are released once idle", leases_are_released_once_idle(actions, after)),
        ("attempts start one at a time", attempts_start_one_at_a_time(before, actions)),
        ("ends absorb", ends_absorb(before, after)),
        ("nothing starts after a stop", nothing_starts_after_a_stop(after, actions)),
        ("within the cap", within_the_cap(after, max_parallel)),
    ];
    rules.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
}
