//! What the actors need of the world. The real implementations live in `os` and `table`, the fakes in `tests/support`.

use crate::types::GpuSnapshot;
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
