//! One range: its child process, its state file, what of its output is accepted.

use super::off_thread;
use crate::core::command::{self, WorkerCommand};
use crate::core::plan;
use crate::core::supervisor::AttemptReport;
use crate::core::worker::{self, Action, Event, Worker};
use crate::messages::{
    AttemptEnded, AttemptStarted, CloseRange, RangeClosed, RunAttempt, StopAttempt, TreeGone,
};
use crate::ports::{AttemptJob, Outputs, Processes, StateStore, Sweeper};
use crate::settle::{self, Failure, World};
use crate::types::layout::Layout;
use crate::types::state::{RangeState, RangeStatus};
use crate::types::{Attempt, FailureClass, IdRows, Lease};
use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries to write or read what the disk refused.
const DISK_RETRY: Duration = Duration::from_secs(5);

/// What all ranges of a run share.
pub struct Shared {
    pub store: Arc<dyn StateStore>,
    pub outputs: Arc<dyn Outputs>,
    pub sweeper: Arc<dyn Sweeper>,
    pub processes: Rc<dyn Processes>,
    pub command: WorkerCommand,
    pub scheduler_id: String,
    pub samples: Arc<Vec<IdRows>>,
    /// The same ids alone, ascending.
    pub ids: Arc<Vec<i64>>,
}

/// Whom a range tells what.
#[derive(Clone)]
pub struct Peers {
    pub started: Recipient<AttemptStarted>,
    pub tree_gone: Recipient<TreeGone>,
    pub ended: Vec<Recipient<AttemptEnded>>,
    pub closed: Recipient<RangeClosed>,
}

pub struct WorkerActor {
    core: Worker,
    state: RangeState,
    shared: Rc<Shared>,
    peers: Peers,
    lease: Option<Lease>,
    failure: Failure,
    stop: Option<Box<dyn Fn(bool)>>,
    complaint: Option<String>,
}

impl WorkerActor {
    pub fn new(state: RangeState, shared: Rc<Shared>, peers: Peers) -> Self {
        Self {
            core: Worker::default(),
            state,
            shared,
            peers,
            lease: None,
            failure: None,
            stop: None,
            complaint: None,
        }
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) {
        for action in self.core.decide(event) {
            self.perform(action, ctx);
        }
    }

    fn perform(&mut self, action: Action, ctx: &mut Context<Self>) {
        let range = self.state.range();
        match action {
            Action::Name { attempt, lease } => self.name(attempt, lease, ctx),
            Action::Start { attempt } => self.start(attempt, ctx),
            Action::Signal { kill_now, .. } => {
                if let Some(stop) = &self.stop {
                    stop(kill_now);
                }
            }
            Action::TellTreeGone { attempt } => {
                self.stop = None;
                self.peers.tree_gone.do_send(TreeGone { range, attempt });
            }
            Action::Settle { attempt, stop_requested } => self.settle(attempt, stop_requested, ctx),
            Action::TellSettled { attempt } => {
                let failure = self.failure.take();
                self.tell_ended(attempt, failure);
            }
            Action::TellTrouble { attempt } => {
                let message = "the attempt could not begin; see the log above".to_owned();
                self.tell_ended(attempt, Some((FailureClass::Environment, message)));
            }
            Action::RetryLater { attempt } => {
                ctx.run_later(DISK_RETRY, move |actor, ctx| actor.step(Event::RetryDue { attempt }, ctx));
            }
            Action::WriteClosed => self.write_closed(ctx),
            Action::TellClosed => self.peers.closed.do_send(RangeClosed { range }),
            Action::RetryCloseLater => {
                ctx.run_later(DISK_RETRY, |actor, ctx| actor.step(Event::CloseRetryDue, ctx));
            }
        }
    }

    fn tell_ended(&self, attempt: Attempt, failure: Failure) {
        let range = self.state.range();
        let report: AttemptReport = worker::report(&self.state, &self.shared.samples, failure);
        for peer in &self.peers.ended {
            peer.do_send(AttemptEnded { range, attempt, report: report.clone() });
        }
    }

    fn name(&mut self, attempt: Attempt, lease: Lease, ctx: &mut Context<Self>) {
        let Some(gap) = plan::first_gap(&self.shared.ids, &self.state) else {
            // Nothing is left to do, which preflight has already dealt with.
            return self.step(Event::Named { attempt, ok: false }, ctx);
        };
        let dir = Layout::attempt_dir(self.state.range(), attempt);
        let argv = self.shared.command.argv(gap, &dir.to_string_lossy());
        let mut state = self.state.clone();
        worker::name_attempt(&mut state, attempt, gap, &lease, command::masked(&argv));
        state.scheduler_id.clone_from(&self.shared.scheduler_id);
        state.start_time = jiff::Timestamp::now().to_string();
        self.lease = Some(lease);
        let store = Arc::clone(&self.shared.store);
        off_thread(
            ctx,
            move || store.save(&state).map(|()| state),
            move |result, actor, ctx| {
                let ok = result.is_ok();
                match result {
                    Ok(state) => actor.state = state,
                    Err(error) => actor.complain("write the range's state", &error),
                }
                actor.step(Event::Named { attempt, ok }, ctx);
            },
        );
    }

    fn start(&mut self, attempt: Attempt, ctx: &mut Context<Self>) {
        let range = self.state.range();
        let (Some(lease), Some(open)) = (self.lease.clone(), &self.state.open) else { return };
        let dir = Layout::attempt_dir(range, attempt);
        let argv = self.shared.command.argv(open.gap, &dir.to_string_lossy());
        let env = command::environment(&self.shared.scheduler_id, range, attempt, &lease);
        let shown = command::masked(&argv);
        match self.shared.processes.start(AttemptJob { range, attempt, argv, env, lease: lease.clone() }) {
            Ok(started) => {
                self.stop = Some(started.stop);
                self.peers.started.do_send(AttemptStarted { range, attempt, lease, command: shown });
                self.step(Event::Started { attempt, ok: true }, ctx);
                ctx.spawn(
                    wrap_future::<_, Self>(started.gone)
                        .map(move |(), actor, ctx| actor.step(Event::Gone { attempt }, ctx)),
                );
            }
            Err(error) => {
                self.complain("start a process", &error);
                self.step(Event::Started { attempt, ok: false }, ctx);
            }
        }
    }

    fn settle(&mut self, attempt: Attempt, stop_requested: bool, ctx: &mut Context<Self>) {
        let shared = &self.shared;
        let (store, outputs, sweeper, ids) =
            (shared.store.clone(), shared.outputs.clone(), shared.sweeper.clone(), shared.ids.clone());
        let mut state = self.state.clone();
        off_thread(
            ctx,
            move || {
                let world = World { store: &*store, outputs: &*outputs, sweeper: &*sweeper };
                let result = settle::settle(world, &mut state, &ids, stop_requested);
                (state, result)
            },
            move |(state, result), actor, ctx| {
                actor.state = state;
                match result {
                    Ok(failure) => {
                        actor.failure = failure;
                        actor.step(Event::Settled { attempt }, ctx);
                    }
                    Err(error) => {
                        actor.complain("judge the attempt", &error);
                        actor.step(Event::SettleFailed { attempt }, ctx);
                    }
                }
            },
        );
    }

    fn write_closed(&mut self, ctx: &mut Context<Self>) {
        let mut state = self.state.clone();
        state.status = RangeStatus::GivenUp;
        let store = Arc::clone(&self.shared.store);
        off_thread(
            ctx,
            move || store.save(&state).map(|()| state),
            |result, actor, ctx| {
                let ok = result.is_ok();
                match result {
                    Ok(state) => actor.state = state,
                    Err(error) => actor.complain("write the range's state", &error),
                }
                actor.step(Event::Closed { ok }, ctx);
            },
        );
    }

    /// Once per trouble: what is tried every few seconds for hours fails in the same words each time.
    fn complain(&mut self, doing: &str, error: &dyn std::error::Error) {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let complaint = format!("cannot {doing}: {error}{cause}");
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::error!(range = %self.state.range(), "{complaint}");
            self.complaint = Some(complaint);
        }
    }
}

impl Actor for WorkerActor {
    type Context = Context<Self>;
}

impl Handler<RunAttempt> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: RunAttempt, ctx: &mut Context<Self>) {
        self.step(Event::Run { attempt: msg.attempt, lease: msg.lease }, ctx);
    }
}

impl Handler<StopAttempt> for WorkerActor {
    type Result = ();

    fn handle(&mut self, msg: StopAttempt, ctx: &mut Context<Self>) {
        self.step(Event::Stop { attempt: msg.attempt, kill_now: msg.kill_now }, ctx);
    }
}

impl Handler<CloseRange> for WorkerActor {
    type Result = ();

    fn handle(&mut self, _: CloseRange, ctx: &mut Context<Self>) {
        self.step(Event::Close, ctx);
    }
}
