//! What the command line means: checked, typed, immutable.

use crate::cli::{GpuArgs, ModelArgs, RunArgs};
use crate::core::command::{WorkerCommand, masked, python_float};
use crate::core::pool::{self, GpuSelection};
use crate::core::restart::RestartPolicy;
use crate::core::supervisor;
use crate::error::{ExitCode, Failure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const START_STAGGER: Duration = Duration::from_secs(2);

/// How GPUs are chosen.
#[derive(Debug, Clone)]
pub struct GpuConfig {
    pub selection: GpuSelection,
    pub policy: pool::Policy,
    pub lock_dir: Option<PathBuf>,
}

/// One run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    pub input_path: String,
    pub output_path: String,
    pub num_workers: u64,
    pub gpu: GpuConfig,
    pub policy: supervisor::Policy,
    /// Absent when no worker was named; `plan` can do without.
    pub command: Option<WorkerCommand>,
    pub grace: Duration,
    pub orphan_grace: Duration,
    pub log_cap: u64,
    pub quiet: bool,
    pub accept_changes: bool,
    /// What makes two runs the same job, by flag name.
    pub job: BTreeMap<String, String>,
    /// Arguments as the original names them, for `scheduler_config.json` and `args.json`.
    pub args: Map<String, Value>,
    pub warnings: Vec<String>,
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Usage, message)
}

/// Checks and types GPU flags.
pub fn gpu_config(args: &GpuArgs) -> Result<GpuConfig, Failure> {
    let selection = pool::parse_selection(&args.gpus).map_err(|error| {
        usage(format!("--gpus {error}")).hint("for example --gpus auto, --gpus 0,1,2,3 or --gpus sim:8")
    })?;
    if !args.min_gpu_memory.is_finite() || args.min_gpu_memory < 0.0 {
        return Err(usage(format!(
            "--min-gpu-memory {}: needs a number of GiB, 0 or more",
            args.min_gpu_memory
        )));
    }
    let min_free_bytes = (args.min_gpu_memory * f64::from(1 << 30)) as u64;
    let policy = pool::Policy { group_size: args.gpus_per_worker, min_free_bytes, ..pool::Policy::default() };
    Ok(GpuConfig { selection, policy, lock_dir: args.lock_dir.clone() })
}

/// Makes a run of what was typed.
///
/// # Errors
/// A value that cannot be used, with a hint.
pub fn run_config(args: &RunArgs) -> Result<RunConfig, Failure> {
    let gpu = gpu_config(&args.gpu)?;
    if args.job.output_path.is_empty() {
        return Err(usage("--output-path is empty").hint("name a folder; it is created where missing"));
    }
    let model_args = model_args(&args.model);
    let program = args.job.worker.as_deref().map(split_worker).transpose()?;
    let job = job_fingerprint(&args.model, program.as_deref(), &args.extra);
    let command = program.map(|program| WorkerCommand {
        program,
        input_path: args.job.input_path.clone(),
        output_path: args.job.output_path.clone(),
        tp_size: args.model.tp_size,
        dp_size: args.model.dp_size,
        model_args,
        extra_args: args.extra.clone(),
    });
    let simulated = matches!(gpu.selection, GpuSelection::Simulated(_)) || gpu.policy.group_size == 0;
    let default_stagger = if simulated { Duration::ZERO } else { START_STAGGER };
    let restart = RestartPolicy {
        max_failures: args.restart.max_failures,
        backoff_base: args.restart.backoff_base,
        backoff_cap: args.restart.backoff_cap,
    };
    let policy = supervisor::Policy {
        max_parallel: args.job.max_parallel_workers as usize,
        start_stagger: args.restart.start_stagger.unwrap_or(default_stagger),
        wait_timeout: Some(args.restart.wait_timeout).filter(|limit| !limit.is_zero()),
        restart,
    };
    Ok(RunConfig {
        input_path: args.job.input_path.clone(),
        output_path: args.job.output_path.clone(),
        num_workers: args.job.num_workers,
        gpu,
        policy,
        command,
        grace: args.restart.grace,
        orphan_grace: args.restart.orphan_grace,
        log_cap: args.output.log_cap,
        quiet: args.output.quiet,
        accept_changes: args.job.accept_changes,
        job,
        args: original_args(args),
        warnings: warnings(args),
    })
}

fn split_worker(text: &str) -> Result<Vec<String>, Failure> {
    let words = shlex::split(text).filter(|words| words.first().is_some_and(|program| !program.is_empty()));
    words.ok_or_else(|| {
        // Not shown: it may hold a secret.
        usage("--worker is no command: it is empty or a quote is not closed")
            .hint("for example --worker \"python3 my_worker.py\"")
    })
}

fn warnings(args: &RunArgs) -> Vec<String> {
    let ranks = args.model.tp_size.saturating_mul(args.model.dp_size);
    let group = u64::from(args.gpu.gpus_per_worker);
    let too_many = group > 0 && ranks > group;
    let text = format!(
        "--tp-size {} x --dp-size {} wants {ranks} GPUs, but a worker gets {group} (--gpus-per-worker)",
        args.model.tp_size, args.model.dp_size
    );
    too_many.then_some(text).into_iter().collect()
}

/// `--name value` pairs in the order of the original, then its switches.
fn model_args(model: &ModelArgs) -> Vec<String> {
    let mut args: Vec<String> =
        model_values(model).into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect();
    if model.skip_stress_divergent_token {
        args.push("--skip_stress_divergent_token".into());
    }
    if model.is_print {
        args.extend(["--is_print".into(), "True".into()]);
    }
    args
}

fn model_values(model: &ModelArgs) -> [(&'static str, String); 12] {
    [
        ("max_tokens", model.max_tokens.to_string()),
        ("max_new_tokens", model.max_new_tokens.to_string()),
        ("gen_mem_fraction", python_float(model.gen_mem_fraction)),
        ("verify_mem_fraction", python_float(model.verify_mem_fraction)),
        ("num_continuation", model.num_continuation.to_string()),
        ("previous_context", model.previous_context.to_string()),
        ("common_previous_context", model.common_previous_context.to_string()),
        ("num_samples", model.num_samples.to_string()),
        ("temperature", python_float(model.temperature)),
        ("top_p", python_float(model.top_p)),
        ("top_k", model.top_k.to_string()),
        ("batch_size", model.batch_size.to_string()),
    ]
}

/// Token, sampling and context parameters and the worker; sizes, memory and counts may change between runs.
fn job_fingerprint(
    model: &ModelArgs,
    program: Option<&[String]>,
    extra: &[String],
) -> BTreeMap<String, String> {
    let free = ["gen_mem_fraction", "verify_mem_fraction", "batch_size"];
    let values = model_values(model).into_iter().filter(|(name, _)| !free.contains(name));
    let mut job: BTreeMap<String, String> =
        values.map(|(name, value)| (format!("--{name}"), value)).collect();
    job.insert("--skip_stress_divergent_token".into(), model.skip_stress_divergent_token.to_string());
    if let Some(program) = program {
        job.insert("--worker".into(), masked(program).join(" "));
    }
    job.insert("--".into(), masked(extra).join(" "));
    job
}

fn original_args(args: &RunArgs) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    put("input_path", json!(args.job.input_path));
    put("output_path", json!(args.job.output_path));
    put("num_workers", json!(args.job.num_workers));
    put("gpus_per_worker", json!(args.gpu.gpus_per_worker));
    put("min_gpu_memory", json!(args.gpu.min_gpu_memory));
    put("max_parallel_workers", json!(args.job.max_parallel_workers));
    put("tp_size", json!(args.model.tp_size));
    put("dp_size", json!(args.model.dp_size));
    put("max_tokens", json!(args.model.max_tokens));
    put("max_new_tokens", json!(args.model.max_new_tokens));
    put("gen_mem_fraction", json!(args.model.gen_mem_fraction));
    put("verify_mem_fraction", json!(args.model.verify_mem_fraction));
    put("num_continuation", json!(args.model.num_continuation));
    put("previous_context", json!(args.model.previous_context));
    put("common_previous_context", json!(args.model.common_previous_context));
    put("num_samples", json!(args.model.num_samples));
    put("temperature", json!(args.model.temperature));
    put("top_p", json!(args.model.top_p));
    put("top_k", json!(args.model.top_k));
    put("batch_size", json!(args.model.batch_size));
    put("skip_stress_divergent_token", json!(args.model.skip_stress_divergent_token));
    put("is_print", json!(args.model.is_print));
    put("show_worker_output", json!(!args.output.quiet));
    put("quiet", json!(args.output.quiet));
    put("gpus", json!(args.gpu.gpus));
    put("worker", json!(args.job.worker.as_deref().and_then(shlex::split).map(|words| masked(&words))));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, parse};

    fn config(line: &str) -> Result<RunConfig, Failure> {
        let words = shlex::split(line).unwrap_or_default();
        match parse(std::iter::once("auto-scheduler".to_owned()).chain(words)).map(|cli| cli.command) {
            Ok(Command::Run(args)) => run_config(&args),
            other => panic!("not a run: {other:?}"),
        }
    }

    #[test]
    fn the_workers_parameters_are_the_originals_with_its_defaults() {
        let run =
            config("--input_path a.csv --num_workers 2 --worker 'python3 w.py' --is_print").expect("valid");
        let argv = run.command.expect("a worker").model_args.join(" ");
        assert_eq!(
            argv,
            "--max_tokens 32768 --max_new_tokens 8192 --gen_mem_fraction 0.9 --verify_mem_fraction 0.3 \
             --num_continuation 1 --previous_context 0 --common_previous_context -1 --num_samples 1 \
             --temperature 0.0 --top_p 1.0 --top_k -1 --batch_size 32 --is_print True"
        );
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (flags, named) in [
            ("--gpus sim:0", "--gpus"),
            ("--gpus x", "--gpus"),
            ("--worker ''", "--worker"),
            ("--worker 'a \"b'", "--worker"),
            ("--min-gpu-memory nan", "--min-gpu-memory"),
            ("--output-path ''", "--output-path"),
        ] {
            let failure = config(&format!("--input-path a --num-workers 1 {flags}")).expect_err(flags);
            assert_eq!(failure.code, ExitCode::Usage);
            assert!(failure.to_string().contains(named), "{failure}");
        }
    }

    #[test]
    fn sizes_and_counts_do_not_change_the_job() {
        let base = "--input-path a --worker w --num-workers";
        let job = |line: &str| config(&format!("{base} {line}")).map(|run| run.job).expect("valid");
        assert_eq!(job("1"), job("9 --batch_size 4 --gen_mem_fraction 0.5 --tp_size 8"));
        for change in ["1 --temperature 0.5", "1 --max_tokens 9", "1 --worker v", "1 -- --x", "1 --top_k 5"] {
            assert_ne!(job("1"), job(change), "{change}");
        }
    }

    #[test]
    fn more_ranks_than_gpus_is_warned_about() {
        let run = config("--input-path a --num-workers 1 --tp_size 4").expect("valid");
        assert_eq!(run.warnings.len(), 1);
    }
}
