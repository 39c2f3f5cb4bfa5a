//! Leases GPU groups. Looks at the GPUs on a thread of its own; decides in `core::pool`.

use super::off_thread;
use crate::core::pool::{Action, Event, Policy, Pool};
use crate::messages::{CancelLease, LeaseDelayed, LeaseGranted, ReleaseLease, RequestLease};
use crate::ports::Gpus;
use actix::{Actor, AsyncContext, Context, Handler, Recipient};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks while somebody waits for GPUs or memory.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub struct GpuPool {
    core: Pool,
    policy: Policy,
    gpus: Arc<dyn Gpus>,
    supervisor: Recipient<LeaseGranted>,
    monitor: Recipient<LeaseDelayed>,
    began: Instant,
    /// Looks under way, and whether another one was asked for meanwhile.
    looking: bool,
    look_again: bool,
}

impl GpuPool {
    pub fn new(
        policy: Policy,
        gpus: Arc<dyn Gpus>,
        supervisor: Recipient<LeaseGranted>,
        monitor: Recipient<LeaseDelayed>,
    ) -> Self {
        let began = Instant::now();
        Self {
            core: Pool::new(),
            policy,
            gpus,
            supervisor,
            monitor,
            began,
            looking: false,
            look_again: false,
        }
    }

    fn step(&mut self, event: Event, ctx: &mut Context<Self>) {
        for action in self.core.decide(event, self.began.elapsed(), &self.policy) {
            match action {
                Action::Granted { range, lease } => self.supervisor.do_send(LeaseGranted { range, lease }),
                Action::Waiting { range, reason } => self.monitor.do_send(LeaseDelayed { range, reason }),
                Action::Observe => self.look(ctx),
                Action::Quarantined { gpu, reason } => {
                    tracing::error!("GPU {} ({}) gets no more work: {reason}", gpu.ordinal, gpu.uuid);
                }
                Action::Restored { gpu } => {
                    tracing::info!("GPU {} ({}) is used again", gpu.ordinal, gpu.uuid)
                }
            }
        }
    }

    /// One look at a time: a driver that hangs must not collect threads.
    fn look(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.looking, true) {
            self.look_again = true;
            return;
        }
        let gpus = Arc::clone(&self.gpus);
        let taken_at = self.began.elapsed();
        off_thread(
            ctx,
            move || gpus.snapshot().map_err(|error| error.to_string()),
            move |seen, actor, ctx| {
                actor.looking = false;
                actor.step(Event::Observed { taken_at, seen }, ctx);
                if std::mem::take(&mut actor.look_again) {
                    actor.look(ctx);
                }
            },
        );
    }
}

impl Actor for GpuPool {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(LOOK_EVERY, |actor, ctx| {
            if actor.core.needs_look() && !actor.looking {
                actor.look(ctx);
            }
        });
    }
}

impl Handler<RequestLease> for GpuPool {
    type Result = ();

    fn handle(&mut self, msg: RequestLease, ctx: &mut Context<Self>) {
        self.step(Event::Requested { range: msg.range }, ctx);
    }
}

impl Handler<CancelLease> for GpuPool {
    type Result = ();

    fn handle(&mut self, msg: CancelLease, ctx: &mut Context<Self>) {
        self.step(Event::Cancelled { range: msg.range }, ctx);
    }
}

impl Handler<ReleaseLease> for GpuPool {
    type Result = ();

    fn handle(&mut self, msg: ReleaseLease, ctx: &mut Context<Self>) {
        self.step(Event::Released { lease: msg.lease }, ctx);
    }
}
