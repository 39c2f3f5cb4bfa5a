//! `status`, `plan` and `gpus`: what is or would be, as one plain table or one JSON document.

use crate::app;
use crate::config::RunConfig;
use crate::core::command::{masked, shell_line};
use crate::core::{plan, pool, worker};
use crate::error::Failure;
use crate::os::files::read_json;
use crate::os::locks;
use crate::os::machine::{self, Machine};
use crate::ports::StateStore;
use crate::preflight;
use crate::table::shard::RowCounter;
use crate::types::layout::Layout;
use crate::types::state::{Live, MergeSummary, PlanFile, RangeState, RangeStatus};
use crate::types::words::{duration_words, grouped};
use crate::types::{Attempt, RangeId};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// `status --json`; version 1.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    pub version: u32,
    pub out: String,
    /// A scheduler holds this folder right now.
    pub alive: bool,
    pub planned_ids: u64,
    pub accepted_ids: u64,
    pub accepted_rows: u64,
    /// Rows of the input, and those of the samples that are left.
    pub input_rows: u64,
    pub input_rows_left: u64,
    /// Of a live run that has got somewhere: input rows a minute, and seconds to its end at that rate.
    pub input_rows_per_minute: Option<u64>,
    pub eta_seconds: Option<u64>,
    pub ranges: Vec<RangeReport>,
    pub merge: Option<MergeSummary>,
}

#[derive(Debug, Serialize)]
pub struct RangeReport {
    pub range: String,
    /// running, waiting, complete, given_up, orphaned (its worker runs without a scheduler) or stopped.
    pub state: String,
    pub samples: u64,
    pub samples_left: u64,
    /// Accepted rows, and rows in the current attempt's file that are not judged yet.
    pub rows: u64,
    pub rows_unjudged: u64,
    pub attempts: u32,
    pub gpus: Vec<u32>,
    /// What it waits for, or what went wrong last.
    pub note: String,
}

/// Reads a folder, whether its scheduler lives or not; changes nothing.
pub fn read(out: &Path) -> Result<StatusReport, Failure> {
    let folder = app::existing(out)?;
    let plan: PlanFile = preflight::read_plan(&folder.layout)?
        .ok_or_else(|| Failure::refused(format!("{} holds no run", out.display())))?;
    let ids: Vec<i64> = plan.ids.iter().map(|sample| sample.id).collect();
    let alive = app::is_alive(&folder.layout);
    let live: Option<Live> = if alive { read_json(&folder.layout.live()).unwrap_or(None) } else { None };
    let mut states = folder.store.load_all()?;
    // A range whose state file is gone has nothing that is known to be done.
    for range in &plan.ranges {
        if !states.iter().any(|state| state.range() == *range) {
            states.push(RangeState::new(*range));
        }
    }
    let ranges: Vec<RangeReport> = plan
        .ranges
        .iter()
        .filter_map(|range| states.iter().find(|state| state.range() == *range))
        .map(|state| range_report(&folder.layout, state, &ids, alive, live.as_ref()))
        .collect();
    let left: u64 = ranges.iter().map(|range| range.samples_left).sum();
    let planned = states.iter().filter(|state| plan.ranges.contains(&state.range()));
    let rows_left: u64 = planned.map(|state| worker::rows_left(state, &plan.ids)).sum();
    let rate = live.as_ref().and_then(|live| rate(live, rows_left));
    Ok(StatusReport {
        version: 1,
        out: folder.layout.out.display().to_string(),
        alive,
        planned_ids: ids.len() as u64,
        accepted_ids: ids.len() as u64 - left,
        accepted_rows: ranges.iter().map(|range| range.rows).sum(),
        input_rows: plan.input_rows,
        input_rows_left: rows_left,
        input_rows_per_minute: rate.map(|rate| (rate * 60.0) as u64),
        eta_seconds: rate.map(|rate| (rows_left as f64 / rate) as u64),
        ranges,
        merge: if alive { None } else { read_json(&folder.layout.summary()).unwrap_or(None) },
    })
}

/// Input rows a second since the run began; nothing before the first sample is accepted.
fn rate(live: &Live, rows_left: u64) -> Option<f64> {
    let seconds = jiff::Timestamp::now().as_second() - live.began;
    let done = live.rows_left_then.checked_sub(rows_left)?;
    (seconds > 0 && done > 0).then(|| done as f64 / seconds as f64)
}

fn range_report(
    layout: &Layout,
    state: &RangeState,
    ids: &[i64],
    alive: bool,
    live: Option<&Live>,
) -> RangeReport {
    let range = state.range();
    let held = locks::is_held(&layout.range_lock(range)).unwrap_or(false);
    let waiting = live.and_then(|live| live.waiting.get(&range.to_string()));
    let state_word = match (state.status, held, alive) {
        (RangeStatus::Complete, ..) => "complete",
        (RangeStatus::GivenUp, ..) => "given_up",
        (_, true, false) => "orphaned",
        (RangeStatus::Running, _, true) => "running",
        (_, _, true) => "waiting",
        (_, _, false) => "stopped",
    };
    let open = state.open.as_ref();
    let failure = state.last_failure.as_ref().filter(|_| state.status != RangeStatus::Complete);
    let note = match (waiting, failure) {
        (Some(reason), _) if state_word == "waiting" => reason.clone(),
        (_, Some(last)) => format!("attempt {}: {}: {}", last.attempt, last.class, last.message),
        _ if state_word == "waiting" => "its turn: other ranges go first".into(),
        _ => String::new(),
    };
    RangeReport {
        range: range.to_string(),
        state: state_word.into(),
        samples: plan::ids_of(ids, range).len() as u64,
        samples_left: plan::ids_left(ids, state).len() as u64,
        rows: state.accepted_rows(),
        rows_unjudged: open.map_or(0, |open| rows_so_far(layout, range, open.number, open.gap)),
        attempts: state.attempts.0,
        gpus: if open.is_some() { state.gpu_ids.clone() } else { Vec::new() },
        note,
    }
}

/// Records in a result file that is still being written.
fn rows_so_far(layout: &Layout, range: RangeId, attempt: Attempt, gap: RangeId) -> u64 {
    let path = layout.at(Layout::attempt_dir(range, attempt)).join(gap.result_file());
    let mut counter = RowCounter::new();
    let Ok(mut file) = std::fs::File::open(path) else { return 0 };
    let mut buffer = vec![0; 1 << 18];
    while let Ok(n) = file.read(&mut buffer)
        && n > 0
    {
        counter.update(&buffer[..n]);
    }
    counter.rows()
}

/// One plain table.
pub fn table(report: &StatusReport) -> String {
    let mut text = String::new();
    let life = if report.alive { "running" } else { "no scheduler" };
    let pace = match (report.input_rows_per_minute, report.eta_seconds) {
        (Some(rate), Some(seconds)) => {
            let left = duration_words(Duration::from_secs(seconds));
            format!("; {} input rows a minute, about {left} left", grouped(rate))
        }
        _ => String::new(),
    };
    let _ = writeln!(
        text,
        "{}: {life}; {} of {} samples accepted, {} rows{pace}",
        report.out,
        grouped(report.accepted_ids),
        grouped(report.planned_ids),
        grouped(report.accepted_rows)
    );
    let header = ["RANGE", "STATE", "LEFT", "SAMPLES", "ROWS", "UNJUDGED", "ATTEMPTS", "GPUS", "NOTE"];
    let mut rows = vec![header.map(str::to_owned)];
    let mut last_note = "";
    for range in &report.ranges {
        // Many ranges wait for the same.
        let note = if range.note == last_note && range.note.len() > 40 { "the same" } else { &range.note };
        last_note = &range.note;
        let gpus: Vec<String> = range.gpus.iter().map(u32::to_string).collect();
        rows.push([
            range.range.clone(),
            range.state.clone(),
            grouped(range.samples_left),
            grouped(range.samples),
            grouped(range.rows),
            grouped(range.rows_unjudged),
            range.attempts.to_string(),
            gpus.join(","),
            note.to_owned(),
        ]);
    }
    text.push_str(&columns(&rows));
    if let Some(merge) = &report.merge {
        let verdict = if merge.complete { "complete" } else { "incomplete" };
        let file = merge.merged_file.as_deref().unwrap_or("no file: no row at all");
        let _ = writeln!(text, "merge: {verdict}, {} rows, {file}", grouped(merge.total_rows));
    }
    text
}

/// Left-aligned columns two spaces apart; the last one is as wide as it likes.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `auto-scheduler plan`: what run would do. Changes nothing.
pub fn plan(config: &RunConfig) -> Result<String, Failure> {
    let input = preflight::scan(config)?;
    let ids: Vec<i64> = input.ids.iter().map(|sample| sample.id).collect();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} rows, {} samples",
        config.input_path,
        grouped(input.rows),
        grouped(ids.len() as u64)
    );
    let mut rows = vec![["RANGE", "SAMPLES", "ROWS"].map(str::to_owned)];
    let ranges = plan::split(&ids, config.num_workers as usize);
    for range in &ranges {
        let own = plan::samples_of(&input.ids, *range);
        let count: u64 = own.iter().map(|sample| sample.rows).sum();
        rows.push([format!("[{}, {})", range.low, range.high), grouped(own.len() as u64), grouped(count)]);
    }
    text.push_str(&columns(&rows));
    let out = Path::new(&config.output_path);
    if out.join("plan.json").exists() {
        text.push_str("the output folder already holds a run, which goes on where it stands: see `auto-scheduler status`\n");
    }
    match preflight::gpus(config) {
        Ok(machine) => text.push_str(&groups(&machine, config.policy.max_parallel)),
        Err(failure) => {
            let _ = writeln!(text, "run would be refused: {failure}");
        }
    }
    let rows_of =
        |range: &RangeId| plan::samples_of(&input.ids, *range).iter().map(|sample| sample.rows).sum::<u64>();
    let longest = ranges.iter().max_by_key(|range| (rows_of(range), std::cmp::Reverse(**range)));
    match (&config.command, longest) {
        (Some(command), Some(first)) => {
            let dir = Layout::attempt_dir(*first, Attempt(1));
            let argv = masked(&command.argv(*first, &dir.to_string_lossy()));
            let _ = writeln!(text, "first command:\n{}", shell_line(&argv).join(" \\\n    "));
        }
        _ => text.push_str("run would ask for a worker: add --worker \"python3 your_worker.py\"\n"),
    }
    Ok(text)
}

fn groups(machine: &Machine, max_parallel: usize) -> String {
    let usable = pool::capacity(&machine.seen, &machine.policy);
    match machine.policy.group_size as usize {
        0 => format!("GPUs: none leased; up to {max_parallel} workers at the same time\n"),
        size => format!(
            "GPUs: {usable} usable in groups of {size}: up to {} workers at the same time\n",
            (usable / size).min(max_parallel)
        ),
    }
}

/// One GPU as `gpus` shows it.
#[derive(Debug, Serialize)]
pub struct GpuReport {
    #[serde(flatten)]
    pub facts: crate::types::GpuFacts,
    pub eligible: bool,
    pub reason: Option<String>,
    /// Who holds its lock.
    pub holder: Option<String>,
}

/// `auto-scheduler gpus`.
pub fn gpus(config: &crate::config::GpuConfig) -> Result<Vec<GpuReport>, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    let machine = machine::open(&config.selection, config.policy.clone(), config.lock_dir.as_deref(), &here)
        .map_err(|error| {
            Failure::refused(error).hint("simulated GPUs: --gpus sim:8; a list taken as given: --gpus 0,1")
        })?;
    let report = |facts: &crate::types::GpuFacts| {
        let reason = pool::why_not(facts, &machine.policy);
        let lock = locks::gpu_lock(&machine.lock_dir, &facts.uuid);
        let holder =
            if facts.locked { locks::description(&lock).and_then(|text| holder_words(&text)) } else { None };
        GpuReport { facts: facts.clone(), eligible: reason.is_none(), reason, holder }
    };
    Ok(machine.seen.gpus.iter().map(report).collect())
}

fn holder_words(text: &str) -> Option<String> {
    let holder: crate::types::state::Holder = serde_json::from_str(text).ok()?;
    Some(format!("pid {} since {}", holder.pid, holder.since))
}

/// The table of `gpus`.
pub fn gpu_table(gpus: &[GpuReport]) -> String {
    let mib = |bytes: u64| grouped(bytes >> 20);
    let mut rows = vec![
        ["GPU", "UUID", "NAME", "PCI", "USED MiB", "FREE MiB", "PROCESSES", "LEASABLE"].map(str::to_owned),
    ];
    for gpu in gpus {
        let facts = &gpu.facts;
        let holder = gpu.holder.as_ref().map_or_else(String::new, |who| format!(" ({who})"));
        rows.push([
            facts.ordinal.to_string(),
            facts.uuid.clone(),
            facts.name.clone(),
            facts.pci_bus_id.clone(),
            mib(facts.used_bytes),
            mib(facts.free_bytes),
            facts.processes.map_or_else(|| "?".into(), |count| count.to_string()),
            gpu.reason.as_ref().map_or_else(|| "yes".into(), |reason| format!("no: {reason}{holder}")),
        ]);
    }
    columns(&rows)
}
