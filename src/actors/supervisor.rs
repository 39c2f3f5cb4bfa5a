//! The queue of ranges, the restart policy and the end of the run. Touches no process, file or GPU.

use crate::core::supervisor::{Action, Brief, Ending, Event, Policy, Supervisor};
use crate::messages::{
    AttemptEnded, CancelLease, CloseRange, LeaseGranted, MergeEnded, RangeClosed, RangeEnded, ReleaseLease,
    RequestLease, RunAttempt, StopAttempt, StopRequested, TreeGone,
};
use crate::ports::StoreError;
use crate::types::RangeId;
use crate::types::state::MergeSummary;
use actix::{Actor, AsyncContext, Context, Handler, Recipient};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

const TICK: Duration = Duration::from_secs(1);

/// The recipients of one range's orders.
pub struct RangeOrders {
    pub run: Recipient<RunAttempt>,
    pub stop: Recipient<StopAttempt>,
    pub close: Recipient<CloseRange>,
}

/// Whom the supervisor orders about.
pub struct Orders {
    pub request: Recipient<RequestLease>,
    pub cancel: Recipient<CancelLease>,
    pub release: Recipient<ReleaseLease>,
    pub ranges: BTreeMap<RangeId, RangeOrders>,
    pub range_ended: Vec<Recipient<RangeEnded>>,
}

/// How the run ended, and what the merge said if it came to that.
#[derive(Debug)]
pub struct RunEnd {
    pub ending: Ending,
    pub merge: Option<Result<Box<MergeSummary>, StoreError>>,
}

pub struct SupervisorActor {
    core: Supervisor,
    policy: Policy,
    briefs: Vec<Brief>,
    orders: Orders,
    began: Instant,
    merge: Option<Result<Box<MergeSummary>, StoreError>>,
    done: Option<oneshot::Sender<RunEnd>>,
}

impl SupervisorActor {
    pub fn new(policy: Policy, briefs: Vec<Brief>, orders: Orders, done: oneshot::Sender<RunEnd>) -> Self {
        let core = Supervisor::default();
        Self { core, policy, briefs, orders, began: Instant::now(), merge: None, done: Some(done) }
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) {
        for action in self.core.decide(event, self.began.elapsed(), &self.policy) {
            self.perform(action, ctx);
        }
    }

    fn perform(&mut self, action: Action, ctx: &mut Context<Self>) {
        match action {
            Action::RequestLease { range } => self.orders.request.do_send(RequestLease { range }),
            Action::CancelLease { range } => self.orders.cancel.do_send(CancelLease { range }),
            Action::ReleaseLease(lease) => self.orders.release.do_send(ReleaseLease { lease }),
            Action::RunAttempt { range, attempt, lease } => {
                if let Some(worker) = self.orders.ranges.get(&range) {
                    worker.run.do_send(RunAttempt { attempt, lease });
                }
            }
            Action::StopAttempt { range, attempt, kill_now } => {
                if let Some(worker) = self.orders.ranges.get(&range) {
                    worker.stop.do_send(StopAttempt { attempt, kill_now });
                }
            }
            Action::WakeAfter { range, attempt, delay } => {
                if !delay.is_zero() {
                    tracing::info!(
                        "Range [{}, {}) is tried again in {:.1} s",
                        range.low,
                        range.high,
                        delay.as_secs_f64()
                    );
                }
                ctx.run_later(delay, move |actor, ctx| {
                    actor.step(Event::BackoffOver { range, attempt }, ctx)
                });
            }
            Action::StaggerAfter(delay) => {
                ctx.run_later(delay, |actor, ctx| actor.step(Event::StaggerOver, ctx));
            }
            Action::CloseRange { range } => {
                if let Some(worker) = self.orders.ranges.get(&range) {
                    worker.close.do_send(CloseRange {});
                }
            }
            Action::RangeEnded { range, end } => {
                for peer in &self.orders.range_ended {
                    peer.do_send(RangeEnded { range, end });
                }
            }
            Action::Finish(ending) => {
                if let Some(done) = self.done.take() {
                    // Nobody waits any more only when the whole program is ending.
                    let _ = done.send(RunEnd { ending, merge: self.merge.take() });
                }
            }
        }
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.began = Instant::now();
        let briefs = std::mem::take(&mut self.briefs);
        self.step(Event::Began(briefs), ctx);
        ctx.run_interval(TICK, |actor, ctx| actor.step(Event::Ticked, ctx));
    }
}

impl Handler<LeaseGranted> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: LeaseGranted, ctx: &mut Context<Self>) {
        self.step(Event::LeaseGranted { range: msg.range, lease: msg.lease }, ctx);
    }
}

impl Handler<TreeGone> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: TreeGone, ctx: &mut Context<Self>) {
        self.step(Event::TreeGone { range: msg.range, attempt: msg.attempt }, ctx);
    }
}

impl Handler<AttemptEnded> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: AttemptEnded, ctx: &mut Context<Self>) {
        let jitter = rand::random_range(0..=1000);
        let AttemptEnded { range, attempt, report } = msg;
        self.step(Event::AttemptEnded { range, attempt, report, jitter }, ctx);
    }
}

impl Handler<RangeClosed> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: RangeClosed, ctx: &mut Context<Self>) {
        self.step(Event::RangeClosed { range: msg.range }, ctx);
    }
}

impl Handler<MergeEnded> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: MergeEnded, ctx: &mut Context<Self>) {
        self.merge = Some(msg.result);
        self.step(Event::MergeEnded, ctx);
    }
}

impl Handler<StopRequested> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, msg: StopRequested, ctx: &mut Context<Self>) {
        self.step(Event::StopRequested(msg.cause), ctx);
    }
}
