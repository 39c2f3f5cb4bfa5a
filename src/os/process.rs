//! Who a process is, and how to signal exactly that one.

use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

/// What identifies a process on one boot of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: i32,
    pub parent: i32,
    pub session: i32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    pub start_ticks: u64,
    pub zombie: bool,
}

/// Reads one process; `None` when it is gone. The command name may hold anything, so fields count from the last
/// `)`. Source: proc_pid_stat(5).
pub fn info(pid: i32) -> Option<ProcessInfo> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    Some(ProcessInfo {
        pid,
        zombie: *fields.first()? == "Z",
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Every process that can be seen.
pub fn all() -> Vec<ProcessInfo> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| info(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

/// Everything below `root`, however deep, zombies excluded.
pub fn descendants(root: i32) -> Vec<ProcessInfo> {
    let all = all();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let below: Vec<i32> = all.iter().filter(|p| p.parent == found[at]).map(|p| p.pid).collect();
        found.extend(below);
        at += 1;
    }
    all.into_iter().filter(|p| p.pid != root && !p.zombie && found.contains(&p.pid)).collect()
}

/// Signals this very process: through a pidfd, after checking that it is still the one that was seen.
pub fn signal(process: ProcessInfo, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(process.pid) else { return false };
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let same = info(process.pid).is_some_and(|now| now.start_ticks == process.start_ticks);
    same && rustix::process::pidfd_send_signal(handle, signal).is_ok()
}

/// This boot of this machine; empty where the kernel does not tell.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What processes of one attempt have in common, whatever else they do.
#[derive(Debug, Clone)]
pub struct Marks {
    /// Their session's number and when its leader started.
    pub session: (i32, u64),
    /// An entry of their environment.
    pub tag: String,
    /// The pipe that took their output.
    pub output_inode: Option<u64>,
}

impl Marks {
    fn are_on(&self, process: ProcessInfo, session: Option<i32>) -> bool {
        Some(process.session) == session || carries(process.pid, &self.tag) || self.writes_to_us(process.pid)
    }

    /// A session's number is not used again while a process of it lives. If somebody else has it as a pid, nothing of
    /// ours is left in it, and it may by now be that one's session.
    fn own_session(&self) -> Option<i32> {
        let (leader, start_ticks) = self.session;
        info(leader).is_none_or(|now| now.start_ticks == start_ticks).then_some(leader)
    }

    fn writes_to_us(&self, pid: i32) -> bool {
        let Some(inode) = self.output_inode else { return false };
        let ours = format!("pipe:[{inode}]");
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == ours.as_str()))
    }
}

/// Kills whatever carries an attempt's marks, until nothing is found any more. For attempts whose shim is gone.
pub fn sweep(marks: &Marks) {
    let own = std::process::id() as i32;
    let mut quiet_passes = 0;
    while quiet_passes < 2 {
        let session = marks.own_session();
        let ours = |p: &ProcessInfo| p.pid != own && !p.zombie && marks.are_on(*p, session);
        let victims: Vec<ProcessInfo> = all().into_iter().filter(ours).collect();
        quiet_passes = if victims.is_empty() { quiet_passes + 1 } else { 0 };
        for victim in victims {
            signal(victim, Signal::KILL);
        }
        if quiet_passes < 2 {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn carries(pid: i32, tag: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|entry| entry == tag.as_bytes())
}

/// Whether a signal was ignored when this process started, as under nohup. Source: SigIgn in proc_pid_status(5).
pub fn is_ignored(signal: i32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0").trim();
    Ok(u64::from_str_radix(mask, 16).unwrap_or(0) & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_with_parentheses_in_its_name_is_read() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let odd = dir.path().join("a) Z 1 (b");
        fs::copy("/bin/sleep", &odd)?;
        let mut child = Command::new(&odd).arg("60").spawn()?;
        let seen = info(child.id() as i32).expect("alive");
        assert_eq!((seen.parent, seen.zombie), (std::process::id() as i32, false));
        assert!(!signal(ProcessInfo { start_ticks: seen.start_ticks + 1, ..seen }, Signal::KILL));
        assert!(signal(seen, Signal::KILL));
        child.wait()?;
        Ok(())
    }
}
