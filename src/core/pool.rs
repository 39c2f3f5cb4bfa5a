//! Which GPU is free, leased, reclaiming or quarantined, and who gets the next group.
//!
//! A pure state machine: facts go in as [`Event`]s, what has to be done comes out as [`Action`]s. Leases are granted
//! only while handling a fresh [`Event::Observed`], so nothing is ever granted on old knowledge.

mod eligibility;
mod events;
mod group;
pub mod invariants;
#[cfg(test)]
mod search;
mod selection;
#[cfg(test)]
mod tests;

pub use eligibility::{capacity, why_not};
pub use events::{Action, Event, Policy};
pub use selection::{GpuSelection, allowed, given, parse_selection};

use crate::types::{GpuFacts, GpuSnapshot, Lease, LeaseId, LeasedGpu, RangeId};
use eligibility::{is_allowed, mib};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// All GPUs seen so far, all leases, all waiting ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Pool {
    /// By UUID: indices may change when the driver is reloaded.
    slots: BTreeMap<String, Slot>,
    leases: BTreeMap<LeaseId, Holding>,
    queue: VecDeque<Waiter>,
    /// When the newest look began.
    last_look: Option<Duration>,
    next_lease: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot {
    /// As of the newest snapshot that had this GPU.
    ordinal: u32,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Free,
    Leased(LeaseId),
    /// Released then; its memory has not been seen back since.
    Reclaiming {
        since: Duration,
    },
    Quarantined {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holding {
    range: RangeId,
    /// UUIDs.
    gpus: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiter {
    range: RangeId,
    reason: String,
}

impl Slot {
    fn leased_gpu(&self, uuid: &str) -> LeasedGpu {
        LeasedGpu { ordinal: self.ordinal, uuid: uuid.to_owned() }
    }
}

impl Pool {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event into account. `now` is time since start, never decreasing.
    #[must_use]
    pub fn decide(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let actions = match event {
            Event::Requested { range } => self.request(range, policy),
            Event::Cancelled { range } => {
                self.queue.retain(|waiter| waiter.range != range);
                Vec::new()
            }
            Event::Released { lease } => self.release(lease, now),
            Event::Observed { taken_at, seen } => self.observe(taken_at, seen, policy),
        };
        debug_assert!(invariants::each_gpu_in_at_most_one_lease(self));
        actions
    }

    /// Whether anything waits for a look at the machine: ask for one every second or so while this holds.
    pub fn needs_look(&self) -> bool {
        !self.queue.is_empty()
            || self.slots.values().any(|slot| matches!(slot.state, State::Reclaiming { .. }))
    }

    fn request(&mut self, range: RangeId, policy: &Policy) -> Vec<Action> {
        if policy.group_size == 0 {
            return vec![self.grant(range, Vec::new())];
        }
        if !self.queue.iter().any(|waiter| waiter.range == range) {
            self.queue.push_back(Waiter { range, reason: String::new() });
        }
        vec![Action::Observe]
    }

    fn grant(&mut self, range: RangeId, uuids: Vec<String>) -> Action {
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        let mut gpus = Vec::new();
        for uuid in &uuids {
            if let Some(slot) = self.slots.get_mut(uuid) {
                slot.state = State::Leased(id);
                gpus.push(slot.leased_gpu(uuid));
            }
        }
        self.leases.insert(id, Holding { range, gpus: uuids });
        Action::Granted { range, lease: Lease { id, gpus } }
    }

    /// A lease that is not known has ended before: nothing to do.
    fn release(&mut self, id: LeaseId, now: Duration) -> Vec<Action> {
        let Some(holding) = self.leases.remove(&id) else { return Vec::new() };
        for uuid in &holding.gpus {
            if let Some(slot) = self.slots.get_mut(uuid) {
                slot.state = State::Reclaiming { since: now };
                if planted(Bug::FreedAtRelease) {
                    slot.state = State::Free;
                }
            }
        }
        if holding.gpus.is_empty() { Vec::new() } else { vec![Action::Observe] }
    }

    fn observe(
        &mut self,
        taken_at: Duration,
        seen: Result<GpuSnapshot, String>,
        policy: &Policy,
    ) -> Vec<Action> {
        // An answer that was overtaken by a newer one says nothing about now.
        if self.last_look.is_some_and(|last| taken_at < last) && !planted(Bug::OldLookTrusted) {
            return Vec::new();
        }
        self.last_look = Some(taken_at);
        match seen {
            Ok(snapshot) => {
                let mut actions = self.refresh(taken_at, &snapshot, policy);
                actions.extend(self.serve(&snapshot, policy));
                actions
            }
            Err(error) => {
                self.tell_all(&format!("no new leases while the state of the GPUs is unknown: {error}"))
            }
        }
    }

    /// Moves GPUs along that the snapshot has news about; leased ones are left alone.
    fn refresh(&mut self, taken_at: Duration, snapshot: &GpuSnapshot, policy: &Policy) -> Vec<Action> {
        for facts in &snapshot.gpus {
            let fresh = Slot { ordinal: facts.ordinal, state: State::Free };
            self.slots.entry(facts.uuid.clone()).or_insert(fresh).ordinal = facts.ordinal;
        }
        let mut actions = Vec::new();
        for (uuid, slot) in &mut self.slots {
            let facts = snapshot.gpus.iter().find(|facts| facts.uuid == *uuid);
            let next = slot.state.after_look(taken_at, facts, policy);
            let gpu = slot.leased_gpu(uuid);
            match (&slot.state, &next) {
                (State::Reclaiming { .. }, State::Quarantined { reason }) => {
                    actions.push(Action::Quarantined { gpu, reason: reason.clone() });
                }
                (State::Quarantined { .. }, State::Free) => actions.push(Action::Restored { gpu }),
                _ => {}
            }
            slot.state = next;
        }
        actions
    }

    /// First come, first served: the head of the queue waits until its group is there, and nobody overtakes it.
    fn serve(&mut self, snapshot: &GpuSnapshot, policy: &Policy) -> Vec<Action> {
        let size = policy.group_size as usize;
        let mut free = self.grantable(snapshot, policy);
        let mut actions = Vec::new();
        while free.len() >= size {
            let Some(head) = self.queue.pop_front() else { break };
            let group = group::closest(&free, size, &snapshot.distances);
            free.retain(|index| !group.contains(index));
            let uuids = group.into_iter().map(|index| snapshot.gpus[index].uuid.clone()).collect();
            actions.push(self.grant(head.range, uuids));
        }
        if !self.queue.is_empty() {
            let reason = self.shortage(free.len(), snapshot, policy);
            actions.extend(self.tell_all(&reason));
        }
        actions
    }

    /// Positions in the snapshot of what may be granted right now, ascending by ordinal.
    fn grantable(&self, snapshot: &GpuSnapshot, policy: &Policy) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let mut free: Vec<usize> = (0..snapshot.gpus.len())
            .filter(|&index| {
                let facts = &snapshot.gpus[index];
                let slot = self.slots.get(&facts.uuid);
                // A driver that reports one UUID twice must not get it leased twice.
                seen.insert(&facts.uuid)
                    && slot.is_some_and(|slot| slot.state == State::Free)
                    && (why_not(facts, policy).is_none() || planted(Bug::EligibilityIgnored))
            })
            .collect();
        free.sort_by_key(|&index| snapshot.gpus[index].ordinal);
        free
    }

    fn tell_all(&mut self, reason: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        for waiter in self.queue.iter_mut().filter(|waiter| waiter.reason != reason) {
            reason.clone_into(&mut waiter.reason);
            actions.push(Action::Waiting { range: waiter.range, reason: reason.to_owned() });
        }
        actions
    }

    /// `2 GPUs wanted, 1 free; GPU 3 leased to 0_8, GPU 5 holds 2300 MiB (limit 1000 MiB)`
    fn shortage(&self, free: usize, snapshot: &GpuSnapshot, policy: &Policy) -> String {
        let plural = if policy.group_size == 1 { "" } else { "s" };
        let mut text = format!("{} GPU{plural} wanted, {free} free", policy.group_size);
        let mut slots: Vec<_> = self.slots.iter().filter(|(uuid, _)| is_allowed(uuid, policy)).collect();
        slots.sort_by_key(|(_, slot)| slot.ordinal);
        let mut separator = "; ";
        for (uuid, slot) in slots {
            let facts = snapshot.gpus.iter().find(|facts| facts.uuid == **uuid);
            if let Some(obstacle) = self.obstacle(slot, facts, policy) {
                text += &format!("{separator}GPU {} {obstacle}", slot.ordinal);
                separator = ", ";
            }
        }
        text
    }

    fn obstacle(&self, slot: &Slot, facts: Option<&GpuFacts>, policy: &Policy) -> Option<String> {
        // What the world shows now says more than what the pool waits for.
        let unlocked = facts.is_some_and(|facts| !facts.locked);
        match &slot.state {
            State::Leased(id) => self.leases.get(id).map(|holding| format!("leased to {}", holding.range)),
            State::Quarantined { reason } => Some(format!("quarantined: {reason}")),
            State::Reclaiming { .. } if unlocked => Some("has not given its memory back yet".to_owned()),
            _ => facts.map_or(Some("disappeared".to_owned()), |facts| why_not(&coarse(facts), policy)),
        }
    }
}

impl State {
    fn after_look(&self, taken_at: Duration, facts: Option<&GpuFacts>, policy: &Policy) -> State {
        let eligible = facts.is_some_and(|facts| why_not(facts, policy).is_none());
        match self {
            // A look that began before the release saw the memory of an earlier moment.
            Self::Reclaiming { since } if taken_at > *since || planted(Bug::OldLookTrusted) => {
                let memory_back = facts.is_some_and(|facts| {
                    facts.fault.is_none()
                        && !facts.locked
                        && (policy.trust || facts.used_bytes < policy.max_used_bytes)
                });
                if memory_back {
                    Self::Free
                } else if taken_at < since.saturating_add(policy.reclaim_limit) {
                    self.clone()
                } else if facts.is_some_and(|facts| facts.locked) {
                    // By now that is the memory of whoever holds the lock.
                    Self::Free
                } else {
                    Self::Quarantined { reason: why_quarantined(facts, policy) }
                }
            }
            Self::Quarantined { .. } if eligible => Self::Free,
            _ => self.clone(),
        }
    }
}

fn why_quarantined(facts: Option<&GpuFacts>, policy: &Policy) -> String {
    let waited = policy.reclaim_limit.as_secs();
    match facts {
        None => format!("disappeared after its last worker and not back after {waited} s"),
        Some(GpuFacts { fault: Some(fault), .. }) => fault.clone(),
        Some(facts) => {
            format!("memory not back after {waited} s, {} MiB still in use", mib(facts.used_bytes))
        }
    }
}

/// Rounded, so that a foreign process whose memory breathes does not make a new reason every second.
fn coarse(facts: &GpuFacts) -> GpuFacts {
    let step = 100 << 20;
    GpuFacts { used_bytes: facts.used_bytes.div_ceil(step).saturating_mul(step), ..facts.clone() }
}

/// Mistakes that the exhaustive search must notice; no code outside of tests can switch one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    FreedAtRelease,
    OldLookTrusted,
    EligibilityIgnored,
}

#[cfg(not(test))]
fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
fn planted(bug: Bug) -> bool {
    search::PLANTED.with(|planted| planted.get() == Some(bug))
}
