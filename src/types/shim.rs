//! How the scheduler starts a shim.

use super::{Attempt, RangeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Hidden subcommands under which the binary starts itself.
pub const SHIM: &str = "shim";
pub const TRAMPOLINE: &str = "trampoline";

/// What a shim is told on its standard input, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    pub out: PathBuf,
    pub range: RangeId,
    pub attempt: Attempt,
    pub scheduler_id: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Lock files of the leased GPUs in UUID order.
    pub gpu_locks: Vec<PathBuf>,
    pub log_cap: u64,
    pub grace: Duration,
    pub orphan_grace: Duration,
}
