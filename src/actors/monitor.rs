//! Tells people what happens: log lines, progress, and the file that `status` reads. Influences nothing.

use super::off_thread;
use crate::core::command::shell_line;
use crate::core::progress::Progress;
use crate::core::supervisor::End;
use crate::messages::{AttemptEnded, AttemptStarted, LeaseDelayed, RangeEnded};
use crate::ports::StateStore;
use crate::types::state::{Live, VERSION};
use crate::types::{FailureClass, RangeId};
use actix::{Actor, AsyncContext, Context, Handler};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PROGRESS_EVERY: Duration = Duration::from_secs(30);
const PROGRESS_AT_MOST_EVERY: Duration = Duration::from_secs(1);
const IDLE_BEFORE_SAYING_SO: Duration = Duration::from_secs(3);
/// `live.json` follows what happens within this time.
const WRITE_AFTER: Duration = Duration::from_millis(300);

pub struct MonitorActor {
    live: Live,
    store: Arc<dyn StateStore>,
    write_pending: bool,
    show_commands: bool,
    progress: Progress,
    began: Instant,
    said_progress: Instant,
}

impl MonitorActor {
    /// `rows_left` has an entry for every range.
    pub fn new(
        store: Arc<dyn StateStore>,
        scheduler_id: String,
        show_commands: bool,
        rows_left: BTreeMap<RangeId, u64>,
        rows_total: u64,
    ) -> Self {
        let rows_left_then = rows_left.values().sum::<u64>();
        let began = jiff::Timestamp::now().as_second();
        let live = Live { version: VERSION, scheduler_id, began, rows_left_then, ..Live::default() };
        Self {
            live,
            store,
            write_pending: false,
            show_commands,
            progress: Progress::new(rows_left, rows_total),
            began: Instant::now(),
            said_progress: Instant::now(),
        }
    }

    fn waits_for(&mut self, range: RangeId, reason: Option<String>, ctx: &mut Context<Self>) {
        match reason {
            Some(reason) => self.live.waiting.insert(range.to_string(), reason),
            None => self.live.waiting.remove(&range.to_string()),
        };
        if !std::mem::replace(&mut self.write_pending, true) {
            ctx.run_later(WRITE_AFTER, |actor, ctx| {
                actor.write_pending = false;
                let (live, store) = (actor.live.clone(), Arc::clone(&actor.store));
                off_thread(
                    ctx,
                    move || store.save_live(&live),
                    |result, _, _| {
                        if let Err(error) = result {
                            tracing::debug!(%error, "cannot write live.json");
                        }
                    },
                );
            });
        }
    }

    fn say_progress(&mut self) {
        self.said_progress = Instant::now();
        tracing::info!("{}", self.progress.line(self.began.elapsed()));
    }
}

/// The command as a person can copy it, between two rules.
fn command_block(msg: &AttemptStarted) -> String {
    let rule = "=".repeat(80);
    let gpus: Vec<String> = msg.lease.gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
    let lines = shell_line(&msg.command).join(" \\\n    ");
    let (low, high, gpus) = (msg.range.low, msg.range.high, gpus.join(","));
    format!(
        "\n{rule}\nWorker Command for range [{low}, {high}):\nCUDA_VISIBLE_DEVICES={gpus} \\\n{lines}\n{rule}"
    )
}

impl Actor for MonitorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.began = Instant::now();
        ctx.run_interval(PROGRESS_EVERY, |actor, _| actor.say_progress());
    }
}

impl Handler<LeaseDelayed> for MonitorActor {
    type Result = ();

    fn handle(&mut self, msg: LeaseDelayed, ctx: &mut Context<Self>) {
        tracing::debug!("Range [{}, {}) waits: {}", msg.range.low, msg.range.high, &msg.reason);
        self.waits_for(msg.range, Some(msg.reason), ctx);
        // Queueing behind running ranges is no news; waiting while nothing runs is.
        ctx.run_later(IDLE_BEFORE_SAYING_SO, move |actor, _| {
            if actor.progress.is_idle()
                && let Some(reason) = actor.live.waiting.get(&msg.range.to_string())
            {
                tracing::warn!("Nothing runs; range [{}, {}) waits: {reason}", msg.range.low, msg.range.high);
            }
        });
    }
}

impl Handler<AttemptStarted> for MonitorActor {
    type Result = ();

    fn handle(&mut self, msg: AttemptStarted, ctx: &mut Context<Self>) {
        self.progress.started(msg.range);
        let gpus: Vec<u32> = msg.lease.gpus.iter().map(|gpu| gpu.ordinal).collect();
        let (low, high) = (msg.range.low, msg.range.high);
        let attempt = if msg.attempt.0 > 1 { format!(" (attempt {})", msg.attempt) } else { String::new() };
        let command = if self.show_commands { command_block(&msg) } else { String::new() };
        tracing::info!("Starting worker for range [{low}, {high}) on GPUs {gpus:?}{attempt}{command}");
        self.waits_for(msg.range, None, ctx);
    }
}

impl Handler<AttemptEnded> for MonitorActor {
    type Result = ();

    fn handle(&mut self, msg: AttemptEnded, ctx: &mut Context<Self>) {
        self.progress.ended(msg.range, msg.report.rows_left);
        let (low, high) = (msg.range.low, msg.range.high);
        match &msg.report.failure {
            None => tracing::info!("Worker [{low}, {high}) completed successfully"),
            Some((FailureClass::Stopped, _)) => tracing::info!("Worker [{low}, {high}) stopped"),
            Some((class, message)) => {
                tracing::warn!(
                    "Worker failed for range [{low}, {high}), attempt {}: {class}: {message}",
                    msg.attempt
                );
                self.waits_for(msg.range, Some(format!("restart after {class}")), ctx);
            }
        }
    }
}

impl Handler<RangeEnded> for MonitorActor {
    type Result = ();

    fn handle(&mut self, msg: RangeEnded, ctx: &mut Context<Self>) {
        match msg.end {
            End::Complete => self.progress.completed(),
            End::GivenUp => {
                self.progress.gave_up();
                tracing::error!("Range [{}, {}) is given up", msg.range.low, msg.range.high);
            }
        }
        self.waits_for(msg.range, None, ctx);
        if self.progress.is_over() || self.said_progress.elapsed() >= PROGRESS_AT_MOST_EVERY {
            self.say_progress();
        }
    }
}
