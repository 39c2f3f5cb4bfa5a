//! Wiring: ports and actors meet here and nowhere else.

use crate::actors::gpu_pool::GpuPool;
use crate::actors::merge::{MergeActor, merge_plan};
use crate::actors::monitor::MonitorActor;
use crate::actors::supervisor::{Orders, RangeOrders, RunEnd, SupervisorActor};
use crate::actors::worker::{Peers, Shared, WorkerActor};
use crate::config::RunConfig;
use crate::core::plan;
use crate::core::supervisor::{Brief, Ending, StopCause};
use crate::core::worker::rows_left;
use crate::error::{ExitCode, Failure};
use crate::messages::StopRequested;
use crate::os::console::Console;
use crate::os::files::{read_json, write_json};
use crate::os::local::{LocalProcesses, LocalSettings};
use crate::os::machine::Machine;
use crate::os::{locks, signals};
use crate::ports::StateStore;
use crate::preflight::{self, Folder, Mastery};
use crate::summary;
use crate::types::layout::Layout;
use crate::types::state::{MergeSummary, RangeState, RangeStatus, VERSION};
use crate::types::{InputIndex, RangeId};
use actix::{Actor, AsyncContext, Recipient};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the end of a run waits for workers' last lines to be shown.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// A run that is ready to start.
struct Prepared {
    folder: Folder,
    input: InputIndex,
    ranges: Vec<RangeId>,
    states: Vec<RangeState>,
    machine: Machine,
    scheduler_id: String,
    _mastery: Mastery,
}

/// `auto-scheduler run`: plans, runs every range, merges. Returns the exit code and the last words.
pub fn run(config: &RunConfig) -> Result<(ExitCode, String), Failure> {
    let began = Instant::now();
    tracing::info!("=== Starting Automatic LLM Continuation Scheduler ===");
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.command.is_none() {
        return Err(Failure::refused("no worker was named").hint(
            "add --worker \"python3 your_worker.py\": any program that takes the original worker's command line",
        ));
    }
    let armed = signals::exit_on_stop(|cause| stop_code(cause).code())
        .map_err(|error| Failure::refused(format!("cannot handle signals: {error}")))?;
    let prepared = prepare(config)?;
    if let Some(summary) = already_merged(&prepared) {
        tracing::info!("Every range is complete and the merged file is as it was written; nothing to do");
        let text = summary::of_run(&prepared.folder.layout, &summary, &prepared.states, began.elapsed());
        return Ok((ExitCode::Done, text));
    }
    let end = supervise(config, &prepared, &armed)?;
    let states = prepared.folder.store.load_all().map_err(|error| merge_failure(&error))?;
    conclude(&prepared, end, &states, began.elapsed())
}

fn prepare(config: &RunConfig) -> Result<Prepared, Failure> {
    let input = preflight::scan(config)?;
    let scheduler_id = format!("{:016x}", rand::random::<u64>());
    let machine = preflight::gpus(config)?;
    let (folder, mastery) = preflight::take_folder(&config.output_path, &scheduler_id)?;
    locks::make_lock_dir(&machine.lock_dir).map_err(|error| {
        Failure::refused(format!("cannot create {}: {error}", machine.lock_dir.display()))
            .hint("see --lock-dir")
    })?;
    let old = preflight::read_plan(&folder.layout)?;
    if let Some(plan) = &old {
        preflight::check_same_job(plan, &input, config, &folder.store.load_all()?)?;
    }
    preflight::recover(&folder, &preflight::planned_ids(old.as_ref(), &input), config.grace)?;
    let ranges = preflight::cut(&folder, old.as_ref(), &input, config)?;
    write_configuration(config, &folder.layout, &scheduler_id)?;
    let mut states = folder.store.load_all()?;
    states.retain(|state| ranges.contains(&state.range()));
    log_plan(&input, &states, &machine);
    Ok(Prepared { folder, input, ranges, states, machine, scheduler_id, _mastery: mastery })
}

fn log_plan(input: &InputIndex, states: &[RangeState], machine: &Machine) {
    for state in states {
        let samples = plan::samples_of(&input.ids, state.range()).len();
        tracing::info!("Task range: data_id [{}, {}) ({samples} samples)", state.low, state.high);
    }
    let ordinals: Vec<u32> = machine.seen.gpus.iter().map(|gpu| gpu.ordinal).collect();
    tracing::info!("GPUs: {ordinals:?}, {} per worker", machine.policy.group_size);
    let pending = states.iter().filter(|state| state.status != RangeStatus::Complete).count();
    tracing::info!("Found {pending} pending tasks out of {} total", states.len());
}

fn write_configuration(config: &RunConfig, layout: &Layout, scheduler_id: &str) -> Result<(), Failure> {
    let document = json!({
        "args": config.args,
        "timestamp": jiff::Timestamp::now().to_string(),
        "scheduler_id": scheduler_id,
        "process_id": std::process::id(),
        "version": VERSION,
        "program": concat!("auto-scheduler ", env!("CARGO_PKG_VERSION")),
    });
    write_json(&layout.at("scheduler_config.json"), &document)?;
    write_json(&layout.at("args.json"), &config.args)?;
    Ok(())
}

/// The summary of an earlier run, if nothing is left and its merged file is still what was written.
fn already_merged(prepared: &Prepared) -> Option<MergeSummary> {
    if prepared.states.iter().any(|state| state.status != RangeStatus::Complete) {
        return None;
    }
    let summary: MergeSummary = read_json(&prepared.folder.layout.summary()).ok()??;
    let intact = match &summary.merged_file {
        Some(name) => {
            let path = prepared.folder.layout.at(name);
            crate::os::files::fingerprint(&path)
                .is_ok_and(|found| found == (summary.merged_bytes, summary.merged_crc32))
        }
        None => true,
    };
    (summary.complete && intact && summary.planned_ids == prepared.input.ids.len() as u64).then_some(summary)
}

/// Runs the actors until the supervisor says how it ended.
fn supervise(config: &RunConfig, prepared: &Prepared, armed: &AtomicBool) -> Result<RunEnd, Failure> {
    let (console, printer) = match config.quiet {
        true => (Console::quiet(), None),
        false => Console::start(std::io::stderr()).map(|(c, t)| (c, Some(t))).map_err(|error| {
            Failure::refused(format!("cannot start the thread that shows workers' output: {error}"))
        })?,
    };
    // Never dropped: that would wait for a merge that a stop has just called off.
    let system = std::mem::ManuallyDrop::new(actix::System::new());
    let ended = system.block_on(async {
        let (done, ended) = oneshot::channel();
        let supervisor = start_actors(config, prepared, console.clone(), done);
        let stop: Recipient<StopRequested> = supervisor.recipient();
        let handling = signals::forward(armed, move |cause| stop.do_send(StopRequested { cause }));
        match handling {
            Ok(()) => ended
                .await
                .map_err(|_| Failure::new(ExitCode::MergeFailed, "the supervisor ended without a word")),
            Err(error) => Err(Failure::refused(format!("cannot handle signals: {error}"))),
        }
    });
    console.close();
    if let Some(printed) = printer {
        // A terminal that stands still must not hold up the end; the logs have everything.
        let _ = printed.recv_timeout(LAST_OUTPUT);
    }
    ended
}

fn start_actors(
    config: &RunConfig,
    prepared: &Prepared,
    console: Console,
    done: oneshot::Sender<RunEnd>,
) -> actix::Addr<SupervisorActor> {
    let samples = Arc::new(prepared.input.ids.clone());
    let ids: Arc<Vec<i64>> = Arc::new(samples.iter().map(|sample| sample.id).collect());
    let left: BTreeMap<RangeId, u64> =
        prepared.states.iter().map(|state| (state.range(), rows_left(state, &samples))).collect();
    let monitor = MonitorActor::new(
        prepared.folder.store.clone(),
        prepared.scheduler_id.clone(),
        !config.quiet,
        left.clone(),
        prepared.input.rows,
    )
    .start();
    let briefs = prepared.states.iter().map(|state| brief(state, &left)).collect();
    let shared = Rc::new(shared(config, prepared, console, &samples, &ids));
    let (machine, folder) = (&prepared.machine, &prepared.folder);
    SupervisorActor::create(|ctx| {
        let supervisor = ctx.address();
        let pool = GpuPool::new(
            machine.policy.clone(),
            Arc::clone(&machine.gpus),
            supervisor.clone().recipient(),
            monitor.clone().recipient(),
        )
        .start();
        let merge = MergeActor::new(
            prepared.ranges.clone(),
            folder.store.clone(),
            folder.outputs.clone(),
            Arc::clone(&ids),
            supervisor.clone().recipient(),
        )
        .start();
        let peers = Peers {
            started: monitor.clone().recipient(),
            tree_gone: supervisor.clone().recipient(),
            // The monitor first, so that its line stands before what the supervisor makes of it.
            ended: vec![monitor.clone().recipient(), supervisor.clone().recipient()],
            closed: supervisor.clone().recipient(),
        };
        let workers =
            prepared.states.iter().filter(|state| state.status != RangeStatus::Complete).map(|state| {
                let worker = WorkerActor::new(state.clone(), Rc::clone(&shared), peers.clone()).start();
                let orders = RangeOrders {
                    run: worker.clone().recipient(),
                    stop: worker.clone().recipient(),
                    close: worker.recipient(),
                };
                (state.range(), orders)
            });
        let orders = Orders {
            request: pool.clone().recipient(),
            cancel: pool.clone().recipient(),
            release: pool.recipient(),
            ranges: workers.collect(),
            // The monitor first here as well.
            range_ended: vec![monitor.recipient(), merge.recipient()],
        };
        SupervisorActor::new(config.policy.clone(), briefs, orders, done)
    })
}

fn brief(state: &RangeState, left: &BTreeMap<RangeId, u64>) -> Brief {
    let range = state.range();
    Brief {
        range,
        rows_left: left.get(&range).copied().unwrap_or(0),
        complete: state.status == RangeStatus::Complete,
        accepted: state.counters.highest_accepted.is_some() || !state.pieces.is_empty(),
        attempts: state.attempts,
    }
}

fn shared(
    config: &RunConfig,
    prepared: &Prepared,
    console: Console,
    samples: &Arc<Vec<crate::types::IdRows>>,
    ids: &Arc<Vec<i64>>,
) -> Shared {
    let folder = &prepared.folder;
    let settings = LocalSettings {
        out: folder.layout.out.clone(),
        lock_dir: prepared.machine.lock_dir.clone(),
        scheduler_id: prepared.scheduler_id.clone(),
        log_cap: config.log_cap,
        grace: config.grace,
        orphan_grace: config.orphan_grace,
    };
    Shared {
        store: folder.store.clone(),
        outputs: folder.outputs.clone(),
        sweeper: folder.sweeper.clone(),
        processes: Rc::new(LocalProcesses::new(settings, console)),
        command: config.command.clone().unwrap_or_default(),
        scheduler_id: prepared.scheduler_id.clone(),
        samples: Arc::clone(samples),
        ids: Arc::clone(ids),
    }
}

fn stop_code(cause: StopCause) -> ExitCode {
    match cause {
        StopCause::Interrupt => ExitCode::Interrupted,
        StopCause::Terminate => ExitCode::Terminated,
        StopCause::HangUp => ExitCode::HungUp,
        StopCause::WaitedTooLong => ExitCode::Resumable,
    }
}

/// The last words of a run and its exit code.
fn conclude(
    prepared: &Prepared,
    end: RunEnd,
    states: &[RangeState],
    elapsed: Duration,
) -> Result<(ExitCode, String), Failure> {
    let layout = &prepared.folder.layout;
    let planned: Vec<RangeState> =
        states.iter().filter(|state| prepared.ranges.contains(&state.range())).cloned().collect();
    match (end.ending, end.merge) {
        (Ending::Merged, Some(Ok(merged))) => {
            let code = if merged.complete { ExitCode::Done } else { ExitCode::Incomplete };
            Ok((code, summary::of_run(layout, &merged, &planned, elapsed)))
        }
        (Ending::Merged, Some(Err(error))) => Err(merge_failure(&error)),
        (Ending::Merged, None) => {
            Err(Failure::new(ExitCode::MergeFailed, "the merge ended without a result"))
        }
        (Ending::Stopped(cause), _) => Ok((stop_code(cause), summary::of_stop(layout, &planned, elapsed))),
        (Ending::Broken(cause), _) => Err(Failure::new(
            ExitCode::Broken,
            format!("no worker could ever do its work, so the run was stopped: {cause}"),
        )
        .hint(format!(
            "see the logs in {}; mend the worker's command or environment and give the same command again",
            layout.at("logs").display()
        ))),
    }
}

fn merge_failure(error: &crate::ports::StoreError) -> Failure {
    Failure::from_error(ExitCode::MergeFailed, error)
        .hint("give the run's own command again: it looks at every file, runs what is missing and merges")
}

/// `auto-scheduler merge OUT`: judges ended attempts, proves, merges.
pub fn merge(out: &Path) -> Result<(ExitCode, String), Failure> {
    let began = Instant::now();
    let folder = existing(out)?;
    let _mastery = preflight::take_locks(&folder, "merge")?;
    let plan = preflight::read_plan(&folder.layout)?.ok_or_else(|| no_run(out))?;
    let ids: Vec<i64> = plan.ids.iter().map(|sample| sample.id).collect();
    for mut state in folder.store.load_all()? {
        if plan.ranges.contains(&state.range()) && state.status == RangeStatus::Superseded {
            return Err(Failure::refused("a run was interrupted while it cut the ranges anew")
                .hint("give that run's command again; then there is something to merge"));
        }
        let alive = locks::is_held(&folder.layout.range_lock(state.range())).unwrap_or(true);
        if alive {
            tracing::warn!(range = %state.range(), "its worker is still running; what it has so far is not merged");
        } else if preflight::is_unsettled(&state, &ids) {
            crate::settle::settle(folder.world(), &mut state, &ids, false)?;
        }
    }
    let merged = merge_plan(&*folder.store, &*folder.outputs, &plan.ranges, &ids)
        .map_err(|error| merge_failure(&error))?;
    let mut states = folder.store.load_all()?;
    states.retain(|state| plan.ranges.contains(&state.range()));
    let code = if merged.complete { ExitCode::Done } else { ExitCode::Incomplete };
    Ok((code, summary::of_run(&folder.layout, &merged, &states, began.elapsed())))
}

/// Opens a folder that a run was started in.
pub fn existing(out: &Path) -> Result<Folder, Failure> {
    if !out.join("plan.json").exists() {
        return Err(no_run(out));
    }
    Folder::open(out)
}

fn no_run(out: &Path) -> Failure {
    Failure::refused(format!("{} holds no run: there is no plan.json in it", out.display()))
        .hint("name the folder that was given as --output-path")
}

/// Whether a scheduler is alive in the folder.
pub fn is_alive(layout: &Layout) -> bool {
    locks::is_held(&layout.scheduler_lock()).unwrap_or(false)
}
