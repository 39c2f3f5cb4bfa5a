//! Attempts as process trees on this machine, each under its shim.

use super::console::Console;
use super::{locks, process};
use crate::ports::{AttemptJob, Processes, Started, Sweeper};
use crate::types::layout::Layout;
use crate::types::shim::{SHIM, ShimSpec};
use crate::types::state::Holder;
use crate::types::{Attempt, RangeId};
use rustix::process::{Pid, Signal};
use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What all attempts of a run share.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Absolute.
    pub out: PathBuf,
    pub lock_dir: PathBuf,
    pub scheduler_id: String,
    pub log_cap: u64,
    pub grace: Duration,
    pub orphan_grace: Duration,
}

pub struct LocalProcesses {
    settings: LocalSettings,
    console: Console,
}

impl LocalProcesses {
    pub fn new(settings: LocalSettings, console: Console) -> Self {
        Self { settings, console }
    }

    fn spec(&self, job: AttemptJob) -> ShimSpec {
        let mut uuids: Vec<&str> = job.lease.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        uuids.sort_unstable();
        ShimSpec {
            out: self.settings.out.clone(),
            range: job.range,
            attempt: job.attempt,
            scheduler_id: self.settings.scheduler_id.clone(),
            argv: job.argv,
            env: job.env,
            gpu_locks: uuids.into_iter().map(|uuid| locks::gpu_lock(&self.settings.lock_dir, uuid)).collect(),
            log_cap: self.settings.log_cap,
            grace: self.settings.grace,
            orphan_grace: self.settings.orphan_grace,
        }
    }
}

impl Processes for LocalProcesses {
    fn start(&self, job: AttemptJob) -> io::Result<Started> {
        let (range, attempt) = (job.range, job.attempt);
        let spec = serde_json::to_vec(&self.spec(job)).map_err(io::Error::other)?;
        let mut child = tokio::process::Command::new("/proc/self/exe")
            .arg0("auto-scheduler")
            .arg(SHIM)
            .arg(format!("{range}.{attempt}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
        let layout = Layout::new(&self.settings.out);
        self.console.follow(range, layout.at(Layout::log(range, attempt)));
        let console = self.console.clone();
        // Set once the child is reaped: from then on its pid may be anybody's.
        let reaped = Rc::new(Cell::new(false));
        let seen = Rc::clone(&reaped);
        let gone = async move {
            if let Some(mut stdin) = child.stdin.take() {
                // A shim that is already dead shows in its exit.
                let _ = stdin.write_all(&spec).await;
            }
            let mut complaint = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut complaint).await;
            }
            let status = child.wait().await;
            seen.set(true);
            if !layout.exit_record(range, attempt).exists() {
                // The shim was killed; what it left must be gone before anybody takes its GPUs for free.
                let sweeper = LocalSweeper::new(layout);
                let _ = tokio::task::spawn_blocking(move || sweeper.sweep(range, attempt)).await;
            }
            console.finish(range);
            if !matches!(&status, Ok(status) if status.success()) {
                tracing::warn!(%range, %attempt, ?status, "shim ended badly: {}", complaint.trim());
            }
        };
        let stop = move |kill_now: bool| {
            if let Some(pid) = pid
                && !reaped.get()
            {
                // One request asks, a second one insists. Two of the same signal might arrive as one.
                let signals = [Signal::TERM, Signal::INT];
                for signal in &signals[..if kill_now { 2 } else { 1 }] {
                    let _ = rustix::process::kill_process(pid, *signal);
                }
            }
        };
        Ok(Started { gone: Box::pin(gone), stop: Box::new(stop) })
    }
}

/// Finds what an attempt left behind by the identity its shim wrote into the range's lock file.
#[derive(Debug, Clone)]
pub struct LocalSweeper {
    layout: Layout,
}

impl LocalSweeper {
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Who holds, or last held, the range's lock.
    pub fn holder(&self, range: RangeId) -> Option<Holder> {
        serde_json::from_str(&locks::description(&self.layout.range_lock(range))?).ok()
    }

    /// Ends the worker that still holds a range, with grace, and waits until its whole tree is gone.
    ///
    /// # Errors
    /// The lock stays held although its holder could not be found or ended.
    pub fn end_holder(&self, range: RangeId, grace: Duration) -> Result<(), String> {
        let lock = self.layout.range_lock(range);
        let started = Instant::now();
        let mut asked = 0;
        loop {
            match locks::is_held(&lock) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => return Err(format!("cannot probe {}: {error}", lock.display())),
            }
            let waited = started.elapsed();
            let holder = self.holder(range).filter(|h| h.boot_id == process::boot_id());
            let shim =
                holder.and_then(|h| process::info(h.pid as i32).filter(|p| p.start_ticks == h.start_ticks));
            if waited >= grace * asked && asked < 2 {
                // A shim that has the lock but has not yet said who it is gets its turn in the next round.
                if let Some(shim) = shim {
                    process::signal(shim, Signal::TERM);
                    asked += 1;
                }
            }
            if waited > grace + Duration::from_secs(30) {
                return Err(format!("range {range} stays held; its lock is {}", lock.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Sweeper for LocalSweeper {
    fn sweep(&self, range: RangeId, attempt: Attempt) {
        let Some(holder) = self.holder(range) else { return };
        if holder.attempt != Some(attempt) || holder.boot_id != process::boot_id() {
            return;
        }
        let Some(tmpdir) = holder.tmpdir else { return };
        process::sweep(&process::Marks {
            session: (holder.pid as i32, holder.start_ticks),
            tag: format!("TMPDIR={tmpdir}"),
            output_inode: holder.output_inode,
        });
        // The shim's own folder, under a random name of its own making.
        let _ = std::fs::remove_dir_all(tmpdir);
    }
}
