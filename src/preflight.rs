//! Everything a run must know and have before its first actor starts: input, folder, locks, what an earlier run
//! left, the plan, GPUs. Whatever is wrong is refused here, with nothing changed that a later run could miss.

use crate::config::RunConfig;
use crate::core::plan;
use crate::core::{pool, worker};
use crate::error::Failure;
use crate::os::files::{io_error, read_json, write_json_compact};
use crate::os::local::LocalSweeper;
use crate::os::locks::{self, FileLock};
use crate::os::machine::{self, Machine};
use crate::os::outputs::FolderOutputs;
use crate::os::process;
use crate::os::state_store::FolderStore;
use crate::ports::{Outputs, StateStore, StoreError};
use crate::settle::{self, World};
use crate::table::scan::scan_input;
use crate::types::layout::Layout;
use crate::types::state::{Counters, Holder, PlanFile, RangeState, RangeStatus, VERSION};
use crate::types::{Attempt, IdRows, InputIndex, Piece, RangeId};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The output folder with its ports.
#[derive(Clone)]
pub struct Folder {
    pub layout: Layout,
    pub store: Arc<FolderStore>,
    pub outputs: Arc<FolderOutputs>,
    pub sweeper: Arc<LocalSweeper>,
}

impl Folder {
    /// `out` must exist.
    pub fn open(out: &Path) -> Result<Self, Failure> {
        let out = out.canonicalize().map_err(io_error("open", out))?;
        let layout = Layout::new(out);
        Ok(Self {
            store: Arc::new(FolderStore::new(layout.clone())),
            outputs: Arc::new(FolderOutputs::new(layout.clone())),
            sweeper: Arc::new(LocalSweeper::new(layout.clone())),
            layout,
        })
    }

    pub fn world(&self) -> World<'_> {
        World { store: &*self.store, outputs: &*self.outputs, sweeper: &*self.sweeper }
    }
}

/// The locks that make a scheduler the only one of its folder, held until dropped.
pub struct Mastery {
    _scheduler: FileLock,
    _alive: FileLock,
}

/// Reads the input once.
pub fn scan(config: &RunConfig) -> Result<InputIndex, Failure> {
    tracing::info!("Loading input data from {}", config.input_path);
    let index = scan_input(Path::new(&config.input_path)).map_err(|error| {
        Failure::from_error(crate::error::ExitCode::Refused, &error)
            .hint("correct the input, or name another one with --input-path")
    })?;
    if let (Some(first), Some(last)) = (index.ids.first(), index.ids.last()) {
        if last.id == i64::MAX {
            let message =
                format!("{}: data_id {} leaves no room for the end of its range", config.input_path, last.id);
            return Err(Failure::refused(message).hint("use smaller ids"));
        }
        tracing::info!(
            "Found {} unique data samples (IDs: {} to {}) in {} rows",
            index.ids.len(),
            first.id,
            last.id,
            index.rows
        );
    }
    Ok(index)
}

/// Opens the GPUs and refuses groups that this machine can never form.
pub fn gpus(config: &RunConfig) -> Result<Machine, Failure> {
    let simulate = "without GPUs to lease, --gpus sim:8 simulates them and --gpus 0,1 takes a list as given";
    let out =
        std::path::absolute(&config.output_path).map_err(io_error("find", Path::new(&config.output_path)))?;
    let (lock_dir, policy) = (config.gpu.lock_dir.as_deref(), config.gpu.policy.clone());
    let machine = machine::open(&config.gpu.selection, policy, lock_dir, &out)
        .map_err(|error| Failure::refused(error).hint(simulate))?;
    let (usable, group) =
        (pool::capacity(&machine.seen, &machine.policy), machine.policy.group_size as usize);
    if usable < group {
        let total = machine.seen.gpus.len();
        return Err(Failure::refused(format!(
            "a worker wants {group} GPUs, but of the {total} on this machine only {usable} can ever be used"
        ))
        .hint("lower --gpus-per-worker or --min-gpu-memory, or see `auto-scheduler gpus`"));
    }
    Ok(machine)
}

/// Creates the folder and becomes its only scheduler.
pub fn take_folder(out: &str, scheduler_id: &str) -> Result<(Folder, Mastery), Failure> {
    let path = PathBuf::from(out);
    refuse_foreign_results(&Layout::new(&path))?;
    for dir in ["", "locks", "attempts", "logs"] {
        let dir = path.join(dir);
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
    }
    let folder = Folder::open(&path)?;
    let mastery = take_locks(&folder, scheduler_id)?;
    // Shows now, not in three days, that the folder takes files.
    let probe = folder.layout.at(".writable");
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(io_error("write", &probe))?;
    Ok((folder, mastery))
}

/// Takes an existing folder's locks.
pub fn take_locks(folder: &Folder, scheduler_id: &str) -> Result<Mastery, Failure> {
    let take = |path: PathBuf| -> Result<FileLock, Failure> {
        match FileLock::take(&path).map_err(io_error("lock", &path))? {
            Some(mut lock) => {
                let text = serde_json::to_string(&holder(scheduler_id)).unwrap_or_default();
                lock.describe(&text).map_err(io_error("write", &path))?;
                Ok(lock)
            }
            None => Err(held_by_another(folder, &path)),
        }
    };
    Ok(Mastery {
        _scheduler: take(folder.layout.scheduler_lock())?,
        _alive: take(folder.layout.alive_lock())?,
    })
}

fn held_by_another(folder: &Folder, lock: &Path) -> Failure {
    let out = folder.layout.out.display();
    let who = locks::description(lock)
        .and_then(|text| serde_json::from_str::<Holder>(&text).ok())
        .map_or_else(String::new, |h| format!(" (pid {} on {}, since {})", h.pid, h.host, h.since));
    Failure::refused(format!("another scheduler{who} is working in {out}"))
        .hint(format!("see `auto-scheduler status {out}`, or give this run another --output-path"))
}

fn holder(scheduler_id: &str) -> Holder {
    let pid = std::process::id();
    Holder {
        what: "scheduler".into(),
        host: process::host_name(),
        boot_id: process::boot_id(),
        pid,
        start_ticks: process::info(pid as i32).map_or(0, |own| own.start_ticks),
        since: jiff::Timestamp::now().to_string(),
        scheduler_id: scheduler_id.into(),
        attempt: None,
        tmpdir: None,
        output_inode: None,
    }
}

/// Result files without a plan of ours are somebody's work that we must not write over.
fn refuse_foreign_results(layout: &Layout) -> Result<(), Failure> {
    if layout.plan().exists() || layout.scheduler_lock().exists() || !layout.out.exists() {
        return Ok(());
    }
    let names = fs::read_dir(&layout.out).map_err(io_error("read", &layout.out))?;
    let stale = |name: &str| name.starts_with("worker_args_");
    let foreign = names
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("generation_results_data_") && name.ends_with(".csv") || stale(name));
    foreign.map_or(Ok(()), |name| {
        Err(Failure::refused(format!(
            "{} holds {name}, but no plan.json of this program",
            layout.out.display()
        ))
        .hint("choose another --output-path; nothing in this folder was touched"))
    })
}

/// Ends workers that a dead scheduler left running and judges every attempt that was not judged yet. Nothing runs
/// below this folder afterwards that the coming run does not know.
pub fn recover(folder: &Folder, ids: &[i64], grace: Duration) -> Result<(), Failure> {
    let states = folder.store.load_all()?;
    end_leftovers(folder, &states, grace)?;
    for mut state in states {
        let range = state.range();
        if is_unsettled(&state, ids) {
            let failure = settle::settle(folder.world(), &mut state, ids, false)?;
            let rows = state.accepted_rows();
            match failure {
                Some((class, _)) => tracing::info!(%range, rows, "judged what an earlier run left: {class}"),
                None => tracing::info!(%range, rows, "judged what an earlier run left: complete"),
            }
        }
    }
    Ok(())
}

/// Whether an attempt of the range was not judged yet, or all is accepted and its file does not stand yet.
pub fn is_unsettled(state: &RangeState, ids: &[i64]) -> bool {
    let unfinished = !matches!(state.status, RangeStatus::Complete | RangeStatus::Superseded);
    state.open.is_some() || (unfinished && worker::all_accepted(state, ids))
}

/// Ends every worker that still holds a range, all at the same time.
fn end_leftovers(folder: &Folder, states: &[RangeState], grace: Duration) -> Result<(), Failure> {
    let mut held = Vec::new();
    for range in states.iter().map(RangeState::range) {
        let lock = folder.layout.range_lock(range);
        if locks::is_held(&lock).map_err(io_error("probe", &lock))? {
            tracing::warn!(%range, "ending a worker that an earlier scheduler left running");
            held.push(range);
        }
    }
    std::thread::scope(|scope| {
        let end = |range: RangeId| scope.spawn(move || folder.sweeper.end_holder(range, grace));
        let enders: Vec<_> = held.into_iter().map(end).collect();
        for ender in enders {
            let ended = ender.join().unwrap_or_else(|_| Err("ending a worker panicked".into()));
            ended.map_err(|error| {
                Failure::refused(error).hint("end that process by hand, then give the same command again")
            })?;
        }
        Ok(())
    })
}

/// Ids of the plan on disk, or of the input where there is no plan yet.
pub fn planned_ids(plan: Option<&PlanFile>, input: &InputIndex) -> Vec<i64> {
    let ids = plan.map_or(&input.ids, |plan| &plan.ids);
    ids.iter().map(|sample| sample.id).collect()
}

pub fn read_plan(layout: &Layout) -> Result<Option<PlanFile>, StoreError> {
    read_json(&layout.plan())
}

/// Refuses, by name, to mix two jobs in one folder.
pub fn check_same_job(
    plan: &PlanFile,
    input: &InputIndex,
    config: &RunConfig,
    states: &[RangeState],
) -> Result<(), Failure> {
    if states.iter().all(|state| state.pieces.is_empty() && state.open.is_none()) {
        // Nothing was done that another job could be mixed with.
        return Ok(());
    }
    let gone = missing(&plan.ids, &input.ids);
    if !gone.is_empty() {
        return Err(Failure::refused(format!("the input no longer holds {}", name_ids(&gone)))
            .hint("give this input another --output-path"));
    }
    let changed: Vec<i64> = plan
        .ids
        .iter()
        .filter(|old| {
            input
                .ids
                .binary_search_by_key(&old.id, |new| new.id)
                .is_ok_and(|at| input.ids[at].digest != old.digest)
        })
        .map(|old| old.id)
        .collect();
    let mut differences: Vec<String> = config
        .job
        .iter()
        .filter(|(name, value)| plan.job.get(*name).is_some_and(|old| old != *value))
        .map(|(name, value)| format!("{name} was {:?} and is {value:?}", plan.job[name]))
        .collect();
    if !changed.is_empty() {
        differences.push(format!("the input rows of {} changed", name_ids(&changed)));
    }
    if differences.is_empty() || config.accept_changes {
        return Ok(());
    }
    Err(Failure::refused(format!("this folder was started with another job: {}", differences.join("; ")))
        .hint("use another --output-path, or --accept-changes to keep what is done and go on"))
}

fn missing(from: &[IdRows], within: &[IdRows]) -> Vec<i64> {
    from.iter().map(|i| i.id).filter(|id| within.binary_search_by_key(id, |i| i.id).is_err()).collect()
}

fn name_ids(ids: &[i64]) -> String {
    let shown: Vec<String> = ids.iter().take(5).map(i64::to_string).collect();
    let more = if ids.len() > 5 { format!(" and {} more", ids.len() - 5) } else { String::new() };
    format!("data_id {}{more}", shown.join(", "))
}

/// Cuts the ids, writes what the cut means range by range, then the plan.
pub fn cut(
    folder: &Folder,
    old: Option<&PlanFile>,
    input: &InputIndex,
    config: &RunConfig,
) -> Result<Vec<RangeId>, Failure> {
    let ids: Vec<i64> = input.ids.iter().map(|sample| sample.id).collect();
    let mut states = folder.store.load_all()?;
    refuse_new_between(old, input, &states)?;
    reopen(folder, &mut states)?;
    let unchanged = |plan: &&PlanFile| {
        plan.num_workers == config.num_workers && missing(&input.ids, &plan.ids).is_empty()
    };
    let same = old.filter(unchanged).map(|plan| plan.ranges.as_slice());
    let cut = plan::recut(&ids, config.num_workers as usize, &states, same);
    // Superseded first: from then on a crash leads back here.
    for range in &cut.superseded {
        if let Some(state) = states.iter().find(|state| state.range() == *range) {
            folder.store.save(&RangeState { status: RangeStatus::Superseded, ..state.clone() })?;
        }
    }
    let used = |range: RangeId| states.iter().find(|s| s.range() == range).map_or(Attempt(0), |s| s.attempts);
    for (range, pieces) in &cut.completed {
        let pieces = pieces.clone();
        let mut state = RangeState { pieces, attempts: used(*range), ..RangeState::new(*range) };
        if let Some((_, reason)) = settle::complete(folder.world(), &mut state, &ids)? {
            tracing::warn!(%range, "{reason}");
        }
    }
    for range in &cut.fresh {
        folder.store.save(&RangeState { attempts: used(*range), ..RangeState::new(*range) })?;
    }
    for range in cut.keep.iter().filter(|range| !states.iter().any(|state| state.range() == **range)) {
        folder.store.save(&RangeState::new(*range))?;
    }
    let ranges = cut.ranges();
    write_json_compact(
        &folder.layout.plan(),
        &PlanFile {
            version: VERSION,
            input_path: config.input_path.clone(),
            input_bytes: input.bytes,
            input_rows: input.rows,
            num_workers: config.num_workers,
            job: config.job.clone(),
            ranges: ranges.clone(),
            ids: input.ids.clone(),
        },
    )?;
    Ok(ranges)
}

/// New samples between ids that are already accepted would have to be put into finished files.
fn refuse_new_between(
    old: Option<&PlanFile>,
    input: &InputIndex,
    states: &[RangeState],
) -> Result<(), Failure> {
    let Some(plan) = old else { return Ok(()) };
    let new = missing(&input.ids, &plan.ids);
    let between: Vec<i64> =
        new.into_iter().filter(|id| states.iter().any(|state| state.accepts(*id))).collect();
    if between.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{} is new in the input, between samples that are already done",
        name_ids(&between)
    ))
    .hint("samples can be added above the ones that are done; for others use another --output-path"))
}

/// Given-up ranges get a new chance, and a complete range whose file is gone or cut short is run again.
fn reopen(folder: &Folder, states: &mut [RangeState]) -> Result<(), Failure> {
    for state in states {
        let stands = |piece: &Piece| folder.outputs.is_as_accepted(piece);
        let lost = state.pieces.iter().any(|piece| !stands(piece));
        if state.status == RangeStatus::Superseded {
            // Its files may have become other ranges' long ago.
            state.pieces.retain(stands);
            continue;
        }
        if state.status != RangeStatus::GivenUp && !lost {
            continue;
        }
        if lost {
            tracing::warn!(range = %state.range(), "its result file is gone or was changed; its ids are run again");
            state.pieces.retain(stands);
            state.counters.highest_accepted = None;
        }
        state.status = RangeStatus::Pending;
        state.counters = Counters { charged_in_a_row: 0, uncharged: 0, ..state.counters };
        folder.store.save(state)?;
    }
    Ok(())
}
