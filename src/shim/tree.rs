//! Watches one worker's process tree: output, signals, deaths, deadlines. One poll loop.

use super::birth::scheduler_is_gone;
use super::log::CappedLog;
use crate::os::process;
use crate::types::ExitOutcome;
use crate::types::shim::ShimSpec;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use std::io::{self, PipeReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long what the leader left behind gets between TERM and KILL.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
const ORPHAN_CHECK: Duration = Duration::from_secs(2);
/// Between two rounds of killing, for processes that take their time to die.
const KILL_ROUND: Duration = Duration::from_millis(20);

/// Self-pipes that signals write to.
pub struct Signals {
    stop: UnixStream,
    child: UnixStream,
}

impl Signals {
    pub fn install() -> io::Result<Self> {
        let (stop, stop_writer) = UnixStream::pair()?;
        let (child, child_writer) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, stop_writer.try_clone()?)?;
        }
        signal_hook::low_level::pipe::register(SIGCHLD, child_writer)?;
        stop.set_nonblocking(true)?;
        child.set_nonblocking(true)?;
        Ok(Self { stop, child })
    }
}

fn drain(mut stream: &UnixStream) -> usize {
    let mut buffer = [0; 64];
    let mut seen = 0;
    while let Ok(n) = stream.read(&mut buffer)
        && n > 0
    {
        seen += n;
    }
    seen
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nobody asked for anything.
    Watching,
    /// TERM was sent; KILL at this instant.
    Stopping(Instant),
    Killing,
}

/// How a tree ended.
pub struct TreeEnd {
    pub outcome: ExitOutcome,
    pub told_to_stop: bool,
    pub log: CappedLog,
}

pub struct Tree {
    leader: i32,
    outcome: Option<ExitOutcome>,
    output: Option<PipeReader>,
    log: CappedLog,
    signals: Signals,
    grace: Duration,
    orphan_grace: Duration,
    alive_lock: PathBuf,
    orphan_since: Option<Instant>,
    next_orphan_check: Instant,
    mode: Mode,
    told_to_stop: bool,
    nothing_left: bool,
}

impl Tree {
    pub fn new(
        leader: i32,
        output: PipeReader,
        log: CappedLog,
        signals: Signals,
        spec: &ShimSpec,
        alive_lock: PathBuf,
    ) -> Self {
        // Blocking reads would wait for grandchildren that keep the pipe open.
        let _ = rustix::io::ioctl_fionbio(&output, true);
        Self {
            leader,
            outcome: None,
            output: Some(output),
            log,
            signals,
            grace: spec.grace,
            orphan_grace: spec.orphan_grace,
            alive_lock,
            orphan_since: None,
            next_orphan_check: Instant::now() + ORPHAN_CHECK,
            mode: Mode::Watching,
            told_to_stop: false,
            nothing_left: false,
        }
    }

    /// Until no process of the tree is left and all it printed is in the log.
    pub fn run(mut self) -> TreeEnd {
        // A child may have ended before its signal was handled.
        self.reap();
        while !self.nothing_left {
            self.wait();
            self.drain_output();
            for _ in 0..drain(&self.signals.stop) {
                self.stop();
            }
            drain(&self.signals.child);
            self.reap();
            self.deadlines();
        }
        self.drain_output();
        let outcome = self.outcome.unwrap_or(ExitOutcome::Unknown);
        TreeEnd { outcome, told_to_stop: self.told_to_stop, log: self.log }
    }

    fn wait(&self) {
        let now = Instant::now();
        let until = match self.mode {
            Mode::Watching => self.next_orphan_check,
            Mode::Stopping(kill_at) => kill_at.min(self.next_orphan_check),
            Mode::Killing => now + KILL_ROUND,
        };
        let timeout = Timespec::try_from(until.saturating_duration_since(now)).ok();
        let mut fds = vec![
            PollFd::new(&self.signals.stop, PollFlags::IN),
            PollFd::new(&self.signals.child, PollFlags::IN),
        ];
        if let Some(output) = &self.output {
            fds.push(PollFd::new(output, PollFlags::IN));
        }
        // An interrupted wait is as good as a finished one.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    fn drain_output(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        // Bounded, so that a flood cannot keep us from signals and deadlines.
        for _ in 0..64 {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(n) => {
                    // A full disk must not block the worker; what is lost is counted.
                    if self.log.write(&buffer[..n]).is_err() {
                        self.log.cut_bytes += n as u64;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    /// The first request is TERM and a grace, the second KILL.
    fn stop(&mut self) {
        self.told_to_stop |= self.outcome.is_none();
        match self.mode {
            Mode::Watching if self.outcome.is_none() => {
                if let Some(pid) = Pid::from_raw(self.leader) {
                    // Its group: unreaped, so the number is still its own.
                    let _ = rustix::process::kill_process_group(pid, Signal::TERM);
                }
                self.mode = Mode::Stopping(Instant::now() + self.grace);
            }
            Mode::Watching | Mode::Stopping(_) => self.mode = Mode::Killing,
            Mode::Killing => {}
        }
    }

    fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if pid.as_raw_nonzero().get() == self.leader && self.outcome.is_none() {
                        self.outcome = Some(match (status.exit_status(), status.terminating_signal()) {
                            (Some(code), _) => ExitOutcome::Code(code),
                            (None, Some(signal)) => ExitOutcome::Signal(signal),
                            (None, None) => ExitOutcome::Unknown,
                        });
                        self.end_leftovers();
                    }
                }
                Ok(None) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.nothing_left = true;
                    return;
                }
            }
        }
    }

    /// The leader is gone; whatever it left gets TERM, a moment, KILL.
    fn end_leftovers(&mut self) {
        for process in process::descendants(std::process::id() as i32) {
            process::signal(process, Signal::TERM);
        }
        let kill_at = Instant::now() + LEFTOVER_GRACE;
        self.mode = match self.mode {
            Mode::Killing => Mode::Killing,
            Mode::Stopping(earlier) => Mode::Stopping(earlier.min(kill_at)),
            Mode::Watching => Mode::Stopping(kill_at),
        };
    }

    fn deadlines(&mut self) {
        let now = Instant::now();
        if let Mode::Stopping(kill_at) = self.mode
            && now >= kill_at
        {
            self.mode = Mode::Killing;
        }
        if self.mode == Mode::Killing && !self.nothing_left {
            for process in process::descendants(std::process::id() as i32) {
                process::signal(process, Signal::KILL);
            }
        }
        if now >= self.next_orphan_check {
            self.next_orphan_check = now + ORPHAN_CHECK.min(self.orphan_grace.max(KILL_ROUND));
            self.orphan_since = scheduler_is_gone(&self.alive_lock).then(|| self.orphan_since.unwrap_or(now));
            if self.mode == Mode::Watching
                && self.orphan_since.is_some_and(|since| now.duration_since(since) >= self.orphan_grace)
            {
                self.stop();
            }
        }
    }
}
