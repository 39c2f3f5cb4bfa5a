//! Runs that go well, and what is done with their folder afterwards.

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use support::{Bench, MERGED, PARTIAL, until_true};

fn sample() -> String {
    format!("{}/examples/data/prediction_comparison.csv", env!("CARGO_MANIFEST_DIR"))
}

fn has_keys(document: &Value, keys: &[&str]) {
    for key in keys {
        assert!(!document[key].is_null(), "{key} is missing in {document:#}");
    }
}

#[test]
fn the_originals_command_line_runs_every_range_and_merges_all_rows() {
    let bench = Bench::new([]);
    let (input, out, worker) = (sample(), bench.text_path("out"), bench.scripted(""));
    let flags =
        ["--input_path", &input, "--output_path", &out, "--num_workers", "8", "--gpus_per_worker", "2"];
    let more = ["--max_parallel_workers", "8", "--top_k", "-1", "--temperature=0.0", "--gpus", "sim:8"];
    let ended = bench.call(&[&flags[..], &more, &["--worker", &worker]].concat()).code(0);
    let merged = fs::read(bench.out(MERGED)).expect("a merged file");
    assert!(merged == bench.expected(Path::new(&input), ""), "rows are lost, doubled or changed");
    assert_eq!(ended.stderr.matches("Worker Command for range [").count(), 8);
    let plan = bench.json("plan.json");
    let ranges: Vec<(i64, i64)> = plan["ranges"]
        .as_array()
        .expect("ranges")
        .iter()
        .map(|range| (range["low"].as_i64().expect("low"), range["high"].as_i64().expect("high")))
        .collect();
    assert_eq!(ranges.len(), 8);
    for (low, high) in &ranges {
        assert!(ended.stderr.contains(&format!("[Worker {low}-{high}] Processing ")), "{}", ended.stderr);
        let args = bench.json(&format!("worker_args_{low}_{high}.json"));
        has_keys(&args, &["low", "high", "gpu_ids", "command", "scheduler_id", "start_time"]);
        assert_eq!((args["low"].as_i64(), args["gpu_ids"].as_array().map(Vec::len)), (Some(*low), Some(2)));
        assert!(bench.out(&format!("generation_results_data_{low}_to_{high}_real.csv")).exists());
    }
    let logs: Vec<String> =
        ranges.iter().map(|(low, high)| format!("worker_{low}_{high}.attempt1.log")).collect();
    assert_eq!(BTreeSet::from_iter(bench.names("logs")), BTreeSet::from_iter(logs));
    let config = bench.json("scheduler_config.json");
    has_keys(&config, &["args", "timestamp", "scheduler_id", "process_id"]);
    assert_eq!(config["args"]["num_workers"], json!(8));
    assert_eq!(bench.json("args.json")["input_path"], json!(input));
    let summary = bench.json("merge_summary.json");
    has_keys(&summary, &["total_files_merged", "total_rows", "merge_timestamp", "individual_files"]);
    let mut reader = csv::Reader::from_reader(merged.as_slice());
    assert_eq!(summary["total_rows"], json!(reader.records().count()));
    assert_eq!(summary["complete"], json!(true));
}

#[test]
fn ranges_are_cut_as_the_original_cuts_them() {
    let bench = Bench::new([30, 3, 7, 8, 20, -5, 9]);
    bench.finish(&bench.flags(3, &bench.scripted(""))).code(0);
    let names = bench.names("");
    let cut: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("worker_args_")).collect();
    assert_eq!(cut, ["-5_8.json", "20_31.json", "8_10.json"]);
    bench.assert_merged();
}

#[test]
fn ids_that_pandas_wrote_as_floats_are_planned_as_integers() {
    let bench = Bench::new([]);
    bench.write("input.csv", "text,data_id\nx,2.0\ny,10.0\nz,2.0\n");
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(0);
    assert!(bench.out("worker_args_2_3.json").exists() && bench.out("worker_args_10_11.json").exists());
    bench.assert_merged();
}

#[test]
fn as_many_workers_run_as_gpu_groups_are_free() {
    let bench = Bench::new(0..16);
    let worker = bench.scripted(&format!("--wait-for {}", bench.text_path("go")));
    let run = bench.start(&bench.flags(8, &worker));
    bench.until_printed("Waiting for", 4);
    let report: Value =
        serde_json::from_str(&bench.on_out("status", &["--json"]).code(0).stdout).expect("JSON");
    let ranges = report["ranges"].as_array().expect("ranges");
    let held: Vec<i64> =
        ranges.iter().flat_map(|r| r["gpus"].as_array().expect("gpus")).filter_map(Value::as_i64).collect();
    assert_eq!(
        (held.len(), BTreeSet::from_iter(&held).len()),
        (8, 8),
        "each GPU is in one lease: {report:#}"
    );
    assert_eq!(ranges.iter().filter(|range| range["state"] == "running").count(), 4);
    bench.write("go", "");
    run.wait().code(0);
    bench.assert_merged();
}

#[test]
fn no_more_workers_run_than_max_parallel_workers_says() {
    let bench = Bench::new(0..12);
    let flags =
        [bench.flags(6, &bench.scripted("")), vec!["--max-parallel-workers".into(), "2".into()]].concat();
    bench.finish(&flags).code(0);
    let mut changes: Vec<(String, i32)> = Vec::new();
    for name in bench.names("attempts").iter().filter(|name| name.ends_with(".exit.json")) {
        let record = bench.json(&format!("attempts/{name}"));
        for (key, change) in [("started_at", 1), ("ended_at", -1)] {
            changes.push((record[key].as_str().expect("a time").trim_end_matches('Z').to_owned(), change));
        }
    }
    changes.sort();
    let running = changes.iter().scan(0, |running, (_, change)| {
        *running += change;
        Some(*running)
    });
    assert_eq!(changes.len(), 12);
    assert!(running.max() <= Some(2), "{changes:?}");
}

#[test]
fn a_worker_learns_its_gpus_range_and_attempt_from_its_environment() {
    let bench = Bench::new(0..4);
    bench.finish(&bench.flags(1, &bench.scripted("--print-env"))).code(0);
    let (log, id) = (bench.log("0_4", 1), bench.json("scheduler_config.json")["scheduler_id"].clone());
    let id = format!("R2R_SCHEDULER_ID={}", id.as_str().expect("an id"));
    let lines = ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "R2R_WORKER_RANGE=0_4"];
    for line in lines.iter().chain(&["AUTO_SCHEDULER_ATTEMPT=1", &id]) {
        assert!(log.lines().any(|printed| printed == *line), "{line} is not in\n{log}");
    }
    assert!(log.contains("AUTO_SCHEDULER_GPU_UUIDS="), "{log}");
    let own = log.lines().find_map(|line| line.strip_prefix("TMPDIR=")).expect("a TMPDIR");
    assert!(Path::new(own).starts_with(bench.path("t")) && own != bench.text_path("t"), "not its own: {own}");
}

#[test]
fn a_worker_without_gpus_sees_none() {
    let bench = Bench::new(0..4);
    let flags =
        [bench.flags(2, &bench.scripted("--print-env")), vec!["--gpus-per-worker".into(), "0".into()]]
            .concat();
    bench.finish(&flags).code(0);
    assert!(
        bench.log("0_2", 1).lines().any(|line| line == "CUDA_VISIBLE_DEVICES="),
        "{}",
        bench.log("0_2", 1)
    );
    bench.assert_merged();
}

/// Writes what it was started with, and no rows.
const DUMP: &str = r#"
import json, os, sys
out = sys.argv[sys.argv.index("--output_path") + 1]
with open(os.path.join(out, "seen.json"), "w") as file:
    json.dump({"argv": sys.argv[1:], "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0")}, file)
"#;

#[test]
fn a_workers_command_line_is_the_originals_in_its_order() {
    let bench = Bench::new(3..6);
    bench.write("dump.py", DUMP);
    let worker = "python3 dump.py 'two words'";
    let flags =
        ["--input_path", "input.csv", "--output_path", "out", "--num_workers", "1", "--gpus", "sim:8"];
    let model = [
        "--tp_size",
        "4",
        "--gpus_per_worker",
        "4",
        "--max_tokens",
        "5",
        "--is_print",
        "--temperature",
        "0.6",
    ];
    let switch = ["--skip_stress_divergent_token", "--worker", worker, "--", "--mine", "x y"];
    let mut command = bench.command(env!("CARGO_BIN_EXE_auto-scheduler"));
    command.current_dir(bench.path("")).args(flags).args(model).args(switch);
    bench.spawn(command).wait().code(0);
    let seen = bench.json("attempts/3_6.1/seen.json");
    let expected = "two words|--input_path|input.csv|--output_path|out/attempts/3_6.1|--low|3|--high|6|--tp_size|4|\
                    --dp_size|1|--resume|--max_tokens|5|--max_new_tokens|8192|--gen_mem_fraction|0.9|\
                    --verify_mem_fraction|0.3|--num_continuation|1|--previous_context|0|--common_previous_context|-1|\
                    --num_samples|1|--temperature|0.6|--top_p|1.0|--top_k|-1|--batch_size|32|\
                    --skip_stress_divergent_token|--is_print|True|--mine|x y";
    let argv: Vec<&str> = seen["argv"].as_array().expect("words").iter().filter_map(Value::as_str).collect();
    assert_eq!(argv.join("|"), expected);
    assert_eq!(seen["stdin"], json!("/dev/null"));
    let folder = bench.path("").canonicalize().expect("it exists");
    assert_eq!(seen["cwd"].as_str().map(Path::new), Some(folder.as_path()));
}

#[test]
fn more_workers_than_ids_give_one_range_per_id() {
    let bench = Bench::new([4, 1, 9]);
    bench.finish(&bench.flags(8, &bench.scripted(""))).code(0);
    assert_eq!(bench.names("logs").len(), 3);
    bench.assert_merged();
}

#[test]
fn ids_without_rows_are_done() {
    let bench = Bench::new(0..12);
    let flags = "--skip-id 0,3,4,5,11";
    bench.finish(&bench.flags(4, &bench.scripted(flags))).code(0);
    assert_eq!(bench.names("logs").len(), 4, "nothing is run again");
    let expected = bench.expected(&bench.path("input.csv"), flags);
    assert!(fs::read(bench.out(MERGED)).expect("a merged file") == expected);
}

#[test]
fn a_run_in_which_nobody_writes_a_row_says_so_loudly() {
    let bench = Bench::new(0..4);
    let flags = bench.flags(2, &bench.scripted("--no-result"));
    let ended = bench.finish(&flags).code(0);
    assert!(ended.stdout.contains("NO RANGE WROTE A SINGLE ROW"), "{}", ended.stdout);
    assert!(!bench.out(MERGED).exists() && !bench.out(PARTIAL).exists());
    assert_eq!(bench.json("merge_summary.json")["complete"], json!(true));
}

#[test]
fn quiet_hides_what_workers_print_and_the_logs_have_it() {
    let bench = Bench::new(0..4);
    let flags = [bench.flags(2, &bench.scripted("")), vec!["--quiet".into()]].concat();
    let ended = bench.finish(&flags).code(0);
    assert!(
        !ended.stderr.contains("[Worker ") && !ended.stderr.contains("Worker Command"),
        "{}",
        ended.stderr
    );
    assert!(bench.log("0_2", 1).contains("Processed data_id 1"));
}

#[test]
fn the_same_command_after_success_starts_nothing() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    let (logs, merged) = (bench.names("logs"), fs::metadata(bench.out(MERGED)).expect("merged"));
    let ended = bench.finish(&flags).code(0);
    assert!(ended.stdout.contains("COMPLETE"), "{}", ended.stdout);
    assert_eq!(bench.names("logs"), logs);
    let again = fs::metadata(bench.out(MERGED)).expect("merged");
    assert_eq!(again.modified().expect("a time"), merged.modified().expect("a time"), "it was written again");
    bench.assert_merged();
}

#[test]
fn a_merged_file_that_was_deleted_is_made_again_without_workers() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    fs::remove_file(bench.out(MERGED)).expect("it was there");
    bench.finish(&flags).code(0);
    assert_eq!(bench.names("logs").len(), 2);
    bench.assert_merged();
}

#[test]
fn a_merged_file_that_was_altered_is_made_again_without_workers() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    let mut bytes = fs::read(bench.out(MERGED)).expect("merged");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(bench.out(MERGED), bytes).expect("it can be written");
    bench.finish(&flags).code(0);
    assert_eq!(bench.names("logs").len(), 2);
    bench.assert_merged();
}

#[test]
fn samples_added_above_the_planned_ones_are_simply_run() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    bench.write_input(0..12);
    bench.finish(&flags).code(0);
    bench.assert_merged();
    let logs = bench.names("logs");
    let new = logs.iter().filter(|name| !name.contains("_0_4.") && !name.contains("_4_8.")).count();
    assert_eq!((logs.len(), new), (4, 2), "what was done is not run again: {logs:?}");
}

#[test]
fn another_number_of_workers_keeps_what_was_accepted() {
    let bench = Bench::new(0..20);
    bench.behave("--hang-at 5,15");
    let run = bench.start(&bench.flags(2, &bench.switched()));
    bench.until_printed("Processed data_id 4\n", 1);
    bench.until_printed("Processed data_id 14\n", 1);
    run.signal(Signal::INT);
    run.wait().code(130);
    bench.behave("");
    bench.finish(&bench.flags(3, &bench.switched())).code(0);
    bench.assert_merged();
    let logs = bench.logs();
    let again: Vec<&String> = logs
        .iter()
        .filter(|(name, _)| !name.contains("_0_10.") && !name.contains("_10_20."))
        .map(|(_, log)| log)
        .collect();
    for done in [0, 3, 10, 13] {
        let line = format!("Processed data_id {done}\n");
        assert!(!again.iter().any(|log| log.contains(&line)), "{done} had been accepted and was run again");
    }
}

#[test]
fn plan_tells_what_run_would_do_and_changes_nothing() {
    let bench = Bench::new(0..10);
    let flags = [vec!["plan".into()], bench.flags(4, &bench.scripted("--api-key SECRET123"))].concat();
    let ended = bench.finish(&flags).code(0);
    for text in ["[0, 3)", "[8, 10)", "first command", "--low 0", "4 workers"] {
        assert!(ended.stdout.contains(text), "{text:?} is not in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("SECRET123"), "{}", ended.stdout);
    assert!(!bench.path("out").exists());
}

#[test]
fn plan_needs_no_worker_and_says_that_run_does() {
    let bench = Bench::new(0..10);
    let (input, out) = (bench.text_path("input.csv"), bench.text_path("out"));
    let flags =
        ["plan", "--input-path", &input, "--output-path", &out, "--num-workers", "4", "--gpus", "sim:8"];
    let ended = bench.call(&flags).code(0);
    assert!(ended.stdout.contains("--worker"), "{}", ended.stdout);
    assert!(!bench.path("out").exists());
}

#[test]
fn status_tells_of_a_live_run() {
    let bench = Bench::new(0..8);
    bench.behave("--hang-at 2");
    let run = bench.start(&bench.flags(2, &bench.switched()));
    bench.until_printed("Processed data_id 1\n", 1);
    let look = || -> Value {
        serde_json::from_str(&bench.on_out("status", &["--json"]).code(0).stdout).expect("one JSON document")
    };
    until_true("the second range is complete", || look()["ranges"][1]["state"] == "complete");
    let report = look();
    assert_eq!(
        (&report["alive"], &report["planned_ids"], &report["accepted_ids"]),
        (&json!(true), &json!(8), &json!(4))
    );
    let first = &report["ranges"][0];
    assert_eq!(
        (&first["range"], &first["state"], &first["rows_unjudged"]),
        (&json!("0_4"), &json!("running"), &json!(4))
    );
    let table = bench.on_out("status", &[]).code(0).stdout;
    assert!(table.contains("0_4") && table.contains("running") && table.contains("complete"), "{table}");
    run.signal(Signal::TERM);
    run.wait().code(143);
}

#[test]
fn status_tells_of_a_run_that_is_over() {
    let bench = Bench::new(0..8);
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(0);
    let report: Value =
        serde_json::from_str(&bench.on_out("status", &["--json"]).code(0).stdout).expect("JSON");
    assert_eq!(
        (&report["alive"], &report["accepted_ids"], &report["accepted_rows"]),
        (&json!(false), &json!(8), &json!(16))
    );
    assert_eq!(report["merge"]["complete"], json!(true));
    let table = bench.on_out("status", &[]).code(0).stdout;
    assert!(table.contains("no scheduler") && table.contains(MERGED), "{table}");
}

#[test]
fn merge_writes_a_partial_file_after_a_stop_and_a_final_one_after_the_end() {
    let bench = Bench::new(0..8);
    bench.behave("--hang-at 2");
    let run = bench.start(&bench.flags(2, &bench.switched()));
    bench.until_printed("Processed data_id 1\n", 1);
    bench.until_printed("Processed data_id 7\n", 1);
    run.signal(Signal::INT);
    run.wait().code(130);
    bench.on_out("merge", &[]).code(4);
    assert!(bench.out(PARTIAL).exists() && !bench.out(MERGED).exists());
    assert_eq!(bench.json("merge_summary.json")["complete"], json!(false));
    bench.behave("");
    bench.finish(&bench.flags(2, &bench.switched())).code(0);
    assert!(!bench.out(PARTIAL).exists());
    fs::remove_file(bench.out(MERGED)).expect("it was there");
    bench.on_out("merge", &[]).code(0);
    bench.assert_merged();
}

#[test]
fn merge_is_refused_while_a_scheduler_lives() {
    let bench = Bench::new(0..4);
    let worker = bench.scripted(&format!("--wait-for {}", bench.text_path("go")));
    let run = bench.start(&bench.flags(1, &worker));
    bench.until_printed("Waiting for", 1);
    bench.on_out("merge", &[]).refused(&[&format!("pid {}", run.pid()), "another scheduler"]);
    bench.write("go", "");
    run.wait().code(0);
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn no_secret_is_written_or_shown() {
    let bench = Bench::new(0..4);
    let worker = bench.scripted("--api-key SECRET123 --hf_token=SECRET123 --fail-first 1");
    let flags =
        [bench.flags(2, &worker), ["--", "--password", "SECRET123"].map(String::from).to_vec()].concat();
    let ended = bench.finish(&flags).code(0);
    assert!(!ended.stderr.contains("SECRET123") && !ended.stdout.contains("SECRET123"), "{}", ended.stderr);
    for file in files(&bench.path("out")) {
        let text = String::from_utf8_lossy(&fs::read(&file).expect("readable")).into_owned();
        assert!(!text.contains("SECRET123"), "{} holds a secret", file.display());
    }
}
