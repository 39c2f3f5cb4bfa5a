//! Parse, run, exit.
#![forbid(unsafe_code)]

use auto_scheduler::cli::{self, Command};
use auto_scheduler::error::{ExitCode, Failure};
use auto_scheduler::types::shim::{SHIM, TRAMPOLINE};
use auto_scheduler::{app, config, shim, status, summary};
use std::io::Write;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

fn main() {
    let mut args = std::env::args();
    let role = args.by_ref().nth(1);
    let code = match role.as_deref() {
        Some(SHIM) => shim::run(),
        Some(TRAMPOLINE) => shim::trampoline(&args.collect::<Vec<_>>()),
        _ => i32::from(scheduler().code()),
    };
    std::process::exit(code);
}

fn scheduler() -> ExitCode {
    let cli = match cli::parse(std::env::args()) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason for another exit code.
            let _ = error.print();
            if !error.use_stderr() {
                return ExitCode::Done;
            }
            let _ = writeln!(
                std::io::stderr(),
                "hint: `auto-scheduler run --help` explains every flag and its values"
            );
            return ExitCode::Usage;
        }
    };
    match obey(cli.command) {
        Ok((code, text)) => {
            summary::print(&text);
            code
        }
        Err(failure) => {
            // Somebody may have closed our standard error days ago.
            let _ = writeln!(std::io::stderr(), "{failure}");
            failure.code
        }
    }
}

/// The exit code and what goes to standard output; by then every log line is written.
fn obey(command: Command) -> Result<(ExitCode, String), Failure> {
    match command {
        Command::Run(args) => {
            let _logs = start_logs(args.output.verbose, args.output.log_format == "json");
            app::run(&config::run_config(&args)?)
        }
        Command::Plan(args) => {
            let _logs = start_logs(args.output.verbose, args.output.log_format == "json");
            Ok((ExitCode::Done, status::plan(&config::run_config(&args)?)?))
        }
        Command::Status(args) => {
            let report = status::read(&args.out)?;
            Ok((ExitCode::Done, if args.json { json(&report) } else { status::table(&report) }))
        }
        Command::Gpus(args) => {
            let gpus = status::gpus(&config::gpu_config(&args.gpu)?)?;
            Ok((ExitCode::Done, if args.json { json(&gpus) } else { status::gpu_table(&gpus) }))
        }
        Command::Merge(args) => {
            let _logs = start_logs(false, false);
            app::merge(&args.out)
        }
    }
}

fn json(document: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default() + "\n"
}

/// Seconds are enough for a run of days.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Logs go to standard error, by a thread of their own: a terminal that stands still must not stop the run. The level
/// can be set in AUTO_SCHEDULER_LOG. What is still unwritten is written when the guard is dropped.
fn start_logs(verbose: bool, json: bool) -> WorkerGuard {
    use std::io::IsTerminal;
    let level = if verbose { "auto_scheduler=debug" } else { "auto_scheduler=info" };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("AUTO_SCHEDULER_LOG").unwrap_or_else(|_| level.into());
    let color =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_timer(Seconds)
        .with_target(false)
        // Its complaint about a closed standard error would go there, and panic.
        .log_internal_errors(false);
    if json {
        logs.json().init();
    } else {
        logs.with_ansi(color).init();
    }
    guard
}
