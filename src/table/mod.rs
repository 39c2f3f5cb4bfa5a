//! CSV at full speed: scanning an input, judging a result file, merging.

pub mod merge;
pub mod scan;
pub mod shard;
