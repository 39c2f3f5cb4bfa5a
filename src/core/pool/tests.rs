use super::eligibility::why_never;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn gpu(ordinal: u32) -> GpuFacts {
    GpuFacts {
        ordinal,
        uuid: format!("GPU-{ordinal}{ordinal}"),
        name: "NVIDIA H100".to_owned(),
        pci_bus_id: format!("00000000:{ordinal:02X}:00.0"),
        total_bytes: 80 * GIB,
        free_bytes: 80 * GIB,
        used_bytes: 0,
        processes: Some(0),
        locked: false,
        fault: None,
    }
}

fn with_used(ordinal: u32, used_bytes: u64) -> GpuFacts {
    GpuFacts { used_bytes, free_bytes: 80 * GIB - used_bytes, ..gpu(ordinal) }
}

fn machine(gpus: Vec<GpuFacts>) -> GpuSnapshot {
    GpuSnapshot { gpus, distances: Vec::new() }
}

fn range(low: i64) -> RangeId {
    RangeId::new(low, low + 8)
}

fn pairs() -> Policy {
    Policy::default()
}

fn singles() -> Policy {
    Policy { group_size: 1, ..Policy::default() }
}

/// A pool driven by whole seconds.
struct Driver {
    pool: Pool,
    policy: Policy,
    now: Duration,
}

impl Driver {
    fn new(policy: Policy) -> Self {
        Self { pool: Pool::new(), policy, now: SECOND }
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.now += SECOND;
        self.pool.decide(event, self.now, &self.policy)
    }

    fn request(&mut self, low: i64) {
        assert_eq!(self.tell(Event::Requested { range: range(low) }), vec![Action::Observe]);
    }

    /// A look that began just now.
    fn look(&mut self, gpus: Vec<GpuFacts>) -> Vec<Action> {
        let taken_at = self.now + SECOND;
        self.tell(Event::Observed { taken_at, seen: Ok(machine(gpus)) })
    }

    fn leased(&mut self, low: i64, gpus: Vec<GpuFacts>) -> Lease {
        self.request(low);
        match self.look(gpus).as_slice() {
            [Action::Granted { lease, .. }] => lease.clone(),
            other => panic!("not granted: {other:?}"),
        }
    }

    fn quarantined(&self) -> usize {
        self.pool.slots.values().filter(|slot| matches!(slot.state, State::Quarantined { .. })).count()
    }
}

fn ordinals(lease: &Lease) -> Vec<u32> {
    lease.gpus.iter().map(|gpu| gpu.ordinal).collect()
}

fn reason(actions: &[Action]) -> &str {
    match actions {
        [Action::Waiting { reason, .. }] => reason,
        other => panic!("no single reason: {other:?}"),
    }
}

#[test]
fn no_gpu_needed_is_granted_at_once() {
    let mut driver = Driver::new(Policy { group_size: 0, ..Policy::default() });
    let actions = driver.tell(Event::Requested { range: range(0) });
    let lease = Lease { id: LeaseId(0), gpus: Vec::new() };
    assert_eq!(actions, vec![Action::Granted { range: range(0), lease }]);
    assert_eq!(driver.tell(Event::Released { lease: LeaseId(0) }), vec![]);
}

#[test]
fn groups_are_granted_in_order_of_request_and_of_pci() {
    let mut driver = Driver::new(pairs());
    for low in [8, 0, 16] {
        driver.request(low);
    }
    driver.request(0);
    let actions = driver.look((0..5).map(gpu).collect());
    let [Action::Granted { range: first, lease: a }, Action::Granted { range: second, lease: b }, last] =
        actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    assert_eq!((*first, ordinals(a)), (range(8), vec![0, 1]));
    assert_eq!((*second, ordinals(b)), (range(0), vec![2, 3]));
    let text = "2 GPUs wanted, 1 free; GPU 0 leased to 8_16, GPU 1 leased to 8_16, GPU 2 leased to 0_8, \
                GPU 3 leased to 0_8";
    assert_eq!(*last, Action::Waiting { range: range(16), reason: text.to_owned() });
    assert_eq!(driver.look((0..5).map(gpu).collect()), vec![], "the same reason is not repeated");
}

#[test]
fn what_is_not_eligible_is_not_granted_and_named() {
    let locked = GpuFacts { locked: true, ..gpu(1) };
    let failing = GpuFacts { fault: Some("fell off the bus".to_owned()), ..gpu(2) };
    let full = GpuFacts { free_bytes: 4 * GIB, ..gpu(4) };
    let mut driver = Driver::new(pairs());
    driver.request(0);
    let actions = driver.look(vec![gpu(0), locked, failing, with_used(3, 2300 * MIB), full]);
    assert_eq!(
        reason(&actions),
        "2 GPUs wanted, 1 free; GPU 1 is locked by another scheduler on this host, \
         GPU 2 is failing: fell off the bus, GPU 3 holds 2300 MiB (limit 1000 MiB), \
         GPU 4 has 4.0 GiB free (10.0 GiB wanted)"
    );
    let gone = driver.look(vec![gpu(0)]);
    assert!(reason(&gone).contains("GPU 1 disappeared"), "{gone:?}");
}

#[test]
fn the_limits_of_eligibility_are_exact() {
    let free = |free_bytes| GpuFacts { free_bytes, ..gpu(0) };
    for (facts, expected) in [
        (with_used(0, 1000 * MIB - 1), None),
        (with_used(0, 1000 * MIB), Some("holds 1000 MiB (limit 1000 MiB)")),
        (free(10 * GIB), None),
        (free(10 * GIB - 1), Some("has 9.9 GiB free (10.0 GiB wanted)")),
    ] {
        assert_eq!(why_not(&facts, &pairs()).as_deref(), expected);
    }
}

#[test]
fn a_reason_does_not_change_with_every_breath_of_a_foreign_process() {
    let mut driver = Driver::new(singles());
    driver.request(0);
    assert_eq!(
        reason(&driver.look(vec![with_used(0, 2230 * MIB)])),
        "1 GPU wanted, 0 free; GPU 0 holds 2300 MiB (limit 1000 MiB)"
    );
    assert_eq!(driver.look(vec![with_used(0, 2290 * MIB)]), vec![]);
}

#[test]
fn a_released_gpu_waits_for_a_look_that_began_later() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0)]);
    driver.request(8);
    assert_eq!(driver.tell(Event::Released { lease: lease.id }), vec![Action::Observe]);
    let released_at = driver.now;
    for taken_at in [released_at - SECOND, released_at] {
        let actions = driver.tell(Event::Observed { taken_at, seen: Ok(machine(vec![gpu(0)])) });
        assert!(!actions.iter().any(|action| matches!(action, Action::Granted { .. })), "{actions:?}");
    }
    let actions = driver.look(vec![gpu(0)]);
    assert!(matches!(actions.as_slice(), [Action::Granted { .. }]), "{actions:?}");
}

#[test]
fn an_overtaken_look_is_dropped() {
    let mut driver = Driver::new(singles());
    driver.request(0);
    let _waiting = driver.look(vec![with_used(0, 2300 * MIB)]);
    let taken_at = driver.now - SECOND;
    assert_eq!(driver.tell(Event::Observed { taken_at, seen: Ok(machine(vec![gpu(0)])) }), vec![]);
}

#[test]
fn memory_that_does_not_come_back_is_quarantined_until_it_does() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0)]);
    let _observe = driver.tell(Event::Released { lease: lease.id });
    let released_at = driver.now;
    assert!(driver.pool.needs_look());
    driver.now = released_at + 57 * SECOND;
    assert_eq!(driver.look(vec![with_used(0, 2300 * MIB)]), vec![]);
    driver.now = released_at + 59 * SECOND;
    let gone_bad = LeasedGpu { ordinal: 0, uuid: "GPU-00".to_owned() };
    let reason = "memory not back after 60 s, 2300 MiB still in use".to_owned();
    let expected = Action::Quarantined { gpu: gone_bad.clone(), reason };
    assert_eq!(driver.look(vec![with_used(0, 2300 * MIB)]), vec![expected]);
    assert_eq!(driver.quarantined(), 1);
    driver.request(8);
    let actions = driver.look(vec![gpu(0)]);
    assert_eq!(actions[0], Action::Restored { gpu: gone_bad });
    assert!(matches!(actions[1], Action::Granted { .. }));
}

#[test]
fn memory_behind_a_foreign_lock_is_not_held_against_the_gpu() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0)]);
    let _observe = driver.tell(Event::Released { lease: lease.id });
    driver.now += 100 * SECOND;
    let taken_over = GpuFacts { locked: true, ..with_used(0, 70 * GIB) };
    assert_eq!(driver.look(vec![taken_over]), vec![]);
    assert_eq!(driver.quarantined(), 0);
}

#[test]
fn a_gpu_lost_after_its_release_is_quarantined_as_lost() {
    for (seen, expected) in [
        (vec![], "disappeared after its last worker and not back after 60 s"),
        (vec![GpuFacts { fault: Some("fell off the bus".to_owned()), ..gpu(0) }], "fell off the bus"),
    ] {
        let mut driver = Driver::new(singles());
        let lease = driver.leased(0, vec![gpu(0)]);
        let _observe = driver.tell(Event::Released { lease: lease.id });
        driver.now += 60 * SECOND;
        let actions = driver.look(seen);
        assert!(
            matches!(actions.as_slice(), [Action::Quarantined { reason, .. }] if reason == expected),
            "{actions:?}"
        );
    }
}

#[test]
fn a_gpu_found_busy_is_released_like_any_other_and_not_leased_while_locked() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0)]);
    assert_eq!(driver.tell(Event::Released { lease: lease.id }), vec![Action::Observe]);
    let released_at = driver.now;
    driver.request(0);
    let full = || with_used(0, 70 * GIB);
    let locked = |facts| GpuFacts { locked: true, ..facts };
    let busy = "is locked by another scheduler on this host";
    for (later, facts, obstacle) in [
        (2, locked(gpu(0)), busy),
        (20, full(), "has not given its memory back yet"),
        (100, locked(full()), busy),
        (101, full(), "holds 71700 MiB (limit 1000 MiB)"),
        (102, locked(gpu(0)), busy),
    ] {
        driver.now = released_at + (later - 1) * SECOND;
        let actions = driver.look(vec![facts]);
        assert_eq!(reason(&actions), format!("1 GPU wanted, 0 free; GPU 0 {obstacle}"), "after {later} s");
    }
    assert!(matches!(driver.look(vec![gpu(0)]).as_slice(), [Action::Granted { .. }]));
}

#[test]
fn the_companion_of_a_busy_gpu_is_leased_again_at_once() {
    let mut driver = Driver::new(pairs());
    let lease = driver.leased(0, (0..3).map(gpu).collect());
    assert_eq!(ordinals(&lease), vec![0, 1]);
    let _observe = driver.tell(Event::Released { lease: lease.id });
    let busy = GpuFacts { locked: true, ..gpu(0) };
    assert_eq!(ordinals(&driver.leased(0, vec![busy, gpu(1), gpu(2)])), vec![1, 2]);
}

#[test]
fn an_unknown_driver_state_grants_nothing_and_touches_no_lease() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0), gpu(1)]);
    driver.request(8);
    let taken_at = driver.now + SECOND;
    let wedged = "the NVIDIA driver does not answer (waited 5 s)".to_owned();
    let actions = driver.tell(Event::Observed { taken_at, seen: Err(wedged) });
    assert_eq!(
        reason(&actions),
        "no new leases while the state of the GPUs is unknown: the NVIDIA driver does not answer (waited 5 s)"
    );
    let holding = Holding { range: range(0), gpus: vec![gpu(0).uuid] };
    assert_eq!(driver.pool.leases, BTreeMap::from([(lease.id, holding)]));
}

#[test]
fn a_cancelled_request_is_not_granted() {
    let mut driver = Driver::new(singles());
    driver.request(0);
    driver.request(8);
    assert_eq!(driver.tell(Event::Cancelled { range: range(0) }), vec![]);
    let actions = driver.look(vec![gpu(0), gpu(1)]);
    assert!(matches!(actions.as_slice(), [Action::Granted { range: r, .. }] if *r == range(8)));
}

#[test]
fn identity_is_the_uuid_and_ordinals_are_the_newest() {
    let mut driver = Driver::new(singles());
    let lease = driver.leased(0, vec![gpu(0), gpu(1)]);
    assert_eq!(ordinals(&lease), vec![0]);
    driver.request(8);
    let swapped = vec![GpuFacts { ordinal: 0, ..gpu(1) }, GpuFacts { ordinal: 1, ..gpu(0) }];
    let actions = driver.look(swapped);
    let [Action::Granted { lease, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(lease.gpus, vec![LeasedGpu { ordinal: 0, uuid: "GPU-11".to_owned() }]);
}

#[test]
fn the_same_uuid_twice_is_one_gpu() {
    let mut driver = Driver::new(pairs());
    driver.request(0);
    assert!(reason(&driver.look(vec![gpu(0), gpu(0)])).starts_with("2 GPUs wanted, 1 free"));
}

#[test]
fn a_list_taken_as_given_needs_no_memory_but_respects_locks() {
    let mut driver = Driver::new(Policy { trust: true, ..singles() });
    let unknown = |locked| GpuFacts { total_bytes: 0, free_bytes: 0, locked, ..gpu(0) };
    driver.request(0);
    assert!(reason(&driver.look(vec![unknown(true)])).contains("locked by another scheduler"));
    assert!(matches!(driver.look(vec![unknown(false)]).as_slice(), [Action::Granted { .. }]));
}

#[test]
fn only_allowed_gpus_are_granted_counted_and_named() {
    let policy = Policy { allowed: Some(BTreeSet::from(["GPU-11".to_owned()])), ..singles() };
    let snapshot = machine(vec![gpu(0), gpu(1)]);
    assert_eq!(capacity(&snapshot, &policy), 1);
    assert_eq!(why_not(&gpu(0), &policy).as_deref(), Some("is left out by --gpus or CUDA_VISIBLE_DEVICES"));
    let mut driver = Driver::new(policy);
    driver.request(0);
    driver.request(8);
    let actions = driver.look(snapshot.gpus);
    let [Action::Granted { lease, .. }, Action::Waiting { reason, .. }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(ordinals(lease), vec![1]);
    assert_eq!(reason, "1 GPU wanted, 0 free; GPU 1 leased to 0_8");
}

#[test]
fn capacity_counts_what_could_ever_be_used() {
    let small = GpuFacts { total_bytes: 8 * GIB, free_bytes: 8 * GIB, ..gpu(2) };
    let failing = GpuFacts { fault: Some("fell off the bus".to_owned()), ..gpu(3) };
    let busy = GpuFacts { locked: true, ..with_used(1, 70 * GIB) };
    let snapshot = machine(vec![gpu(0), busy, small.clone(), failing]);
    assert_eq!(capacity(&snapshot, &pairs()), 2);
    assert_eq!(
        why_never(&small, &pairs()).as_deref(),
        Some("has 8.0 GiB of memory in all (10.0 GiB wanted free)")
    );
}
