//! Every decision of the program, as pure functions: no actix, no clock, no I/O.

pub mod command;
pub mod coverage;
pub mod invariants;
pub mod merge;
pub mod plan;
pub mod pool;
pub mod progress;
pub mod restart;
pub mod supervisor;
pub mod worker;
