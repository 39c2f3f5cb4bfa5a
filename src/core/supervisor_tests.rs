use super::*;
use crate::core::invariants;
use crate::types::LeasedGpu;
use std::collections::HashSet;

const SECOND: Duration = Duration::from_secs(1);

fn policy(max_parallel: usize) -> Policy {
    let restart = RestartPolicy { max_failures: 2, backoff_base: 5 * SECOND, backoff_cap: 300 * SECOND };
    Policy { max_parallel, start_stagger: Duration::ZERO, wait_timeout: None, restart }
}

fn range(n: i64) -> RangeId {
    RangeId::new(n * 10, n * 10 + 10)
}

fn brief(n: i64, rows_left: u64) -> Brief {
    Brief { range: range(n), rows_left, complete: false, accepted: false, attempts: Attempt(0) }
}

fn lease(n: u64) -> Lease {
    Lease { id: LeaseId(n), gpus: vec![LeasedGpu { ordinal: n as u32, uuid: format!("sim-{n}") }] }
}

fn report(complete: bool, failure: Option<FailureClass>, charged: u32) -> AttemptReport {
    AttemptReport {
        rows_left: if complete { 0 } else { 5 },
        complete,
        accepted: complete,
        failure: failure.map(|class| (class, "it broke".to_owned())),
        counters: Counters { charged_in_a_row: charged, ..Counters::default() },
    }
}

/// A supervisor with its policy and clock, for tests that tell a story.
struct Story {
    core: Supervisor,
    policy: Policy,
    now: Duration,
}

impl Story {
    fn new(policy: Policy, briefs: Vec<Brief>) -> (Self, Vec<Action>) {
        let mut story = Self { core: Supervisor::default(), policy, now: Duration::ZERO };
        let actions = story.tell(Event::Began(briefs));
        (story, actions)
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        let before = self.core.clone();
        let actions = self.core.decide(event, self.now, &self.policy);
        let broken = invariants::broken_by(&before, &actions, &self.core, self.policy.max_parallel);
        assert_eq!(broken, None);
        actions
    }

    fn grant(&mut self, n: i64) -> Vec<Action> {
        self.tell(Event::LeaseGranted { range: range(n), lease: lease(n as u64) })
    }

    fn ended(&mut self, n: i64, attempt: u32, report: AttemptReport) -> Vec<Action> {
        self.tell(Event::AttemptEnded { range: range(n), attempt: Attempt(attempt), report, jitter: 1000 })
    }
}

fn request(n: i64) -> Action {
    Action::RequestLease { range: range(n) }
}

#[test]
fn the_longest_ranges_go_first_within_the_cap() {
    let (_, actions) = Story::new(policy(2), vec![brief(0, 5), brief(1, 9), brief(2, 7), brief(3, 9)]);
    assert_eq!(actions, [request(1), request(3)]);
}

#[test]
fn a_free_place_is_taken_at_once() {
    let (mut story, _) = Story::new(policy(1), vec![brief(0, 5), brief(1, 4)]);
    let started = story.grant(0);
    assert_eq!(started, [Action::RunAttempt { range: range(0), attempt: Attempt(1), lease: lease(0) }]);
    let gone = story.tell(Event::TreeGone { range: range(0), attempt: Attempt(1) });
    assert_eq!(gone, [Action::ReleaseLease(LeaseId(0))]);
    let ended = story.ended(0, 1, report(true, None, 0));
    assert_eq!(ended, [Action::RangeEnded { range: range(0), end: End::Complete }, request(1)]);
}

#[test]
fn starts_are_staggered() {
    let (mut story, _) =
        Story::new(Policy { start_stagger: 2 * SECOND, ..policy(2) }, vec![brief(0, 5), brief(1, 4)]);
    assert_eq!(story.grant(0).len(), 1);
    story.now = SECOND / 2;
    assert_eq!(story.grant(1), [Action::StaggerAfter(SECOND + SECOND / 2)]);
    story.now = 2 * SECOND;
    let run = Action::RunAttempt { range: range(1), attempt: Attempt(1), lease: lease(1) };
    assert_eq!(story.tell(Event::StaggerOver), [run]);
}

#[test]
fn a_failure_waits_its_backoff_and_is_run_again_under_a_new_number() {
    let (mut story, _) = Story::new(policy(1), vec![brief(0, 5)]);
    story.grant(0);
    let ended = story.ended(0, 1, report(false, Some(FailureClass::Crash), 1));
    let wake = Action::WakeAfter { range: range(0), attempt: Attempt(1), delay: 5 * SECOND };
    assert_eq!(ended, [Action::ReleaseLease(LeaseId(0)), wake]);
    let again = story.tell(Event::BackoffOver { range: range(0), attempt: Attempt(1) });
    assert_eq!(again, [request(0)]);
    let run = Action::RunAttempt { range: range(0), attempt: Attempt(2), lease: lease(7) };
    assert_eq!(story.tell(Event::LeaseGranted { range: range(0), lease: lease(7) }), [run]);
}

#[test]
fn a_waiting_range_leaves_its_place_to_others() {
    let (mut story, _) = Story::new(policy(1), vec![brief(0, 5), brief(1, 4)]);
    story.grant(0);
    let ended = story.ended(0, 1, report(false, Some(FailureClass::Crash), 1));
    assert!(ended.contains(&request(1)));
}

#[test]
fn enough_failures_in_a_row_give_the_range_up() {
    let (mut story, _) = Story::new(policy(1), vec![brief(0, 5)]);
    story.grant(0);
    let ended = story.ended(0, 1, report(false, Some(FailureClass::Crash), 2));
    assert_eq!(ended[1..], [Action::CloseRange { range: range(0) }]);
    let closed = story.tell(Event::RangeClosed { range: range(0) });
    assert_eq!(closed, [Action::RangeEnded { range: range(0), end: End::GivenUp }]);
    assert_eq!(story.tell(Event::MergeEnded), [Action::Finish(Ending::Merged)]);
}

#[test]
fn a_configuration_that_never_worked_stops_the_run() {
    let (mut story, _) = Story::new(policy(2), vec![brief(0, 5), brief(1, 4)]);
    story.grant(0);
    story.grant(1);
    let ended = story.ended(0, 1, report(false, Some(FailureClass::Configuration), 1));
    assert!(ended.contains(&Action::StopAttempt { range: range(1), attempt: Attempt(1), kill_now: false }));
    let last = story.ended(1, 1, report(false, Some(FailureClass::Stopped), 0));
    assert_eq!(last.last(), Some(&Action::Finish(Ending::Broken("it broke".into()))));
}

#[test]
fn a_configuration_failure_after_success_gives_only_that_range_up() {
    let (mut story, _) = Story::new(policy(2), vec![brief(0, 5), brief(1, 4)]);
    story.grant(0);
    story.grant(1);
    story.ended(0, 1, report(true, None, 0));
    let ended = story.ended(1, 1, report(false, Some(FailureClass::Configuration), 1));
    assert!(ended.contains(&Action::CloseRange { range: range(1) }));
}

#[test]
fn events_of_an_older_attempt_are_dropped() {
    let (mut story, _) = Story::new(policy(1), vec![brief(0, 5)]);
    story.grant(0);
    story.ended(0, 1, report(false, Some(FailureClass::Crash), 1));
    story.tell(Event::BackoffOver { range: range(0), attempt: Attempt(1) });
    story.tell(Event::LeaseGranted { range: range(0), lease: lease(7) });
    assert_eq!(story.ended(0, 1, report(true, None, 0)), []);
    assert_eq!(story.tell(Event::TreeGone { range: range(0), attempt: Attempt(1) }), []);
    assert_eq!(story.tell(Event::BackoffOver { range: range(0), attempt: Attempt(1) }), []);
}

#[test]
fn one_stop_is_with_grace_and_a_second_one_kills() {
    let (mut story, _) = Story::new(policy(2), vec![brief(0, 5), brief(1, 4), brief(2, 3)]);
    story.grant(0);
    let stop = |kill_now| Action::StopAttempt { range: range(0), attempt: Attempt(1), kill_now };
    let first = story.tell(Event::StopRequested(StopCause::Interrupt));
    assert_eq!(first, [stop(false), Action::CancelLease { range: range(1) }]);
    assert_eq!(story.tell(Event::StopRequested(StopCause::Terminate)), [stop(true)]);
    // A lease that was on its way goes straight back.
    assert_eq!(story.grant(1), [Action::ReleaseLease(LeaseId(1))]);
    let last = story.ended(0, 1, report(false, Some(FailureClass::Stopped), 0));
    let finish = Action::Finish(Ending::Stopped(StopCause::Interrupt));
    assert_eq!(last, [Action::ReleaseLease(LeaseId(0)), finish]);
}

#[test]
fn a_stop_while_merging_ends_the_run() {
    let (mut story, _) = Story::new(policy(1), vec![Brief { complete: true, ..brief(0, 0) }]);
    let finish = Action::Finish(Ending::Stopped(StopCause::HangUp));
    assert_eq!(story.tell(Event::StopRequested(StopCause::HangUp)), [finish]);
    assert_eq!(story.tell(Event::MergeEnded), []);
}

#[test]
fn waiting_for_gpus_is_bounded_only_while_nothing_runs() {
    let (mut story, _) =
        Story::new(Policy { wait_timeout: Some(10 * SECOND), ..policy(2) }, vec![brief(0, 5), brief(1, 4)]);
    story.grant(0);
    story.now = 20 * SECOND;
    assert_eq!(story.tell(Event::Ticked), []);
    story.ended(0, 1, report(true, None, 0));
    story.tell(Event::Ticked);
    story.now = 29 * SECOND;
    assert_eq!(story.tell(Event::Ticked), []);
    story.now = 30 * SECOND;
    let finish = Action::Finish(Ending::Stopped(StopCause::WaitedTooLong));
    assert_eq!(story.tell(Event::Ticked), [Action::CancelLease { range: range(1) }, finish]);
}

/// Mistakes that a supervisor could make; the search has to find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bug {
    /// What is said of an older attempt is taken for news of the current one.
    StaleAttemptNotDropped,
    /// A given-up range is never reported, so the merge waits for ever.
    GivingUpForgotten,
    /// The run goes on as if nobody had asked it to stop.
    StopForgotten,
    /// The cap counts only what runs, not what is about to.
    OverTheCap,
}

/// What the supervisor's surroundings may do next: the world of the exhaustive search.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct World {
    bug: Option<Bug>,
    core: Supervisor,
    /// Requests the pool has not answered.
    asked: Vec<RangeId>,
    /// Attempts that the workers were told to run, with their leases.
    live: Vec<(RangeId, Attempt)>,
    failures: BTreeMap<RangeId, u32>,
    closing: Vec<RangeId>,
    waking: Vec<(RangeId, Attempt)>,
    stops: u8,
    stale: Vec<(RangeId, Attempt)>,
    merge_running: bool,
    ended: Vec<RangeId>,
    finished: bool,
}

const RANGES: i64 = 2;
/// The search is finite because the last attempt of a range succeeds.
const MOST_ATTEMPTS: u32 = 3;

impl World {
    fn take(&mut self, event: Event, policy: &Policy) {
        let before = self.core.clone();
        let mut actions = self.core.decide(self.mistaken(event.clone()), Duration::ZERO, policy);
        match self.bug {
            Some(Bug::GivingUpForgotten) => {
                actions.retain(|action| !matches!(action, Action::RangeEnded { end: End::GivenUp, .. }));
            }
            Some(Bug::StopForgotten) => self.core.stop = None,
            Some(Bug::OverTheCap) => {
                let more = Policy { max_parallel: policy.max_parallel + 1, ..policy.clone() };
                actions.extend(self.core.decide(Event::Ticked, Duration::ZERO, &more));
            }
            _ => {}
        }
        let broken = invariants::broken_by(&before, &actions, &self.core, policy.max_parallel);
        assert_eq!(broken, None, "{event:?} in {before:?}");
        for action in actions {
            self.obey(action);
        }
    }

    fn mistaken(&self, event: Event) -> Event {
        match event {
            Event::AttemptEnded { range, report, jitter, .. }
                if self.bug == Some(Bug::StaleAttemptNotDropped) =>
            {
                Event::AttemptEnded { range, attempt: self.core.slots[&range].attempt, report, jitter }
            }
            other => other,
        }
    }

    fn obey(&mut self, action: Action) {
        assert!(!self.finished, "an action after the end: {action:?}");
        match action {
            Action::RequestLease { range } => self.asked.push(range),
            Action::CancelLease { range } => self.asked.retain(|asked| *asked != range),
            Action::RunAttempt { range, attempt, .. } => {
                assert_eq!(self.stops, 0, "started after a stop");
                assert!(self.live.iter().all(|(of, _)| *of != range), "two attempts of one range");
                self.live.push((range, attempt));
            }
            Action::WakeAfter { range, attempt, .. } => self.waking.push((range, attempt)),
            Action::CloseRange { range } => self.closing.push(range),
            Action::RangeEnded { range, .. } => {
                assert!(!self.ended.contains(&range), "a range ended twice");
                self.ended.push(range);
                self.merge_running = self.ended.len() == RANGES as usize;
            }
            Action::Finish(ending) => {
                assert!(self.live.is_empty(), "finished over a living attempt");
                assert!(ending != Ending::Merged || self.ended.len() == RANGES as usize, "merged too early");
                self.finished = true;
            }
            Action::ReleaseLease(_) | Action::StopAttempt { .. } | Action::StaggerAfter(_) => {}
        }
    }

    /// Every event that could come next, stale ones included.
    fn next(&self) -> Vec<Event> {
        let mut events = vec![Event::Ticked];
        for range in &self.asked {
            events.push(Event::LeaseGranted { range: *range, lease: lease(range.low as u64) });
        }
        for (range, attempt) in self.live.iter().chain(&self.stale) {
            events.push(Event::TreeGone { range: *range, attempt: *attempt });
            let failed = self.failures.get(range).copied().unwrap_or(0);
            let mut classes = vec![None];
            if failed < 2 && attempt.0 < MOST_ATTEMPTS {
                classes.extend(
                    [FailureClass::Crash, FailureClass::Configuration, FailureClass::Stopped].map(Some),
                );
            }
            for class in classes {
                let charged = if class == Some(FailureClass::Stopped) { failed } else { failed + 1 };
                let report = report(class.is_none(), class, charged);
                events.push(Event::AttemptEnded { range: *range, attempt: *attempt, report, jitter: 500 });
            }
        }
        events.extend(
            self.waking
                .iter()
                .map(|(range, attempt)| Event::BackoffOver { range: *range, attempt: *attempt }),
        );
        events.extend(self.closing.iter().map(|range| Event::RangeClosed { range: *range }));
        if self.stops < 2 {
            events.push(Event::StopRequested(StopCause::Interrupt));
        }
        if self.merge_running {
            events.push(Event::MergeEnded);
        }
        events
    }

    fn after(&self, event: &Event, policy: &Policy) -> Self {
        let mut world = self.clone();
        match event {
            Event::LeaseGranted { range, .. } => {
                world.asked.retain(|asked| asked != range);
            }
            Event::AttemptEnded { range, attempt, report, .. }
                if world.live.contains(&(*range, *attempt)) =>
            {
                world.live.retain(|live| live.0 != *range);
                world.failures.insert(*range, report.counters.charged_in_a_row);
                world.stale = vec![(*range, *attempt)];
            }
            Event::BackoffOver { range, attempt } => world.waking.retain(|w| *w != (*range, *attempt)),
            Event::RangeClosed { range } => world.closing.retain(|closing| closing != range),
            Event::StopRequested(_) => world.stops += 1,
            Event::MergeEnded => world.merge_running = false,
            _ => {}
        }
        world.take(event.clone(), policy);
        world
    }
}

/// Walks every reachable state with every next event; returns how many there are. Panics where a rule breaks, or where
/// nothing more can happen but time and the run has not finished.
fn search(bug: Option<Bug>) -> usize {
    let policy = policy(1);
    let mut start = World { bug, ..World::default() };
    start.take(Event::Began((0..RANGES).map(|n| brief(n, 5)).collect()), &policy);
    let (mut seen, mut frontier) = (HashSet::new(), vec![start]);
    while let Some(world) = frontier.pop() {
        if !seen.insert(world.clone()) || world.finished {
            continue;
        }
        let events = world.next();
        let own = |event: &&Event| !matches!(event, Event::Ticked | Event::StopRequested(_));
        let can_go_on = events.iter().filter(own).any(|event| {
            let next = world.after(event, &policy);
            next.core != world.core || next.finished
        });
        assert!(can_go_on, "stuck: {:?}", world.core);
        frontier.extend(events.iter().map(|event| world.after(event, &policy)));
    }
    seen.len()
}

/// Rule 8 and all the others.
#[test]
fn every_reachable_state_keeps_the_rules_and_no_run_gets_stuck() {
    let states = search(None);
    assert!(states > 1000, "the search saw only {states} states");
}

#[test]
fn the_search_finds_planted_bugs() {
    for bug in [Bug::StaleAttemptNotDropped, Bug::GivingUpForgotten, Bug::StopForgotten, Bug::OverTheCap] {
        assert!(std::panic::catch_unwind(|| search(Some(bug))).is_err(), "{bug:?} was not found");
    }
}
