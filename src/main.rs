//! Parse, run, exit.
#![forbid(unsafe_code)]

use auto_scheduler::cli::{self, Command, OutputArgs};
use auto_scheduler::error::{ExitCode, Failure};
use auto_scheduler::{app, config, shim, status};

fn main() {
    let mut args = std::env::args();
    let role = args.by_ref().nth(1);
    let code = match role.as_deref() {
        Some(shim::SHIM) => shim::run(),
        Some(shim::TRAMPOLINE) => shim::trampoline(&args.collect::<Vec<_>>()),
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
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
        }
    };
    obey(cli.command).unwrap_or_else(|failure| {
        eprintln!("{failure}");
        failure.code
    })
}

fn obey(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => {
            start_logs(&args.output);
            app::run(&config::run_config(&args)?)
        }
        Command::Plan(args) => {
            start_logs(&args.output);
            print!("{}", status::plan(&config::run_config(&args)?)?);
            Ok(ExitCode::Done)
        }
        Command::Status(args) => {
            let report = status::read(&args.out)?;
            if args.json {
                print_json(&report)
            } else {
                print!("{}", status::table(&report))
            }
            Ok(ExitCode::Done)
        }
        Command::Gpus(args) => {
            let gpus = status::gpus(&config::gpu_config(&args.gpu)?)?;
            if args.json {
                print_json(&gpus)
            } else {
                print!("{}", status::gpu_table(&gpus))
            }
            Ok(ExitCode::Done)
        }
        Command::Merge(args) => app::merge(&args.out),
    }
}

fn print_json(document: &impl serde::Serialize) {
    println!("{}", serde_json::to_string_pretty(document).unwrap_or_default());
}

/// Logs go to standard error; AUTO_SCHEDULER_LOG overrides the level.
fn start_logs(output: &OutputArgs) {
    use std::io::IsTerminal;
    let level = if output.verbose { "auto_scheduler=debug" } else { "auto_scheduler=info" };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("AUTO_SCHEDULER_LOG").unwrap_or_else(|_| level.into());
    let color =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if output.log_format == "json" {
        logs.json().init();
    } else {
        logs.with_ansi(color).init();
    }
}
