//! How a run is stopped, what is left then (nothing), and how it goes on.

mod support;

use rustix::process::Signal;
use support::{Bench, Run, is_alive, until_true};

/// Two ranges, of which the first hangs at its third id and the second waits in the queue.
fn hanging(bench: &Bench, more: &str) -> Run {
    bench.behave(&format!("--hang-at 2 --pid-file {} {more}", bench.text_path("pids")));
    let run = bench.start(&flags(bench));
    bench.until_printed("Processed data_id 1\n", 1);
    run
}

fn flags(bench: &Bench) -> Vec<String> {
    let one_at_a_time = ["--max-parallel-workers".into(), "1".into()].to_vec();
    [bench.flags(2, &bench.switched()), one_at_a_time].concat()
}

/// The same command again, without the fault.
fn resume(bench: &Bench) {
    bench.behave("");
    bench.finish(&flags(bench)).code(0);
    bench.assert_merged();
}

fn stops_with(signal: Signal, code: i32) {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "");
    run.signal(signal);
    let ended = run.wait().code(code);
    assert!(
        ended.stdout.contains("STOPPED") && ended.stdout.contains("goes on from here"),
        "{}",
        ended.stdout
    );
    assert!(bench.left_over().is_empty());
    assert_eq!(bench.names("logs").len(), 1, "nothing is started after a stop");
    resume(&bench);
    assert!(bench.log("0_5", 2).contains("data_id [1, 5)"), "{}", bench.log("0_5", 2));
}

#[test]
fn an_interrupt_stops_with_130_and_the_same_command_goes_on() {
    stops_with(Signal::INT, 130);
}

#[test]
fn a_termination_stops_with_143_and_the_same_command_goes_on() {
    stops_with(Signal::TERM, 143);
}

#[test]
fn a_hang_up_stops_with_129_and_the_same_command_goes_on() {
    stops_with(Signal::HUP, 129);
}

#[test]
fn exit_0_after_a_stop_is_not_taken_as_done() {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "--exit0-on-term");
    run.signal(Signal::INT);
    run.wait().code(130);
    resume(&bench);
}

/// The program started by a shell that ignores a signal, as nohup and `&` do.
fn ignoring(bench: &Bench, signal: &str) -> Run {
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    let mut command = bench.command("sh");
    command.args([
        "-c",
        &format!("trap '' {signal}; exec \"$@\""),
        "sh",
        env!("CARGO_BIN_EXE_auto-scheduler"),
    ]);
    command.args(flags(bench));
    let run = bench.spawn(command);
    bench.until_printed("Waiting for", 1);
    run
}

#[test]
fn a_hang_up_that_was_ignored_at_the_start_stays_ignored() {
    let bench = Bench::new(0..10);
    let run = ignoring(&bench, "HUP");
    run.signal(Signal::HUP);
    bench.write("go", "");
    let ended = run.wait().code(0);
    assert!(!ended.stderr.contains("stop requested"), "{}", ended.stderr);
    bench.assert_merged();
}

#[test]
fn an_interrupt_that_was_ignored_at_the_start_stops_all_the_same() {
    let bench = Bench::new(0..10);
    let run = ignoring(&bench, "INT");
    run.signal(Signal::INT);
    run.wait().code(130);
    resume(&bench);
}

#[test]
fn a_worker_that_ignores_termination_is_killed_after_its_grace() {
    let bench = Bench::new(0..10);
    bench.behave(&format!("--hang-at 2 --ignore-term --pid-file {}", bench.text_path("pids")));
    let run = bench.start(&[flags(&bench), vec!["--grace".into(), "200ms".into()]].concat());
    bench.until_printed("Processed data_id 1\n", 1);
    run.signal(Signal::INT);
    run.wait().code(130);
    assert!(!is_alive(bench.pids("worker")[0]));
    assert_eq!(bench.json("attempts/0_5.1.exit.json")["told_to_stop"], serde_json::json!(true));
    resume(&bench);
}

#[test]
fn a_second_interrupt_kills_at_once() {
    let bench = Bench::new(0..10);
    bench.behave(&format!("--hang-at 2 --ignore-term --pid-file {}", bench.text_path("pids")));
    // Far beyond the deadline of every wait in these tests.
    let run = bench.start(&[flags(&bench), vec!["--grace".into(), "1h".into()]].concat());
    bench.until_printed("Processed data_id 1\n", 1);
    run.signal(Signal::INT);
    run.until_said("stop requested");
    assert!(is_alive(bench.pids("worker")[0]));
    run.signal(Signal::INT);
    run.wait().code(130);
    assert!(!is_alive(bench.pids("worker")[0]));
    resume(&bench);
}

#[test]
fn the_first_stop_request_decides_the_exit_code() {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "--ignore-term");
    run.signal(Signal::TERM);
    run.until_said("stop requested");
    run.signal(Signal::INT);
    run.wait().code(143);
    resume(&bench);
}

#[test]
fn what_a_worker_left_in_a_session_of_its_own_is_gone_after_a_stop() {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "--grandchild --grandchild-ignores-term");
    until_true("there is a grandchild", || bench.pids("grandchild").len() == 1);
    run.signal(Signal::INT);
    run.wait().code(130);
    assert!(!is_alive(bench.pids("grandchild")[0]));
    resume(&bench);
}

#[test]
fn a_stop_while_a_restart_is_waited_for_ends_the_run() {
    let bench = Bench::new(0..10);
    bench.behave("--crash-at 2");
    let run = bench.start(
        &[flags(&bench), ["--backoff-base", "1h", "--backoff-cap", "1h"].map(String::from).to_vec()].concat(),
    );
    bench.until_printed("Processed data_id 9\n", 1);
    run.until_said("Worker [5, 10) completed");
    run.signal(Signal::INT);
    run.wait().code(130);
    resume(&bench);
}

#[test]
fn a_stop_while_gpus_are_waited_for_ends_the_run() {
    let bench = Bench::new(0..10);
    let locks = bench.text_path("gpu-locks");
    let shared = ["--gpus", "sim:2", "--lock-dir", &locks].map(String::from).to_vec();
    bench.behave(&format!("--wait-for {}", bench.text_path("go")));
    let first = bench.start(&[flags(&bench), shared.clone()].concat());
    bench.until_printed("Waiting for", 1);
    let other = ["--output-path".into(), bench.text_path("out2")].to_vec();
    let second = bench.start(&[flags(&bench), shared, other].concat());
    second.until_said("Nothing runs; range [");
    second.signal(Signal::TERM);
    second.wait().code(143);
    bench.write("go", "");
    first.wait().code(0);
    bench.assert_merged();
}

#[test]
fn a_stranger_with_the_workers_command_line_and_folder_is_left_alone() {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "");
    let words =
        ["600", "--output_path", &bench.text_path("out/attempts/0_5.1"), "--low", "0"].map(str::to_owned);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "sleep $1; true", "sh"]).args(words).current_dir(bench.path("out"));
    let mut stranger = command.spawn().expect("it starts");
    run.signal(Signal::INT);
    let ended = run.wait();
    let fate = stranger.try_wait().expect("our own child");
    let child =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", stranger.id())).unwrap_or_default();
    for pid in child.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        support::send(pid, Signal::KILL);
    }
    let _ = stranger.kill();
    let _ = stranger.wait();
    ended.code(130);
    assert!(fate.is_none(), "a stranger was killed: {fate:?}");
    resume(&bench);
}

#[test]
fn a_stop_while_leftovers_of_an_earlier_scheduler_are_ended_has_its_exit_code() {
    let bench = Bench::new(0..10);
    let run = hanging(&bench, "--ignore-term");
    run.signal(Signal::KILL);
    run.wait();
    // The leftover ignores TERM for the 20 s of its own grace.
    let next = bench.start(&flags(&bench));
    next.until_said("ending a worker");
    next.signal(Signal::INT);
    let ended = next.wait();
    support::send(bench.shim("0_5"), Signal::TERM);
    support::until_true("nothing is left", || bench.left_over().is_empty());
    ended.code(130);
}
