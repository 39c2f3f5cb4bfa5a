//! What the pool is told, what it answers, and by which rules.

use crate::types::{GpuSnapshot, Lease, LeaseId, LeasedGpu, RangeId};
use std::collections::BTreeSet;
use std::time::Duration;

/// What the user asked for; constant for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// GPUs of one lease; 0 means that workers need none, and every request is granted an empty lease at once.
    pub group_size: u32,
    /// A GPU is eligible from this much free memory on ...
    pub min_free_bytes: u64,
    /// ... and while less than this is in use.
    pub max_used_bytes: u64,
    /// How long a released GPU may take to give its memory back before it is quarantined.
    pub reclaim_limit: Duration,
    /// UUIDs that may be leased (see [`super::allowed`]); `None` for all.
    pub allowed: Option<BTreeSet<String>>,
    /// An explicit list without NVML: memory is unknown and not asked for. Locks still apply.
    pub trust: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            group_size: 2,
            min_free_bytes: 10 << 30,
            max_used_bytes: 1000 << 20,
            reclaim_limit: Duration::from_secs(60),
            allowed: None,
            trust: false,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A range wants a lease. Asking again while still waiting changes nothing.
    Requested { range: RangeId },
    /// A waiting range wants none any more. A lease that was already granted has to be released.
    Cancelled { range: RangeId },
    /// The whole process tree that used the lease is gone, or never started.
    Released { lease: LeaseId },
    /// A look at the machine that *began* at `taken_at`, on the same clock as `now`.
    Observed { taken_at: Duration, seen: Result<GpuSnapshot, String> },
}

/// What has to be done about it.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Granted {
        range: RangeId,
        lease: Lease,
    },
    /// Said once per range and reason.
    Waiting {
        range: RangeId,
        reason: String,
    },
    /// Begin a look at the machine now, also when one that began earlier has not ended yet.
    Observe,
    Quarantined {
        gpu: LeasedGpu,
        reason: String,
    },
    Restored {
        gpu: LeasedGpu,
    },
}
