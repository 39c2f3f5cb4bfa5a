//! What makes a GPU eligible, in numbers and in words.

use super::Policy;
use crate::types::{GpuFacts, GpuSnapshot};

/// Why this GPU would get no lease right now, as the rest of a sentence that starts with its name; `None` if it is
/// eligible. Whether one of our own leases holds it is the pool's business.
pub fn why_not(facts: &GpuFacts, policy: &Policy) -> Option<String> {
    if let Some(reason) = why_excluded(facts, policy) {
        return Some(reason);
    }
    if facts.locked {
        return Some("is locked by another scheduler on this host".to_owned());
    }
    if policy.trust {
        return None;
    }
    if facts.used_bytes >= policy.max_used_bytes {
        let (used, limit) = (mib(facts.used_bytes), mib(policy.max_used_bytes));
        return Some(format!("holds {used} MiB (limit {limit} MiB)"));
    }
    if facts.free_bytes < policy.min_free_bytes {
        let (free, wanted) = (gib(facts.free_bytes), gib(policy.min_free_bytes));
        return Some(format!("has {free} GiB free ({wanted} GiB wanted)"));
    }
    None
}

/// Why waiting would not help: this GPU is excluded, failing, or too small. `None` if it can be used some day.
pub(super) fn why_never(facts: &GpuFacts, policy: &Policy) -> Option<String> {
    why_excluded(facts, policy).or_else(|| {
        let too_small = !policy.trust && facts.total_bytes < policy.min_free_bytes;
        let (total, wanted) = (gib(facts.total_bytes), gib(policy.min_free_bytes));
        too_small.then(|| format!("has {total} GiB of memory in all ({wanted} GiB wanted free)"))
    })
}

/// How many GPUs could be leased once nobody else uses any; a larger group can never be granted.
pub fn capacity(snapshot: &GpuSnapshot, policy: &Policy) -> usize {
    snapshot.gpus.iter().filter(|facts| why_never(facts, policy).is_none()).count()
}

pub(super) fn is_allowed(uuid: &str, policy: &Policy) -> bool {
    policy.allowed.as_ref().is_none_or(|allowed| allowed.contains(uuid))
}

/// Rounded up, so that a figure over a limit never reads like the limit.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn why_excluded(facts: &GpuFacts, policy: &Policy) -> Option<String> {
    if !is_allowed(&facts.uuid, policy) {
        return Some("is left out by --gpus or CUDA_VISIBLE_DEVICES".to_owned());
    }
    facts.fault.as_ref().map(|fault| format!("is failing: {fault}"))
}

/// One decimal, rounded down, so that too little never reads like enough.
fn gib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 30;
    format!("{}.{}", tenths / 10, tenths % 10)
}
