//! A shim's life in order: locks, identity, worker, tree, record.

use super::log::CappedLog;
use super::tree::{self, Tree};
use super::write_record;
use crate::os::locks::{self, FileLock};
use crate::os::{files, process};
use crate::types::ExitOutcome;
use crate::types::layout::Layout;
use crate::types::shim::{ShimSpec, TRAMPOLINE};
use crate::types::state::{ExitRecord, Holder, RangeState, VERSION};
use std::fs;
use std::io::{PipeReader, PipeWriter};
use std::path::Path;
use std::process::{Command, Stdio};

/// Everything that must outlive the worker.
struct Held {
    _range: FileLock,
    _gpus: Vec<FileLock>,
    tmpdir: tempfile::TempDir,
}

/// The worker's output: what we read, and what it writes to.
type Pipe = (PipeReader, PipeWriter);

/// Runs one attempt to the end of its process tree.
///
/// # Errors
/// Only where no exit record could be written either; the message is for the scheduler.
pub fn live(spec: &ShimSpec) -> Result<(), String> {
    // Fails only where we lead a session already.
    let _ = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot become a subreaper: {error}"))?;
    let layout = Layout::new(&spec.out);
    let signals = tree::Signals::install().map_err(|error| format!("cannot handle signals: {error}"))?;
    let range_lock = FileLock::take(&layout.range_lock(spec.range))
        .map_err(|error| format!("cannot lock range {}: {error}", spec.range))?
        .ok_or_else(|| format!("range {} is held by another worker", spec.range))?;
    if !still_named(&layout, spec)? {
        return Err(format!("attempt {} of range {} is no longer wanted", spec.attempt, spec.range));
    }
    let started_at = now();
    let mut record = ExitRecord {
        version: VERSION,
        range: spec.range,
        attempt: spec.attempt,
        outcome: ExitOutcome::Unknown,
        told_to_stop: false,
        swallowed_error: None,
        started_at: started_at.clone(),
        ended_at: started_at,
        output_bytes: 0,
        cut_bytes: 0,
    };
    let prepared = prepare(&layout, spec, range_lock);
    let held = match prepared {
        Ok((held, log, pipe)) => {
            supervise(&layout, spec, signals, log, pipe, &held.tmpdir, &mut record);
            Some(held)
        }
        Err(outcome) => {
            record.outcome = outcome;
            None
        }
    };
    record.ended_at = now();
    let written = write_record(spec, &record);
    // Only now may anybody else have the range: who takes it judges the attempt by its record.
    drop(held);
    written
}

fn still_named(layout: &Layout, spec: &ShimSpec) -> Result<bool, String> {
    let state: Option<RangeState> =
        files::read_json(&layout.range_state(spec.range)).map_err(|error| error.to_string())?;
    Ok(state.and_then(|state| state.open).is_some_and(|open| open.number == spec.attempt))
}

/// Takes the GPUs, then makes everything the worker needs. A busy GPU leaves no log.
fn prepare(
    layout: &Layout,
    spec: &ShimSpec,
    mut range: FileLock,
) -> Result<(Held, CappedLog, Pipe), ExitOutcome> {
    let trouble = |what: &str, path: &Path, error: std::io::Error| ExitOutcome::Environment {
        message: format!("cannot {what} {}: {error}", path.display()),
    };
    let mut gpus = Vec::new();
    for path in &spec.gpu_locks {
        match FileLock::take(path) {
            Ok(Some(lock)) => gpus.push(lock),
            Ok(None) => {
                let gpu = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                return Err(ExitOutcome::GpuBusy { gpu });
            }
            Err(error) => return Err(trouble("lock", path, error)),
        }
    }
    let tmp = short_temp_dir();
    let tmpdir = tempfile::Builder::new()
        .prefix("as-")
        .tempdir_in(&tmp)
        .map_err(|e| trouble("create a folder in", &tmp, e))?;
    let pipe = std::io::pipe().map_err(|e| trouble("create a pipe in", &tmp, e))?;
    let holder = identity(spec, tmpdir.path(), &pipe.0);
    let lock_path = layout.range_lock(spec.range);
    range.describe(&holder).map_err(|error| trouble("write", &lock_path, error))?;
    for gpu in &mut gpus {
        // A lock file of another user can be locked but not written.
        let _ = gpu.describe(&holder);
    }
    let dir = layout.at(Layout::attempt_dir(spec.range, spec.attempt));
    fs::create_dir_all(&dir).map_err(|error| trouble("create", &dir, error))?;
    let path = layout.at(Layout::log(spec.range, spec.attempt));
    let log = CappedLog::create(&path, spec.log_cap).map_err(|error| trouble("create", &path, error))?;
    Ok((Held { _range: range, _gpus: gpus, tmpdir }, log, pipe))
}

/// Engines put sockets below TMPDIR, and a socket's path ends at 108 bytes (unix(7)).
fn short_temp_dir() -> std::path::PathBuf {
    let usual = std::env::temp_dir();
    let short = Path::new("/tmp");
    if usual.as_os_str().len() > 50 && short.is_dir() { short.to_path_buf() } else { usual }
}

fn supervise(
    layout: &Layout,
    spec: &ShimSpec,
    signals: tree::Signals,
    log: CappedLog,
    (output, input): Pipe,
    tmpdir: &tempfile::TempDir,
    record: &mut ExitRecord,
) {
    let leader = match spawn(spec, tmpdir.path(), input) {
        Ok(leader) => leader,
        Err(error) => {
            record.outcome = ExitOutcome::Environment { message: format!("cannot start a process: {error}") };
            return;
        }
    };
    let tree = Tree::new(leader, output, log, signals, spec, layout.alive_lock());
    let end = tree.run();
    record.outcome = end.outcome;
    record.told_to_stop = end.told_to_stop;
    record.swallowed_error = end.log.swallowed_error.clone();
    record.output_bytes = end.log.output_bytes;
    record.cut_bytes = end.log.cut_bytes;
}

fn spawn(spec: &ShimSpec, tmpdir: &Path, writer: PipeWriter) -> std::io::Result<i32> {
    use std::os::unix::process::CommandExt;
    let child = Command::new("/proc/self/exe")
        .arg0("auto-scheduler")
        .arg(TRAMPOLINE)
        .arg(std::process::id().to_string())
        .args(&spec.argv)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .env("TMPDIR", tmpdir)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        // Its own group, so that a worker which signals its group does not signal us.
        .process_group(0)
        .spawn()?;
    Ok(child.id() as i32)
}

fn identity(spec: &ShimSpec, tmpdir: &Path, output: &PipeReader) -> String {
    let holder = Holder {
        what: "worker".into(),
        host: process::host_name(),
        boot_id: process::boot_id(),
        pid: std::process::id(),
        start_ticks: process::info(std::process::id() as i32).map_or(0, |own| own.start_ticks),
        since: now(),
        scheduler_id: spec.scheduler_id.clone(),
        attempt: Some(spec.attempt),
        tmpdir: Some(tmpdir.to_string_lossy().into_owned()),
        output_inode: rustix::fs::fstat(output).ok().map(|stat| stat.st_ino),
    };
    serde_json::to_string(&holder).unwrap_or_default()
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Whether the scheduler of this folder is gone.
pub fn scheduler_is_gone(alive_lock: &Path) -> bool {
    matches!(locks::is_held(alive_lock), Ok(false))
}
