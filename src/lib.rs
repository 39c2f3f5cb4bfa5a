//! Splits one CSV into ranges of `data_id`, leases GPU groups, runs one worker process per range, restarts what
//! fails, resumes after anything, and merges one complete result. ARCHITECTURE.md is the map.
#![forbid(unsafe_code)]

pub mod core;
pub mod os;
pub mod ports;
pub mod table;
pub mod types;
