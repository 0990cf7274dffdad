//! The C interface of tautline: what `include/tautline.h` declares.
//!
//! The header is made from this source by cbindgen, and `tests/header.rs` compares the two, so the
//! comments here are written for C programs. All of the project's unsafe code stands here.
//!
//! - `types`: the constants, enums and structs of the header
//! - `border`: what comes in is checked, and no panic gets out
//! - `handle`: opaque handles, which are told when they are used after they were freed
//! - the others: a type of the header each, with its functions

mod border;
mod callbacks;
mod client;
mod clock;
mod connection;
mod endpoint;
mod error;
mod events;
mod handle;
mod log;
mod options;
mod report;
mod settings;
mod types;
mod version;
mod views;
