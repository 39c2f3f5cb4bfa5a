use super::*;
use crate::core::invariants;
use crate::types::state::Counters;
use crate::types::{ExitOutcome, LeaseId, LeasedGpu, Segment};
use std::collections::HashSet;

const FIRST: Attempt = Attempt(1);

fn lease() -> Lease {
    Lease { id: LeaseId(3), gpus: vec![LeasedGpu { ordinal: 4, uuid: "sim-4".into() }] }
}

fn run(attempt: Attempt) -> Event {
    Event::Run { attempt, lease: lease() }
}

fn tell(worker: &mut Worker, event: Event) -> Vec<Action> {
    let before = worker.clone();
    let actions = worker.decide(event);
    assert!(invariants::named_before_started(&before, &actions), "{before:?} {actions:?}");
    actions
}

#[test]
fn an_attempt_is_named_started_settled_and_told() {
    let mut worker = Worker::default();
    assert_eq!(tell(&mut worker, run(FIRST)), [Action::Name { attempt: FIRST, lease: lease() }]);
    assert_eq!(
        tell(&mut worker, Event::Named { attempt: FIRST, ok: true }),
        [Action::Start { attempt: FIRST }]
    );
    assert_eq!(tell(&mut worker, Event::Started { attempt: FIRST, ok: true }), []);
    let settle = Action::Settle { attempt: FIRST, stop_requested: false };
    assert_eq!(
        tell(&mut worker, Event::Gone { attempt: FIRST }),
        [Action::TellTreeGone { attempt: FIRST }, settle]
    );
    let told = tell(&mut worker, Event::Settled { attempt: FIRST });
    assert_eq!(told, [Action::TellSettled { attempt: FIRST }]);
}

#[test]
fn a_state_that_cannot_be_written_starts_no_process() {
    let mut worker = Worker::default();
    let _ = tell(&mut worker, run(FIRST));
    let told = tell(&mut worker, Event::Named { attempt: FIRST, ok: false });
    assert_eq!(told, [Action::TellTreeGone { attempt: FIRST }, Action::TellTrouble { attempt: FIRST }]);
}

#[test]
fn a_stop_before_the_start_starts_no_process() {
    let mut worker = Worker::default();
    let _ = tell(&mut worker, run(FIRST));
    assert_eq!(tell(&mut worker, Event::Stop { attempt: FIRST, kill_now: false }), []);
    let told = tell(&mut worker, Event::Named { attempt: FIRST, ok: true });
    assert_eq!(told, [Action::TellTreeGone { attempt: FIRST }, Action::TellTrouble { attempt: FIRST }]);
}

#[test]
fn a_stop_during_the_start_reaches_the_process() {
    let mut worker = Worker::default();
    let _ = tell(&mut worker, run(FIRST));
    let _ = tell(&mut worker, Event::Named { attempt: FIRST, ok: true });
    assert_eq!(tell(&mut worker, Event::Stop { attempt: FIRST, kill_now: true }), []);
    let signal = Action::Signal { attempt: FIRST, kill_now: true };
    assert_eq!(tell(&mut worker, Event::Started { attempt: FIRST, ok: true }), [signal]);
}

#[test]
fn judging_is_tried_again_until_the_disk_lets_it() {
    let mut worker = Worker::default();
    for event in [
        run(FIRST),
        Event::Named { attempt: FIRST, ok: true },
        Event::Started { attempt: FIRST, ok: true },
        Event::Gone { attempt: FIRST },
    ] {
        let _ = tell(&mut worker, event);
    }
    assert_eq!(
        tell(&mut worker, Event::SettleFailed { attempt: FIRST }),
        [Action::RetryLater { attempt: FIRST }]
    );
    let again = tell(&mut worker, Event::RetryDue { attempt: FIRST });
    assert_eq!(again, [Action::Settle { attempt: FIRST, stop_requested: false }]);
    let _ = tell(&mut worker, Event::Stop { attempt: FIRST, kill_now: false });
    let gave_in = tell(&mut worker, Event::SettleFailed { attempt: FIRST });
    assert_eq!(gave_in, [Action::TellTreeGone { attempt: FIRST }, Action::TellTrouble { attempt: FIRST }]);
}

#[test]
fn a_range_is_closed_even_if_the_disk_refuses_at_first() {
    let mut worker = Worker::default();
    assert_eq!(tell(&mut worker, Event::Close), [Action::WriteClosed]);
    assert_eq!(tell(&mut worker, Event::Closed { ok: false }), [Action::RetryCloseLater]);
    assert_eq!(tell(&mut worker, Event::CloseRetryDue), [Action::WriteClosed]);
    assert_eq!(tell(&mut worker, Event::Closed { ok: true }), [Action::TellClosed]);
}

/// All events in all reachable states, for two attempts: a process is started once per attempt and only after it was
/// named, its end is told exactly once, and no end is told before it is gone.
#[test]
fn every_reachable_state_keeps_the_rules() {
    #[derive(Clone, PartialEq, Eq, Hash, Default)]
    struct Seen {
        worker: Worker,
        starts: Vec<Attempt>,
        ends: Vec<Attempt>,
    }
    let events: Vec<Event> = [FIRST, Attempt(2)]
        .into_iter()
        .flat_map(|attempt| {
            let both = [true, false];
            let mut events = vec![
                run(attempt),
                Event::Gone { attempt },
                Event::Settled { attempt },
                Event::SettleFailed { attempt },
                Event::RetryDue { attempt },
            ];
            events.extend(both.map(|kill_now| Event::Stop { attempt, kill_now }));
            events.extend(both.map(|ok| Event::Named { attempt, ok }));
            events.extend(both.map(|ok| Event::Started { attempt, ok }));
            events
        })
        .chain([Event::Close, Event::CloseRetryDue, Event::Closed { ok: true }, Event::Closed { ok: false }])
        .collect();
    let (mut seen, mut frontier) = (HashSet::new(), vec![Seen::default()]);
    while let Some(state) = frontier.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        for event in &events {
            let mut next = state.clone();
            for action in tell(&mut next.worker, event.clone()) {
                match action {
                    Action::Start { attempt } => {
                        assert!(!next.starts.contains(&attempt), "started twice");
                        next.starts.push(attempt);
                    }
                    Action::TellSettled { attempt } | Action::TellTrouble { attempt } => {
                        assert!(!next.ends.contains(&attempt), "ended twice");
                        assert!(!next.worker.alive, "told over a living process");
                        next.ends.push(attempt);
                    }
                    _ => {}
                }
            }
            frontier.push(next);
        }
    }
    assert!(seen.len() > 50, "the search saw only {} states", seen.len());
}

fn judgement(ids: Option<(i64, i64)>, proven_end: bool) -> Judgement {
    let accepted = ids.map(|ids| Segment { ids, spans: vec![(10, 20)], rows: 3 });
    Judgement { accepted, proven_end, breach: None }
}

fn open() -> OpenAttempt {
    OpenAttempt { number: Attempt(2), gap: RangeId::new(0, 8), gpu_uuids: vec![] }
}

fn applied(state: &mut RangeState, outcome: ExitOutcome, judgement: Judgement) -> Option<FailureClass> {
    let end = AttemptEnd { outcome: &outcome, told_to_stop: false, swallowed_error: None };
    let facts = ShardFacts { len: 20, crc: 9, ..ShardFacts::default() };
    let file = Some((Path::new("attempts/0_8.2/x.csv"), &facts));
    apply(state, &open(), judgement, end, file, false).map(|(class, _)| class)
}

#[test]
fn a_verdict_is_folded_into_the_state() {
    let mut state = RangeState::new(RangeId::new(0, 8));
    let class = applied(&mut state, ExitOutcome::Signal(9), judgement(Some((0, 4)), false));
    assert_eq!(class, Some(FailureClass::Crash));
    assert_eq!((state.open.clone(), state.status), (None, RangeStatus::Pending));
    assert_eq!(state.counters, Counters { highest_accepted: Some(4), starts: 1, ..Counters::default() });
    assert_eq!(state.pieces[0].file, Path::new("attempts/0_8.2/x.csv"));
    let ids: Vec<i64> = (0..8).collect();
    assert!(!all_accepted(&state, &ids) && invariants::accepted_once(&state));
    applied(&mut state, ExitOutcome::Code(0), judgement(Some((5, 7)), true));
    assert!(all_accepted(&state, &ids) && invariants::accepted_once(&state));
}

#[test]
fn a_crash_loop_without_progress_is_counted() {
    let mut state = RangeState::new(RangeId::new(0, 8));
    for expected in 1..4 {
        applied(&mut state, ExitOutcome::Code(1), judgement(None, false));
        assert_eq!(state.counters.charged_in_a_row, expected);
    }
    assert_eq!(state.last_failure.map(|last| last.message), Some("exit status 1".to_owned()));
}

#[test]
fn a_busy_gpu_is_no_start() {
    let mut state = RangeState::new(RangeId::new(0, 8));
    applied(&mut state, ExitOutcome::GpuBusy { gpu: "x".into() }, judgement(None, false));
    assert_eq!(state.counters, Counters::default());
}
