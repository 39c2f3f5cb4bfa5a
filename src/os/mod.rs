//! The only code that touches processes, devices, locks and files.

pub mod nvml;
pub mod sim_gpus;
