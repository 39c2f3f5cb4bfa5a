//! What a terminal that is gone, or a reader that has left, does to a run: nothing.

mod support;

use std::process::Command;
use support::Bench;

/// The write end of a pipe that nobody reads.
fn closed() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe").1
}

fn deaf(bench: &Bench, args: &[String]) -> Option<i32> {
    let mut command: Command = bench.command(env!("CARGO_BIN_EXE_auto-scheduler"));
    command.args(args).stdout(closed()).stderr(closed());
    command.status().expect("the program starts").code()
}

#[test]
fn a_run_outlives_its_terminal() {
    let bench = Bench::new(0..6);
    let worker = bench.scripted("--crash-at 4 --crash-times 1");
    assert_eq!(deaf(&bench, &bench.flags(2, &worker)), Some(0));
    bench.assert_merged();
}

#[test]
fn an_error_nobody_reads_keeps_its_exit_code() {
    let bench = Bench::new(0..6);
    bench.write("input.csv", "no_id\n1\n");
    assert_eq!(deaf(&bench, &bench.flags(2, "true")), Some(3));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let bench = Bench::new(0..6);
    bench.finish(&bench.flags(2, &bench.scripted(""))).code(0);
    assert_eq!(deaf(&bench, &["status".into(), bench.text_path("out")]), Some(0));
}
