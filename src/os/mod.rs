//! The only code that touches processes, devices, locks and files.

pub mod console;
pub mod files;
pub mod local;
pub mod locks;
pub mod machine;
pub mod nvml;
pub mod outputs;
pub mod process;
pub mod signals;
pub mod sim_gpus;
pub mod state_store;
