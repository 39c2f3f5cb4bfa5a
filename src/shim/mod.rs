//! The process between the scheduler and one worker: one thread, no runtime. It owns the worker's whole process
//! tree, drains its output, records how it ended, and ends only when nothing of the tree is left.
//!
//! It holds the range's lock and the lease's GPU locks for as long as it lives, so a held lock means alive.

mod birth;
mod log;
mod tree;

use crate::types::shim::ShimSpec;
use crate::types::state::ExitRecord;
use std::io::Read;

pub use log::CappedLog;

/// Runs a shim; the exit status only matters to a scheduler that is still there.
pub fn run() -> i32 {
    let mut text = String::new();
    let spec: Result<ShimSpec, String> = std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_str(&text).map_err(|error| error.to_string()));
    let outcome = spec.and_then(|spec| birth::live(&spec));
    match outcome {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("{message}");
            1
        }
    }
}

/// Becomes the worker: dies with its shim, then replaces itself. Returns only when that failed.
pub fn trampoline(args: &[String]) -> i32 {
    use std::os::unix::process::CommandExt;
    let (Some(parent), Some(program)) = (args.first().and_then(|pid| pid.parse::<i32>().ok()), args.get(1))
    else {
        return 125;
    };
    let tied = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // The shim may have died before the signal was set.
    if tied.is_err() || rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return 125;
    }
    let error = std::process::Command::new(program).args(&args[2..]).exec();
    eprintln!("cannot execute {program}: {error}");
    // As shells report it.
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}

fn write_record(spec: &ShimSpec, record: &ExitRecord) -> Result<(), String> {
    let path = crate::types::layout::Layout::new(&spec.out).exit_record(spec.range, spec.attempt);
    crate::os::files::write_json(&path, record).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}
