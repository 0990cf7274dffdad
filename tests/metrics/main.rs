//! Tests of the metrics that clients and sessions publish.
//!
//! These run in a process of their own, because the recorder belongs to the whole process. Each
//! test has clients of names of its own, and so series of its own.

mod clients;
mod names;
mod recorder;
mod sessions;
