//! Every state that a small machine can get into, by breadth-first search over (state x event).
//!
//! Time is made finite by shrinking the gaps between the instants that still matter to the longest limit,
//! and leases and ranges by naming them anew; both keep every comparison the pool can make.

use super::invariants::*;
use super::{Action, Bug, Event, Holding, Policy, Pool, State};
use crate::types::{GpuFacts, GpuSnapshot, LeaseId, RangeId};
use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

thread_local! {
    pub(super) static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

const SECOND: Duration = Duration::from_secs(1);
/// No limit in these policies tells two instants apart that are further from each other.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// What is really the case with one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Truth {
    Clean,
    /// Memory in use, by our worker or by anything else.
    Dirty,
    /// Its lock is held by another scheduler.
    Locked,
    Failing,
    Gone,
}

/// What may happen in one search, beyond requests, looks and releases.
#[derive(Debug, Clone)]
struct Scope {
    gpus: usize,
    policy: Policy,
    ranges: i64,
    /// What GPU i may turn into by itself.
    truths: Vec<Vec<Truth>>,
    looks_in_flight: usize,
    cancels: bool,
    driver_fails: bool,
    at_most: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    pool: Pool,
    truth: Vec<Truth>,
    looks: Vec<(Duration, Vec<Truth>)>,
    now: Duration,
}

#[derive(Debug, Clone)]
enum Step {
    Pass,
    Turn(usize, Truth),
    Look,
    Deliver(usize),
    DriverFails,
    Tell(Event),
}

impl Scope {
    fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = vec![Step::Pass];
        for (gpu, truths) in self.truths.iter().enumerate() {
            steps.extend(truths.iter().filter(|t| **t != world.truth[gpu]).map(|t| Step::Turn(gpu, *t)));
        }
        if world.looks.len() < self.looks_in_flight {
            steps.push(Step::Look);
        }
        steps.extend((0..world.looks.len()).map(Step::Deliver));
        if self.driver_fails {
            steps.push(Step::DriverFails);
        }
        for low in 0..self.ranges {
            let range = RangeId::new(low, low + 1);
            if world.pool.queue.iter().any(|waiter| waiter.range == range) {
                if self.cancels {
                    steps.push(Step::Tell(Event::Cancelled { range }));
                }
            } else if !world.pool.leases.values().any(|holding| holding.range == range) {
                steps.push(Step::Tell(Event::Requested { range }));
            }
        }
        steps.extend(world.pool.leases.keys().map(|lease| Step::Tell(Event::Released { lease: *lease })));
        steps
    }
}

impl World {
    fn new(scope: &Scope) -> Self {
        let truth = vec![Truth::Clean; scope.gpus];
        Self { pool: Pool::new(), truth, looks: Vec::new(), now: 10 * SECOND }
    }

    fn apply(&mut self, step: &Step, scope: &Scope) -> Result<(), String> {
        match step {
            Step::Pass => self.now += SECOND,
            Step::Turn(gpu, truth) => self.truth[*gpu] = *truth,
            Step::Look => self.looks.push((self.now, self.truth.clone())),
            Step::Deliver(index) => {
                let (taken_at, truth) = self.looks.remove(*index);
                self.tell(Event::Observed { taken_at, seen: Ok(snapshot(&truth)) }, scope)?;
            }
            Step::DriverFails => {
                self.tell(Event::Observed { taken_at: self.now, seen: Err("down".to_owned()) }, scope)?;
            }
            Step::Tell(event) => self.tell(event.clone(), scope)?,
        }
        Ok(())
    }

    fn tell(&mut self, event: Event, scope: &Scope) -> Result<(), String> {
        let policy = &scope.policy;
        let before = self.pool.clone();
        let actions = self.pool.decide(event.clone(), self.now, policy);
        for action in &actions {
            if let Action::Granted { lease, .. } = action {
                for gpu in &lease.gpus {
                    let index = gpu.ordinal as usize;
                    // A GPU that nothing turns clean again would only be quarantined once and for all.
                    if scope.truths[index].contains(&Truth::Clean) {
                        self.truth[index] = Truth::Dirty;
                    }
                }
            }
        }
        let broken = [
            (each_gpu_in_at_most_one_lease(&self.pool), "a GPU is in two leases"),
            (granted_only_eligible(&event, &actions, policy), "granted what was not eligible"),
            (released_only_after_a_later_look(&before, &event, &self.pool), "freed without a later look"),
            (no_request_dropped(&before, &event, &actions, &self.pool), "a request was dropped or overtaken"),
        ];
        match broken.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(format!("{what}: {event:?} -> {actions:?}\nfrom {before:?}")),
            None => Ok(()),
        }
    }

    /// Once everything is free, eligible and looked at, the head of the queue is served, and as many as fit.
    fn must_serve_the_head(&self, scope: &Scope) -> Result<(), String> {
        let mut world = self.clone();
        for lease in self.pool.leases.keys().copied() {
            world.tell(Event::Released { lease }, scope)?;
        }
        let waiting = world.pool.queue.len();
        world.now += 2 * SECOND;
        world.truth.fill(Truth::Clean);
        let fresh = Event::Observed { taken_at: world.now, seen: Ok(snapshot(&world.truth)) };
        world.tell(fresh, scope)?;
        let expected = waiting.min(world.truth.len() / scope.policy.group_size as usize);
        let granted = world.pool.leases.len();
        if granted == expected { Ok(()) } else { Err(format!("{granted} of {expected} served: {self:?}")) }
    }

    fn canonical(mut self) -> Self {
        // The newest look matters only to older ones that may still arrive.
        if self.looks.iter().all(|(taken_at, _)| Some(*taken_at) >= self.pool.last_look) {
            self.pool.last_look = None;
        }
        // What was said last decides only whether it is said again.
        self.pool.queue.iter_mut().for_each(|waiter| waiter.reason.clear());
        self.shrink_gaps();
        self.rename();
        self
    }

    /// Names leases after their place on the machine, and ranges after their place in the queue or their lease.
    fn rename(&mut self) {
        let mut holdings: Vec<(LeaseId, Holding)> =
            std::mem::take(&mut self.pool.leases).into_iter().collect();
        holdings.sort_by(|a, b| a.1.gpus.cmp(&b.1.gpus));
        self.pool.next_lease = holdings.len() as u64;
        let waiting = self.pool.queue.iter_mut().map(|waiter| &mut waiter.range);
        let served = holdings.iter_mut().map(|(_, holding)| &mut holding.range);
        // A range never waits while it holds a lease here, so none is named twice.
        waiting.chain(served).zip(0..).for_each(|(range, low)| *range = RangeId::new(low, low + 1));
        for ((_, holding), id) in holdings.into_iter().zip((0..).map(LeaseId)) {
            for uuid in &holding.gpus {
                if let Some(slot) = self.pool.slots.get_mut(uuid) {
                    slot.state = State::Leased(id);
                }
            }
            self.pool.leases.insert(id, holding);
        }
    }

    /// Releases are compared with looks and with now, never with each other.
    fn shrink_gaps(&mut self) {
        let mut old: Vec<Duration> = self.looks.iter().map(|(taken_at, _)| *taken_at).collect();
        old.extend(self.pool.last_look);
        old.push(self.now);
        old.sort();
        let mut new = vec![10 * SECOND];
        for pair in old.windows(2) {
            new.push(new[new.len() - 1] + (pair[1] - pair[0]).min(LONGEST_GAP));
        }
        let shrunk = |time: Duration| {
            let next = old.partition_point(|anchor| *anchor < time);
            new[next] - (old[next] - time).min(LONGEST_GAP)
        };
        for slot in self.pool.slots.values_mut() {
            if let State::Reclaiming { since } = &mut slot.state {
                *since = shrunk(*since);
            }
        }
        self.looks.iter_mut().for_each(|(taken_at, _)| *taken_at = shrunk(*taken_at));
        self.pool.last_look = self.pool.last_look.map(shrunk);
        self.now = shrunk(self.now);
    }
}

fn snapshot(truth: &[Truth]) -> GpuSnapshot {
    let facts = |(index, truth): (usize, &Truth)| GpuFacts {
        ordinal: index as u32,
        uuid: format!("GPU-{index}"),
        name: String::new(),
        pci_bus_id: String::new(),
        total_bytes: 10,
        free_bytes: if *truth == Truth::Dirty { 0 } else { 10 },
        used_bytes: if *truth == Truth::Dirty { 10 } else { 0 },
        processes: None,
        locked: *truth == Truth::Locked,
        fault: (*truth == Truth::Failing).then(|| "fell off the bus".to_owned()),
    };
    let present = truth.iter().enumerate().filter(|(_, truth)| **truth != Truth::Gone);
    GpuSnapshot { gpus: present.map(facts).collect(), distances: Vec::new() }
}

/// How many states there are, or the first one that breaks a rule.
fn search(scope: &Scope) -> Result<usize, String> {
    let hash = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let start = World::new(scope).canonical();
    let mut seen = HashSet::from([hash(&start)]);
    let mut frontier = VecDeque::from([start]);
    while let Some(world) = frontier.pop_front() {
        world.must_serve_the_head(scope)?;
        for step in scope.steps(&world) {
            let mut next = world.clone();
            next.apply(&step, scope)?;
            let next = next.canonical();
            if seen.insert(hash(&next)) {
                frontier.push_back(next);
            }
        }
        if seen.len() > scope.at_most {
            return Err(format!("more than {} states: not finite, or too large a scope", scope.at_most));
        }
    }
    Ok(seen.len())
}

fn searched(scope: &Scope) -> usize {
    let states = search(scope).unwrap_or_else(|broken| panic!("{broken}"));
    eprintln!("{states} states");
    states
}

fn scope(gpus: usize, group_size: u32, ranges: i64) -> Scope {
    Scope {
        gpus,
        policy: Policy {
            group_size,
            reclaim_limit: 2 * SECOND,
            min_free_bytes: 10,
            max_used_bytes: 5,
            ..Policy::default()
        },
        ranges,
        truths: vec![vec![Truth::Clean, Truth::Dirty]; gpus],
        looks_in_flight: 1,
        cancels: false,
        driver_fails: false,
        at_most: 2_000_000,
    }
}

#[test]
fn two_gpus_and_three_ranges() {
    assert!(searched(&scope(2, 1, 3)) > 5_000);
}

/// One GPU changes by itself here; both do in `larger_machines`.
#[test]
fn looks_that_overtake_each_other() {
    let truths = vec![vec![Truth::Clean, Truth::Dirty], vec![]];
    assert!(searched(&Scope { truths, looks_in_flight: 2, ..scope(2, 1, 1) }) > 5_000);
}

#[test]
fn a_gpu_that_gets_locked_fails_and_vanishes() {
    use Truth::*;
    let truths = vec![vec![Clean, Dirty, Locked, Failing, Gone], vec![]];
    let scope = Scope { truths, cancels: true, driver_fails: true, ..scope(2, 1, 1) };
    assert!(searched(&scope) > 5_000);
}

#[test]
fn three_gpus_in_pairs() {
    let truths = vec![vec![Truth::Clean, Truth::Dirty], vec![Truth::Clean], vec![]];
    assert!(searched(&Scope { truths, cancels: true, ..scope(3, 2, 2) }) > 5_000);
}

/// Larger machines take minutes without optimisation: `cargo test --release -- --ignored search`.
#[test]
#[ignore = "minutes"]
fn larger_machines() {
    use Truth::*;
    searched(&scope(3, 1, 2));
    searched(&Scope { looks_in_flight: 2, ..scope(2, 1, 2) });
    let truths = vec![vec![Clean, Dirty, Locked, Failing, Gone], vec![Clean, Dirty]];
    searched(&Scope { truths, cancels: true, driver_fails: true, ..scope(2, 1, 2) });
    let truths = vec![vec![Clean, Dirty], vec![Clean], vec![], vec![Clean]];
    searched(&Scope { truths, cancels: true, ..scope(4, 2, 2) });
}

/// The search can fail: each mistake planted here is found.
#[test]
fn planted_bugs_are_found() {
    for (bug, complaint) in [
        (Bug::FreedAtRelease, "freed without a later look"),
        (Bug::OldLookTrusted, "freed without a later look"),
        (Bug::EligibilityIgnored, "granted what was not eligible"),
    ] {
        PLANTED.with(|planted| planted.set(Some(bug)));
        let outcome = search(&Scope { looks_in_flight: 2, ..scope(2, 1, 2) });
        PLANTED.with(|planted| planted.set(None));
        let found = outcome.expect_err("a planted bug went unnoticed");
        assert!(found.starts_with(complaint), "{bug:?}: {found}");
    }
}
