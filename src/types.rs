//! The vocabulary every layer shares: ids, ranges, attempts, GPUs, and how things ended. No behaviour beyond
//! parsing and printing lives here.

pub mod layout;
pub mod shim;
pub mod state;
pub mod words;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A half-open range `[low, high)` of `data_id`; its name `low_high` is used in every file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RangeId {
    pub low: i64,
    pub high: i64,
}

impl RangeId {
    pub fn new(low: i64, high: i64) -> Self {
        Self { low, high }
    }

    pub fn contains(&self, id: i64) -> bool {
        self.low <= id && id < self.high
    }

    /// The drop-in name of the result file a worker writes for this range.
    pub fn result_file(&self) -> String {
        format!("generation_results_data_{}_to_{}_real.csv", self.low, self.high)
    }

    /// The copy of all rows that the original's worker writes at its very end.
    pub fn full_result_file(&self) -> String {
        format!("generation_results_data_{}_to_{}_real_full.csv", self.low, self.high)
    }

    /// The drop-in name of this range's state file.
    pub fn state_file(&self) -> String {
        format!("worker_args_{}_{}.json", self.low, self.high)
    }

    /// Reads `low_high` back, negative ids included.
    pub fn parse(name: &str) -> Option<Self> {
        let cut = name.char_indices().skip(1).find(|(_, c)| *c == '_')?.0;
        Some(Self { low: name[..cut].parse().ok()?, high: name[cut + 1..].parse().ok()? })
    }
}

impl fmt::Display for RangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.low, self.high)
    }
}

/// The n-th start of a worker for one range, counted from 1; numbers only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// One planned sample: how much of the input it is and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "IdRowsOnDisk", into = "IdRowsOnDisk")]
pub struct IdRows {
    pub id: i64,
    /// Input records carrying this id.
    pub rows: u64,
    /// Byte range `[start, end)` of its records in the input, where they are contiguous.
    pub span: Option<(u64, u64)>,
    /// Digest of its records in file order.
    pub digest: u64,
}

/// `[id, rows, [start, end] or null, digest]`: plans may hold a million of these.
type IdRowsOnDisk = (i64, u64, Option<(u64, u64)>, u64);

impl From<IdRowsOnDisk> for IdRows {
    fn from((id, rows, span, digest): IdRowsOnDisk) -> Self {
        Self { id, rows, span, digest }
    }
}

impl From<IdRows> for IdRowsOnDisk {
    fn from(sample: IdRows) -> Self {
        (sample.id, sample.rows, sample.span, sample.digest)
    }
}

/// One planned sample as the planner found it in the input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputIndex {
    pub header: Vec<String>,
    /// Ascending by id, each once.
    pub ids: Vec<IdRows>,
    pub rows: u64,
    pub bytes: u64,
}

/// A run of adjacent records of one id in a result file; `[start, end)` in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRun {
    pub id: i64,
    pub start: u64,
    pub end: u64,
    pub rows: u64,
}

/// What follows the last `\n` that ends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub start: u64,
    /// Its data_id, if that field is closed by a delimiter (so no byte of it can be missing).
    pub closed_id: Option<i64>,
    /// Its data_id if the end of the file is taken for the end of the record and it then has as many fields as
    /// the header and no open quote.
    pub whole_id: Option<i64>,
}

/// A record that no worker keeping the contract writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub byte: u64,
    pub line: u64,
    pub reason: String,
}

/// A result file as found on disk, before anything is decided about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardFacts {
    /// Parsed header fields; `None` for an empty file or a header without its newline.
    pub header: Option<Vec<String>>,
    /// First byte after the header.
    pub body: u64,
    /// Adjacent records of the same id are one run; an id that comes back starts a new one.
    pub runs: Vec<IdRun>,
    pub tail: Option<Tail>,
    /// The first malformed record; nothing behind it was read.
    pub malformed: Option<Malformed>,
    /// File length in bytes and CRC-32 of all of it.
    pub len: u64,
    pub crc: u32,
}

/// Accepted records of one result file: all rows of the planned ids in `ids` (inclusive), in `spans`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub ids: (i64, i64),
    pub spans: Vec<(u64, u64)>,
    pub rows: u64,
}

/// What was accepted of one attempt's result file, header excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub attempt: Attempt,
    /// Relative to the output folder; empty when the attempt proved that its ids yield no row.
    pub file: PathBuf,
    pub len: u64,
    pub crc: u32,
    pub segments: Vec<Segment>,
}

/// How a worker's leader process ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitOutcome {
    /// Ended by itself with this status.
    Code(i32),
    /// Ended by this signal.
    Signal(i32),
    /// A leased GPU's lock was held by somebody else; no worker was started.
    GpuBusy { gpu: String },
    /// The shim could not do its work (disk full, folder unwritable), so no worker was started.
    Environment { message: String },
    /// No exit record: the shim itself was killed or the machine stopped.
    Unknown,
}

impl fmt::Display for ExitOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::GpuBusy { gpu } => write!(f, "GPU {gpu} is held by another scheduler"),
            Self::Environment { message } => write!(f, "environment: {message}"),
            Self::Unknown => {
                write!(f, "ended without a record (killed together with its shim, or power loss)")
            }
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// What an attempt's end means for its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Non-zero exit or a signal that is not ours.
    Crash,
    /// Exit 0, but the result breaks the worker's contract.
    ContractBreach,
    /// The worker logged an error it swallowed; its output is not trusted.
    RejectedOutput,
    /// Exit status or exec error that no retry can mend.
    Configuration,
    /// The worker's own "try again later" (75).
    TryAgain,
    GpuBusy,
    /// Disk, folder or shim trouble; nobody's fault.
    Environment,
    /// Ended because we asked it to.
    Stopped,
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crash => "crash",
            Self::ContractBreach => "contract breach",
            Self::RejectedOutput => "rejected output",
            Self::Configuration => "configuration",
            Self::TryAgain => "try again later",
            Self::GpuBusy => "gpu busy",
            Self::Environment => "environment",
            Self::Stopped => "stopped",
        })
    }
}

/// One GPU of a lease, as it is exported to a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeasedGpu {
    /// Rank by PCI bus id, what goes into CUDA_VISIBLE_DEVICES.
    pub ordinal: u32,
    /// Identity for locks and state; `index-N` where there is no NVML, `sim-N` for simulated GPUs.
    pub uuid: String,
}

/// A group of GPUs that belongs to one range until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    pub id: LeaseId,
    pub gpus: Vec<LeasedGpu>,
}

/// What is known about one GPU at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct GpuFacts {
    /// Rank by PCI bus id, from 0.
    pub ordinal: u32,
    pub uuid: String,
    pub name: String,
    pub pci_bus_id: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub used_bytes: u64,
    /// Compute processes on it, where the driver tells.
    pub processes: Option<u32>,
    /// Its lock is held by a scheduler on this host (ours or another's).
    pub locked: bool,
    /// Why it cannot be used, in words, when the driver reports it as failing.
    pub fault: Option<String>,
}

/// All GPUs of the machine at one instant, ascending by ordinal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct GpuSnapshot {
    pub gpus: Vec<GpuFacts>,
    /// `distances[i][j]`: NVML's topology level between the i-th and the j-th of `gpus` (0 same board ... 50 system);
    /// empty where unknown.
    pub distances: Vec<Vec<u32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_names_round_trip_with_negative_ids() {
        for range in [RangeId::new(0, 8), RangeId::new(-5, -1), RangeId::new(-5, 3)] {
            assert_eq!(RangeId::parse(&range.to_string()), Some(range));
        }
        assert_eq!(RangeId::parse("12"), None);
        assert_eq!(RangeId::parse("a_b"), None);
    }
}
