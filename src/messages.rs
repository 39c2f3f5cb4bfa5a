//! Every message between actors, on one page. Facts are in the past tense, commands imperative; none has an answer
//! but another message, and each one about an attempt names it.

use crate::core::supervisor::{AttemptReport, End, StopCause};
use crate::ports::StoreError;
use crate::types::state::MergeSummary;
use crate::types::{Attempt, Lease, LeaseId, RangeId};
use actix::Message;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $($(#[$doc])* #[derive(Debug, Message)] #[rtype(result = "()")]
        pub struct $name { $(pub $field: $type),* })*
    };
}

// Supervisor -> GpuPool
messages! {
    RequestLease { range: RangeId }
    CancelLease { range: RangeId }
    ReleaseLease { lease: LeaseId }
}

// GpuPool -> Supervisor, Monitor
messages! {
    LeaseGranted { range: RangeId, lease: Lease }
    /// Nothing is free for the range; why, in words.
    LeaseDelayed { range: RangeId, reason: String }
}

// Supervisor -> Worker
messages! {
    RunAttempt { attempt: Attempt, lease: Lease }
    StopAttempt { attempt: Attempt, kill_now: bool }
    /// Write down that the range is given up.
    CloseRange {}
}

// Worker -> Supervisor, Monitor
messages! {
    AttemptStarted { range: RangeId, attempt: Attempt, lease: Lease, command: Vec<String> }
    TreeGone { range: RangeId, attempt: Attempt }
    AttemptEnded { range: RangeId, attempt: Attempt, report: AttemptReport }
    RangeClosed { range: RangeId }
}

// Supervisor -> Merge, Monitor; Merge -> Supervisor
messages! {
    RangeEnded { range: RangeId, end: End }
    MergeEnded { result: Result<Box<MergeSummary>, StoreError> }
}

// The world -> Supervisor
messages! {
    StopRequested { cause: StopCause }
}
