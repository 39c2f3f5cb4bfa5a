//! Every actor against fakes of the ports and probes in the place of its peers, on a paused clock; at the end all five
//! together. A test takes out of the journal what it expects; anything beyond that fails it.

#[path = "support/fakes.rs"]
mod fakes;

use actix::{Actor, Addr, AsyncContext};
use auto_scheduler::actors::gpu_pool::GpuPool;
use auto_scheduler::actors::merge::MergeActor;
use auto_scheduler::actors::monitor::MonitorActor;
use auto_scheduler::actors::supervisor::{Orders, RangeOrders, RunEnd, SupervisorActor};
use auto_scheduler::actors::worker::{Peers, Shared, WorkerActor};
use auto_scheduler::core::command::WorkerCommand;
use auto_scheduler::core::pool;
use auto_scheduler::core::restart::RestartPolicy;
use auto_scheduler::core::supervisor::{AttemptReport, Brief, End, Ending, Policy, StopCause};
use auto_scheduler::core::worker::rows_left;
use auto_scheduler::messages::{
    AttemptEnded, AttemptStarted, CancelLease, CloseRange, LeaseDelayed, LeaseGranted, MergeEnded,
    RangeClosed, RangeEnded, ReleaseLease, RequestLease, RunAttempt, StopAttempt, StopRequested, TreeGone,
};
use auto_scheduler::os::outputs::FolderOutputs;
use auto_scheduler::ports::{GpuError, Outputs, StoreError};
use auto_scheduler::types::layout::Layout;
use auto_scheduler::types::state::{Counters, RangeState, RangeStatus};
use auto_scheduler::types::{Attempt, ExitOutcome, FailureClass, Lease, LeaseId, RangeId};
use fakes::{
    FakeGpus, FakeOutputs, FakeProcesses, FakeStore, FakeSweeper, Journal, Note, lease, on_paused_clock,
    samples, summary,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

const A: RangeId = RangeId { low: 0, high: 4 };
const B: RangeId = RangeId { low: 4, high: 8 };
const C: RangeId = RangeId { low: 8, high: 12 };
const D: RangeId = RangeId { low: 12, high: 16 };

const NONE: [&str; 0] = [];

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Lets the actors handle what they were sent while a closed gate keeps virtual time from moving.
async fn handled() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// What the ports did and what the peers were told, apart: work on another thread and the delivery of a message that
/// was sent before it began are in no order.
fn apart(lines: Vec<String>) -> (Vec<String>, Vec<String>) {
    lines.into_iter().partition(|line| !line.contains(" <- "))
}

// ---------------------------------------------------------------------------------------------------------------
// WorkerActor

/// One range's actor among fakes.
struct Bench {
    store: Arc<FakeStore>,
    outputs: Arc<FakeOutputs>,
    processes: Rc<FakeProcesses>,
    worker: Addr<WorkerActor>,
}

fn command() -> WorkerCommand {
    WorkerCommand {
        program: vec!["python3".into(), "worker.py".into()],
        input_path: "in.csv".into(),
        output_path: "out".into(),
        tp_size: 2,
        dp_size: 1,
        model_args: Vec::new(),
        extra_args: vec!["--api-key".into(), "hush".into()],
    }
}

impl Bench {
    fn new(journal: &Journal) -> Self {
        let outputs = FakeOutputs::new(journal);
        Self::with_outputs(journal, outputs.clone(), outputs)
    }

    fn with_outputs(journal: &Journal, used: Arc<dyn Outputs>, outputs: Arc<FakeOutputs>) -> Self {
        let store = FakeStore::new(journal);
        let processes = Rc::new(FakeProcesses::new(journal));
        let shared = Shared {
            store: store.clone(),
            outputs: used,
            sweeper: Arc::new(FakeSweeper { journal: journal.clone() }),
            processes: processes.clone(),
            command: command(),
            scheduler_id: "us".into(),
            samples: Arc::new(samples(0..16)),
            ids: Arc::new((0..16).collect()),
        };
        let peer = journal.probe("peer");
        let peers = Peers {
            started: peer.clone().recipient(),
            tree_gone: peer.clone().recipient(),
            ended: vec![peer.clone().recipient()],
            closed: peer.recipient(),
        };
        let state = RangeState::new(A);
        store.put(state.clone());
        let worker = journal.watch("worker", WorkerActor::new(state, Rc::new(shared), peers));
        Self { store, outputs, processes, worker }
    }

    fn run(&self, attempt: u32) {
        self.worker.do_send(RunAttempt { attempt: Attempt(attempt), lease: lease(7, &[0, 1]) });
    }

    fn stop(&self, attempt: u32, kill_now: bool) {
        self.worker.do_send(StopAttempt { attempt: Attempt(attempt), kill_now });
    }

    /// The attempt's process ends like this, having written these ids.
    fn end(
        &self,
        attempt: u32,
        wrote: impl IntoIterator<Item = i64>,
        outcome: ExitOutcome,
        told_to_stop: bool,
    ) {
        self.outputs.wrote(A, Attempt(attempt), wrote);
        self.store.record(A, Attempt(attempt), outcome, told_to_stop);
        self.processes.end(A, Attempt(attempt));
    }
}

const TROUBLE: [&str; 2] = [
    "peer <- TreeGone 0_4.1",
    "peer <- AttemptEnded 0_4.1 environment (the attempt could not begin; see the log above), 8 rows left",
];

const BEGUN: [&str; 3] =
    ["saved 0_4 Running, open 1", "started 0_4.1", "peer <- AttemptStarted 0_4.1 lease 7 of [0, 1]"];

#[test]
fn the_state_that_names_an_attempt_is_saved_before_its_process_starts() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        let gate = bench.store.gate.close();
        bench.run(1);
        gate.reached().await;
        handled().await;
        assert_eq!(journal.take(), NONE, "nothing starts before the save has returned");
        drop(gate);
        assert_eq!(journal.settled().await, BEGUN);
        let state = bench.store.state(A).unwrap();
        assert_eq!((state.attempts, state.gpu_ids), (Attempt(1), vec![0, 1]));
        assert_eq!(state.scheduler_id, "us");
        let open = state.open.unwrap();
        assert_eq!((open.gap, open.gpu_uuids), (A, vec!["GPU-0".to_owned(), "GPU-1".to_owned()]));
        assert!(!state.start_time.is_empty());
        assert_eq!(state.command.last().unwrap(), "***", "secrets are not written down");
    });
}

#[test]
fn a_process_gets_its_command_its_environment_and_its_lease() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        let jobs: Vec<_> = journal
            .take_notes()
            .into_iter()
            .filter_map(|(_, note)| if let Note::Started(job) = note { Some(job) } else { None })
            .collect();
        let [job] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((job.range, job.attempt, &job.lease), (A, Attempt(1), &lease(7, &[0, 1])));
        let argv = "python3 worker.py --input_path in.csv --output_path out/attempts/0_4.1 --low 0 --high 4 \
                    --tp_size 2 --dp_size 1 --resume --api-key hush";
        assert_eq!(job.argv.join(" "), argv);
        let env: BTreeMap<&str, &str> = job.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let expected = [
            ("CUDA_VISIBLE_DEVICES", "0,1"),
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
            ("R2R_SCHEDULER_ID", "us"),
            ("R2R_WORKER_RANGE", "0_4"),
            ("AUTO_SCHEDULER_ATTEMPT", "1"),
            ("AUTO_SCHEDULER_GPU_UUIDS", "GPU-0,GPU-1"),
        ];
        for (name, value) in expected {
            assert_eq!(env.get(name), Some(&value), "{name}");
        }
    });
}

#[test]
fn a_crashed_attempt_is_told_gone_then_judged_then_told_ended_and_the_next_one_does_the_rest() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        assert_eq!(journal.settled().await, BEGUN);
        bench.end(1, [0, 1, 2], ExitOutcome::Code(1), false);
        let (done, told) = apart(journal.settled().await);
        assert_eq!(done, ["gone 0_4.1", "examined 0_4.1 for 0_4", "saved 0_4 Pending, has 0 to 1"]);
        let crash = "peer <- AttemptEnded 0_4.1 crash (exit status 1), 4 rows left";
        assert_eq!(told, ["peer <- TreeGone 0_4.1", crash]);
        bench.run(2);
        let lines = [
            "saved 0_4 Running, open 2, has 0 to 1",
            "started 0_4.2",
            "peer <- AttemptStarted 0_4.2 lease 7 of [0, 1]",
        ];
        assert_eq!(journal.settled().await, lines);
        assert_eq!(bench.store.state(A).unwrap().open.unwrap().gap, RangeId::new(2, 4));
    });
}

#[test]
fn a_range_whose_last_ids_are_accepted_becomes_complete_and_only_then_loses_the_replaced_files() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        bench.end(1, [0, 1, 2], ExitOutcome::Signal(9), false);
        journal.until(secs(2)).await;
        bench.run(2);
        journal.until(secs(3)).await;
        journal.take();
        bench.end(2, [2, 3], ExitOutcome::Code(0), false);
        let (done, told) = apart(journal.settled().await);
        let files = r#"["attempts/0_4.1/generation_results_data_0_to_4_real.csv", "attempts/0_4.2/generation_results_data_2_to_4_real.csv"]"#;
        let expected = [
            "gone 0_4.2".to_owned(),
            "examined 0_4.2 for 2_4".to_owned(),
            "saved 0_4 Running, has 0 to 1, has 2 to 3".to_owned(),
            format!("assembled 0_4 with [0, 1, 2, 3] from {files}"),
            "saved 0_4 Complete, has 0 to 3".to_owned(),
            format!("discarded {files} of 0_4"),
        ];
        assert_eq!(done, expected);
        assert_eq!(told, ["peer <- TreeGone 0_4.2", "peer <- AttemptEnded 0_4.2 complete"]);
    });
}

#[test]
fn a_state_that_cannot_be_saved_starts_no_process_and_is_reported_as_trouble() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.store.fail_save(1);
        bench.run(1);
        let (done, told) = apart(journal.settled().await);
        assert_eq!(done, ["could not save 0_4"]);
        assert_eq!(told, TROUBLE);
        bench.run(2);
        assert_eq!(journal.settled().await[..2], ["saved 0_4 Running, open 2", "started 0_4.2"]);
    });
}

#[test]
fn a_stop_while_the_attempt_is_being_named_starts_no_process() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        let gate = bench.store.gate.close();
        bench.run(1);
        gate.reached().await;
        bench.stop(1, false);
        handled().await;
        drop(gate);
        let (done, told) = apart(journal.settled().await);
        assert_eq!(done, ["saved 0_4 Running, open 1"]);
        assert_eq!(told, TROUBLE);
    });
}

#[test]
fn a_stop_is_passed_on_with_grace_first_and_as_a_kill_when_it_comes_again() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        assert_eq!(journal.settled().await, BEGUN);
        bench.stop(1, false);
        assert_eq!(journal.settled().await, ["told 0_4.1 to stop"]);
        bench.stop(1, true);
        assert_eq!(journal.settled().await, ["told 0_4.1 to die"]);
        bench.end(1, 0..4, ExitOutcome::Code(0), true);
        let (done, told) = apart(journal.settled().await);
        let verdict = "saved 0_4 Pending, has 0 to 2";
        assert_eq!(done, ["gone 0_4.1", "examined 0_4.1 for 0_4", verdict], "exit 0 proves nothing now");
        let stopped = "peer <- AttemptEnded 0_4.1 stopped (exit status 0), 2 rows left";
        assert_eq!(told, ["peer <- TreeGone 0_4.1", stopped]);
    });
}

#[test]
fn a_stop_of_another_attempt_or_of_one_that_has_ended_does_nothing() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(2);
        journal.settled().await;
        bench.stop(1, true);
        bench.stop(3, true);
        assert_eq!(journal.settled().await, NONE);
        bench.end(2, [], ExitOutcome::Code(1), false);
        journal.settled().await;
        bench.stop(2, true);
        assert_eq!(journal.settled().await, NONE);
        bench.run(3);
        let lines = journal.settled().await;
        assert!(lines.contains(&"started 0_4.3".to_owned()), "{lines:?}");
    });
}

#[test]
fn an_order_to_run_while_an_attempt_lives_or_under_an_old_number_starts_nothing() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(3);
        journal.settled().await;
        bench.run(4);
        assert_eq!(journal.settled().await, NONE, "one at a time");
        bench.end(3, [], ExitOutcome::Code(1), false);
        journal.settled().await;
        bench.run(3);
        bench.run(2);
        assert_eq!(journal.settled().await, NONE, "numbers only grow");
    });
}

#[test]
fn judging_that_fails_is_tried_again_every_five_seconds() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        journal.take();
        bench.outputs.fail_examinations(2);
        bench.end(1, [0, 1, 2], ExitOutcome::Code(1), false);
        journal.until(secs(20)).await;
        let (told, done): (Vec<_>, Vec<_>) =
            journal.take_timed().into_iter().partition(|(_, line)| line.contains(" <- "));
        let done: Vec<(u64, &str)> = done.iter().map(|(at, line)| (at.as_secs(), &**line)).collect();
        let expected = [
            (1, "gone 0_4.1"),
            (1, "could not examine 0_4.1"),
            (6, "could not examine 0_4.1"),
            (11, "examined 0_4.1 for 0_4"),
            (11, "saved 0_4 Pending, has 0 to 1"),
        ];
        assert_eq!(done, expected);
        let told: Vec<(Duration, &str)> = told.iter().map(|(at, line)| (*at, &**line)).collect();
        let crash = "peer <- AttemptEnded 0_4.1 crash (exit status 1), 4 rows left";
        assert_eq!(told, [(secs(1), "peer <- TreeGone 0_4.1"), (secs(11), crash)]);
    });
}

#[test]
fn a_verdict_that_cannot_be_saved_is_reached_again_and_is_the_same() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        journal.take();
        bench.store.fail_save(1);
        bench.end(1, [0, 1, 2], ExitOutcome::Code(1), false);
        journal.until(secs(5)).await;
        let (done, told) = apart(journal.take());
        assert_eq!(done, ["gone 0_4.1", "examined 0_4.1 for 0_4", "could not save 0_4"]);
        assert_eq!(told, ["peer <- TreeGone 0_4.1"]);
        journal.until(secs(6)).await;
        let (done, told) = apart(journal.settled().await);
        assert_eq!(done, ["examined 0_4.1 for 0_4", "saved 0_4 Pending, has 0 to 1"]);
        assert_eq!(told, ["peer <- AttemptEnded 0_4.1 crash (exit status 1), 4 rows left"]);
        assert_eq!(bench.store.state(A).unwrap().counters.starts, 1, "counted once");
    });
}

#[test]
fn a_range_file_that_cannot_be_made_is_tried_again_and_no_id_is_done_twice() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        bench.outputs.fail_assemblies(1);
        bench.end(1, 0..4, ExitOutcome::Code(0), false);
        journal.until(secs(5)).await;
        assert_eq!(apart(journal.take()).0.last().unwrap(), "could not assemble 0_4");
        assert_eq!(bench.store.state(A).unwrap().status, RangeStatus::Running);
        journal.until(secs(10)).await;
        assert_eq!(journal.take().last().unwrap(), "peer <- AttemptEnded 0_4.1 complete");
        let state = bench.store.state(A).unwrap();
        assert_eq!((state.status, state.accepted_rows()), (RangeStatus::Complete, 8));
    });
}

#[test]
fn a_stop_ends_the_retries_of_a_judgement_that_keeps_failing() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.until(secs(1)).await;
        bench.outputs.fail_examinations(100);
        bench.end(1, 0..4, ExitOutcome::Code(0), false);
        journal.until(secs(2)).await;
        journal.take();
        bench.stop(1, false);
        journal.until(secs(7)).await;
        let (done, told) = apart(journal.take());
        assert_eq!(done, ["could not examine 0_4.1"]);
        assert_eq!(told, TROUBLE);
        assert_eq!(
            bench.store.state(A).unwrap().open.unwrap().number,
            Attempt(1),
            "for the next run to judge"
        );
    });
}

#[test]
fn an_attempt_without_a_record_is_swept_before_its_output_is_judged() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.run(1);
        journal.settled().await;
        bench.store.printed(A, Attempt(1), "loading");
        bench.processes.end(A, Attempt(1));
        let (done, told) = apart(journal.settled().await);
        let verdict = "saved 0_4 Pending";
        assert_eq!(done, ["gone 0_4.1", "swept 0_4.1", "examined 0_4.1 for 0_4", verdict]);
        assert_eq!(told.len(), 2);
        assert!(told[1].starts_with("peer <- AttemptEnded 0_4.1 crash (ended without a record"), "{told:?}");
        assert!(told[1].ends_with("(last output: loading)), 8 rows left"), "{told:?}");
    });
}

#[test]
fn a_process_that_cannot_be_started_is_reported_and_the_next_attempt_may_work() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.processes.refuse(true);
        bench.run(1);
        let (done, told) = apart(journal.settled().await);
        assert_eq!(done, ["saved 0_4 Running, open 1", "could not start 0_4.1"]);
        assert_eq!(told, TROUBLE);
        bench.processes.refuse(false);
        bench.run(2);
        assert_eq!(journal.settled().await[..2], ["saved 0_4 Running, open 2", "started 0_4.2"]);
    });
}

#[test]
fn giving_up_is_written_before_it_is_told() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.worker.do_send(CloseRange {});
        assert_eq!(journal.settled().await, ["saved 0_4 GivenUp", "peer <- RangeClosed 0_4"]);
    });
}

#[test]
fn giving_up_is_not_told_until_it_could_be_written() {
    on_paused_clock(async |journal| {
        let bench = Bench::new(&journal);
        bench.store.fail_save(1);
        bench.worker.do_send(CloseRange {});
        journal.until(secs(10)).await;
        let expected = [
            (secs(0), "could not save 0_4".to_owned()),
            (secs(5), "saved 0_4 GivenUp".to_owned()),
            (secs(5), "peer <- RangeClosed 0_4".to_owned()),
        ];
        assert_eq!(journal.take_timed(), expected);
    });
}

/// Runs one attempt that writes all its rows into a real file, while the save that makes the range complete fails once.
async fn complete_after_a_failed_save(
    journal: &Journal,
    outcome: ExitOutcome,
    full_copy: bool,
) -> (RangeState, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let real = Arc::new(FolderOutputs::new(Layout::new(folder.path())));
    let bench = Bench::with_outputs(journal, real, FakeOutputs::new(journal));
    bench.run(1);
    journal.until(secs(1)).await;
    let dir = folder.path().join(Layout::attempt_dir(A, Attempt(1)));
    std::fs::create_dir_all(&dir).unwrap();
    let rows = "data_id,text\n0,a\n1,b\n2,c\n3,d\n";
    std::fs::write(dir.join(A.result_file()), rows).unwrap();
    if full_copy {
        std::fs::write(dir.join(A.full_result_file()), rows).unwrap();
    }
    bench.store.fail_save(2);
    bench.end(1, [], outcome, false);
    journal.until(secs(20)).await;
    (bench.store.state(A).unwrap(), journal.take())
}

#[test]
fn no_row_is_lost_when_the_state_of_a_range_whose_file_was_moved_cannot_be_saved_at_first() {
    on_paused_clock(async |journal| {
        let (state, lines) = complete_after_a_failed_save(&journal, ExitOutcome::Code(0), false).await;
        assert!(lines.contains(&"could not save 0_4".to_owned()), "{lines:?}");
        let files: Vec<String> = state.pieces.iter().map(|piece| piece.file.display().to_string()).collect();
        assert_eq!((state.status, state.accepted_rows()), (RangeStatus::Complete, 4), "{lines:#?}");
        assert_eq!(files, [A.result_file()]);
    });
}

#[test]
fn nothing_is_run_again_when_the_state_of_a_range_whose_file_was_moved_cannot_be_saved_at_first() {
    on_paused_clock(async |journal| {
        let (state, lines) = complete_after_a_failed_save(&journal, ExitOutcome::Signal(11), true).await;
        assert_eq!((state.status, state.accepted_rows()), (RangeStatus::Complete, 4), "{lines:#?}");
    });
}

// ---------------------------------------------------------------------------------------------------------------
// SupervisorActor

/// The supervisor among probes.
struct Desk {
    supervisor: Addr<SupervisorActor>,
    done: oneshot::Receiver<RunEnd>,
}

fn policy(max_parallel: usize) -> Policy {
    let restart = RestartPolicy { max_failures: 3, backoff_base: secs(8), backoff_cap: secs(20) };
    Policy { max_parallel, start_stagger: Duration::ZERO, wait_timeout: None, restart }
}

fn failed(class: FailureClass, charged_in_a_row: u32) -> AttemptReport {
    AttemptReport {
        rows_left: 8,
        complete: false,
        accepted: false,
        failure: Some((class, "it broke".into())),
        counters: Counters { charged_in_a_row, ..Counters::default() },
    }
}

fn completed() -> AttemptReport {
    AttemptReport {
        rows_left: 0,
        complete: true,
        accepted: true,
        failure: None,
        counters: Counters::default(),
    }
}

impl Desk {
    /// Ranges of the same size, so that they are served in their order.
    fn new(journal: &Journal, policy: Policy, ranges: &[RangeId]) -> Self {
        let briefs = ranges
            .iter()
            .map(|range| Brief {
                range: *range,
                rows_left: 8,
                complete: false,
                accepted: false,
                attempts: Attempt(0),
            })
            .collect();
        Self::with_briefs(journal, policy, briefs)
    }

    fn with_briefs(journal: &Journal, policy: Policy, briefs: Vec<Brief>) -> Self {
        let orders_of = |brief: &Brief| {
            let probe = journal.probe(&brief.range.to_string());
            let orders = RangeOrders {
                run: probe.clone().recipient(),
                stop: probe.clone().recipient(),
                close: probe.recipient(),
            };
            (brief.range, orders)
        };
        let pool = journal.probe("pool");
        let orders = Orders {
            request: pool.clone().recipient(),
            cancel: pool.clone().recipient(),
            release: pool.recipient(),
            ranges: briefs.iter().map(orders_of).collect(),
            range_ended: vec![journal.probe("merge").recipient(), journal.probe("monitor").recipient()],
        };
        let (send, done) = oneshot::channel();
        let supervisor = journal.watch("supervisor", SupervisorActor::new(policy, briefs, orders, send));
        Self { supervisor, done }
    }

    fn grant(&self, range: RangeId, id: u64) {
        self.supervisor.do_send(LeaseGranted { range, lease: lease(id, &[0, 1]) });
    }

    fn gone(&self, range: RangeId, attempt: u32) {
        self.supervisor.do_send(TreeGone { range, attempt: Attempt(attempt) });
    }

    fn ended(&self, range: RangeId, attempt: u32, report: AttemptReport) {
        self.supervisor.do_send(AttemptEnded { range, attempt: Attempt(attempt), report });
    }

    fn stop(&self, cause: StopCause) {
        self.supervisor.do_send(StopRequested { cause });
    }

    fn ending(&mut self) -> Option<Ending> {
        self.done.try_recv().ok().map(|end| end.ending)
    }
}

#[test]
fn a_range_runs_on_its_lease_and_gives_it_back_before_it_is_judged() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, policy(1), &[A]);
        assert_eq!(journal.settled().await, ["pool <- RequestLease 0_4"]);
        desk.grant(A, 3);
        assert_eq!(journal.settled().await, ["0_4 <- RunAttempt 1 lease 3 of [0, 1]"]);
        desk.gone(A, 1);
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 3"]);
        desk.ended(A, 1, completed());
        let ended = ["merge <- RangeEnded 0_4 Complete", "monitor <- RangeEnded 0_4 Complete"];
        assert_eq!(journal.settled().await, ended, "and the lease is not given back twice");
    });
}

#[test]
fn the_range_with_the_most_rows_left_runs_first() {
    on_paused_clock(async |journal| {
        let rows = [(A, 4), (B, 9), (C, 9), (D, 20)];
        let brief = |(range, rows_left)| Brief {
            range,
            rows_left,
            complete: false,
            accepted: false,
            attempts: Attempt(0),
        };
        let _desk = Desk::with_briefs(&journal, policy(3), rows.map(brief).to_vec());
        let requests =
            ["pool <- RequestLease 12_16", "pool <- RequestLease 4_8", "pool <- RequestLease 8_12"];
        assert_eq!(journal.settled().await, requests);
    });
}

/// How long each of 64 ranges waits after its `charged`-th failure in a row: chance has no chance to look fixed.
async fn waits(journal: &Journal, desk: &Desk, ranges: &[RangeId], charged: u32) -> Vec<Duration> {
    for (range, id) in ranges.iter().zip(0..) {
        desk.grant(*range, id);
    }
    journal.settled().await;
    let failed_at = journal.now();
    for range in ranges {
        desk.gone(*range, charged);
        desk.ended(*range, charged, failed(FailureClass::Crash, charged));
    }
    journal.until(failed_at + secs(100)).await;
    let requests: Vec<(Duration, String)> =
        journal.take_timed().into_iter().filter(|(_, line)| line.contains("RequestLease")).collect();
    let named: BTreeSet<&str> = requests.iter().map(|(_, line)| &**line).collect();
    assert_eq!((requests.len(), named.len()), (ranges.len(), ranges.len()), "each range asks again once");
    requests.into_iter().map(|(at, _)| at - failed_at).collect()
}

#[test]
fn the_wait_before_a_restart_is_jittered_in_full_and_doubles_up_to_its_cap() {
    on_paused_clock(async |journal| {
        let ranges: Vec<RangeId> = (0..64).map(|n| RangeId::new(n * 4, n * 4 + 4)).collect();
        let restart = RestartPolicy { max_failures: 9, backoff_base: secs(8), backoff_cap: secs(20) };
        let desk = Desk::new(&journal, Policy { restart, ..policy(64) }, &ranges);
        assert_eq!(journal.settled().await.len(), 64);
        for (charged, ceiling) in [(1, 8), (2, 16), (3, 20), (4, 20)] {
            let waits = waits(&journal, &desk, &ranges, charged).await;
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(*most <= secs(ceiling), "failure {charged}: {most:?}");
            assert!(*most > secs(ceiling) / 2, "failure {charged}: {most:?}");
            assert!(*least < secs(ceiling) / 2, "failure {charged}: {least:?}");
        }
    });
}

#[test]
fn starts_are_exactly_the_stagger_apart() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, Policy { start_stagger: millis(7500), ..policy(3) }, &[A, B, C]);
        assert_eq!(journal.settled().await.len(), 3);
        journal.until(secs(1)).await;
        desk.grant(B, 0);
        desk.grant(C, 1);
        desk.grant(A, 2);
        journal.until(secs(100)).await;
        let expected = [
            (millis(1000), "4_8 <- RunAttempt 1 lease 0 of [0, 1]".to_owned()),
            (millis(8500), "0_4 <- RunAttempt 1 lease 2 of [0, 1]".to_owned()),
            (millis(16_000), "8_12 <- RunAttempt 1 lease 1 of [0, 1]".to_owned()),
        ];
        assert_eq!(journal.take_timed(), expected);
    });
}

#[test]
fn a_run_in_which_nothing_runs_stops_once_the_wait_timeout_is_over() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, Policy { wait_timeout: Some(secs(90)), ..policy(1) }, &[A]);
        assert_eq!(journal.settled().await, ["pool <- RequestLease 0_4"]);
        journal.until(millis(89_999)).await;
        assert_eq!((journal.take(), desk.ending()), (vec![], None));
        journal.until(millis(90_001)).await;
        assert_eq!(journal.settled().await, ["pool <- CancelLease 0_4"]);
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::WaitedTooLong)));
    });
}

#[test]
fn waiting_while_something_runs_is_not_limited_and_starts_anew_afterwards() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, Policy { wait_timeout: Some(secs(90)), ..policy(2) }, &[A, B]);
        journal.until(secs(80)).await;
        desk.grant(A, 0);
        journal.until(secs(500)).await;
        let lines =
            ["pool <- RequestLease 0_4", "pool <- RequestLease 4_8", "0_4 <- RunAttempt 1 lease 0 of [0, 1]"];
        assert_eq!(journal.take(), lines);
        desk.gone(A, 1);
        desk.ended(A, 1, completed());
        journal.until(secs(589)).await;
        assert_eq!(journal.take().len(), 3, "a released lease and an ended range, told twice");
        assert_eq!(desk.ending(), None);
        journal.until(secs(592)).await;
        assert_eq!(journal.take(), ["pool <- CancelLease 4_8"]);
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::WaitedTooLong)));
    });
}

#[test]
fn no_more_ranges_than_allowed_ask_for_leases_or_run() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, policy(2), &[A, B, C, D]);
        assert_eq!(journal.settled().await, ["pool <- RequestLease 0_4", "pool <- RequestLease 4_8"]);
        desk.grant(A, 0);
        desk.grant(B, 1);
        assert_eq!(journal.settled().await.len(), 2);
        journal.until(secs(50)).await;
        assert_eq!(journal.take(), NONE);
        desk.gone(A, 1);
        assert_eq!(
            journal.settled().await,
            ["pool <- ReleaseLease 0"],
            "its place is free once it was judged"
        );
        desk.ended(A, 1, completed());
        let lines = journal.settled().await;
        assert_eq!(lines.len(), 3);
        assert!(lines.contains(&"pool <- RequestLease 8_12".to_owned()), "{lines:?}");
    });
}

#[test]
fn a_range_that_waits_to_be_tried_again_leaves_its_place_to_another() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, policy(1), &[A, B]);
        desk.grant(A, 0);
        journal.settled().await;
        desk.ended(A, 1, failed(FailureClass::Crash, 1));
        let lines = ["pool <- ReleaseLease 0", "pool <- RequestLease 4_8"];
        assert_eq!(journal.settled().await, lines);
    });
}

#[test]
fn the_first_stop_has_grace_the_second_kills_and_the_first_names_the_ending() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, Policy { start_stagger: secs(60), ..policy(3) }, &[A, B, C, D]);
        desk.grant(A, 0);
        desk.grant(B, 1);
        assert_eq!(journal.settled().await.len(), 4, "three ask, one runs, one waits for its turn");
        desk.stop(StopCause::Terminate);
        let lines = ["0_4 <- StopAttempt 1", "pool <- CancelLease 8_12", "pool <- ReleaseLease 1"];
        let mut seen = journal.settled().await;
        seen.sort();
        assert_eq!(seen, lines);
        desk.stop(StopCause::Interrupt);
        assert_eq!(journal.settled().await, ["0_4 <- StopAttempt 1 now"]);
        desk.gone(A, 1);
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 0"]);
        assert_eq!(desk.ending(), None, "the verdict is still to come");
        desk.ended(A, 1, failed(FailureClass::Stopped, 0));
        journal.until(secs(100)).await;
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::Terminate)));
    });
}

#[test]
fn a_stop_while_all_ranges_wait_to_be_tried_again_ends_the_run_at_once() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, policy(1), &[A]);
        desk.grant(A, 0);
        journal.settled().await;
        desk.ended(A, 1, failed(FailureClass::Crash, 1));
        desk.stop(StopCause::HangUp);
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 0"]);
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::HangUp)));
    });
}

#[test]
fn leases_that_come_too_late_or_to_the_wrong_range_are_given_back() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, policy(1), &[A, B]);
        journal.settled().await;
        desk.grant(B, 4);
        desk.grant(D, 5);
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 4", "pool <- ReleaseLease 5"]);
        desk.grant(A, 6);
        desk.grant(A, 7);
        let lines = ["0_4 <- RunAttempt 1 lease 6 of [0, 1]", "pool <- ReleaseLease 7"];
        let mut seen = journal.settled().await;
        seen.sort();
        assert_eq!(seen, lines);
        desk.stop(StopCause::Interrupt);
        desk.grant(B, 8);
        desk.ended(A, 1, failed(FailureClass::Stopped, 0));
        let lines = ["0_4 <- StopAttempt 1", "pool <- ReleaseLease 6", "pool <- ReleaseLease 8"];
        let mut seen = journal.settled().await;
        seen.sort();
        assert_eq!(seen, lines);
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::Interrupt)));
        desk.grant(B, 9);
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 9"], "also after the end");
    });
}

#[test]
fn facts_about_an_attempt_that_is_not_the_current_one_change_nothing() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, policy(1), &[A]);
        desk.grant(A, 0);
        journal.settled().await;
        desk.gone(A, 2);
        desk.ended(A, 0, completed());
        desk.ended(A, 2, completed());
        assert_eq!(journal.settled().await, NONE);
    });
}

#[test]
fn a_range_that_fails_too_often_is_closed_and_ends_when_that_is_written() {
    on_paused_clock(async |journal| {
        let desk = Desk::new(&journal, policy(1), &[A]);
        desk.grant(A, 0);
        journal.settled().await;
        desk.ended(A, 1, failed(FailureClass::Crash, 3));
        let mut seen = journal.settled().await;
        seen.sort();
        assert_eq!(seen, ["0_4 <- CloseRange", "pool <- ReleaseLease 0"]);
        journal.until(secs(100)).await;
        assert_eq!(journal.take(), NONE, "not ended before it is on disk");
        desk.supervisor.do_send(RangeClosed { range: A });
        desk.supervisor.do_send(RangeClosed { range: A });
        let ended = ["merge <- RangeEnded 0_4 GivenUp", "monitor <- RangeEnded 0_4 GivenUp"];
        assert_eq!(journal.settled().await, ended);
    });
}

#[test]
fn a_configuration_that_never_worked_ends_the_run_with_its_cause() {
    on_paused_clock(async |journal| {
        let mut desk = Desk::new(&journal, policy(2), &[A, B, C]);
        desk.grant(A, 0);
        desk.grant(B, 1);
        journal.settled().await;
        desk.ended(A, 1, failed(FailureClass::Configuration, 1));
        let mut seen = journal.settled().await;
        seen.sort();
        assert_eq!(seen, ["4_8 <- StopAttempt 1", "pool <- ReleaseLease 0"]);
        desk.ended(B, 1, failed(FailureClass::Stopped, 0));
        assert_eq!(journal.settled().await, ["pool <- ReleaseLease 1"]);
        assert_eq!(desk.ending(), Some(Ending::Broken("it broke".into())));
    });
}

#[test]
fn the_end_of_the_run_is_sent_once_and_carries_what_the_merge_said() {
    on_paused_clock(async |journal| {
        let briefs = [A, B].map(|range| Brief {
            range,
            rows_left: 0,
            complete: true,
            accepted: true,
            attempts: Attempt(1),
        });
        let mut desk = Desk::with_briefs(&journal, policy(2), briefs.to_vec());
        let lines = journal.settled().await;
        assert_eq!(lines.len(), 4, "every complete range is told to both: {lines:?}");
        assert_eq!(desk.ending(), None);
        let merged = summary(&[], &[1, 2, 3]);
        desk.supervisor.do_send(MergeEnded { result: Ok(Box::new(merged.clone())) });
        desk.supervisor.do_send(MergeEnded { result: Err(StoreError::Data("again".into())) });
        desk.stop(StopCause::Interrupt);
        journal.until(secs(10)).await;
        let end = desk.done.try_recv().unwrap();
        assert_eq!(end.ending, Ending::Merged);
        assert_eq!(*end.merge.unwrap().unwrap(), merged);
    });
}

#[test]
fn a_merge_that_failed_ends_the_run_with_its_error() {
    on_paused_clock(async |journal| {
        let brief = Brief { range: A, rows_left: 0, complete: true, accepted: true, attempts: Attempt(1) };
        let mut desk = Desk::with_briefs(&journal, policy(1), vec![brief]);
        journal.settled().await;
        desk.supervisor.do_send(MergeEnded { result: Err(StoreError::Data("a row is missing".into())) });
        journal.settled().await;
        let end = desk.done.try_recv().unwrap();
        assert_eq!(end.merge.unwrap().unwrap_err().to_string(), "a row is missing");
    });
}

#[test]
fn a_stop_during_the_merge_ends_the_run_without_waiting_for_it() {
    on_paused_clock(async |journal| {
        let brief = Brief { range: A, rows_left: 0, complete: true, accepted: true, attempts: Attempt(1) };
        let mut desk = Desk::with_briefs(&journal, policy(1), vec![brief]);
        journal.settled().await;
        desk.stop(StopCause::Interrupt);
        journal.settled().await;
        assert_eq!(desk.ending(), Some(Ending::Stopped(StopCause::Interrupt)));
    });
}

// ---------------------------------------------------------------------------------------------------------------
// GpuPool

fn gpu_pool(journal: &Journal, gpus: &Arc<FakeGpus>) -> Addr<GpuPool> {
    let policy = pool::Policy::default();
    let peer = journal.probe("peer");
    let gpus = Arc::clone(gpus);
    journal.watch("pool", GpuPool::new(policy, gpus, peer.clone().recipient(), peer.recipient()))
}

#[test]
fn a_lease_is_granted_after_a_look_and_an_idle_pool_does_not_look() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(4);
        let pool = gpu_pool(&journal, &gpus);
        journal.until(secs(10)).await;
        assert_eq!(gpus.looks(), 0);
        pool.do_send(RequestLease { range: A });
        assert_eq!(journal.settled().await, ["peer <- LeaseGranted 0_4 lease 0 of [0, 1]"]);
        journal.until(secs(100)).await;
        assert_eq!(gpus.looks(), 1);
    });
}

#[test]
fn every_gpu_is_in_one_lease_at_most_and_the_rest_of_the_queue_is_told_why_it_waits() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(4);
        let pool = gpu_pool(&journal, &gpus);
        for range in [A, B, C] {
            pool.do_send(RequestLease { range });
        }
        journal.until(secs(100)).await;
        let reason = "2 GPUs wanted, 0 free; GPU 0 leased to 0_4, GPU 1 leased to 0_4, GPU 2 leased to 4_8, \
                      GPU 3 leased to 4_8";
        let expected = [
            "peer <- LeaseGranted 0_4 lease 0 of [0, 1]".to_owned(),
            "peer <- LeaseGranted 4_8 lease 1 of [2, 3]".to_owned(),
            format!("peer <- LeaseDelayed 8_12: {reason}"),
        ];
        assert_eq!(journal.take(), expected, "said once, however often it looks");
        assert!(gpus.looks() >= 100, "{}", gpus.looks());
    });
}

#[test]
fn gpus_that_somebody_else_frees_later_are_taken_within_a_second() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(2);
        gpus.use_gib(1, 3);
        let pool = gpu_pool(&journal, &gpus);
        pool.do_send(RequestLease { range: A });
        let reason = "2 GPUs wanted, 1 free; GPU 1 holds 3100 MiB (limit 1000 MiB)";
        assert_eq!(journal.settled().await, [format!("peer <- LeaseDelayed 0_4: {reason}")]);
        journal.until(millis(3600 * 1000 + 500)).await;
        assert_eq!(journal.take(), NONE);
        gpus.use_gib(1, 0);
        journal.until(millis(3600 * 1000 + 1500)).await;
        let granted = (secs(3601), "peer <- LeaseGranted 0_4 lease 0 of [0, 1]".to_owned());
        assert_eq!(journal.take_timed(), [granted]);
    });
}

/// A pool of two GPUs whose lease was given back while its memory was still in use, and a range that waits for them.
async fn reclaiming(journal: &Journal) -> (Addr<GpuPool>, Arc<FakeGpus>) {
    let gpus = FakeGpus::new(2);
    let pool = gpu_pool(journal, &gpus);
    pool.do_send(RequestLease { range: A });
    journal.until(secs(1)).await;
    gpus.use_gib(0, 20);
    gpus.use_gib(1, 20);
    pool.do_send(RequestLease { range: B });
    journal.until(secs(5)).await;
    journal.take();
    pool.do_send(ReleaseLease { lease: LeaseId(0) });
    let reason = "2 GPUs wanted, 0 free; GPU 0 has not given its memory back yet, GPU 1 has not given its \
                  memory back yet";
    assert_eq!(journal.settled().await, [format!("peer <- LeaseDelayed 4_8: {reason}")]);
    (pool, gpus)
}

#[test]
fn a_released_gpu_is_granted_again_once_a_later_look_shows_its_memory_back() {
    on_paused_clock(async |journal| {
        let (_pool, gpus) = reclaiming(&journal).await;
        journal.until(millis(30_500)).await;
        assert_eq!(journal.take(), NONE);
        gpus.use_gib(0, 0);
        gpus.use_gib(1, 0);
        journal.until(secs(40)).await;
        let granted = (secs(31), "peer <- LeaseGranted 4_8 lease 1 of [0, 1]".to_owned());
        assert_eq!(journal.take_timed(), [granted]);
    });
}

#[test]
fn a_gpu_whose_memory_is_not_back_after_a_minute_is_quarantined_until_it_is() {
    on_paused_clock(async |journal| {
        let (_pool, gpus) = reclaiming(&journal).await;
        journal.until(millis(90_500)).await;
        let quarantined = "quarantined: memory not back after 60 s, 20480 MiB still in use";
        let reason = format!("2 GPUs wanted, 0 free; GPU 0 {quarantined}, GPU 1 {quarantined}");
        assert_eq!(journal.take_timed(), [(secs(65), format!("peer <- LeaseDelayed 4_8: {reason}"))]);
        gpus.use_gib(0, 0);
        gpus.use_gib(1, 0);
        journal.until(secs(100)).await;
        let granted = (secs(91), "peer <- LeaseGranted 4_8 lease 1 of [0, 1]".to_owned());
        assert_eq!(journal.take_timed(), [granted]);
    });
}

#[test]
fn a_lease_that_is_given_back_twice_does_not_free_its_gpus_under_the_next_range() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(2);
        let pool = gpu_pool(&journal, &gpus);
        pool.do_send(RequestLease { range: A });
        journal.until(secs(1)).await;
        pool.do_send(ReleaseLease { lease: LeaseId(0) });
        pool.do_send(RequestLease { range: B });
        journal.until(secs(10)).await;
        journal.take();
        pool.do_send(ReleaseLease { lease: LeaseId(0) });
        pool.do_send(RequestLease { range: C });
        journal.until(secs(20)).await;
        let reason = "2 GPUs wanted, 0 free; GPU 0 leased to 4_8, GPU 1 leased to 4_8";
        assert_eq!(journal.take(), [format!("peer <- LeaseDelayed 8_12: {reason}")]);
    });
}

#[test]
fn a_slow_driver_is_asked_once_at_a_time_and_once_more_for_whoever_asked_meanwhile() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(4);
        let pool = gpu_pool(&journal, &gpus);
        let gate = gpus.gate.close();
        pool.do_send(RequestLease { range: A });
        gate.reached().await;
        for range in [B, C, D] {
            pool.do_send(RequestLease { range });
        }
        handled().await;
        assert_eq!((gpus.looks(), journal.take()), (1, vec![]));
        drop(gate);
        let lines = journal.settled().await;
        assert_eq!(
            lines[..2],
            ["peer <- LeaseGranted 0_4 lease 0 of [0, 1]", "peer <- LeaseGranted 4_8 lease 1 of [2, 3]"]
        );
        assert_eq!(lines.len(), 4, "the other two are told why they wait: {lines:?}");
        assert_eq!((gpus.looks(), gpus.most_looks_at_once()), (2, 1));
        journal.until(millis(60_500)).await;
        assert_eq!((gpus.looks(), gpus.most_looks_at_once()), (62, 1), "then once a second");
    });
}

#[test]
fn while_the_driver_fails_nothing_is_granted_or_taken_away_and_afterwards_all_goes_on() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(4);
        let pool = gpu_pool(&journal, &gpus);
        pool.do_send(RequestLease { range: A });
        assert_eq!(journal.settled().await, ["peer <- LeaseGranted 0_4 lease 0 of [0, 1]"]);
        let good = gpus.answer(Err(GpuError::Wedged(secs(10))));
        pool.do_send(RequestLease { range: B });
        journal.until(millis(600_500)).await;
        let reason = "no new leases while the state of the GPUs is unknown: the NVIDIA driver does not answer \
                      (waited 10 s)";
        assert_eq!(journal.take(), [format!("peer <- LeaseDelayed 4_8: {reason}")]);
        let _ = gpus.answer(good);
        journal.until(secs(700)).await;
        let granted = (secs(601), "peer <- LeaseGranted 4_8 lease 1 of [2, 3]".to_owned());
        assert_eq!(journal.take_timed(), [granted], "not the two that the first range still holds");
    });
}

#[test]
fn a_range_that_wants_no_lease_any_more_gets_none() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(2);
        gpus.use_gib(0, 20);
        let pool = gpu_pool(&journal, &gpus);
        pool.do_send(RequestLease { range: A });
        assert_eq!(journal.settled().await.len(), 1);
        pool.do_send(CancelLease { range: A });
        journal.until(secs(10)).await;
        let looks = gpus.looks();
        gpus.use_gib(0, 0);
        journal.until(secs(100)).await;
        assert_eq!((journal.take(), gpus.looks()), (vec![], looks));
    });
}

#[test]
fn workers_that_need_no_gpu_get_an_empty_lease_without_a_look() {
    on_paused_clock(async |journal| {
        let gpus = FakeGpus::new(0);
        let policy = pool::Policy { group_size: 0, ..pool::Policy::default() };
        let peer = journal.probe("peer");
        let (granted, delayed) = (peer.clone().recipient(), peer.recipient());
        let pool = journal.watch("pool", GpuPool::new(policy, gpus.clone(), granted, delayed));
        pool.do_send(RequestLease { range: A });
        pool.do_send(RequestLease { range: B });
        let lines = ["peer <- LeaseGranted 0_4 lease 0 of []", "peer <- LeaseGranted 4_8 lease 1 of []"];
        assert_eq!((journal.settled().await, gpus.looks()), (lines.map(str::to_owned).to_vec(), 0));
    });
}

// ---------------------------------------------------------------------------------------------------------------
// MergeActor

struct Merging {
    store: Arc<FakeStore>,
    outputs: Arc<FakeOutputs>,
    merge: Addr<MergeActor>,
}

impl Merging {
    /// A plan of two ranges, one complete and one given up, and a third state that is no longer part of it.
    fn new(journal: &Journal) -> Self {
        let (store, outputs) = (FakeStore::new(journal), FakeOutputs::new(journal));
        let statuses = [(A, RangeStatus::Complete), (B, RangeStatus::GivenUp), (C, RangeStatus::Superseded)];
        for (range, status) in statuses {
            store.put(RangeState { status, ..RangeState::new(range) });
        }
        let ids = Arc::new((0..8).collect());
        let peer = journal.probe("supervisor").recipient();
        let merge = MergeActor::new(vec![A, B], store.clone(), outputs.clone(), ids, peer);
        let merge = journal.watch("merge", merge);
        Self { store, outputs, merge }
    }

    fn ended(&self, range: RangeId, end: End) {
        self.merge.do_send(RangeEnded { range, end });
    }
}

#[test]
fn the_merge_begins_after_the_last_range_and_happens_once() {
    on_paused_clock(async |journal| {
        let merging = Merging::new(&journal);
        merging.ended(A, End::Complete);
        merging.ended(A, End::Complete);
        merging.ended(C, End::Complete);
        journal.until(secs(100)).await;
        assert_eq!(journal.take(), NONE);
        merging.ended(B, End::GivenUp);
        merging.ended(B, End::GivenUp);
        let merged = "merged 8 ids of 0_4 Complete, 4_8 GivenUp";
        assert_eq!(journal.settled().await, [merged, "supervisor <- MergeEnded complete: false"]);
    });
}

#[test]
fn a_merge_that_fails_passes_its_error_on() {
    on_paused_clock(async |journal| {
        let merging = Merging::new(&journal);
        merging.outputs.fail_merge("id 3 is there twice");
        merging.ended(B, End::GivenUp);
        merging.ended(A, End::Complete);
        let lines = journal.settled().await;
        assert_eq!(lines[1..], ["supervisor <- MergeEnded error: id 3 is there twice"]);
    });
}

#[test]
fn a_planned_range_without_a_state_file_is_an_error_and_nothing_is_merged() {
    on_paused_clock(async |journal| {
        let merging = Merging::new(&journal);
        merging.store.forget(B);
        merging.ended(A, End::Complete);
        merging.ended(B, End::Complete);
        let error = "supervisor <- MergeEnded error: the state file of range 4_8 is gone";
        assert_eq!(journal.settled().await, [error]);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// MonitorActor

struct Watching {
    store: Arc<FakeStore>,
    monitor: Addr<MonitorActor>,
}

impl Watching {
    fn new(journal: &Journal) -> Self {
        let store = FakeStore::new(journal);
        let left = BTreeMap::from([(A, 8), (B, 8)]);
        let monitor = MonitorActor::new(store.clone(), "us".into(), false, left, 20);
        Self { store, monitor: journal.watch("monitor", monitor) }
    }

    /// What `live.json` says now.
    fn waiting(&self) -> Vec<(String, String)> {
        let live = self.store.lives.lock().unwrap().last().cloned().unwrap();
        assert_eq!(live.scheduler_id, "us");
        live.waiting.into_iter().collect()
    }

    fn writes(&self) -> usize {
        self.store.lives.lock().unwrap().len()
    }
}

fn waits_for(range: RangeId, reason: &str) -> (String, String) {
    (range.to_string(), reason.to_owned())
}

#[test]
fn the_reasons_why_ranges_wait_appear_in_the_live_file_and_vanish_again() {
    on_paused_clock(async |journal| {
        let watching = Watching::new(&journal);
        let monitor = &watching.monitor;
        for (range, reason) in [(A, "none free"), (B, "none free"), (B, "still none free")] {
            monitor.do_send(LeaseDelayed { range, reason: reason.into() });
        }
        journal.until(millis(299)).await;
        assert_eq!(watching.writes(), 0, "what happens together is written together");
        journal.until(millis(301)).await;
        assert_eq!(watching.waiting(), [waits_for(A, "none free"), waits_for(B, "still none free")]);
        assert_eq!(watching.writes(), 1);
        let (attempt, lease) = (Attempt(1), lease(0, &[0, 1]));
        monitor.do_send(AttemptStarted { range: A, attempt, lease, command: vec!["worker".into()] });
        journal.until(secs(1)).await;
        assert_eq!(watching.waiting(), [waits_for(B, "still none free")]);
        let report = failed(FailureClass::Crash, 1);
        monitor.do_send(AttemptEnded { range: A, attempt, report });
        journal.until(secs(2)).await;
        let restart = waits_for(A, "restart after crash");
        assert_eq!(watching.waiting(), [restart.clone(), waits_for(B, "still none free")]);
        monitor.do_send(RangeEnded { range: B, end: End::GivenUp });
        journal.until(secs(3)).await;
        assert_eq!(watching.waiting(), [restart]);
        monitor.do_send(RangeEnded { range: A, end: End::Complete });
        journal.until(secs(4)).await;
        assert_eq!(watching.waiting(), []);
    });
}

#[test]
fn a_monitor_that_cannot_write_its_file_goes_on() {
    on_paused_clock(async |journal| {
        let watching = Watching::new(&journal);
        watching.store.refuse_live.store(true, Ordering::SeqCst);
        watching.monitor.do_send(LeaseDelayed { range: A, reason: "none free".into() });
        journal.until(secs(1)).await;
        watching.store.refuse_live.store(false, Ordering::SeqCst);
        watching.monitor.do_send(LeaseDelayed { range: B, reason: "none free".into() });
        journal.until(secs(2)).await;
        assert_eq!(watching.waiting(), [waits_for(A, "none free"), waits_for(B, "none free")]);
    });
}

#[test]
fn progress_with_ranges_that_have_ended_or_failed_in_every_way_is_told_without_a_panic() {
    on_paused_clock(async |journal| {
        let watching = Watching::new(&journal);
        let monitor = &watching.monitor;
        // Ends without starts, as when an attempt could not begin, and a range that nobody planned.
        for (range, report) in
            [(A, failed(FailureClass::Stopped, 0)), (B, completed()), (D, failed(FailureClass::Crash, 1))]
        {
            monitor.do_send(AttemptEnded { range, attempt: Attempt(1), report });
        }
        monitor.do_send(RangeEnded { range: B, end: End::Complete });
        journal.until(secs(100)).await;
        assert_eq!(journal.dead(), NONE);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// All of them

/// All actors of a run as `app` wires them, on fakes.
struct Run {
    done: oneshot::Receiver<RunEnd>,
    supervisor: Addr<SupervisorActor>,
}

struct World {
    store: Arc<FakeStore>,
    outputs: Arc<FakeOutputs>,
    gpus: Arc<FakeGpus>,
}

impl World {
    fn new(journal: &Journal, gpus: u32) -> Self {
        let (store, outputs) = (FakeStore::new(journal), FakeOutputs::new(journal));
        Self { store, outputs, gpus: FakeGpus::new(gpus) }
    }
}

fn start_run(
    journal: &Journal,
    world: &World,
    processes: FakeProcesses,
    policy: Policy,
    states: Vec<RangeState>,
) -> Run {
    let samples = Arc::new(samples(0..16));
    let ids: Arc<Vec<i64>> = Arc::new((0..16).collect());
    let left: BTreeMap<RangeId, u64> =
        states.iter().map(|state| (state.range(), rows_left(state, &samples))).collect();
    let briefs = states
        .iter()
        .map(|state| Brief {
            range: state.range(),
            rows_left: left[&state.range()],
            complete: state.status == RangeStatus::Complete,
            accepted: false,
            attempts: state.attempts,
        })
        .collect();
    let monitor =
        journal.watch("monitor", MonitorActor::new(world.store.clone(), "us".into(), false, left, 32));
    let shared = Rc::new(Shared {
        store: world.store.clone(),
        outputs: world.outputs.clone(),
        sweeper: Arc::new(FakeSweeper { journal: journal.clone() }),
        processes: Rc::new(processes),
        command: command(),
        scheduler_id: "us".into(),
        samples,
        ids: ids.clone(),
    });
    let (send, done) = oneshot::channel();
    let supervisor = SupervisorActor::create(|ctx| {
        let supervisor = ctx.address();
        let pool = GpuPool::new(
            pool::Policy::default(),
            world.gpus.clone(),
            supervisor.clone().recipient(),
            monitor.clone().recipient(),
        );
        let pool = journal.watch("pool", pool);
        let ranges = states.iter().map(RangeState::range).collect();
        let (store, outputs) = (world.store.clone(), world.outputs.clone());
        let merge = MergeActor::new(ranges, store, outputs, ids, supervisor.clone().recipient());
        let merge = journal.watch("merge", merge);
        let peers = Peers {
            started: monitor.clone().recipient(),
            tree_gone: supervisor.clone().recipient(),
            ended: vec![monitor.clone().recipient(), supervisor.clone().recipient()],
            closed: supervisor.clone().recipient(),
        };
        let left = states.iter().filter(|state| state.status != RangeStatus::Complete);
        let workers = left.map(|state| {
            world.store.put(state.clone());
            let worker = WorkerActor::new(state.clone(), shared.clone(), peers.clone());
            let worker = journal.watch("worker", worker);
            let orders = RangeOrders {
                run: worker.clone().recipient(),
                stop: worker.clone().recipient(),
                close: worker.recipient(),
            };
            (state.range(), orders)
        });
        let orders = Orders {
            request: pool.clone().recipient(),
            cancel: pool.clone().recipient(),
            release: pool.recipient(),
            ranges: workers.collect(),
            range_ended: vec![merge.recipient(), monitor.recipient()],
        };
        SupervisorActor::new(policy, briefs, orders, send)
    });
    journal.watch_addr("supervisor", &supervisor);
    Run { done, supervisor }
}

/// Workers that take a while, fill their GPUs, and end as it is planned; memory comes back only some time later.
fn scripted(
    journal: &Journal,
    world: &World,
    plan: impl Fn(RangeId, Attempt) -> (Vec<i64>, ExitOutcome) + 'static,
) -> FakeProcesses {
    let (store, outputs, gpus) = (world.store.clone(), world.outputs.clone(), world.gpus.clone());
    FakeProcesses::scripted(journal, move |job| {
        let (range, attempt) = (job.range, job.attempt);
        let (ids, outcome) = plan(range, attempt);
        let (store, outputs, gpus) = (store.clone(), outputs.clone(), gpus.clone());
        let ordinals: Vec<u32> = job.lease.gpus.iter().map(|gpu| gpu.ordinal).collect();
        Box::pin(async move {
            ordinals.iter().for_each(|ordinal| gpus.use_gib(*ordinal, 70));
            tokio::time::sleep(secs(600 + 100 * range.low as u64)).await;
            outputs.wrote(range, attempt, ids);
            store.record(range, attempt, outcome, false);
            actix::spawn(async move {
                tokio::time::sleep(secs(3)).await;
                ordinals.iter().for_each(|ordinal| gpus.use_gib(*ordinal, 0));
            });
        })
    })
}

/// Walks through the journal of a run and checks what must hold at every moment of it.
struct Referee {
    cap: usize,
    alive: BTreeMap<RangeId, (Attempt, Lease)>,
    named: BTreeMap<RangeId, Attempt>,
    last_start: BTreeMap<RangeId, Attempt>,
    starts: Vec<(RangeId, Attempt)>,
    gone_at: BTreeMap<String, Duration>,
    ended: BTreeMap<RangeId, RangeStatus>,
    merges: Vec<Vec<RangeState>>,
}

impl Referee {
    fn judge(notes: Vec<(Duration, Note)>, cap: usize) -> Self {
        let mut referee = Self {
            cap,
            alive: BTreeMap::new(),
            named: BTreeMap::new(),
            last_start: BTreeMap::new(),
            starts: Vec::new(),
            gone_at: BTreeMap::new(),
            ended: BTreeMap::new(),
            merges: Vec::new(),
        };
        for (at, note) in notes {
            referee.see(at, note);
        }
        assert!(referee.alive.is_empty(), "{:?}", referee.alive);
        referee
    }

    fn see(&mut self, at: Duration, note: Note) {
        assert!(self.merges.is_empty(), "{note} after the merge");
        match note {
            Note::Saved(state) => self.saved(*state),
            Note::Started(job) => {
                let (range, attempt) = (job.range, job.attempt);
                assert_eq!(self.named.get(&range), Some(&attempt), "saved before it starts");
                assert!(!self.alive.contains_key(&range), "two attempts of {range}");
                assert!(self.last_start.get(&range) < Some(&attempt), "numbers only grow");
                for gpu in &job.lease.gpus {
                    let others = self.alive.values().flat_map(|(_, lease)| &lease.gpus);
                    assert!(others.into_iter().all(|other| other.uuid != gpu.uuid), "{} shared", gpu.uuid);
                    let back = self.gone_at.get(&gpu.uuid).is_none_or(|gone| at >= *gone + secs(3));
                    assert!(back, "{} leased before its memory was back", gpu.uuid);
                }
                self.alive.insert(range, (attempt, job.lease));
                assert!(self.alive.len() <= self.cap, "more than {} at once", self.cap);
                self.last_start.insert(range, attempt);
                self.starts.push((range, attempt));
            }
            Note::Gone(range, attempt) => {
                let (of, lease) = self.alive.remove(&range).expect("it was alive");
                assert_eq!(of, attempt);
                self.gone_at.extend(lease.gpus.into_iter().map(|gpu| (gpu.uuid, at)));
            }
            Note::Examined(range, ..) | Note::Assembled(range, ..) | Note::Discarded(range, ..) => {
                assert!(!self.alive.contains_key(&range), "{range} judged while its worker lives");
            }
            Note::Merged(states, _) => self.merges.push(states),
            other => panic!("unexpected: {other}"),
        }
    }

    fn saved(&mut self, state: RangeState) {
        let range = state.range();
        assert_eq!(self.ended.get(&range), None, "{range} is written after its end");
        if let Some(open) = &state.open {
            self.named.insert(range, open.number);
        }
        if matches!(state.status, RangeStatus::Complete | RangeStatus::GivenUp) {
            self.ended.insert(range, state.status);
        }
    }

    fn starts_of(&self, range: RangeId) -> Vec<u32> {
        self.starts.iter().filter(|(of, _)| *of == range).map(|(_, attempt)| attempt.0).collect()
    }
}

/// `A` crashes twice and then does it all, `B` never gets anywhere, the others work at once.
fn fates(range: RangeId, attempt: Attempt) -> (Vec<i64>, ExitOutcome) {
    let all: Vec<i64> = (range.low..range.high).collect();
    match (range, attempt.0) {
        (A, 1 | 2) => (all[..1].to_vec(), ExitOutcome::Code(1)),
        (B, _) => (Vec::new(), ExitOutcome::Signal(11)),
        _ => (all, ExitOutcome::Code(0)),
    }
}

fn fresh() -> Vec<RangeState> {
    [A, B, C, D].map(RangeState::new).to_vec()
}

async fn check_whole_run(journal: &Journal, gpus: u32, max_parallel: usize) {
    let world = World::new(journal, gpus);
    let processes = scripted(journal, &world, fates);
    let policy = Policy { start_stagger: secs(10), ..policy(max_parallel) };
    let run = start_run(journal, &world, processes, policy, fresh());
    let end = run.done.await.unwrap();
    assert_eq!(end.ending, Ending::Merged);
    let merged = end.merge.unwrap().unwrap();
    assert!(!merged.complete);
    let missing: Vec<_> = merged.given_up.iter().map(|lost| (lost.range, lost.missing_ids.clone())).collect();
    assert_eq!(missing, [(B, vec![4, 5, 6, 7])]);
    assert_eq!(merged.total_rows, 24);

    let cap = max_parallel.min(gpus as usize / 2);
    let referee = Referee::judge(journal.take_notes(), cap);
    for (range, starts) in [(A, vec![1, 2, 3]), (B, vec![1, 2, 3]), (C, vec![1]), (D, vec![1])] {
        assert_eq!(referee.starts_of(range), starts, "{range}");
    }
    let statuses: Vec<RangeStatus> = referee.ended.values().copied().collect();
    let done = RangeStatus::Complete;
    assert_eq!(statuses, [done, RangeStatus::GivenUp, done, done]);
    let [merged] = &referee.merges[..] else { panic!("merged {} times", referee.merges.len()) };
    assert_eq!(merged.len(), 4);
}

#[test]
fn a_whole_run_with_crashes_and_a_lost_range_ends_with_one_merge() {
    on_paused_clock(async |journal| check_whole_run(&journal, 4, 3).await);
}

#[test]
fn a_whole_run_keeps_to_the_parallel_limit_where_there_are_more_gpus() {
    on_paused_clock(async |journal| check_whole_run(&journal, 8, 2).await);
}

#[test]
fn a_whole_run_in_which_ranges_are_complete_already_does_only_the_rest() {
    on_paused_clock(async |journal| {
        let world = World::new(&journal, 4);
        let processes = scripted(&journal, &world, fates);
        let mut states = fresh();
        for state in &mut states[..2] {
            state.status = RangeStatus::Complete;
            state.attempts = Attempt(4);
            world.store.put(state.clone());
        }
        let run = start_run(&journal, &world, processes, policy(4), states);
        let end = run.done.await.unwrap();
        assert_eq!(end.ending, Ending::Merged);
        assert!(end.merge.unwrap().unwrap().complete);
        let referee = Referee::judge(journal.take_notes(), 2);
        let starts = BTreeSet::from_iter(referee.starts);
        assert_eq!(starts, BTreeSet::from([(C, Attempt(1)), (D, Attempt(1))]));
    });
}

#[test]
fn a_whole_run_that_is_stopped_starts_nothing_more_and_ends_when_the_workers_have() {
    on_paused_clock(async |journal| {
        let world = World::new(&journal, 4);
        let processes = scripted(&journal, &world, fates);
        let mut run = start_run(&journal, &world, processes, policy(4), fresh());
        journal.until(secs(100)).await;
        let started = journal.take().into_iter().filter(|line| line.starts_with("started")).count();
        assert_eq!(started, 2);
        run.supervisor.do_send(StopRequested { cause: StopCause::Interrupt });
        assert_eq!(journal.settled().await, ["told 0_4.1 to stop", "told 4_8.1 to stop"]);
        run.supervisor.do_send(StopRequested { cause: StopCause::Interrupt });
        assert_eq!(journal.settled().await, ["told 0_4.1 to die", "told 4_8.1 to die"]);
        journal.until(secs(900)).await;
        assert!(run.done.try_recv().is_err(), "4_8 still runs");
        let end = run.done.await.unwrap();
        assert_eq!(end.ending, Ending::Stopped(StopCause::Interrupt));
        assert!(end.merge.is_none());
        let lines = journal.take();
        assert!(lines.iter().all(|line| !line.starts_with("started")), "{lines:?}");
        for range in [A, B, C, D] {
            let state = world.store.state(range).unwrap();
            assert_eq!((state.status, state.open), (RangeStatus::Pending, None), "{range}");
        }
    });
}

#[test]
fn a_second_stop_ends_a_run_in_which_giving_up_cannot_be_written() {
    on_paused_clock(async |journal| {
        let world = World::new(&journal, 2);
        world.store.refuse(RangeStatus::GivenUp);
        let processes = scripted(&journal, &world, fates);
        let mut run = start_run(&journal, &world, processes, policy(1), vec![RangeState::new(B)]);
        journal.until(secs(4000)).await;
        assert_eq!(journal.take().last().unwrap(), "could not save 4_8");
        for _ in 0..2 {
            run.supervisor.do_send(StopRequested { cause: StopCause::Interrupt });
            journal.until(journal.now() + secs(60)).await;
        }
        let ending = run.done.try_recv().map(|end| end.ending);
        // The program would be over; here the range's actor lives on and tries again.
        world.store.refuse(RangeStatus::Superseded);
        journal.until(journal.now() + secs(60)).await;
        journal.take();
        assert_eq!(ending.ok(), Some(Ending::Stopped(StopCause::Interrupt)));
    });
}

// ---------------------------------------------------------------------------------------------------------------
// The tests' own tools

#[test]
fn an_actor_that_panicked_does_not_go_unnoticed() {
    struct Bomb;
    impl Actor for Bomb {
        type Context = actix::Context<Self>;
    }
    impl actix::Handler<CloseRange> for Bomb {
        type Result = ();
        fn handle(&mut self, _: CloseRange, _: &mut Self::Context) {
            panic!("planted");
        }
    }
    let noticed = std::panic::catch_unwind(|| {
        on_paused_clock(async |journal| {
            journal.watch("bomb", Bomb).do_send(CloseRange {});
            journal.settled().await;
            assert_eq!(journal.dead(), ["bomb"]);
        });
    });
    assert!(noticed.is_err(), "the end of a test looks for dead actors");
}
