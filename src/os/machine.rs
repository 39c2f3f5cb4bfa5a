//! This machine's GPUs as a user selected them, locks included.

use super::locks;
use super::nvml::Nvml;
use super::sim_gpus::{GivenGpus, SimGpus};
use crate::core::pool::{self, GpuSelection, Policy};
use crate::ports::{GpuError, Gpus};
use crate::types::GpuSnapshot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A source of GPUs with each GPU's lock probed.
pub struct LockedGpus {
    inner: Box<dyn Gpus>,
    lock_dir: PathBuf,
}

impl Gpus for LockedGpus {
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError> {
        let mut snapshot = self.inner.snapshot()?;
        for gpu in &mut snapshot.gpus {
            // A lock that cannot be probed is the shim's to refuse.
            gpu.locked = locks::is_held(&locks::gpu_lock(&self.lock_dir, &gpu.uuid)).unwrap_or(false);
        }
        Ok(snapshot)
    }
}

/// The GPUs of a run and what may be leased of them.
pub struct Machine {
    pub gpus: Arc<dyn Gpus>,
    pub policy: Policy,
    pub lock_dir: PathBuf,
    /// As seen at the start; absent when no GPU is wanted.
    pub seen: GpuSnapshot,
}

/// Opens the selected GPUs: NVML, simulated ones (locked inside `out`), or an explicit list taken as given where there
/// is no NVML.
///
/// # Errors
/// The driver is missing or does not answer, a listed GPU does not exist, or no folder for locks can be made.
pub fn open(
    selection: &GpuSelection,
    mut policy: Policy,
    lock_dir: Option<&Path>,
    out: &Path,
) -> Result<Machine, String> {
    let simulated = matches!(selection, GpuSelection::Simulated(_));
    let lock_dir = match (lock_dir, simulated) {
        (None, true) => out.join("locks"),
        (wanted, _) => locks::host_lock_dir(wanted),
    };
    if policy.group_size == 0 && !simulated {
        let gpus = Arc::new(SimGpus::new(0));
        return Ok(Machine { gpus, policy, lock_dir, seen: GpuSnapshot::default() });
    }
    let inner: Box<dyn Gpus> = match selection {
        GpuSelection::Simulated(count) => Box::new(SimGpus::new(*count)),
        GpuSelection::Auto => Box::new(Nvml::from_env().map_err(|error| error.to_string())?),
        GpuSelection::Listed(names) => {
            let nvml = Nvml::from_env().map_err(|error| error.to_string())?;
            match nvml.snapshot() {
                Err(GpuError::NoDriver(_)) => {
                    policy.trust = true;
                    Box::new(GivenGpus::new(pool::given(names)?))
                }
                _ => Box::new(nvml),
            }
        }
    };
    let gpus = Arc::new(LockedGpus { inner, lock_dir: lock_dir.clone() });
    let seen = gpus.snapshot().map_err(|error| error.to_string())?;
    let inherited = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    policy.allowed = pool::allowed(selection, inherited.as_deref(), &seen)?;
    Ok(Machine { gpus, policy, lock_dir, seen })
}
