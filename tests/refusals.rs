//! What is refused before anything starts: what, where, and a hint.

mod support;

use std::fs;
use std::path::Path;
use std::time::SystemTime;
use support::{Bench, MERGED};

fn refuses_input(text: &str, says: &[&str]) {
    let bench = Bench::new([]);
    bench.write("input.csv", text);
    let input = bench.text_path("input.csv");
    bench.finish(&bench.flags(2, &bench.scripted(""))).refused(&[says, &[&input]].concat());
    assert!(!bench.path("out").exists(), "a refused input leaves no folder behind");
}

#[test]
fn an_input_that_does_not_exist_is_refused() {
    let bench = Bench::new([]);
    fs::remove_file(bench.path("input.csv")).expect("it was there");
    let input = bench.text_path("input.csv");
    bench.finish(&bench.flags(2, &bench.scripted(""))).refused(&[&input, "No such file"]);
}

#[test]
fn an_input_that_is_a_folder_is_refused() {
    let bench = Bench::new([]);
    let flags =
        [bench.flags(2, &bench.scripted("")), vec!["--input-path".into(), bench.text_path("t")]].concat();
    bench.finish(&flags).refused(&[&bench.text_path("t")]);
}

#[test]
fn an_empty_input_is_refused() {
    refuses_input("", &["empty"]);
}

#[test]
fn an_input_with_a_header_alone_is_refused() {
    refuses_input("data_id,text\n", &["no records"]);
}

#[test]
fn an_input_without_a_data_id_column_is_refused_with_the_columns_it_has() {
    refuses_input("id,text\n1,x\n", &["data_id", "id, text"]);
}

#[test]
fn an_input_whose_data_id_is_no_integer_is_refused_with_its_line() {
    refuses_input("data_id,text\n1,\"x\ny\"\ntwo,z\n", &["\"two\"", "line 4", "not an integer"]);
}

#[test]
fn an_input_that_was_cut_off_is_refused() {
    refuses_input("data_id,text\n1,x\n2,\"half of", &["line 3", "cut off"]);
}

#[test]
fn an_output_folder_below_a_file_is_refused() {
    let bench = Bench::new(0..4);
    let below = bench.text_path("input.csv/out");
    let flags = [bench.flags(2, &bench.scripted("")), vec!["--output-path".into(), below.clone()]].concat();
    bench.finish(&flags).refused(&["cannot create", &below, "Not a directory"]);
}

#[test]
fn a_group_larger_than_the_machine_is_refused() {
    let bench = Bench::new(0..4);
    let flags =
        [bench.flags(2, &bench.scripted("")), ["--gpus_per_worker", "9"].map(String::from).to_vec()].concat();
    bench.finish(&flags).refused(&["9 GPUs", "8"]);
    assert!(bench.names("logs").is_empty());
}

#[test]
fn a_run_without_a_worker_is_refused_with_the_choices() {
    let bench = Bench::new(0..4);
    let flags = bench.flags(2, "");
    let (_, without) = flags.split_last().expect("flags");
    let (_, without) = without.split_last().expect("flags");
    bench.finish(without).refused(&["worker", "--worker"]);
    assert!(!bench.path("out").exists());
}

fn is_usage(more: &[&str], says: &[&str]) {
    let bench = Bench::new(0..4);
    let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
    let ended = bench.finish(&[bench.flags(2, &bench.scripted("")), more].concat()).code(2).says(says);
    assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
    assert!(!bench.path("out").exists());
}

#[test]
fn no_workers_at_all_are_a_usage_error() {
    is_usage(&["--num_workers", "0"], &["--num-workers", "0"]);
}

#[test]
fn a_flag_that_does_not_exist_is_a_usage_error() {
    is_usage(&["--num-wrokers", "2"], &["--num-wrokers"]);
}

#[test]
fn a_number_that_is_none_is_a_usage_error() {
    is_usage(&["--temperature", "warm"], &["--temperature", "warm"]);
}

#[test]
fn gpus_that_are_none_are_a_usage_error() {
    is_usage(&["--gpus", "sim:none"], &["--gpus", "sim:none"]);
}

#[test]
fn a_worker_with_an_open_quote_is_a_usage_error() {
    is_usage(&["--worker", "python3 'w.py"], &["--worker"]);
}

#[test]
fn a_negative_grace_is_a_usage_error() {
    is_usage(&["--grace=-5s"], &["--grace"]);
}

#[test]
fn a_missing_input_flag_is_a_usage_error() {
    let bench = Bench::new([]);
    bench.call(&["--num_workers", "2"]).code(2).says(&["--input-path", "Usage:"]);
}

#[test]
fn status_and_merge_of_a_folder_without_a_run_are_refused() {
    let bench = Bench::new([]);
    for subcommand in ["status", "merge"] {
        bench.on_out(subcommand, &[]).refused(&[&bench.text_path("out"), "plan.json"]);
        assert!(!bench.path("out").exists());
    }
}

/// A finished run of eight ids in two ranges, and the flags it was started with.
fn finished(bench: &Bench) -> Vec<String> {
    let flags = bench.flags(2, &bench.scripted(""));
    bench.finish(&flags).code(0);
    flags
}

fn and(flags: &[String], more: &[&str]) -> Vec<String> {
    flags.iter().cloned().chain(more.iter().map(|word| (*word).to_owned())).collect()
}

#[test]
fn another_sampling_parameter_is_refused_by_name() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    let ended = bench.finish(&and(&flags, &["--temperature", "0.5"]));
    ended.refused(&["--temperature", "0.0", "0.5", "--accept-changes"]);
    assert_eq!(bench.names("logs").len(), 2);
    bench.finish(&flags).code(0);
}

#[test]
fn another_worker_is_refused_by_name() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    bench.finish(&and(&flags, &["--worker", "python3 other.py"])).refused(&["--worker", "other.py"]);
}

#[test]
fn another_batch_size_is_the_same_job() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    let free =
        ["--batch_size", "4", "--gen_mem_fraction", "0.5", "--tp_size", "1", "--max_parallel_workers", "1"];
    bench.finish(&and(&flags, &free)).code(0);
    assert_eq!(bench.names("logs").len(), 2);
}

#[test]
fn accepted_changes_keep_what_is_done() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    bench.finish(&and(&flags, &["--temperature", "0.5", "--accept-changes"])).code(0);
    assert_eq!(bench.names("logs").len(), 2);
    // From now on this is the job of the folder.
    bench.finish(&and(&flags, &["--temperature", "0.5"])).code(0);
    bench.finish(&flags).refused(&["--temperature"]);
}

#[test]
fn a_changed_input_row_is_refused_by_its_id() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    let changed =
        fs::read_to_string(bench.path("input.csv")).expect("text").replace("text of 5", "text of V");
    bench.write("input.csv", &changed);
    bench.finish(&flags).refused(&["data_id 5", "changed"]);
    bench.finish(&and(&flags, &["--accept-changes"])).code(0);
}

#[test]
fn an_id_that_is_gone_from_the_input_is_refused_by_name() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    bench.write_input([0, 1, 2, 3, 4, 6, 7]);
    bench.finish(&flags).refused(&["no longer holds", "data_id 5"]);
    assert!(bench.out(MERGED).exists());
}

#[test]
fn an_id_that_is_new_between_finished_ones_is_refused_by_name() {
    let bench = Bench::new([0, 1, 2, 3, 4, 6, 7]);
    let flags = finished(&bench);
    bench.write_input(0..8);
    bench.finish(&flags).refused(&["data_id 5"]);
}

/// What a folder holds, with times.
fn listing(folder: &Path) -> Vec<(String, SystemTime, u64)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let meta = entry.metadata().expect("metadata");
            (entry.file_name().to_string_lossy().into_owned(), meta.modified().expect("a time"), meta.len())
        })
        .collect();
    found.sort();
    found
}

fn foreign_folder(bench: &Bench) {
    fs::create_dir(bench.path("out")).expect("a folder");
    bench.write("out/generation_results_data_0_to_4_real.csv", "data_id,token_id\n0,1\n");
}

#[test]
fn results_without_a_plan_are_refused() {
    let bench = Bench::new(0..8);
    foreign_folder(&bench);
    let ended = bench.finish(&bench.flags(2, &bench.scripted("")));
    ended.refused(&["generation_results_data_0_to_4_real.csv", "plan.json"]);
    assert!(bench.names("logs").is_empty());
    let own = listing(&bench.path("out"));
    assert!(own.iter().any(|(name, _, len)| name.ends_with("_0_to_4_real.csv") && *len == 21), "{own:?}");
}

#[test]
fn a_document_of_a_newer_version_is_refused() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    let plan =
        fs::read_to_string(bench.out("plan.json")).expect("text").replace("\"version\":1", "\"version\":99");
    fs::write(bench.out("plan.json"), plan).expect("it can be written");
    bench.finish(&flags).refused(&["plan.json", "99", "newer"]);
}

#[test]
fn a_plan_that_is_garbage_is_refused() {
    let bench = Bench::new(0..8);
    let flags = finished(&bench);
    fs::write(bench.out("plan.json"), "{\"version\": 1, ").expect("it can be written");
    bench.finish(&flags).refused(&["plan.json"]);
}

#[test]
fn a_refused_folder_is_not_touched() {
    let bench = Bench::new(0..8);
    foreign_folder(&bench);
    let before = listing(&bench.path("out"));
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(3);
    assert_eq!(listing(&bench.path("out")), before);
}

#[test]
fn plan_makes_no_folder_for_locks() {
    let bench = Bench::new(0..8);
    let locks = bench.text_path("gpu-locks");
    let flags =
        [vec!["plan".into()], bench.flags(2, ""), vec!["--worker".into(), bench.scripted("")]].concat();
    bench.finish(&and(&flags, &["--lock-dir", &locks])).code(0);
    assert!(!bench.path("gpu-locks").exists());
}

#[test]
fn a_usage_error_shows_no_secret() {
    let bench = Bench::new(0..4);
    let ended = bench.finish(&bench.flags(2, "python3 w.py --api-key SECRET123 'open")).code(2);
    assert!(!ended.stderr.contains("SECRET123"), "{}", ended.stderr);
}
