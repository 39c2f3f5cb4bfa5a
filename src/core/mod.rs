//! Every decision of the program, as pure functions: no actix, no clock, no I/O.

pub mod pool;
