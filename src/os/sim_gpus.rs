//! GPUs that no driver tells about: simulated ones, and an explicit list that is taken as given.

use crate::ports::{GpuError, Gpus};
use crate::types::{GpuFacts, GpuSnapshot};

/// The memory of a simulated GPU.
const TOTAL_BYTES: u64 = 80 << 30;

/// `--gpus sim:N`: N GPUs `sim-0`, `sim-1`, ..., with 80 GiB each, always there and never in use by others.
#[derive(Debug, Clone)]
pub struct SimGpus {
    count: u32,
}

impl SimGpus {
    pub fn new(count: u32) -> Self {
        Self { count }
    }
}

impl Gpus for SimGpus {
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError> {
        let gpu = |ordinal| GpuFacts {
            name: "simulated".to_owned(),
            total_bytes: TOTAL_BYTES,
            free_bytes: TOTAL_BYTES,
            processes: Some(0),
            ..unknown(ordinal, format!("sim-{ordinal}"))
        };
        Ok(GpuSnapshot { gpus: (0..self.count).map(gpu).collect(), distances: Vec::new() })
    }
}

/// `--gpus 0,1,...` without NVML: these indices exist because the user says so (`index-N`), and nothing is known
/// about their memory. Goes with `Policy::trust`.
#[derive(Debug, Clone)]
pub struct GivenGpus {
    indices: Vec<u32>,
}

impl GivenGpus {
    pub fn new(mut indices: Vec<u32>) -> Self {
        indices.sort_unstable();
        indices.dedup();
        Self { indices }
    }
}

impl Gpus for GivenGpus {
    fn snapshot(&self) -> Result<GpuSnapshot, GpuError> {
        let gpu = |&ordinal: &u32| unknown(ordinal, format!("index-{ordinal}"));
        Ok(GpuSnapshot { gpus: self.indices.iter().map(gpu).collect(), distances: Vec::new() })
    }
}

fn unknown(ordinal: u32, uuid: String) -> GpuFacts {
    GpuFacts {
        ordinal,
        uuid,
        name: "unknown".to_owned(),
        pci_bus_id: String::new(),
        total_bytes: 0,
        free_bytes: 0,
        used_bytes: 0,
        processes: None,
        locked: false,
        fault: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_gpus_are_numbered_and_empty() {
        let snapshot = SimGpus::new(3).snapshot().expect("never fails");
        let names: Vec<_> = snapshot.gpus.iter().map(|gpu| (gpu.ordinal, gpu.uuid.as_str())).collect();
        assert_eq!(names, [(0, "sim-0"), (1, "sim-1"), (2, "sim-2")]);
        assert!(snapshot.gpus.iter().all(|gpu| gpu.free_bytes == 80 << 30 && gpu.used_bytes == 0));
    }

    #[test]
    fn a_given_list_keeps_its_indices() {
        let snapshot = GivenGpus::new(vec![5, 2, 5]).snapshot().expect("never fails");
        let names: Vec<_> = snapshot.gpus.iter().map(|gpu| (gpu.ordinal, gpu.uuid.as_str())).collect();
        assert_eq!(names, [(2, "index-2"), (5, "index-5")]);
    }
}
