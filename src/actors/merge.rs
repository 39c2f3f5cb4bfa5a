//! Waits for every range to end, then proves and writes the merged file from what is on disk.

use super::off_thread;
use crate::core::merge::MergeGate;
use crate::messages::{MergeEnded, RangeEnded};
use crate::ports::{Outputs, StateStore, StoreError};
use crate::types::RangeId;
use crate::types::state::{MergeSummary, RangeState};
use actix::{Actor, Context, Handler, Recipient};
use std::sync::Arc;

pub struct MergeActor {
    gate: MergeGate,
    ranges: Vec<RangeId>,
    store: Arc<dyn StateStore>,
    outputs: Arc<dyn Outputs>,
    ids: Arc<Vec<i64>>,
    supervisor: Recipient<MergeEnded>,
}

impl MergeActor {
    pub fn new(
        ranges: Vec<RangeId>,
        store: Arc<dyn StateStore>,
        outputs: Arc<dyn Outputs>,
        ids: Arc<Vec<i64>>,
        supervisor: Recipient<MergeEnded>,
    ) -> Self {
        Self { gate: MergeGate::new(ranges.iter().copied()), ranges, store, outputs, ids, supervisor }
    }
}

/// Proves and merges what the ranges of a plan have accepted, as their state files tell it.
pub fn merge_plan(
    store: &dyn StateStore,
    outputs: &dyn Outputs,
    ranges: &[RangeId],
    ids: &[i64],
) -> Result<MergeSummary, StoreError> {
    let mut states: Vec<RangeState> = store.load_all()?;
    states.retain(|state| ranges.contains(&state.range()));
    if let Some(lost) = ranges.iter().find(|range| !states.iter().any(|state| state.range() == **range)) {
        return Err(StoreError::Data(format!("the state file of range {lost} is gone")));
    }
    outputs.merge(&states, ids)
}

impl Actor for MergeActor {
    type Context = Context<Self>;
}

impl Handler<RangeEnded> for MergeActor {
    type Result = ();

    fn handle(&mut self, msg: RangeEnded, ctx: &mut Context<Self>) {
        if !self.gate.range_ended(msg.range) {
            return;
        }
        tracing::info!("Starting result merge...");
        let (store, outputs, ids, ranges) =
            (self.store.clone(), self.outputs.clone(), self.ids.clone(), self.ranges.clone());
        off_thread(
            ctx,
            move || merge_plan(&*store, &*outputs, &ranges, &ids),
            |result, actor, _| actor.supervisor.do_send(MergeEnded { result: result.map(Box::new) }),
        );
    }
}
