//! What must hold whatever happens; asserted by the search, and the first rule by debug builds too.

#[cfg(test)]
use super::{Action, Event, Policy, why_not};
use super::{Pool, State};
use std::collections::BTreeSet;

/// A GPU is in at most one lease, and leases and GPUs agree about that.
pub fn each_gpu_in_at_most_one_lease(pool: &Pool) -> bool {
    let mut seen = BTreeSet::new();
    let leased = |slot: &super::Slot| matches!(slot.state, State::Leased(_));
    pool.leases.iter().all(|(id, holding)| {
        holding.gpus.iter().all(|uuid| {
            seen.insert(uuid) && pool.slots.get(uuid).is_some_and(|slot| slot.state == State::Leased(*id))
        })
    }) && pool.slots.values().filter(|slot| leased(slot)).count() == seen.len()
}

/// Whatever was granted was eligible in the very snapshot it was granted on, and is a whole group.
#[cfg(test)]
pub fn granted_only_eligible(event: &Event, actions: &[Action], policy: &Policy) -> bool {
    actions.iter().all(|action| {
        let Action::Granted { lease, .. } = action else { return true };
        let distinct: BTreeSet<&str> = lease.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        let eligible = |uuid: &&str| match event {
            Event::Observed { seen: Ok(snapshot), .. } => {
                snapshot.gpus.iter().any(|facts| facts.uuid == **uuid && why_not(facts, policy).is_none())
            }
            _ => false,
        };
        distinct.len() == policy.group_size as usize && distinct.iter().all(eligible)
    })
}

/// A GPU comes back from a lease only through a look that began after the release.
#[cfg(test)]
pub fn released_only_after_a_later_look(before: &Pool, event: &Event, after: &Pool) -> bool {
    before.slots.iter().all(|(uuid, slot)| {
        let usable = after.slots.get(uuid).map(|slot| &slot.state);
        match (&slot.state, usable) {
            (State::Leased(_), Some(State::Free)) => false,
            (State::Reclaiming { since }, Some(State::Free | State::Leased(_))) => {
                matches!(event, Event::Observed { taken_at, seen: Ok(_) } if taken_at > since)
            }
            _ => true,
        }
    })
}

/// A request leaves the queue only by its grant or its cancellation, and nobody overtakes.
#[cfg(test)]
pub fn no_request_dropped(before: &Pool, event: &Event, actions: &[Action], after: &Pool) -> bool {
    let mut expected: Vec<_> = before.queue.iter().map(|waiter| waiter.range).collect();
    match event {
        Event::Requested { range } if !expected.contains(range) => expected.push(*range),
        Event::Cancelled { range } => expected.retain(|waiting| waiting != range),
        _ => {}
    }
    let granted = actions.iter().filter_map(|action| match action {
        Action::Granted { range, .. } => Some(*range),
        _ => None,
    });
    granted.chain(after.queue.iter().map(|waiter| waiter.range)).eq(expected)
}
