//! Splits one CSV into ranges of `data_id`, leases GPU groups, runs one worker process per range, restarts what
//! fails, resumes after anything, and merges one complete result. ARCHITECTURE.md is the map.
#![forbid(unsafe_code)]

pub mod actors;
pub mod app;
pub mod cli;
pub mod config;
pub mod core;
pub mod error;
pub mod messages;
pub mod os;
pub mod ports;
pub mod preflight;
pub mod settle;
pub mod shim;
pub mod status;
pub mod summary;
pub mod table;
pub mod types;
