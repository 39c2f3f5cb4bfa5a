//! What was typed. Nothing here knows what it means; `config` does.

use crate::error::ExitCode;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "auto-scheduler",
    version,
    about = "Splits one CSV into ranges of data_id, runs one worker process per range on leased GPUs, restarts what \
             fails, resumes after anything, and merges one complete result.",
    args_override_self = true,
    after_help = "`run` may be left out: `auto-scheduler --input-path F --num-workers 8 --worker CMD` is the old command \
                  line plus a worker. All its flags: `auto-scheduler run --help`.",
    max_term_width = 110
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Plan, run every range, merge (may be left out)
    #[command(args_override_self = true)]
    Run(RunArgs),
    /// Show what run would do: ids, rows, ranges, groups, the first command; changes nothing
    #[command(args_override_self = true)]
    Plan(RunArgs),
    /// Show a run, live or dead
    Status(StatusArgs),
    /// Show every GPU and whether it would be leased, or why not
    #[command(args_override_self = true)]
    Gpus(GpusArgs),
    /// Judge ended attempts as run does, prove, merge
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run's output folder
    pub out: PathBuf,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The run's output folder
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct GpusArgs {
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "GPUs")]
pub struct GpuArgs {
    /// auto (NVML), sim:N (N simulated GPUs), a list of indices in PCI order, or a list of UUIDs
    #[arg(long, default_value = "auto", value_name = "LIST")]
    pub gpus: String,
    /// GPUs one worker gets; 0: none (a remote engine)
    #[arg(long, allow_negative_numbers = true, default_value_t = 2, value_name = "N")]
    pub gpus_per_worker: u32,
    /// Free memory a GPU must have, in GiB
    #[arg(long, default_value_t = 10.0, value_name = "GIB", allow_negative_numbers = true)]
    pub min_gpu_memory: f64,
    /// Folder of the GPU locks; every scheduler of this host must use the same
    /// [default: /run/lock/auto-scheduler, else below the temporary folder]
    #[arg(long, value_name = "DIR")]
    pub lock_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = ExitCode::table())]
pub struct RunArgs {
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub restart: RestartArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Appended to every worker's command line
    #[arg(last = true, value_name = "ARGS", help_heading = "Job")]
    pub extra: Vec<String>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Job")]
pub struct JobArgs {
    /// Input CSV with a data_id column
    #[arg(long, value_name = "FILE")]
    pub input_path: String,
    /// Output folder; the same folder resumes
    #[arg(long, value_name = "DIR", default_value = "output/playground/continuation_auto")]
    pub output_path: String,
    /// Number of ranges to cut the ids into
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub num_workers: u64,
    /// Workers that may run at the same time
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_parallel_workers: u64,
    /// The worker's program and leading arguments, split as a shell splits words, run without a shell
    #[arg(long, value_name = "CMD")]
    pub worker: Option<String>,
    /// Go on although the job is not the one this folder was started with
    #[arg(long)]
    pub accept_changes: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model parameters, passed on to the worker")]
pub struct ModelArgs {
    /// Tensor parallel size
    #[arg(long, allow_negative_numbers = true, default_value_t = 2, value_name = "N")]
    pub tp_size: u64,
    /// Data parallel size
    #[arg(long, allow_negative_numbers = true, default_value_t = 1, value_name = "N")]
    pub dp_size: u64,
    /// Samples with more rows are skipped by the worker
    #[arg(long, default_value_t = 32768, value_name = "N", allow_negative_numbers = true)]
    pub max_tokens: i64,
    /// Most tokens of one continuation
    #[arg(long, default_value_t = 8192, value_name = "N", allow_negative_numbers = true)]
    pub max_new_tokens: i64,
    /// Share of GPU memory for generation
    #[arg(long, default_value_t = 0.9, value_name = "F", allow_negative_numbers = true)]
    pub gen_mem_fraction: f64,
    /// Share of GPU memory for verification
    #[arg(long, default_value_t = 0.3, value_name = "F", allow_negative_numbers = true)]
    pub verify_mem_fraction: f64,
    /// Sentences to go on for after the current one; -1: to the end
    #[arg(long, default_value_t = 1, value_name = "N", allow_negative_numbers = true)]
    pub num_continuation: i64,
    /// Sentences of context before the current one; -1: all as one text
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    pub previous_context: i64,
    /// Sentences of common context before those; -1: all
    #[arg(long, default_value_t = -1, value_name = "N", allow_negative_numbers = true)]
    pub common_previous_context: i64,
    /// Continuations per mismatch
    #[arg(long, default_value_t = 1, value_name = "N", allow_negative_numbers = true)]
    pub num_samples: i64,
    /// Sampling temperature; 0: greedy
    #[arg(long, default_value_t = 0.0, value_name = "F", allow_negative_numbers = true)]
    pub temperature: f64,
    /// Nucleus sampling threshold
    #[arg(long, default_value_t = 1.0, value_name = "F", allow_negative_numbers = true)]
    pub top_p: f64,
    /// Tokens to sample from; -1: all
    #[arg(long, default_value_t = -1, value_name = "N", allow_negative_numbers = true)]
    pub top_k: i64,
    /// Requests the worker sends at a time
    #[arg(long, default_value_t = 32, value_name = "N", allow_negative_numbers = true)]
    pub batch_size: i64,
    /// Do not mark the diverging token with <<>>
    #[arg(long)]
    pub skip_stress_divergent_token: bool,
    /// Make the worker print what it generates
    #[arg(long)]
    pub is_print: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Restarts and stopping")]
pub struct RestartArgs {
    /// Charged failures in a row without progress before a range is given up
    #[arg(long, allow_negative_numbers = true, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_failures: u32,
    /// First ceiling of the random delay before a restart; doubles with every failure
    #[arg(long, default_value = "5s", value_name = "D", value_parser = duration)]
    pub backoff_base: Duration,
    /// Highest ceiling of that delay
    #[arg(long, default_value = "5m", value_name = "D", value_parser = duration)]
    pub backoff_cap: Duration,
    /// Pause between two worker starts [default: 2s with real GPUs, 0 with simulated]
    #[arg(long, value_name = "D", value_parser = duration)]
    pub start_stagger: Option<Duration>,
    /// Time between TERM and KILL
    #[arg(long, default_value = "30s", value_name = "D", value_parser = duration)]
    pub grace: Duration,
    /// How long a worker runs on without a scheduler
    #[arg(long, default_value = "10m", value_name = "D", value_parser = duration)]
    pub orphan_grace: Duration,
    /// Give up waiting for GPUs after this long; 0: never
    #[arg(long, default_value = "0", value_name = "D", value_parser = duration)]
    pub wait_timeout: Duration,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Show workers' commands and output (the default)
    #[arg(long, overrides_with = "quiet")]
    pub show_worker_output: bool,
    /// Hide workers' commands and output; the logs have them all the same
    #[arg(long, short, overrides_with = "show_worker_output")]
    pub quiet: bool,
    /// Largest size of one attempt's log; the middle is cut, head and tail stay
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = size)]
    pub log_cap: u64,
    /// How log lines look
    #[arg(long, default_value = "text", value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: String,
    /// Also log details
    #[arg(long, short)]
    pub verbose: bool,
}

/// Parses a command line as the original's argparse does: names with underscores or hyphens, the last of a repeated
/// flag wins, numbers may be negative.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Cli, clap::Error> {
    let command = Cli::command().infer_long_args(true);
    Cli::from_arg_matches(&command.try_get_matches_from(normalized(args))?)
}

/// Underscores in flag names become hyphens, and `run` is put in where no subcommand stands.
fn normalized(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut args: Vec<String> = args.into_iter().collect();
    let first = args.get(1).map(String::as_str).unwrap_or("--help");
    let own = ["-h", "--help", "-V", "--version"];
    if args.len() > 1 && first.starts_with('-') && !own.contains(&first) {
        args.insert(1, "run".into());
    }
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    for arg in &mut args[..end] {
        if arg.starts_with("--") {
            let (name, rest) = arg.split_at(arg.find('=').unwrap_or(arg.len()));
            *arg = name.replace('_', "-") + rest;
        }
    }
    args
}

fn duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|_| "a duration looks like 50ms, 90s, 20m, 2h or 0".to_owned())?;
    Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("a size looks like 4096, 64KiB, 256MiB or 1GiB".into()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "a size starts with a whole number".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "that size is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<RunArgs, clap::Error> {
        let words = line.split_whitespace().map(str::to_owned);
        match parse(std::iter::once("auto-scheduler".to_owned()).chain(words))?.command {
            Command::Run(args) | Command::Plan(args) => Ok(args),
            other => panic!("not a run: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_originals_spelling_is_accepted_without_a_subcommand() -> Result<(), clap::Error> {
        let args = run(
            "--input_path a_b.csv --output_path=o_p --num_workers 4 --top_k -1 --is_print --gpus_per_worker 1",
        )?;
        assert_eq!((args.job.input_path.as_str(), args.job.output_path.as_str()), ("a_b.csv", "o_p"));
        assert_eq!((args.job.num_workers, args.model.top_k, args.gpu.gpus_per_worker), (4, -1, 1));
        assert!(args.model.is_print && !args.output.quiet);
        Ok(())
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() -> Result<(), clap::Error> {
        let args = run("run --input-path a --num-workers 4 --num_workers 5 --quiet --show_worker_output")?;
        assert_eq!(args.job.num_workers, 5);
        assert!(!args.output.quiet && args.output.show_worker_output);
        assert!(run("--input-path a --num-workers 4 --show-worker-output --quiet")?.output.quiet);
        Ok(())
    }

    #[test]
    fn what_follows_two_dashes_is_the_workers() -> Result<(), clap::Error> {
        let args = run("--input-path a --num-workers 1 -- --my_flag x --num_workers 9")?;
        assert_eq!(args.extra, ["--my_flag", "x", "--num_workers", "9"]);
        assert_eq!(args.job.num_workers, 1);
        Ok(())
    }

    #[test]
    fn bad_values_are_refused() {
        for line in [
            "--input-path a",
            "--num-workers 1",
            "--input-path a --num-workers 0",
            "--input-path a --num-workers x",
        ] {
            assert!(run(line).is_err(), "{line}");
        }
    }

    #[test]
    fn durations_and_sizes() {
        let millis = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(millis("50ms"), Ok(50));
        assert_eq!(millis("90s"), Ok(90_000));
        assert_eq!(millis("1h 30m"), Ok(5_400_000));
        assert_eq!(millis("0"), Ok(0));
        assert!(duration("5").is_err() && duration("-5s").is_err());
        assert_eq!((size("256MiB"), size("4k"), size("17")), (Ok(256 << 20), Ok(4096), Ok(17)));
        assert!(size("12x").is_err() && size("MiB").is_err());
    }
}
