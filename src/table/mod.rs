//! CSV at full speed: scanning an input, judging a result file, merging.

mod blocks;
mod field;
pub mod merge;
mod record;
pub mod scan;
pub mod shard;
