//! What the actors need of the world. The real implementations live in `os`, the fakes in `tests/support`.

use crate::types::state::{ExitRecord, Live, MergeSummary, RangeState};
use crate::types::{Attempt, GpuSnapshot, Lease, Piece, RangeId, ShardFacts};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

/// Why the driver gave no answer.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum GpuError {
    #[error("no NVIDIA driver on this machine: {0}")]
    NoDriver(String),
    #[error("the NVIDIA driver does not answer (waited {} s)", .0.as_secs())]
    Wedged(Duration),
    #[error("the NVIDIA driver reports: {0}")]
    Driver(String),
}

/// The machine's GPUs, real or simulated.
pub trait Gpus: Send + Sync {
    /// A fresh look at every GPU. Blocks, but never beyond the implementation's deadline.
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError>;
}

/// A document or result file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is not a document of this program")]
    Garbage { path: PathBuf, source: serde_json::Error },
    #[error("{path} was written by a newer version ({found}) of this program")]
    Newer { path: PathBuf, found: u32 },
    #[error("range {0} is held by a running worker")]
    Held(RangeId),
    #[error("{0}")]
    Data(String),
}

/// The documents of one output folder. Every write is durable (file and folder) when it returns.
pub trait StateStore: Send + Sync {
    /// Writes a range's state, holding the range's lock meanwhile.
    fn save(&self, state: &RangeState) -> Result<(), StoreError>;
    fn load_all(&self) -> Result<Vec<RangeState>, StoreError>;
    /// Tells `status` what a live scheduler is doing. Readers never see half of it; it need not outlive a crash.
    fn save_live(&self, live: &Live) -> Result<(), StoreError>;
    /// How the attempt ended; `None` if its shim left no record.
    fn exit_record(&self, range: RangeId, attempt: Attempt) -> Result<Option<ExitRecord>, StoreError>;
    /// Last line the worker printed, for people; `None` if no worker was ever started.
    fn last_output(&self, range: RangeId, attempt: Attempt) -> Option<String>;
}

/// What an attempt left in its folder.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Its result file, relative to the output folder.
    pub file: Option<(PathBuf, ShardFacts)>,
    pub full_copy: bool,
    pub stray_file: Option<String>,
}

/// Workers' result files.
pub trait Outputs: Send + Sync {
    fn examine(&self, range: RangeId, attempt: Attempt, gap: RangeId) -> Result<Findings, StoreError>;
    /// Makes the drop-in file of a range all of whose ids are accepted; may be called again after a crash.
    fn assemble(&self, range: RangeId, pieces: &[Piece], ids: &[i64]) -> Result<Piece, StoreError>;
    /// Whether a piece's file still holds, byte for byte, what was judged.
    fn is_as_accepted(&self, piece: &Piece) -> bool;
    /// Removes the result files of attempts that the drop-in file replaces.
    fn discard(&self, range: RangeId, pieces: &[Piece]);
    /// Proves and writes the merged file and its summary from what every range has accepted.
    fn merge(&self, ranges: &[RangeState], ids: &[i64]) -> Result<MergeSummary, StoreError>;
}

/// Everything one attempt's process needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptJob {
    pub range: RangeId,
    pub attempt: Attempt,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub lease: Lease,
}

/// A started shim.
pub struct Started {
    /// Resolves when neither the shim nor anything below it is left.
    pub gone: Pin<Box<dyn Future<Output = ()>>>,
    /// Asks it to stop: with grace, or at once.
    pub stop: Box<dyn Fn(bool)>,
}

/// Starts attempts on this machine.
pub trait Processes {
    /// Starts the attempt's shim; returns as soon as it exists.
    fn start(&self, job: AttemptJob) -> std::io::Result<Started>;
}

/// Ends what a killed shim left behind.
pub trait Sweeper: Send + Sync {
    /// Blocks until no process of the attempt is left.
    fn sweep(&self, range: RangeId, attempt: Attempt);
}
