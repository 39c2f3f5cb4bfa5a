//! Whatever dies or misbehaves, no row is lost, doubled or foreign.

mod support;

use auto_scheduler::ports::{StateStore, StoreError};
use auto_scheduler::types::state::{ExitRecord, Live, RangeState, RangeStatus};
use auto_scheduler::types::{Attempt, RangeId};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use support::{Bench, Ended, MERGED, PARTIAL, Run, is_alive, send, until_true};

/// What a worker prints first, which tells what it was asked to do.
fn asked(low: i64, high: i64) -> String {
    format!(" samples of data_id [{low}, {high})")
}

fn with(mut flags: Vec<String>, more: &[&str]) -> Vec<String> {
    flags.extend(more.iter().map(|word| (*word).to_owned()));
    flags
}

/// Kills the scheduler as nothing can be prepared for.
fn kill(run: Run) -> Ended {
    run.signal(Signal::KILL);
    run.wait()
}

#[test]
fn a_crashed_worker_is_restarted_from_the_first_id_not_accepted() {
    let bench = Bench::new(0..20);
    bench
        .finish(&bench.flags(2, &bench.scripted("--crash-at 5 --crash-when before --crash-times 1")))
        .code(0);
    // Ids 0 to 4 are written; nothing proves that 4 is whole.
    assert!(bench.log("0_10", 2).contains(&asked(4, 10)), "{}", bench.log("0_10", 2));
    assert_eq!(bench.names("logs").len(), 3, "one log per started worker");
    bench.assert_merged();
}

#[test]
fn a_torn_record_of_a_new_id_proves_the_id_before_it() {
    let bench = Bench::new(0..20);
    bench.finish(&bench.flags(2, &bench.scripted("--crash-at 15 --crash-times 1"))).code(0);
    assert!(bench.log("10_20", 2).contains(&asked(15, 20)), "{}", bench.log("10_20", 2));
    bench.assert_merged();
}

#[test]
fn a_torn_tail_is_run_again() {
    let bench = Bench::new(0..20);
    bench.finish(&bench.flags(4, &bench.scripted("--torn-tail --only-first 1"))).code(0);
    assert_eq!(bench.names("logs").len(), 8);
    assert!(bench.log("0_5", 2).contains(&asked(4, 5)), "{}", bench.log("0_5", 2));
    bench.assert_merged();
}

#[test]
fn workers_that_die_everywhere_lose_and_double_nothing() {
    let bench = Bench::new((0..60).map(|id| id * 3 - 50));
    let flags = "--crash-at -50,-47,-20,-8,10,13,16,40,127 --crash-times 1 --crash-how segv";
    bench.finish(&bench.flags(5, &bench.scripted(flags))).code(0);
    bench.assert_merged();
}

#[test]
fn a_worker_that_crashes_after_its_last_row_is_not_run_again() {
    let bench = Bench::new(0..4);
    bench.finish(&bench.flags(1, &bench.scripted("--crash-at end --crash-how segv"))).code(0);
    assert_eq!(bench.names("logs").len(), 1);
    bench.assert_merged();
}

#[test]
fn a_last_record_without_newline_is_whole_after_a_clean_exit() {
    let bench = Bench::new(0..8);
    bench.finish(&bench.flags(1, &bench.scripted("--no-final-newline --no-full"))).code(0);
    let mut merged = fs::read(bench.out(MERGED)).expect("merged");
    // The temporary merge copies bytes; whether it ends the last line is not this test's business.
    if merged.last() != Some(&b'\n') {
        merged.push(b'\n');
    }
    assert!(merged == bench.expected(&bench.path("input.csv"), ""));
    assert_eq!(bench.names("logs").len(), 1);
}

#[test]
fn exit_0_after_a_stop_of_the_shim_is_not_taken_as_done() {
    let bench = Bench::new(0..10);
    bench.behave("--exit0-on-term --hang-at 4");
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Processed data_id 3\n", 1);
    bench.behave("");
    send(bench.shim("0_10"), Signal::TERM);
    run.wait().code(0);
    assert!(bench.log("0_10", 2).contains(&asked(3, 10)), "{}", bench.log("0_10", 2));
    bench.assert_merged();
}

#[test]
fn a_given_up_range_leaves_a_partial_file_and_a_summary_that_says_so() {
    let bench = Bench::new(0..12);
    bench.behave("--crash-at 4 --crash-when before --crash-how exit:7");
    let ended = bench.finish(&with(bench.flags(3, &bench.switched()), &["--max-failures", "2"])).code(4);
    assert!(ended.stdout.contains("INCOMPLETE"), "{}", ended.stdout);
    assert!(bench.out(PARTIAL).exists() && !bench.out(MERGED).exists());
    let summary = bench.json("merge_summary.json");
    assert_eq!((&summary["complete"], &summary["merged_file"]), (&json!(false), &json!(PARTIAL)));
    assert_eq!(summary["given_up"][0]["range"], json!({"low": 4, "high": 8}));
    let log = summary["given_up"][0]["log"].as_str().expect("a log");
    assert!(bench.out(log).exists() && ended.stdout.contains(log), "{log}");
    assert_eq!(bench.names("logs").len(), 4, "--max-failures 2 allows two starts of the bad range");
}

#[test]
fn the_same_command_completes_a_given_up_range_once_its_fault_is_gone() {
    let bench = Bench::new(0..12);
    bench.behave("--crash-at 4 --crash-when before");
    let flags = with(bench.flags(3, &bench.switched()), &["--max-failures", "2"]);
    bench.finish(&flags).code(4);
    bench.behave("");
    bench.finish(&flags).code(0);
    assert!(!bench.out(PARTIAL).exists());
    assert_eq!(bench.names("logs").len(), 5, "only what was missing is run");
    bench.assert_merged();
}

#[test]
fn a_worker_that_does_not_exist_stops_the_run_at_once() {
    let bench = Bench::new(0..32);
    let ended = bench.finish(&bench.flags(16, "/no/such/worker --flag")).code(6);
    let causes = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert_eq!(causes.len(), 1, "{causes:?}");
    assert!(causes[0].contains("/no/such/worker") && causes[0].contains("127"), "{}", causes[0]);
    assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
    assert!(bench.names("logs").len() <= 8, "{} starts", bench.names("logs").len());
}

#[test]
fn a_worker_whose_configuration_cannot_work_stops_the_run_and_can_be_mended() {
    let bench = Bench::new(0..32);
    bench.behave("--crash-at start --crash-how exit:78 --last-words no-such-model");
    let ended = bench.finish(&bench.flags(16, &bench.switched())).code(6);
    assert!(ended.says(&["no-such-model"]).stdout.is_empty());
    assert!(bench.names("logs").len() <= 8, "{} starts", bench.names("logs").len());
    bench.behave("");
    bench.finish(&bench.flags(16, &bench.switched())).code(0);
    bench.assert_merged();
}

#[test]
fn rows_of_a_worker_that_swallowed_an_error_are_rejected_even_after_exit_0() {
    let bench = Bench::new(0..8);
    bench.behave("--swallow-error-at 2");
    let flags = with(bench.flags(2, &bench.switched()), &["--max-failures", "2"]);
    bench.finish(&flags).code(4);
    let missing = bench.json("merge_summary.json")["given_up"][0].clone();
    assert_eq!(missing["range"], json!({"low": 0, "high": 4}));
    assert!(
        missing["reason"].as_str().expect("a reason").contains("Error during batch generation"),
        "{missing}"
    );
    bench.behave("");
    bench.finish(&flags).code(0);
    bench.assert_merged();
}

#[test]
fn rows_of_ids_that_were_not_asked_for_are_rejected() {
    let bench = Bench::new(0..8);
    bench.finish(&bench.flags(2, &bench.scripted("--foreign-id 7 --only-first 1"))).code(0);
    // 7 is the second range's own, which comes back to it: all of its rows are there, and it exited 0.
    assert_eq!(bench.log("0_4", 2).matches(&asked(0, 4)).count(), 1, "{}", bench.log("0_4", 2));
    let text = String::from_utf8_lossy(
        &fs::read(bench.out("generation_results_data_0_to_4_real.csv")).expect("rows"),
    )
    .into_owned();
    assert!(!text.lines().any(|line| line.starts_with("7,")), "{text}");
}

#[test]
fn one_line_of_a_mebibyte_does_not_block_a_quiet_run() {
    let bench = Bench::new(0..4);
    let flags = with(bench.flags(2, &bench.scripted("--flood-line 1M")), &["--quiet"]);
    bench.finish(&flags).code(0);
    assert!(bench.log("0_2", 1).len() > 1 << 20);
    bench.assert_merged();
}

#[test]
fn a_flood_of_output_does_not_block_a_run_that_shows_it() {
    let bench = Bench::new(0..4);
    let flags = "--flood 2M --flood-cr 100K --flood-binary 100K";
    bench.finish(&bench.flags(2, &bench.scripted(flags))).code(0).says(&["[Worker 0-2] Processed data_id 1"]);
    bench.assert_merged();
}

#[test]
fn a_log_stays_within_its_cap_with_head_and_tail() {
    let bench = Bench::new(0..4);
    let flags = with(bench.flags(1, &bench.scripted("--print-env --flood 2M")), &["--log-cap", "64KiB"]);
    bench.finish(&flags).code(0);
    let log = bench.log("0_4", 1);
    assert!(log.len() <= 64 << 10, "{} bytes", log.len());
    assert!(log.contains("R2R_WORKER_RANGE=0_4") && log.contains("Processed data_id 3"), "{log}");
    let record = bench.json("attempts/0_4.1.exit.json");
    assert!(record["cut_bytes"].as_u64() > Some(1 << 20), "{record}");
}

#[test]
fn what_a_worker_leaves_running_is_gone_when_its_attempt_ends() {
    let bench = Bench::new(0..4);
    let flags = format!("--grandchild --grandchild-ignores-term --pid-file {}", bench.text_path("pids"));
    bench.finish(&bench.flags(1, &bench.scripted(&flags))).code(0);
    assert_eq!(bench.pids("grandchild").len(), 1);
    assert!(!is_alive(bench.pids("grandchild")[0]));
    bench.assert_merged();
}

#[test]
fn what_a_crashed_worker_leaves_running_is_gone_before_the_next_attempt() {
    let bench = Bench::new(0..4);
    let go = bench.text_path("go");
    let first =
        format!("--grandchild --grandchild-ignores-term --pid-file {} --crash-at 1", bench.text_path("pids"));
    bench.behave(&first);
    let run = bench.start(&bench.flags(1, &bench.switched()));
    until_true("there is a grandchild", || bench.pids("grandchild").len() == 1);
    bench.behave(&format!("--wait-for {go}"));
    bench.until_printed("Waiting for", 1);
    assert!(!is_alive(bench.pids("grandchild")[0]));
    bench.write("go", "");
    run.wait().code(0);
    bench.assert_merged();
}

#[test]
fn a_killed_shim_takes_its_worker_along_and_the_range_is_run_again() {
    let bench = Bench::new(0..10);
    bench.behave(&format!("--hang-at 4 --ignore-term --pid-file {}", bench.text_path("pids")));
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Processed data_id 3\n", 1);
    let first = bench.pids("worker")[0];
    bench.behave("");
    send(bench.shim("0_10"), Signal::KILL);
    run.wait().code(0);
    assert!(!is_alive(first));
    assert!(bench.log("0_10", 2).contains(&asked(3, 10)), "{}", bench.log("0_10", 2));
    bench.assert_merged();
}

/// Leaves a process in its session, then goes on as the scripted worker.
const WITH_HELPER: &str =
    "sleep 3600 &\necho helper $! helper >> PIDS\nexec python3 SCRIPT $(cat FLAGS) \"$@\"\n";

#[test]
fn a_killed_shim_leaves_no_helper_of_its_worker_behind() {
    let bench = Bench::new(0..10);
    let pids = bench.text_path("pids");
    let texts = [("PIDS", &pids), ("SCRIPT", &support::script()), ("FLAGS", &bench.text_path("flags"))];
    bench.write(
        "worker.sh",
        &texts.iter().fold(WITH_HELPER.to_owned(), |text, (from, to)| text.replace(from, to)),
    );
    bench.behave("--hang-at 4");
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Processed data_id 3\n", 1);
    let helper = bench.pids("helper")[0];
    assert!(is_alive(helper));
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    send(bench.shim("0_10"), Signal::KILL);
    bench.until_printed("Waiting for", 1);
    assert!(!is_alive(helper));
    bench.write("go", "");
    run.wait().code(0);
    bench.assert_merged();
}

/// Starts four ranges of ten ids that hang in their midst, and kills the scheduler there.
fn killed_midway(bench: &Bench) -> Vec<i32> {
    bench.behave(&format!("--hang-at 3,14,25,36 --pid-file {}", bench.text_path("pids")));
    let run = bench.start(&bench.flags(4, &bench.switched()));
    for id in [2, 13, 24, 35] {
        bench.until_printed(&format!("Processed data_id {id}\n"), 1);
    }
    kill(run);
    bench.behave("");
    bench.pids("worker")
}

#[test]
fn after_a_killed_scheduler_the_same_command_ends_what_is_left_and_completes() {
    let bench = Bench::new(0..40);
    let orphans = killed_midway(&bench);
    assert_eq!(orphans.iter().filter(|pid| is_alive(**pid)).count(), 4, "workers outlive their scheduler");
    bench.finish(&bench.flags(4, &bench.switched())).code(0);
    assert!(!orphans.into_iter().any(is_alive));
    assert!(bench.log("10_20", 2).contains(&asked(13, 20)), "{}", bench.log("10_20", 2));
    assert_eq!(bench.names("logs").len(), 8);
    bench.assert_merged();
}

#[test]
fn after_a_killed_scheduler_another_number_of_workers_completes_too() {
    let bench = Bench::new(0..40);
    let orphans = killed_midway(&bench);
    bench.finish(&bench.flags(7, &bench.switched())).code(0);
    assert!(!orphans.into_iter().any(is_alive));
    bench.assert_merged();
}

#[test]
fn after_a_killed_scheduler_merge_is_honest_about_what_still_runs() {
    let bench = Bench::new(0..40);
    killed_midway(&bench);
    let ended = bench.on_out("merge", &[]).code(4).says(&["its worker is still running"]);
    assert!(ended.stdout.contains("its worker is still running"), "{}", ended.stdout);
    assert_eq!(bench.json("merge_summary.json")["complete"], json!(false));
    bench.finish(&bench.flags(4, &bench.switched())).code(0);
    bench.assert_merged();
}

#[test]
fn status_calls_a_worker_without_scheduler_orphaned() {
    let bench = Bench::new(0..40);
    killed_midway(&bench);
    let report: Value =
        serde_json::from_str(&bench.on_out("status", &["--json"]).code(0).stdout).expect("JSON");
    assert_eq!((&report["alive"], &report["ranges"][0]["state"]), (&json!(false), &json!("orphaned")));
    bench.finish(&bench.flags(4, &bench.switched())).code(0);
}

#[test]
fn a_killed_scheduler_and_killed_shims_lose_nothing() {
    let bench = Bench::new(0..40);
    bench.behave(&format!("--hang-at 3,14,25,36 --pid-file {}", bench.text_path("pids")));
    let run = bench.start(&bench.flags(4, &bench.switched()));
    for id in [2, 13, 24, 35] {
        bench.until_printed(&format!("Processed data_id {id}\n"), 1);
    }
    kill(run);
    for range in ["0_10", "10_20", "20_30", "30_40"] {
        send(bench.shim(range), Signal::KILL);
    }
    until_true("the workers die with their shims", || !bench.pids("worker").into_iter().any(is_alive));
    bench.behave("");
    bench.finish(&bench.flags(4, &bench.switched())).code(0);
    bench.assert_merged();
}

#[test]
fn workers_without_a_scheduler_end_after_their_grace() {
    let bench = Bench::new(0..10);
    bench.behave(&format!("--hang-at 3 --pid-file {}", bench.text_path("pids")));
    let flags = with(bench.flags(1, &bench.switched()), &["--orphan-grace", "100ms"]);
    let run = bench.start(&flags);
    bench.until_printed("Processed data_id 2\n", 1);
    kill(run);
    until_true("nothing is left", || bench.left_over().is_empty());
    bench.behave("");
    bench.finish(&flags).code(0);
    assert!(bench.log("0_10", 2).contains(&asked(2, 10)), "{}", bench.log("0_10", 2));
    bench.assert_merged();
}

#[test]
fn a_second_scheduler_of_a_folder_is_refused_and_told_who_works_there() {
    let bench = Bench::new(0..4);
    let worker = bench.scripted(&format!("--wait-for {}", bench.text_path("go")));
    let run = bench.start(&bench.flags(1, &worker));
    bench.until_printed("Waiting for", 1);
    bench.finish(&bench.flags(1, &worker)).refused(&[&format!("pid {}", run.pid()), "another scheduler"]);
    bench.write("go", "");
    run.wait().code(0);
    assert_eq!(bench.names("logs").len(), 1);
    bench.assert_merged();
}

/// A run in another folder that shares the GPU locks of the first, two GPUs in all.
fn neighbour(bench: &Bench, out: &str, worker: &str) -> Vec<String> {
    let (out, locks) = (bench.text_path(out), bench.text_path("gpu-locks"));
    with(bench.flags(2, worker), &["--output-path", &out, "--gpus", "sim:2", "--lock-dir", &locks])
}

#[test]
fn schedulers_that_share_gpu_locks_wait_for_each_other() {
    let bench = Bench::new(0..8);
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    let first = bench.start(&neighbour(&bench, "out", &bench.switched()));
    bench.until_printed("Waiting for", 1);
    let second = bench.start(&neighbour(&bench, "out2", &bench.switched()));
    second.until_said("Nothing runs; range [");
    assert_eq!(fs::read_dir(bench.path("out2/logs")).expect("logs").count(), 0);
    bench.write("go", "");
    first.wait().code(0);
    second.wait().code(0);
    bench.assert_merged();
    assert!(fs::read(bench.path("out2").join(MERGED)).ok() == fs::read(bench.out(MERGED)).ok());
}

#[test]
fn waiting_for_gpus_ends_with_wait_timeout_and_can_be_resumed() {
    let bench = Bench::new(0..8);
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    let first = bench.start(&neighbour(&bench, "out", &bench.switched()));
    bench.until_printed("Waiting for", 1);
    let flags = neighbour(&bench, "out2", &bench.switched());
    bench.finish(&with(flags.clone(), &["--wait-timeout", "1s"])).code(75);
    bench.write("go", "");
    first.wait().code(0);
    bench.finish(&flags).code(0);
    bench.assert_merged();
    assert!(fs::read(bench.path("out2").join(MERGED)).ok() == fs::read(bench.out(MERGED)).ok());
}

#[test]
fn a_worker_inherits_nothing_but_its_three_streams() {
    let bench = Bench::new(0..4);
    bench.write("worker.sh", "ls -l /proc/$$/fd\n");
    bench.finish(&bench.flags(1, &bench.switched())).code(0);
    let log = bench.log("0_4", 1);
    let held: Vec<&str> = log.lines().filter(|line| line.contains(".lock")).collect();
    assert!(held.is_empty(), "{log}");
}

#[test]
fn a_range_whose_state_file_is_gone_is_run_again() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    fs::remove_file(bench.out("worker_args_0_4.json")).expect("it was there");
    bench.finish(&flags).code(0);
    assert!(bench.log("0_4", 2).contains(&asked(0, 4)));
    bench.assert_merged();
}

#[test]
fn a_complete_range_whose_result_file_is_gone_is_run_again() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    fs::remove_file(bench.out("generation_results_data_4_to_8_real.csv")).expect("it was there");
    bench.finish(&flags).code(0);
    assert_eq!(bench.names("logs").len(), 3);
    bench.assert_merged();
}

#[test]
fn of_schedulers_that_race_for_one_folder_one_wins_and_the_others_are_refused() {
    let bench = Bench::new(0..8);
    let worker = bench.scripted(&format!("--wait-for {}", bench.text_path("go")));
    let runs: Vec<Run> = (0..6).map(|_| bench.start(&bench.flags(2, &worker))).collect();
    until_true("one is left", || runs.iter().filter(|run| is_alive(run.pid())).count() == 1);
    bench.until_printed("Waiting for", 2);
    bench.write("go", "");
    let (winner, losers): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(|run| is_alive(run.pid()));
    for loser in losers {
        loser.wait().refused(&["another scheduler"]);
    }
    for run in winner {
        run.wait().code(0);
    }
    assert_eq!(bench.names("logs").len(), 2);
    bench.assert_merged();
}

/// Has the two GPUs to itself, or says so.
const ALONE: &str = "mkdir BUSY || echo two workers on the same GPUs\n\
                     python3 SCRIPT \"$@\" --delay-per-id 20ms\nrmdir BUSY\n";

#[test]
fn schedulers_that_race_for_gpus_never_hold_the_same_ones() {
    let bench = Bench::new(0..6);
    let text = ALONE.replace("BUSY", &bench.text_path("busy"));
    bench.write("worker.sh", &text.replace("SCRIPT", &support::script()));
    let outs = ["out", "out1", "out2", "out3"];
    let runs: Vec<Run> =
        outs.iter().map(|out| bench.start(&neighbour(&bench, out, &bench.switched()))).collect();
    for run in runs {
        let ended = run.wait().code(0);
        assert!(!ended.stderr.contains("two workers on the same GPUs"), "{}", ended.stderr);
    }
    bench.assert_merged();
    for out in outs {
        assert!(fs::read(bench.path(out).join(MERGED)).ok() == fs::read(bench.out(MERGED)).ok());
    }
}

#[test]
fn a_scheduler_collects_neither_zombies_nor_open_files() {
    let bench = Bench::new(0..60);
    let worker = bench.scripted(&format!(
        "--wait-for {} --wait-at 59 --crash-at 7,8,9 --crash-times 1",
        bench.text_path("go")
    ));
    let run = bench.start(&bench.flags(60, &worker));
    until_true("one range is left", || run.stderr().contains("59/60 completed"));
    bench.until_printed("Waiting for", 1);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid())).unwrap_or_default();
    let files = fs::read_dir(format!("/proc/{}/fd", run.pid())).expect("its files").count();
    assert!(children.split_whitespace().count() <= 1, "children: {children}");
    assert!(files < 40, "{files} files are open after 63 workers");
    bench.write("go", "");
    run.wait().code(0);
    bench.assert_merged();
}

/// Leaves a link where the result file is expected.
const LINKING: &str = "python3 SCRIPT \"$@\"\nfor o; do [ \"$last\" = --output_path ] && cd $o; last=$o; done\n\
                       for f in *_real.csv; do mv $f elsewhere; ln -s elsewhere $f; done; rm *_full.csv\n";

#[test]
fn a_link_in_place_of_the_result_file_is_not_taken_for_a_result() {
    let bench = Bench::new(0..8);
    bench.write("worker.sh", &LINKING.replace("SCRIPT", &support::script()));
    bench.finish(&with(bench.flags(2, &bench.switched()), &["--max-failures", "2"])).code(4);
}

#[test]
fn the_ids_that_a_given_up_range_misses_are_listed() {
    let bench = Bench::new(0..12);
    let worker = bench.scripted("--crash-at 5 --crash-when before");
    let ended = bench.finish(&with(bench.flags(3, &worker), &["--max-failures", "2"])).code(4);
    let summary = bench.json("merge_summary.json");
    assert_eq!(summary["given_up"][0]["missing_ids"], json!([4, 5, 6, 7]));
    assert!(ended.stdout.contains("8 of 12 accounted for"), "{}", ended.stdout);
}

#[test]
fn a_killed_shim_leaves_nothing_behind_that_left_its_session_and_environment() {
    let bench = Bench::new(0..10);
    bench.behave(&format!("--hang-at 4 --grandchild --pid-file {}", bench.text_path("pids")));
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Processed data_id 3\n", 1);
    bench.behave("");
    send(bench.shim("0_10"), Signal::KILL);
    run.wait().code(0);
    bench.assert_merged();
    assert!(!is_alive(bench.pids("grandchild")[0]));
}

#[test]
fn a_process_that_got_a_dead_shims_pid_is_left_alone() {
    let bench = Bench::new(0..10);
    bench.behave("--hang-at 4");
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Processed data_id 3\n", 1);
    let shim = bench.shim("0_10");
    kill(run);
    send(shim, Signal::KILL);
    until_true("the worker dies with its shim", || bench.left_over().is_empty());
    // Somebody else's session leader, under the pid that the shim had.
    let mut stranger =
        std::process::Command::new("setsid").args(["sleep", "600"]).spawn().expect("it starts");
    let lock = bench.out("locks/0_10.lock");
    let mut holder = bench.json("locks/0_10.lock");
    holder["pid"] = json!(stranger.id());
    fs::write(&lock, holder.to_string()).expect("a lock's text");
    bench.behave("");
    let ended = bench.finish(&bench.flags(1, &bench.switched()));
    let fate = stranger.try_wait().expect("our own child");
    let _ = stranger.kill();
    let _ = stranger.wait();
    ended.code(0);
    assert!(fate.is_none(), "a stranger was killed: {fate:?}");
    bench.assert_merged();
}

#[test]
fn a_range_is_let_go_only_after_the_exit_record_is_written() {
    let bench = Bench::new(0..4);
    // A folder for temporary files that takes a while to remove makes the moment long enough to be seen.
    let fill = "for i in $(seq 40); do mkdir $TMPDIR/$i; (cd $TMPDIR/$i; seq 500 | xargs touch); done\n";
    let text = fs::read_to_string(bench.path("worker.sh")).expect("a worker");
    bench.write("worker.sh", &format!("{fill}{text}"));
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    let run = bench.start(&bench.flags(1, &bench.switched()));
    bench.until_printed("Waiting for", 1);
    let lock = fs::File::open(bench.out("locks/0_4.lock")).expect("a lock");
    assert!(lock.try_lock_shared().is_err(), "a running worker's range is held");
    bench.write("go", "");
    until_true("the range is free", || lock.try_lock_shared().is_ok());
    let written = bench.out("attempts/0_4.1.exit.json").exists();
    drop(lock);
    run.wait().code(0);
    assert!(written, "a new scheduler would have judged the attempt without its record");
}

/// Fails to save a complete range once, as a disk that is full for a moment does.
struct ForgetfulStore {
    inner: auto_scheduler::os::state_store::FolderStore,
    failed: std::sync::atomic::AtomicBool,
}

impl StateStore for ForgetfulStore {
    fn save(&self, state: &RangeState) -> Result<(), StoreError> {
        let complete = state.status == RangeStatus::Complete;
        if complete && !self.failed.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Err(StoreError::Data("no space left".into()));
        }
        self.inner.save(state)
    }

    fn load_all(&self) -> Result<Vec<RangeState>, StoreError> {
        self.inner.load_all()
    }

    fn save_live(&self, live: &Live) -> Result<(), StoreError> {
        self.inner.save_live(live)
    }

    fn exit_record(&self, range: RangeId, attempt: Attempt) -> Result<Option<ExitRecord>, StoreError> {
        self.inner.exit_record(range, attempt)
    }

    fn last_output(&self, range: RangeId, attempt: Attempt) -> Option<String> {
        self.inner.last_output(range, attempt)
    }
}

#[test]
fn a_verdict_that_could_not_be_written_is_reached_again_with_all_rows() {
    use auto_scheduler::{os, settle, types};
    let bench = Bench::new(0..4);
    // A finished attempt whose scheduler died before it looked.
    let worker = bench.scripted(&format!("--wait-for {}", bench.text_path("go")));
    let run = bench.start(&bench.flags(1, &worker));
    bench.until_printed("Waiting for", 1);
    kill(run);
    bench.write("go", "");
    until_true("the attempt has ended", || bench.left_over().is_empty());
    let layout = types::layout::Layout::new(bench.path("out"));
    let store =
        ForgetfulStore { inner: os::state_store::FolderStore::new(layout.clone()), failed: false.into() };
    let outputs = os::outputs::FolderOutputs::new(layout.clone());
    let sweeper = os::local::LocalSweeper::new(layout);
    let world = settle::World { store: &store, outputs: &outputs, sweeper: &sweeper };
    let mut state = store.inner.load_all().expect("states").remove(0);
    let ids = [0, 1, 2, 3];
    // As a range's actor does it: the same state again, until it works.
    assert!(settle::settle(world, &mut state, &ids, false).is_err());
    let failure = settle::settle(world, &mut state, &ids, false).expect("now there is room");
    assert_eq!((failure, state.accepted_rows()), (None, 8), "{state:?}");
}

#[test]
fn a_run_goes_on_when_nobody_reads_its_stderr_any_more() {
    let bench = Bench::new(0..8);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = bench.command(env!("CARGO_BIN_EXE_auto-scheduler"));
    command.args(bench.flags(2, &bench.scripted(""))).stderr(writer).stdout(std::process::Stdio::null());
    let status = command.status().expect("it starts");
    assert_eq!(status.code(), Some(0), "{status}");
    bench.assert_merged();
}

#[test]
fn a_run_goes_on_when_its_terminal_does_not_take_any_more() {
    let bench = Bench::new(0..8);
    // Nobody reads, and nobody closes: a terminal after Ctrl-S.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = bench.command(env!("CARGO_BIN_EXE_auto-scheduler"));
    command
        .args(bench.flags(2, &bench.scripted("--flood 1M")))
        .stderr(writer)
        .stdout(std::process::Stdio::null());
    let mut child = command.spawn().expect("it starts");
    drop(command);
    until_true("it ends", || child.try_wait().expect("our own child").is_some());
    drop(reader);
    bench.assert_merged();
}

#[test]
fn a_run_whose_stdout_is_closed_ends_with_its_own_exit_code() {
    let bench = Bench::new(0..8);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = bench.command(env!("CARGO_BIN_EXE_auto-scheduler"));
    command.args(bench.flags(2, &bench.scripted(""))).stdout(writer).stderr(std::process::Stdio::null());
    let status = command.status().expect("it starts");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn a_plan_that_is_gone_is_made_again_from_the_states() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    fs::remove_file(bench.out("plan.json")).expect("it was there");
    bench.finish(&flags).code(0);
    bench.assert_merged();
}

#[test]
fn a_result_file_lost_after_two_other_cuts_is_run_again() {
    let bench = Bench::new(0..20);
    bench.behave("--hang-at 5,15");
    let run = bench.start(&bench.flags(2, &bench.switched()));
    for id in [4, 14] {
        bench.until_printed(&format!("Processed data_id {id}\n"), 1);
    }
    run.signal(Signal::INT);
    run.wait().code(130);
    bench.behave("");
    bench.finish(&bench.flags(3, &bench.switched())).code(0);
    fs::remove_file(bench.out("generation_results_data_0_to_4_real.csv"))
        .expect("what was accepted before the stop");
    bench.finish(&bench.flags(5, &bench.switched())).code(0);
    bench.assert_merged();
}

#[test]
fn a_result_file_that_was_changed_is_noticed_and_its_range_run_again() {
    let bench = Bench::new(0..8);
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    let path = bench.out("generation_results_data_0_to_4_real.csv");
    let mut bytes = fs::read(&path).expect("a result");
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("it can be changed");
    fs::remove_file(bench.out(support::MERGED)).expect("a merged file");
    let refused = bench.on_out("merge", &[]).code(5);
    refused.says(&[
        "generation_results_data_0_to_4_real.csv",
        "was changed since its rows were accepted",
        "hint: ",
    ]);
    bench.finish(&flags).code(0).says(&["was changed; its ids are run again"]);
    assert_eq!(bench.names("logs").len(), 3, "only the changed range runs again");
    bench.assert_merged();
}

#[test]
fn accepted_rows_that_do_not_make_one_file_are_done_again() {
    let bench = Bench::new(0..8);
    // The first attempt's rows stand under another header than those of the second.
    let worker = bench.scripted("--wrong-header --only-first 1 --crash-at 5 --crash-times 1");
    let ended = bench.finish(&bench.flags(1, &worker)).code(0);
    ended.says(&["contract breach", "do not make one file"]);
    bench.assert_merged();
}

#[test]
fn an_attempt_folder_deleted_under_a_live_run_costs_only_its_rows() {
    let bench = Bench::new(0..8);
    let go = bench.text_path("go");
    let worker = bench.scripted(&format!("--crash-at 4 --crash-times 1 --wait-for {go} --wait-at 6"));
    let run = bench.start(&bench.flags(1, &worker));
    bench.until_printed("Waiting for", 1);
    fs::remove_dir_all(bench.out("attempts/0_8.1")).expect("a folder to delete");
    bench.write("go", "");
    run.wait().code(0);
    bench.assert_merged();
}

#[test]
fn a_worker_mistyped_at_first_may_be_corrected() {
    let bench = Bench::new(0..8);
    bench.finish(&bench.flags(2, "python3 /nowhere/nothing.py")).code(6);
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(0);
    bench.assert_merged();
}

#[test]
fn merge_completes_a_range_whose_file_was_moved_before_that_was_written_down() {
    let bench = Bench::new(0..4);
    bench.finish(&bench.flags(1, &bench.scripted(""))).code(0);
    let (state, result) = ("worker_args_0_4.json", "generation_results_data_0_to_4_real.csv");
    let mut document = bench.json(state);
    document["status"] = json!("running");
    document["pieces"][0]["file"] = json!(format!("attempts/0_4.1/{result}"));
    fs::write(bench.out(state), document.to_string()).expect("a state");
    fs::remove_file(bench.out(support::MERGED)).expect("a merged file");
    bench.on_out("merge", &[]).code(0);
    bench.assert_merged();
}

#[test]
fn status_counts_nothing_of_a_range_whose_state_is_gone() {
    let bench = Bench::new(0..8);
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(0);
    fs::remove_file(bench.out("worker_args_0_4.json")).expect("a state");
    let status: Value =
        serde_json::from_str(&bench.on_out("status", &["--json"]).code(0).stdout).expect("a document");
    assert_eq!((&status["accepted_ids"], &status["ranges"][0]["range"]), (&json!(4), &json!("0_4")));
}
