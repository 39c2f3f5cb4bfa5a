//! What happens once an attempt's process tree is gone: judge, accept, write, and make the range's file when it was
//! the last one. Every step is durable before the next begins and may be taken again after a crash.
//!
//! Used by a range's actor during a run, and when a later scheduler finds what an earlier one left.

use crate::core::coverage::{self, AttemptEnd, Evidence};
use crate::core::{plan, worker};
use crate::ports::{Outputs, StateStore, StoreError, Sweeper};
use crate::types::state::{LastFailure, OpenAttempt, RangeState, RangeStatus};
use crate::types::{ExitOutcome, FailureClass, RangeId};

/// A range's failure as the supervisor counts it.
pub type Failure = Option<(FailureClass, String)>;

/// The ports that settling needs.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub store: &'a dyn StateStore,
    pub outputs: &'a dyn Outputs,
    pub sweeper: &'a dyn Sweeper,
}

/// Judges the open attempt of `state`, if there is one, and completes the range where nothing is left.
///
/// # Errors
/// A document or file could not be read or written. `state` is then what is on disk, so that the next try goes on from
/// there: a verdict that was written is never reached again from files that have moved since.
pub fn settle(
    world: World,
    state: &mut RangeState,
    ids: &[i64],
    stop_requested: bool,
) -> Result<Failure, StoreError> {
    let mut failure = None;
    if let Some(open) = state.open.clone() {
        let mut judged = state.clone();
        failure = judge_open(world, &mut judged, &open, ids, stop_requested)?;
        if worker::all_accepted(&judged, ids) {
            // Not done until its file stands.
            judged.status = RangeStatus::Running;
        }
        world.store.save(&judged)?;
        *state = judged;
    }
    if state.status != RangeStatus::Complete && worker::all_accepted(state, ids) {
        failure = complete(world, state, ids)?.or(failure);
    }
    Ok(failure)
}

/// Turns a range all of whose ids are accepted into a complete one with its drop-in file. Where its pieces do not make
/// one (a file is gone, headers differ), what is no longer trusted is let go, and its ids are left to do again.
///
/// # Errors
/// As `settle`: the disk's, never the data's.
pub fn complete(world: World, state: &mut RangeState, ids: &[i64]) -> Result<Failure, StoreError> {
    let range = state.range();
    let piece = match world.outputs.assemble(range, &state.pieces, plan::ids_of(ids, range)) {
        Ok(piece) => piece,
        Err(StoreError::Data(reason)) => return let_go(world, state, reason).map(Some),
        Err(error) => return Err(error),
    };
    let done = RangeState { pieces: vec![piece], status: RangeStatus::Complete, ..state.clone() };
    world.store.save(&done)?;
    world.outputs.discard(range, &state.pieces);
    *state = done;
    Ok(None)
}

/// Drops the pieces whose files are not what was accepted; if all are, they contradict each other, and none is kept.
/// What is accepted again is no progress, so this cannot go on for ever.
fn let_go(
    world: World,
    state: &mut RangeState,
    reason: String,
) -> Result<(FailureClass, String), StoreError> {
    let message = format!("the accepted rows do not make one file and are done again: {reason}");
    let mut again = state.clone();
    again.pieces.retain(|piece| world.outputs.is_as_accepted(piece));
    if again.pieces.len() == state.pieces.len() {
        again.pieces.clear();
    }
    again.status = RangeStatus::Pending;
    again.counters.charged_in_a_row += 1;
    let (attempt, class) = (state.attempts, FailureClass::ContractBreach);
    let outcome = ExitOutcome::Code(0);
    again.last_failure = Some(LastFailure { attempt, class, outcome, message: message.clone() });
    world.store.save(&again)?;
    *state = again;
    Ok((class, message))
}

fn judge_open(
    world: World,
    state: &mut RangeState,
    open: &OpenAttempt,
    ids: &[i64],
    stop_requested: bool,
) -> Result<Failure, StoreError> {
    let range = state.range();
    let record = world.store.exit_record(range, open.number)?;
    let last_output = world.store.last_output(range, open.number);
    let (outcome, told_to_stop, swallowed_error) = match record {
        Some(record) => (record.outcome, record.told_to_stop, record.swallowed_error),
        None => {
            world.sweeper.sweep(range, open.number);
            let outcome = match last_output {
                Some(_) => ExitOutcome::Unknown,
                None => {
                    ExitOutcome::Environment { message: "the attempt was named but never started".into() }
                }
            };
            (outcome, false, None)
        }
    };
    let end = AttemptEnd { outcome: &outcome, told_to_stop, swallowed_error: swallowed_error.as_deref() };
    let findings = world.outputs.examine(range, open.number, open.gap)?;
    let asked: Vec<i64> = asked_ids(ids, state, open.gap);
    let evidence = Evidence {
        ids: &asked,
        file: findings.file.as_ref().map(|(_, facts)| facts),
        full_copy: findings.full_copy,
        stray_file: findings.stray_file.as_deref(),
    };
    let judgement = coverage::judge(end, evidence);
    let file = findings.file.as_ref().map(|(path, facts)| (path.as_path(), facts));
    let failure = worker::apply(state, open, judgement, end, file, stop_requested);
    let said = last_output.filter(|line| !line.is_empty());
    if let (Some(last), Some(said)) = (&mut state.last_failure, said)
        && failure.is_some()
    {
        last.message = format!("{} (last output: {said})", last.message);
    }
    Ok(failure.map(|(class, message)| {
        (class, state.last_failure.as_ref().map_or(message, |last| last.message.clone()))
    }))
}

fn asked_ids(ids: &[i64], state: &RangeState, gap: RangeId) -> Vec<i64> {
    plan::ids_of(ids, gap).iter().copied().filter(|id| !state.accepts(*id)).collect()
}
