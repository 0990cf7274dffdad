//! Tests of what users of the crate rely on, against scripted servers.

mod addresses;
mod batches;
mod callbacks;
mod closing;
mod decoding;
mod delivery;
mod dialing;
mod exchanges;
mod heartbeat;
mod keys;
mod limits;
mod naming;
mod openssl;
mod reconnecting;
mod responding;
mod sending;
mod session;
mod stopping;
mod support;
mod trust;
mod waking;
