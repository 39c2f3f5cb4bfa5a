//! The documents in the output folder, each versioned and a superset of what the original program wrote.

use super::{Attempt, ExitOutcome, FailureClass, IdRows, Piece, RangeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of every document below; a newer one is refused rather than guessed at.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RangeStatus {
    /// Ids are left and no attempt is open: never started, or waiting for its next attempt.
    Pending,
    /// An attempt was named; its process may be alive.
    Running,
    /// Every id is accepted and the drop-in result file stands.
    Complete,
    /// `--max-failures` charged failures in a row without progress; the next run tries again.
    GivenUp,
    /// A later plan cut its ids anew.
    Superseded,
}

/// What the restart policy counts; survives a dead scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Charged failures since the last progress.
    pub charged_in_a_row: u32,
    /// Uncharged worker failures since the last charged one.
    pub uncharged: u32,
    /// Highest id ever accepted: only an id above it is progress.
    pub highest_accepted: Option<i64>,
    /// Workers started for this range.
    pub starts: u32,
}

/// An attempt that was named and not judged yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAttempt {
    pub number: Attempt,
    /// What it was asked to do, as its `--low` and `--high`.
    pub gap: RangeId,
    pub gpu_uuids: Vec<String>,
}

/// The last thing that went wrong, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    pub attempt: Attempt,
    pub class: FailureClass,
    pub outcome: ExitOutcome,
    pub message: String,
}

/// `worker_args_{low}_{high}.json`: everything known about one range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeState {
    pub low: i64,
    pub high: i64,
    pub gpu_ids: Vec<u32>,
    /// The newest attempt's command line, secrets masked.
    pub command: Vec<String>,
    pub scheduler_id: String,
    /// ISO 8601, when the newest attempt was named; empty before the first.
    pub start_time: String,
    pub version: u32,
    pub status: RangeStatus,
    pub open: Option<OpenAttempt>,
    /// Highest attempt number ever used.
    pub attempts: Attempt,
    pub counters: Counters,
    /// Accepted output; one piece in the output folder itself once complete.
    pub pieces: Vec<Piece>,
    pub last_failure: Option<LastFailure>,
}

impl RangeState {
    pub fn new(range: RangeId) -> Self {
        Self {
            low: range.low,
            high: range.high,
            gpu_ids: Vec::new(),
            command: Vec::new(),
            scheduler_id: String::new(),
            start_time: String::new(),
            version: VERSION,
            status: RangeStatus::Pending,
            open: None,
            attempts: Attempt(0),
            counters: Counters::default(),
            pieces: Vec::new(),
            last_failure: None,
        }
    }

    pub fn range(&self) -> RangeId {
        RangeId::new(self.low, self.high)
    }

    pub fn accepted_rows(&self) -> u64 {
        self.pieces.iter().flat_map(|piece| &piece.segments).map(|segment| segment.rows).sum()
    }

    pub fn accepts(&self, id: i64) -> bool {
        self.pieces.iter().flat_map(|piece| &piece.segments).any(|s| s.ids.0 <= id && id <= s.ids.1)
    }
}

/// `attempts/{low}_{high}.{n}.exit.json`: how an attempt ended, written by its shim before it lets go of the range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub version: u32,
    pub range: RangeId,
    pub attempt: Attempt,
    pub outcome: ExitOutcome,
    /// The shim had sent or received a stop signal before the leader ended, so exit 0 proves nothing.
    pub told_to_stop: bool,
    /// First line in which the worker admits an error it swallowed.
    pub swallowed_error: Option<String>,
    pub started_at: String,
    pub ended_at: String,
    /// Bytes of output the worker produced, and how many of them the log's cap cut.
    pub output_bytes: u64,
    pub cut_bytes: u64,
}

/// Who holds a lock, written into the lock file for people and for the next scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub what: String,
    pub host: String,
    pub boot_id: String,
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: with the boot id it makes a pid unique.
    pub start_ticks: u64,
    pub since: String,
    pub scheduler_id: String,
    pub attempt: Option<Attempt>,
    pub tmpdir: Option<String>,
    /// The pipe that the worker's output goes to: whoever still holds it belongs to the worker.
    #[serde(default)]
    pub output_inode: Option<u64>,
}

/// `plan.json`: which samples there are and how they are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFile {
    pub version: u32,
    pub input_path: String,
    pub input_bytes: u64,
    pub input_rows: u64,
    pub num_workers: u64,
    /// What makes two runs the same job, by name.
    pub job: BTreeMap<String, String>,
    pub ranges: Vec<RangeId>,
    pub ids: Vec<IdRows>,
}

/// One line of `merge_summary.json` per merged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedPart {
    pub file: String,
    pub rows: u64,
}

/// Ids that are not in the merged file, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    pub range: RangeId,
    pub missing_ids: Vec<i64>,
    pub reason: String,
    pub log: String,
}

/// `merge_summary.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeSummary {
    pub total_files_merged: u64,
    pub total_rows: u64,
    pub merge_timestamp: String,
    pub individual_files: Vec<MergedPart>,
    pub version: u32,
    pub complete: bool,
    /// Relative to the output folder; absent when there was no row at all.
    pub merged_file: Option<String>,
    pub merged_bytes: u64,
    pub merged_crc32: u32,
    pub planned_ids: u64,
    pub ids_without_rows: Vec<i64>,
    pub given_up: Vec<GivenUp>,
    /// Fields that held an unquoted carriage return and were quoted, so that readers take the record back.
    pub quoted_fields: u64,
    /// Ranges whose rows were not in order and were sorted.
    pub sorted_segments: u64,
}

/// `live.json`: what a live scheduler knows that no other document says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub version: u32,
    pub scheduler_id: String,
    /// Seconds since 1970 when the run began, and the input rows that were left then.
    pub began: i64,
    pub rows_left_then: u64,
    /// What a range that is not running waits for, by range.
    pub waiting: BTreeMap<String, String>,
}
